//! A registry, the hub's or another one, as a build needs it: what a base image says, and where a built image goes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tombolo_api::Digest;
use tombolo_oci::{
    BaseImage, Client, Endpoint, HUB_HOST, ImageReference, Platform, PushBlob, PushContent, Repository,
    Scheme, StoreError, Tag, Target, TransferError,
};

use super::base::Place;
use super::credentials;
use super::image::{Image, Part, Whence};
use crate::hub::Hub;
use crate::steps::Steps;
use crate::tls::Trust;

/// Attempts of one push, and the wait before the second, doubled for each further one: a hub that starts anew is back within
/// seconds, and what it took until then it has.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct Registry {
    client: Client,
    address: String,
    /// By which images of it are named.
    host: String,
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
    /// The hub's.
    pub(crate) fn of(hub: &Hub) -> anyhow::Result<Self> {
        let address = hub.authority();
        let auth = credentials::of(&address);
        let endpoint = Endpoint { scheme: hub.scheme(), address: address.clone(), auth, server_name: None };
        Ok(Self { client: Client::new(endpoint)?, address, host: HUB_HOST.to_owned() })
    }

    /// Another one, whose user and password are where container tools keep them. Reads files.
    pub(super) fn at(host: &str, plain_http: bool, trust: &Trust) -> anyhow::Result<Self> {
        let scheme = match plain_http || is_this_machine(host) {
            true => Scheme::Http,
            false => Scheme::Https(Arc::new(trust.config()?)),
        };
        let auth = credentials::of(host);
        let address = host.to_owned();
        let endpoint = Endpoint { scheme, address: address.clone(), auth, server_name: None };
        Ok(Self { client: Client::new(endpoint)?, address, host: host.to_owned() })
    }

    /// Whether it answers: found out before minutes of building.
    pub(super) async fn is_there(&self, repository: &Repository, tag: &Tag) -> anyhow::Result<()> {
        match self.client.resolve(repository, &Target::Tag(tag.clone())).await {
            Err(error @ (TransferError::Unreachable { .. } | TransferError::Timeout { .. })) => {
                Err(error).context("nothing was built, as nothing could be pushed (--no-push builds only)")
            }
            _ => Ok(()),
        }
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
        steps: Steps,
    ) -> anyhow::Result<Pushed> {
        let (mut attempt, mut pause) = (1, PAUSE);
        let sent = loop {
            let blobs = image.blobs().map(blob).collect();
            let manifest = Bytes::from(image.manifest.clone());
            match self.client.push_parts(repository, tag, blobs, manifest).await {
                Ok(sent) => break sent,
                // A layer of the base that the registry does not have: it goes over this machine, once.
                Err(TransferError::Store(StoreError::Missing(digest)))
                    if image.parts.iter().any(|part| part.digest == digest && part.is_away()) =>
                {
                    self.bring(image, &digest).await?;
                }
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    steps.say(&format!("{error}: trying again in {} s", pause.as_secs()));
                    tokio::time::sleep(pause).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
                Err(error) => return Err(self.failed(error, repository)),
            }
        };
        let (repository, target) = (repository.clone(), Target::Digest(image.digest()));
        let image = ImageReference { host: self.host.clone(), repository, target }.to_string();
        Ok(Pushed { image, sent: sent.into_iter().collect() })
    }

    /// Says what to do.
    fn failed(&self, error: TransferError, repository: &Repository) -> anyhow::Error {
        let place = if self.host == HUB_HOST { "the hub" } else { &self.host };
        let address = &self.address;
        let advice = match &error {
            TransferError::Unauthorized { .. } => {
                format!(" (give `podman login {address}` or `docker login {address}` its user and password)")
            }
            error if error.is_retryable() => {
                " (type the same again once it answers: only what it lacks is sent then)".to_owned()
            }
            _ => String::new(),
        };
        anyhow::Error::new(error).context(format!("pushing {repository} to {place}{advice}"))
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

/// Registries of this machine speak plain HTTP, as every container tool assumes.
fn is_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_of_this_machine_are_known_by_their_address() {
        for (host, expected) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost", true),
            ("10.0.0.1:5000", false),
            ("localhost.example:5000", false),
        ] {
            assert_eq!(is_this_machine(host), expected, "{host}");
        }
    }
}
