//! Images: which digest each name in a spec means now.
//!
//! ```text
//! catalog ─▶ wanted names ─┬─ hub.tombolo/… ─▶ the own registry, at once; again whenever something is pushed
//!                          ├─ …@sha256:…    ─▶ known as it is
//!                          └─ others        ─▶ their registry, with a deadline; again after a failure, later each time
//! ```
//!
//! Takes: the catalog's state, pushes. Gives: results through a watch, of wanted names only. A name that is not wanted any
//! more is forgotten: the next one who wants it gets what it means then. Must not know what a result is used for.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_hub_core::images::{Images, Resolution, wanted};
use tombolo_oci::{HUB_HOST, ImageReference, Target, TransferError};

use crate::catalog::State;
use crate::lookups::{Lookup, Lookups};
use crate::registry::Registry;
use crate::upstream::{UpstreamError, Upstreams};

/// The task that resolves.
pub(crate) struct Resolver {
    registry: Registry,
    upstreams: Upstreams,
    state: watch::Receiver<Arc<State>>,
    images: watch::Sender<Arc<Images>>,
    /// Names at other registries, with the last result.
    foreign: Lookups<Option<Resolution>, Resolution>,
}

impl Resolver {
    /// The results, and the task that brings them.
    pub(crate) fn new(
        registry: Registry,
        upstreams: Upstreams,
        state: watch::Receiver<Arc<State>>,
    ) -> (watch::Receiver<Arc<Images>>, Self) {
        let (images, receiver) = watch::channel(Arc::default());
        (receiver, Self { registry, upstreams, state, images, foreign: Lookups::new() })
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pushes = self.registry.changes();
        loop {
            pushes.mark_unchanged();
            let state = self.state.borrow_and_update().clone();
            let due = self.pass(wanted(&state.snapshot)).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                changed = pushes.changed() => match changed {
                    Ok(()) => self.pushed(),
                    Err(_) => return,
                },
                Some(answered) = self.foreign.answered() => {
                    let failed = || Resolution::Unreachable("the hub failed to look it up".into());
                    self.foreign.take(answered, failed, finish);
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// What was not at the hub's registry may be now: where that is another one, it is asked at once.
    fn pushed(&mut self) {
        self.foreign.values_mut().filter(|lookup| lookup.image.host == HUB_HOST).for_each(Lookup::ask_sooner);
    }

    /// Looks at every wanted name once. Returns when the next one is due.
    async fn pass(&mut self, wanted: BTreeSet<String>) -> Instant {
        self.foreign.retain(|name| wanted.contains(name));
        let mut images = Images::new();
        let mut own = Vec::new();
        for name in wanted {
            match name.parse::<ImageReference>() {
                Err(error) => drop(images.insert(name, Resolution::Missing(error.to_string()))),
                Ok(reference) if reference.host == HUB_HOST && !self.upstreams.is_external() => {
                    own.push((name, reference));
                }
                Ok(reference) if reference.target.digest().is_some() => {
                    images.insert(name, Resolution::Resolved(pinned(&reference, reference.target.clone())));
                }
                Ok(reference) => {
                    let lookup = self.foreign.entry(&name, || Lookup::new(reference, None));
                    images.extend(lookup.known.clone().map(|result| (name, result)));
                }
            }
        }
        images.extend(self.own(own).await);
        self.images.send_if_modified(|known| {
            let changed = **known != images;
            if changed {
                *known = Arc::new(images);
            }
            changed
        });
        let upstreams = self.upstreams.clone();
        self.foreign.start_due(move |image| look_elsewhere(upstreams.clone(), image), late)
    }

    /// Resolves names of the hub's own registry.
    async fn own(&self, names: Vec<(String, ImageReference)>) -> Images {
        if names.is_empty() {
            return Images::new();
        }
        let registry = self.registry.clone();
        let looked = tokio::task::spawn_blocking(move || {
            names.into_iter().map(|(name, reference)| (name, look(&registry, &reference))).collect()
        });
        looked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "looking up images failed");
            Images::new()
        })
    }
}

/// Takes in what another registry answered.
fn finish(lookup: &mut Lookup<Option<Resolution>>, result: Resolution) {
    tracing::debug!(image = %lookup.image, ?result, "looked up an image");
    if matches!(result, Resolution::Resolved(_)) {
        lookup.done()
    } else {
        lookup.ask_later()
    }
    lookup.known = Some(result);
}

fn look(registry: &Registry, reference: &ImageReference) -> Resolution {
    match registry.resolve(reference) {
        Ok(Some(digest)) => Resolution::Resolved(pinned(reference, Target::Digest(digest))),
        Ok(None) => Resolution::Missing(format!(
            "{reference} is not in the hub's registry: push it with `tombolo deploy`, or correct the name"
        )),
        Err(error) => Resolution::Unreachable(format!("the hub's registry cannot be read: {error}")),
    }
}

async fn look_elsewhere(upstreams: Upstreams, reference: ImageReference) -> Resolution {
    match upstreams.resolve(&reference).await {
        Ok(digest) => Resolution::Resolved(pinned(&reference, Target::Digest(digest))),
        Err(error @ TransferError::NotFound { .. }) => Resolution::Missing(format!("{reference}: {error}")),
        Err(error) => {
            Resolution::Unreachable(format!("{reference}: {error}{}", UpstreamError::advice(&error)))
        }
    }
}

fn late(reference: &ImageReference, seconds: u64) -> Resolution {
    Resolution::Unreachable(format!("{reference}: the registry did not answer within {seconds} s"))
}

/// `host/repository@sha256:…`
fn pinned(reference: &ImageReference, target: Target) -> String {
    ImageReference { target, ..reference.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistryConfig;

    #[tokio::test]
    async fn a_registry_that_is_away_is_told_and_asked_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nothing listens on the discard port.
        let image: ImageReference = "127.0.0.1:9/a:v1".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (_state, catalog) = watch::channel(Arc::default());
        let upstreams = Upstreams::open(dir.path(), &RegistryConfig::default(), catalog).unwrap();
        let mut lookup = Lookup::new(image.clone(), None);
        finish(&mut lookup, look_elsewhere(upstreams, image).await);
        assert!(matches!(lookup.known, Some(Resolution::Unreachable(_))), "{:?}", lookup.known);
        assert!(lookup.due().is_some_and(|due| due > Instant::now()));
    }
}
