//! An image as the base of another: what its documents say, without its layers; a layer only where it is asked for.

use std::path::Path;

use oci_spec::image::ImageManifest;
use reqwest::Method;
use tokio::io::AsyncWriteExt as _;
use tombolo_api::Digest;

use super::{Client, TransferError, accept_manifests, blocking};
use crate::build::{Layer, oci_layer_type};
use crate::image::{self, Config, Document, ImageError, MAX_DOCUMENT, Platform, RunConfig};
use crate::reference::{Repository, Target};
use crate::store::{StoreError, digest_of, failed};

/// An image to build upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// Of the manifest for the platform.
    pub digest: Digest,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub run: RunConfig,
    pub platform: Platform,
}

impl Client {
    /// The documents of an image for `platform`. `mirrored` is the host of the registry it really is in, where this one gives
    /// other registries' images under it.
    pub async fn base_image(
        &self,
        repository: &Repository,
        target: &Target,
        mirrored: Option<&str>,
        platform: &Platform,
    ) -> Result<BaseImage, TransferError> {
        let (mut digest, mut content) = self.base_document(repository, target, mirrored).await?;
        if let Document::Index(entries) = Document::parse(&digest, &content)? {
            let chosen = Target::Digest(image::choose(&entries, platform)?.manifest.digest);
            (digest, content) = self.base_document(repository, &chosen, mirrored).await?;
        }
        let Document::Manifest(manifest) = Document::parse(&digest, &content)? else {
            return Err(image::nested(&digest).into());
        };
        let blob = manifest.config;
        let what = format!("{repository}@{}", blob.digest);
        let path = format!("{repository}/blobs/{}{}", blob.digest, of(mirrored));
        let answer = self.send(self.request(Method::GET, &path), &what).await?;
        let document = self.body(answer, blob.size.min(MAX_DOCUMENT), &what).await?;
        let actual = Digest::of(&document);
        if actual != blob.digest {
            return Err(StoreError::DigestMismatch { expected: blob.digest, actual }.into());
        }
        let config = Config::parse(&blob.digest, &document)?;
        config.check(&digest, &manifest, platform)?;
        let malformed =
            |error: oci_spec::OciSpecError| ImageError::Malformed { digest, reason: error.to_string() };
        let named = ImageManifest::from_reader(content.as_slice()).map_err(malformed)?;
        let layers = named.layers().iter().zip(&manifest.layers).zip(&config.diff_ids);
        let layers = layers.map(|((named, blob), diff_id)| Layer {
            media_type: oci_layer_type(named.media_type().as_ref()).to_owned(),
            digest: blob.digest,
            diff_id: *diff_id,
            size: blob.size,
        });
        Ok(BaseImage { digest, layers: layers.collect(), run: config.run, platform: config.platform })
    }

    async fn base_document(
        &self,
        repository: &Repository,
        target: &Target,
        mirrored: Option<&str>,
    ) -> Result<(Digest, Vec<u8>), TransferError> {
        let Some(host) = mirrored else {
            let (digest, content) = self.manifest(repository, target).await?;
            return Ok((digest, content.to_vec()));
        };
        let what = format!("{host}/{repository}:{target}");
        let path = format!("{repository}/manifests/{target}{}", of(mirrored));
        let answer = self.send(self.request(Method::GET, &path).headers(accept_manifests()), &what).await?;
        let content = self.body(answer, MAX_DOCUMENT, &what).await?;
        let digest = Digest::of(&content);
        match target.digest().filter(|expected| *expected != digest) {
            Some(expected) => Err(StoreError::DigestMismatch { expected, actual: digest }.into()),
            None => Ok((digest, content.to_vec())),
        }
    }

    /// Fetches a layer into a new file at `to`, verified.
    pub async fn fetch_layer(
        &self,
        repository: &Repository,
        mirrored: Option<&str>,
        layer: &Layer,
        to: &Path,
    ) -> Result<(), TransferError> {
        let what = format!("{repository}@{}", layer.digest);
        let path = format!("{repository}/blobs/{}{}", layer.digest, of(mirrored));
        let mut answer = self.send(self.request(Method::GET, &path), &what).await?;
        let mut file = tokio::fs::File::create(to).await.map_err(failed("create", to))?;
        let mut bytes = 0;
        let interrupted = |cause| TransferError::Interrupted { what: what.clone(), cause };
        while let Some(piece) = self.next_piece(&mut answer).await.map_err(interrupted)? {
            bytes += piece.len() as u64;
            if bytes > layer.size {
                let cause = format!("it is longer than the {} bytes it should have", layer.size);
                return Err(TransferError::Broken { what, cause });
            }
            file.write_all(&piece).await.map_err(failed("write", to))?;
        }
        file.flush().await.map_err(failed("write", to))?;
        let path = to.to_owned();
        let (actual, _) = blocking(move || {
            let read = failed("read", &path);
            std::fs::File::open(&path).and_then(|mut file| digest_of(&mut file)).map_err(read)
        })
        .await?;
        match actual == layer.digest {
            true => Ok(()),
            false => Err(StoreError::DigestMismatch { expected: layer.digest, actual }.into()),
        }
    }
}

/// As containerd asks a mirror for another registry's content.
fn of(mirrored: Option<&str>) -> String {
    mirrored.map(|host| format!("?ns={host}")).unwrap_or_default()
}
