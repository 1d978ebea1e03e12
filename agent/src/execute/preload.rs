//! Images that revisions name to be there ahead of need: fetched one after the other while nothing waits for another image. One
//! task. Must not know why they are wanted.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tombolo_api::Digest;
use tombolo_api::desired::RevisionObject;
use tombolo_api::serving::keys;
use tombolo_oci::ImageReference;

use super::collect::Wanted;
use super::pulls::Need;
use super::{Inner, Trouble, image};

/// Before what could not be had is tried again. Nobody waits for it.
const RETRY: Duration = Duration::from_secs(60);

/// What a revision's annotation names. Admission has read it; what was kept before it could is nobody's loss.
pub(super) fn named(object: &RevisionObject) -> impl Iterator<Item = (Digest, ImageReference)> + '_ {
    let text = object.annotations.get(keys::PRELOAD).map(String::as_str).unwrap_or_default();
    text.split([',', ' ']).filter_map(|name| {
        let reference: ImageReference = name.parse().ok()?;
        Some((reference.target.digest()?, reference))
    })
}

/// The task; ends with the executor.
pub(super) async fn run(inner: Weak<Inner>, mut wanted: watch::Receiver<Wanted>) {
    loop {
        let all = wanted.borrow_and_update().preload.clone();
        let mut missing = false;
        for (digest, reference) in all {
            let Some(inner) = inner.upgrade() else { return };
            if let Err(trouble) = load(&inner, digest, &reference).await {
                tracing::info!(%reference, reason = trouble.reason, message = trouble.message, "an image is not loaded ahead yet");
                missing = true;
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if missing => {}
        }
    }
}

async fn load(inner: &Arc<Inner>, digest: Digest, reference: &ImageReference) -> Result<(), Trouble> {
    inner.pulls.idle().await;
    let _kept = inner.collecting.read().await;
    if image::look_up(inner, digest).await?.is_none() {
        image::fetch(inner, reference, digest, Need::Ahead).await.map_err(|failure| failure.trouble)?;
        tracing::info!(%reference, "an image was loaded ahead of need");
    }
    Ok(())
}
