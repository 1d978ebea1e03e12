//! The hub's registry, as a build needs it: what a base image says, and where a built image goes.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tombolo_api::Digest;
use tombolo_oci::{
    BaseImage, Client, Endpoint, HUB_HOST, ImageReference, Platform, PushBlob, PushContent, Repository,
    Scheme, StoreError, Tag, Target, TransferError,
};

use super::base::Place;
use super::image::{Image, Part, Whence};
use crate::hub::Hub;

#[derive(Clone, Debug)]
pub(crate) struct Registry {
    client: Client,
}

/// What a push did.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    /// By digest, as a service must name it.
    pub(crate) image: String,
    /// Blobs that were not there.
    pub(crate) sent: BTreeSet<Digest>,
}

impl Registry {
    pub(crate) fn of(hub: &Hub) -> anyhow::Result<Self> {
        let Some(address) = hub.http_authority() else {
            bail!(
                "images are pushed over http:// only: name the hub so, or push with another program and deploy the image by its name"
            );
        };
        let client = Client::new(Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None })?;
        Ok(Self { client })
    }

    pub(super) async fn base(&self, place: &Place, target: &Target) -> Result<BaseImage, TransferError> {
        let mirrored = place.mirrored.as_deref();
        self.client.base_image(&place.repository, target, mirrored, &Platform::host()).await
    }

    /// Makes the registry hold the image. What it has is not sent.
    pub(crate) async fn push(
        &self,
        image: &mut Image,
        repository: &Repository,
        tag: &Tag,
    ) -> anyhow::Result<Pushed> {
        let sent = loop {
            let blobs = image.parts.iter().map(blob).collect();
            let manifest = Bytes::from(image.manifest.clone());
            match self.client.push_parts(repository, tag, blobs, manifest).await {
                Ok(sent) => break sent,
                // A layer of the base that the registry does not have: it goes over this machine, once.
                Err(TransferError::Store(StoreError::Missing(digest)))
                    if image.parts.iter().any(|part| part.digest == digest && part.is_away()) =>
                {
                    self.bring(image, &digest).await?;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("pushing {repository} to the hub"));
                }
            }
        };
        let (repository, target) = (repository.clone(), Target::Digest(image.digest()));
        let image = ImageReference { host: HUB_HOST.to_owned(), repository, target }.to_string();
        Ok(Pushed { image, sent: sent.into_iter().collect() })
    }

    /// Brings the content of all layers of the base here.
    pub(super) async fn bring_all(&self, image: &mut Image) -> anyhow::Result<()> {
        let away: Vec<_> = image.parts.iter().filter(|part| part.is_away()).map(|part| part.digest).collect();
        for digest in away {
            self.bring(image, &digest).await?;
        }
        Ok(())
    }

    async fn bring(&self, image: &mut Image, digest: &Digest) -> anyhow::Result<()> {
        let to = image.scratch().join(digest.hex());
        for part in image.parts.iter_mut().filter(|part| part.digest == *digest) {
            let Whence::Registry(place, layer) = &part.whence else { continue };
            let fetched =
                self.client.fetch_layer(&place.repository, place.mirrored.as_deref(), layer, &to).await;
            fetched.with_context(|| format!("fetching a layer of the base image, {digest}"))?;
            part.whence = Whence::File(to.clone());
        }
        Ok(())
    }
}

fn blob(part: &Part) -> PushBlob {
    let content = match &part.whence {
        Whence::File(path) => PushContent::File(path.clone()),
        Whence::Memory(content) => PushContent::Memory(content.clone()),
        Whence::Registry(place, _) => PushContent::Elsewhere(place.repository.clone()),
    };
    PushBlob { digest: part.digest, content }
}
