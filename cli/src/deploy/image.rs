//! From files to an image in the hub's registry. Must not know where the files come from.

use std::path::Path;

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tombolo_oci::build::{BuildOptions, FileEntry, Source};
use tombolo_oci::{
    BuiltImage, Client, Endpoint, HUB_HOST, ImageReference, Platform, Repository, RunConfig, Scheme, Store,
    Tag, Target, build_directory,
};

use crate::hub::Hub;

/// User of a program that is alone in its image: nobody's, as in other such images.
const NOBODY: &str = "65532:65532";

/// An image that was built, in a store of its own that goes with it.
#[derive(Debug)]
pub(crate) struct Built {
    image: BuiltImage,
    store: Store,
    _dir: TempDir,
}

impl Built {
    /// Compressed, for a person.
    pub(crate) fn size(&self) -> String {
        size(self.image.size)
    }
}

/// An image of one program, run with `arguments`.
pub(super) async fn of_program(program: &Path, arguments: &[String]) -> anyhow::Result<Built> {
    let content =
        tokio::fs::read(program).await.with_context(|| format!("{} cannot be read", program.display()))?;
    let name = program.file_name().context("a program has a name")?.to_string_lossy().into_owned();
    alone(name, content, arguments).await
}

/// An image of one program that is in memory.
pub(crate) async fn built_in_memory(name: &str, content: &[u8]) -> anyhow::Result<Built> {
    alone(name.to_owned(), content.to_vec(), &[]).await
}

/// An image of everything in a directory.
pub(super) async fn of_files(dir: &Path, command: Vec<String>) -> anyhow::Result<Built> {
    build(Source::Directory(dir.to_owned()), RunConfig { entrypoint: command, ..RunConfig::default() }).await
}

async fn alone(name: String, content: Vec<u8>, arguments: &[String]) -> anyhow::Result<Built> {
    let entrypoint = std::iter::once(format!("/{name}")).chain(arguments.iter().cloned()).collect();
    let config = RunConfig { entrypoint, user: NOBODY.to_owned(), ..RunConfig::default() };
    build(Source::Files(vec![FileEntry { path: name, executable: true, content }]), config).await
}

async fn build(source: Source, config: RunConfig) -> anyhow::Result<Built> {
    let options = BuildOptions { source, config, platform: Platform::host() };
    let built = tokio::task::spawn_blocking(move || {
        let dir = TempDir::with_prefix("tombolo-deploy-").context("no temporary directory can be made")?;
        let store = Store::open(dir.path())?;
        let image = build_directory(&options, &store)?;
        anyhow::Ok(Built { image, store, _dir: dir })
    });
    built.await.context("building the image was broken off")?.context("the image cannot be built")
}

/// Pushes the image to the hub's registry. Returns its name by digest, as a service must name it.
pub(crate) async fn push(hub: &Hub, namespace: &str, name: &str, built: &Built) -> anyhow::Result<String> {
    let Some(address) = hub.http_authority() else {
        bail!(
            "images are pushed over http:// only: name the hub so, or push with another program and deploy the image by its name"
        );
    };
    let repository: Repository = format!("{namespace}/{name}").parse()?;
    let client = Client::new(Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None })?;
    let digest = client.push(&built.store, &repository, &Tag::latest(), &built.image).await;
    let digest = digest.with_context(|| format!("pushing {repository} to the hub"))?;
    Ok(ImageReference { host: HUB_HOST.to_owned(), repository, target: Target::Digest(digest) }.to_string())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [(3, "3 bytes"), (2048, "2 KiB"), (1_572_864, "1.5 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[tokio::test]
    async fn the_same_program_is_the_same_image() {
        let [one, two] = [
            built_in_memory("hello", b"\x7fELF").await.unwrap(),
            built_in_memory("hello", b"\x7fELF").await.unwrap(),
        ];
        assert_eq!(one.image.manifest, two.image.manifest);
        let other = built_in_memory("hello", b"\x7fELF2").await.unwrap();
        assert_ne!(one.image.manifest, other.image.manifest);
    }

    #[tokio::test]
    async fn a_built_image_says_how_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("server"), "#!").unwrap();
        let files = of_files(dir.path(), vec!["/server".into(), "-x".into()]).await.unwrap();
        let program = of_program(&dir.path().join("server"), &["-y".into()]).await.unwrap();
        for (built, entrypoint, user) in
            [(&files, ["/server", "-x"], ""), (&program, ["/server", "-y"], NOBODY)]
        {
            let document = built.store.read_blob(&built.image.config, 65_536).unwrap();
            let config = tombolo_oci::image::Config::parse(&built.image.config, &document).unwrap();
            assert_eq!(
                (config.run.entrypoint.as_slice(), config.run.user.as_str()),
                (&entrypoint.map(str::to_owned)[..], user)
            );
            assert_eq!(config.platform, Platform::host());
        }
    }
}
