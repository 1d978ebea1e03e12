//! A Dockerfile, through a program that understands it: buildah, podman or docker, the first that is there. What it builds
//! comes out as an OCI layout, from which it is pushed like any other image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;
use tombolo_api::Digest;
use tombolo_oci::image::{Document, MAX_DOCUMENT, Manifest};

use super::detect::DOCKERFILES;
use super::tools;

const BUILDERS: [&str; 3] = ["buildah", "podman", "docker"];

/// An image as such a program gave it.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    pub(super) content: Vec<u8>,
    pub(super) manifest: Manifest,
}

impl Layout {
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Makes it the same image for the same files, whoever built it and when.
    fn settle(&mut self) -> anyhow::Result<()> {
        let mut manifest: Value = serde_json::from_slice(&self.content)?;
        let config = settled(&fs::read(self.blob(&self.manifest.config.digest))?)?;
        let digest = Digest::of(&config);
        fs::write(self.blob(&digest), &config)?;
        manifest["config"]["digest"] = digest.to_string().into();
        manifest["config"]["size"] = config.len().into();
        // Of an intermediate image, where the base is `scratch`.
        if let Some(annotations) = manifest["annotations"].as_object_mut() {
            annotations.retain(|name, _| !name.starts_with("org.opencontainers.image.base."));
        }
        self.content = manifest.to_string().into_bytes();
        match Document::parse(&Digest::of(&self.content), &self.content)? {
            Document::Manifest(manifest) => self.manifest = manifest,
            Document::Index(_) => bail!("a manifest became an index"),
        }
        Ok(())
    }

    /// The one image of a layout in `dir`.
    fn read(dir: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            digest: Digest,
        }
        let read = |path: PathBuf| {
            let size = path.metadata().with_context(|| format!("{} is missing", path.display()))?.len();
            match size > MAX_DOCUMENT {
                true => bail!("{} is too large for a document", path.display()),
                false => fs::read(&path).with_context(|| format!("{} cannot be read", path.display())),
            }
        };
        let index: Index =
            serde_json::from_slice(&read(dir.join("index.json"))?).context("its index is no good")?;
        let [only] = index.manifests.as_slice() else {
            bail!("it holds {} images, not one", index.manifests.len())
        };
        let layout = |content, manifest| Self { dir: dir.to_owned(), content, manifest };
        let mut digest = only.digest;
        for _ in 0..2 {
            let content = read(dir.join("blobs/sha256").join(digest.hex()))?;
            match Document::parse(&digest, &content)? {
                Document::Manifest(manifest) => return Ok(layout(content, manifest)),
                Document::Index(entries) => {
                    let host = tombolo_oci::Platform::host();
                    digest = tombolo_oci::image::choose(&entries, &host)?.manifest.digest;
                }
            }
        }
        Err(anyhow!("its index leads to another one"))
    }
}

/// The program that would build, if there is one.
pub(super) fn builder() -> Option<PathBuf> {
    BUILDERS.into_iter().find_map(tools::find)
}

/// Builds `dir` and puts the image below `into`. Blocks.
pub(super) fn build(
    dir: &Path,
    into: &Path,
    labels: &BTreeMap<String, String>,
) -> anyhow::Result<(Layout, String)> {
    let program = builder().context(
        "a Dockerfile needs buildah, podman or docker, and there is none: install one (Debian: `apt install buildah`)",
    )?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = DOCKERFILES.into_iter().map(|name| dir.join(name)).find(|path| path.is_file());
    let file = file.with_context(|| format!("{} has no Dockerfile", dir.display()))?;
    let (id, out) = (into.join("id"), into.join("layout"));
    let mut build = Command::new(&program);
    build.arg("build").arg("--iidfile").arg(&id).arg("-f").arg(&file);
    if name != "docker" {
        // The same steps on the same files give the same image.
        build.args(["--layers", "--timestamp", "0"]);
    }
    for (name, value) in labels {
        build.arg("--label").arg(format!("{name}={value}"));
    }
    tools::run(build.arg(dir), &format!("building {}", file.display()))?;
    let id = fs::read_to_string(&id).with_context(|| format!("{name} does not say what it built"))?;
    let id = id.trim();
    if name == "docker" {
        let archive = into.join("image.tar");
        tools::run(Command::new(&program).arg("save").arg("-o").arg(&archive).arg(id), "saving the image")?;
        fs::create_dir(&out).context("a directory for the image cannot be made")?;
        tools::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&out), "unpacking the image")?;
    } else {
        let target = format!("oci:{}:image", out.display());
        tools::run(Command::new(&program).args(["push", "--quiet", id, &target]), "taking the image over")?;
    }
    let mut layout = Layout::read(&out).with_context(|| {
        format!("what {name} built is no OCI layout: use buildah, podman or a newer docker")
    })?;
    if name != "docker" {
        layout.settle().with_context(|| format!("what {name} built cannot be read"))?;
    }
    Ok((layout, name))
}

/// Takes out of a configuration what buildah writes of the files' owners and times, and of its own intermediate images.
fn settled(config: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(config).context("its configuration is no JSON")?;
    for step in config["history"].as_array_mut().into_iter().flatten() {
        let comment = step["comment"].as_str().unwrap_or_default();
        if comment.starts_with("FROM ")
            && let Some(step) = step.as_object_mut()
        {
            step.remove("comment");
        }
        if let Some(line) = step["created_by"].as_str() {
            let words = line.split(' ').map(|word| match word.split_once(':') {
                Some((kind @ ("file" | "dir" | "multi"), digest))
                    if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
                {
                    kind
                }
                _ => word,
            });
            step["created_by"] = words.collect::<Vec<_>>().join(" ").into();
        }
    }
    Ok(config.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_nothing_of_owners_times_and_intermediate_images() {
        let config = |hash: &str, id: &str| {
            let text = format!(
                r#"{{"os": "linux", "history": [
                    {{"created_by": "/bin/sh -c #(nop) COPY file:{hash} in /hello ", "comment": "FROM {id}"}},
                    {{"created_by": "/bin/sh -c make file:a", "comment": "by hand", "empty_layer": true}}, {{}}]}}"#
            );
            String::from_utf8(settled(text.as_bytes()).unwrap()).unwrap()
        };
        let one = config(&"0a".repeat(32), "ab0b525b4a70");
        assert_eq!(one, config(&"1b".repeat(32), "f95b570428f9"));
        assert!(one.contains("COPY file in /hello") && one.contains("make file:a"), "{one}");
        assert!(one.contains("by hand") && one.contains(r#""empty_layer":true"#), "{one}");
        assert!(settled(b"x").is_err());
    }
}
