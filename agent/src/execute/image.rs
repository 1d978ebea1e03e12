//! Images of revisions: looked up in the content store, fetched by digest where something is missing. A digest that is
//! present asks nothing of any registry.

use std::path::PathBuf;
use std::sync::Arc;

use tombolo_agent_core::bundle::{ImageDefaults, User};
use tombolo_api::Digest;
use tombolo_api::desired::RevisionObject;
use tombolo_oci::{
    BasicAuth, Client, Endpoint, HUB_HOST, ImageError, ImageReference, ImageSummary, Scheme, TransferError,
};

use super::pulls::Need;
use super::{Inner, Trouble, collect, lock, users};
use crate::enrol::causes;
use crate::tls;

/// What launching needs of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) image: Digest,
    /// Topmost first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) defaults: ImageDefaults,
    /// The image's user, if the image itself does not know who that is.
    pub(super) unknown_user: Option<String>,
}

/// Makes the image of `object` complete. `Ok(true)`: something had to be fetched.
pub(super) async fn prepare(
    inner: &Arc<Inner>,
    digest: Digest,
    object: &RevisionObject,
) -> Result<bool, Trouble> {
    let (reference, image) = reference(object)?;
    let need = Need::of(&object.annotations);
    let mut made_room = false;
    let (_kept, summary, fetched) = loop {
        let kept = inner.collecting.read().await;
        if let Some(summary) = look_up(inner, image).await? {
            break (kept, summary, false);
        }
        let failure = match fetch(inner, &reference, image, need).await {
            Ok(summary) => break (kept, summary, true),
            Err(failure) => failure,
        };
        drop(kept);
        // What nobody needs goes first, once; then it is said, and tried again later.
        match failure.room_needed {
            Some(needed) if !made_room && collect::make_room(inner, needed).await => made_room = true,
            _ => return Err(failure.trouble),
        }
    };
    let prepared = tokio::task::spawn_blocking(move || describe(image, summary)).await;
    let prepared = prepared.map_err(|error| Trouble::new("ImageStoreFailed", error.to_string()))?;
    lock(&inner.prepared).insert(digest, Arc::new(prepared));
    Ok(fetched)
}

/// The image a revision runs, with its digest.
pub(super) fn reference(object: &RevisionObject) -> Result<(ImageReference, Digest), Trouble> {
    let invalid = |message: String| Trouble::new("ImageReferenceInvalid", message);
    let container = object.spec.serving_container();
    let text = container.map(|container| container.image.as_str()).unwrap_or_default();
    let reference: ImageReference = text.parse().map_err(|error| invalid(format!("image: {error}")))?;
    let digest = reference.target.digest();
    let digest = digest.ok_or_else(|| {
        invalid(format!("image: {text:?} names no digest: the hub should have resolved it"))
    })?;
    Ok((reference, digest))
}

pub(super) async fn look_up(inner: &Arc<Inner>, image: Digest) -> Result<Option<ImageSummary>, Trouble> {
    let inner = inner.clone();
    let found = tokio::task::spawn_blocking(move || {
        tombolo_oci::image::summary(&inner.tools.images, &image, &inner.platform)
    });
    let found = found.await.map_err(|error| Trouble::new("ImageStoreFailed", error.to_string()))?;
    found.map_err(unfit)
}

/// Why an image could not be fetched.
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    /// Bytes that have to be free before it can be, if it was that.
    room_needed: Option<u64>,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, room_needed: None }
    }
}

/// Fetches an image, when its turn comes.
pub(super) async fn fetch(
    inner: &Arc<Inner>,
    reference: &ImageReference,
    image: Digest,
    need: Need,
) -> Result<ImageSummary, Failure> {
    let name = format!("{}/{}@{image}", reference.host, reference.repository);
    let pulled = inner.pulls.run((image, name.clone()), need, async |pace, progress| {
        let client = client(inner, &reference.host)?.with_pace(pace);
        let (store, repository) = (&inner.tools.images, &reference.repository);
        let client = if inner.tools.keeping.deltas { client } else { client.without_deltas() };
        Ok::<_, Trouble>(client.pull(store, repository, &image, &inner.platform, &progress).await)
    });
    let error = match pulled.await?? {
        Ok(summary) => return Ok(summary),
        Err(error) => error,
    };
    if let (TransferError::Paused, Err(waits)) = (&error, inner.pulls.allowed(&image, need)) {
        return Err(waits.into());
    }
    let full = if error.is_disk_full() { "; what runs goes on" } else { "" };
    let message = format!("cannot get image {name}: {}{full}", causes(&error));
    Err(Failure { trouble: Trouble::new(error.reason(), message), room_needed: error.room_needed() })
}

/// The hub's registry, which has other registries' images too: a node asks its hub only. It is named, not addressed: it moves
/// with the hub.
fn client(inner: &Inner, host: &str) -> Result<Client, Trouble> {
    let identity = inner.tools.identity.borrow().clone();
    let identity = identity.ok_or_else(|| {
        Trouble::new("NotEnrolled", "this node is not enrolled at its hub yet, and so has no registry to ask")
    })?;
    let config = tls::anonymous(&identity, inner.tools.floor.clone())
        .map_err(|error| Trouble::new("IdentityUnusable", error.to_string()))?;
    let enrolment = &identity.enrolment;
    let client = Client::new(Endpoint {
        scheme: Scheme::Https(Arc::new(config)),
        address: enrolment.registry.clone(),
        auth: Some(BasicAuth { user: enrolment.node.to_string(), password: enrolment.pull_token.clone() }),
        server_name: Some(tls::HUB_NAME.to_owned()),
    });
    let client = client.map_err(|error| Trouble::new(error.reason(), error.to_string()))?;
    Ok(if host == HUB_HOST { client } else { client.for_images_of(host) })
}

fn unfit(error: ImageError) -> Trouble {
    let error = TransferError::from(error);
    Trouble::new(error.reason(), causes(&error))
}

/// Reads files of the image's layers: blocks.
fn describe(image: Digest, summary: ImageSummary) -> Prepared {
    let run = summary.config;
    let passwd = users::account_file(&summary.layers, "passwd");
    let group = users::account_file(&summary.layers, "group");
    let user = users::resolve(&run.user, &passwd, &group);
    Prepared {
        image,
        layers: summary.layers,
        unknown_user: user.is_none().then(|| run.user.clone()),
        defaults: ImageDefaults {
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            working_dir: run.workdir,
            user: user.unwrap_or(User { uid: 0, gid: 0 }),
            accounts: users::accounts(&passwd),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tombolo_api::serving::{Container, RevisionSpec};

    use super::*;

    fn object(image: &str) -> RevisionObject {
        let container = Container { image: image.into(), ..Container::default() };
        RevisionObject {
            namespace: "default".into(),
            name: "a-00001".into(),
            uid: "u".into(),
            service: "a".into(),
            configuration: "a".into(),
            annotations: BTreeMap::new(),
            spec: RevisionSpec { containers: vec![container], ..RevisionSpec::default() },
            verification: None,
        }
    }

    #[test]
    fn images_are_named_by_digest() {
        let digest = Digest::of(b"x");
        let (reference, found) = reference(&object(&format!("hub.tombolo/hello@{digest}"))).unwrap();
        assert_eq!((reference.host.as_str(), found), (HUB_HOST, digest));
        for bad in ["", "hello", "hub.tombolo/hello:latest"] {
            assert_eq!(super::reference(&object(bad)).unwrap_err().reason, "ImageReferenceInvalid", "{bad}");
        }
    }
}
