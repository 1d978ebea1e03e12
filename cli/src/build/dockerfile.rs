//! A Dockerfile, through a program that understands it: buildah, podman or docker, the first that is there. What it builds
//! comes out as an OCI layout, from which it is pushed like any other image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
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
    let layout = Layout::read(&out).with_context(|| {
        format!("what {name} built is no OCI layout: use buildah, podman or a newer docker")
    })?;
    Ok((layout, name))
}
