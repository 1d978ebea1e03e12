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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_hub_core::images::{Images, Resolution, wanted};
use tombolo_oci::{HUB_HOST, ImageReference, Target, TransferError};

use crate::catalog::State;
use crate::registry::Registry;
use crate::upstream::Upstreams;

/// Lookups at other registries at one time.
const LOOKUPS_MAX: usize = 4;

/// Longest wait for another registry's answer, redirections and tokens included.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(30);

/// Pauses after failures: the first, and the longest. A registry that is down must not be hammered, one that is back must
/// be found soon.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// The task that resolves.
pub(crate) struct Resolver {
    registry: Registry,
    upstreams: Upstreams,
    state: watch::Receiver<Arc<State>>,
    images: watch::Sender<Arc<Images>>,
    /// Names at other registries.
    foreign: BTreeMap<String, Lookup>,
    running: JoinSet<(String, Resolution)>,
}

/// A name at another registry.
struct Lookup {
    reference: ImageReference,
    /// The last result, if there was one.
    result: Option<Resolution>,
    /// Failures in a row.
    failures: u32,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    Waiting { due: Instant },
    Running,
    Done,
}

impl Resolver {
    /// The results, and the task that brings them.
    pub(crate) fn new(
        registry: Registry,
        upstreams: Upstreams,
        state: watch::Receiver<Arc<State>>,
    ) -> (watch::Receiver<Arc<Images>>, Self) {
        let (images, receiver) = watch::channel(Arc::default());
        let (foreign, running) = (BTreeMap::new(), JoinSet::new());
        let resolver = Self { registry, upstreams, state, images, foreign, running };
        (receiver, resolver)
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
                Some(done) = self.running.join_next() => self.take(done),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// What was not at the hub's registry may be now: where that is another one, it is asked at once.
    fn pushed(&mut self) {
        for lookup in self.foreign.values_mut().filter(|lookup| lookup.reference.host == HUB_HOST) {
            if let Step::Waiting { due } = &mut lookup.step {
                *due = Instant::now();
            }
        }
    }

    /// Looks at every wanted name once. Returns when the next one is due.
    async fn pass(&mut self, wanted: BTreeSet<String>) -> Instant {
        self.foreign.retain(|name, _| wanted.contains(name));
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
                    let lookup = self.foreign.entry(name.clone()).or_insert_with(|| Lookup::new(reference));
                    images.extend(lookup.result.clone().map(|result| (name, result)));
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
        self.start_due()
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

    /// Starts the lookups that are due, as many as may run. Returns when the next one is due.
    fn start_due(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (name, lookup) in &mut self.foreign {
            let Step::Waiting { due } = lookup.step else { continue };
            if due > now {
                next = next.min(due);
            } else if self.running.len() < LOOKUPS_MAX {
                lookup.step = Step::Running;
                let (name, reference) = (name.clone(), lookup.reference.clone());
                let upstreams = self.upstreams.clone();
                self.running.spawn(async move {
                    let result = look_elsewhere(&upstreams, &reference).await;
                    (name, result)
                });
            }
        }
        // With all places taken, the next one begins when one ends.
        next
    }

    fn take(&mut self, done: Result<(String, Resolution), tokio::task::JoinError>) {
        let (name, result) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "looking up an image failed");
                // It does not say which one: all are tried again, later.
                let failed = Resolution::Unreachable("the hub failed to look it up".into());
                return self.foreign.values_mut().for_each(|lookup| lookup.finish(failed.clone()));
            }
        };
        if let Some(lookup) = self.foreign.get_mut(&name) {
            tracing::debug!(image = name, ?result, "looked up an image");
            lookup.finish(result);
        }
    }
}

impl Lookup {
    fn new(reference: ImageReference) -> Self {
        Self { reference, result: None, failures: 0, step: Step::Waiting { due: Instant::now() } }
    }

    fn finish(&mut self, result: Resolution) {
        if !matches!(self.step, Step::Running) {
            return;
        }
        self.step = if matches!(result, Resolution::Resolved(_)) {
            Step::Done
        } else {
            let due = Instant::now() + pause(self.failures);
            self.failures = self.failures.saturating_add(1);
            Step::Waiting { due }
        };
        self.result = Some(result);
    }
}

/// The pause after so many failures in a row before this one.
fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
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

async fn look_elsewhere(upstreams: &Upstreams, reference: &ImageReference) -> Resolution {
    let asked = tokio::time::timeout(LOOKUP_DEADLINE, upstreams.resolve(reference)).await;
    match asked {
        Ok(Ok(digest)) => Resolution::Resolved(pinned(reference, Target::Digest(digest))),
        Ok(Err(error @ TransferError::NotFound { .. })) => {
            Resolution::Missing(format!("{reference}: {error}"))
        }
        Ok(Err(error)) => Resolution::Unreachable(format!("{reference}: {error}")),
        Err(_) => {
            let limit = LOOKUP_DEADLINE.as_secs();
            Resolution::Unreachable(format!("{reference}: the registry did not answer within {limit} s"))
        }
    }
}

/// `host/repository@sha256:…`
fn pinned(reference: &ImageReference, target: Target) -> String {
    ImageReference { target, ..reference.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegistryConfig;

    #[test]
    fn pauses_grow_to_their_limit() {
        assert_eq!(pause(0), PAUSE_MIN);
        assert_eq!(pause(1), PAUSE_MIN * 2);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[tokio::test]
    async fn a_failure_is_tried_again_later() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nothing listens on the discard port.
        let mut lookup = Lookup::new("127.0.0.1:9/a:v1".parse().unwrap());
        lookup.step = Step::Running;
        let dir = tempfile::tempdir().unwrap();
        let (_state, catalog) = watch::channel(Arc::default());
        let upstreams = Upstreams::open(dir.path(), &RegistryConfig::default(), catalog).unwrap();
        lookup.finish(look_elsewhere(&upstreams, &lookup.reference).await);
        assert!(matches!(lookup.result, Some(Resolution::Unreachable(_))), "{:?}", lookup.result);
        assert!(matches!(lookup.step, Step::Waiting { due } if due > Instant::now()));
    }
}
