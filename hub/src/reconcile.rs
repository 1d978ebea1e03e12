//! The reconciler: asks the core what should be written and what every node should hold, whenever anything it depends on
//! has changed.
//!
//! ```text
//! catalog, fleet, images, signatures ─▶ tombolo_hub_core::reconcile ─┬─ writes ───▶ catalog
//!                                                                    └─ placement ─▶ watch
//! ```
//!
//! Takes: four watches. Gives: writes, and the placement, which rests on what is durable only. Decides nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tombolo_hub_core::images::Images;
use tombolo_hub_core::signatures::Collection;
use tombolo_hub_core::{Fleet, Inputs, Object, Placement, Settings, Write};

use crate::catalog::{Catalog, Change, State, WriteError};
use crate::clock;
use crate::signatures::demands;

/// Passes in a row that wrote something, after which the next ones come slowly: a core that never settles must not keep
/// the disk busy.
const PASSES_MAX: u32 = 50;

/// Longest time without publishing while there is always something to write. A deployment takes a few passes, and a
/// placement of each would only be work for its nodes.
const UNPUBLISHED_MAX: Duration = Duration::from_millis(200);

/// Between passes that do not settle, and after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest sleep: bounds what a missed deadline could cost.
const IDLE: Duration = Duration::from_secs(60);

/// The task.
pub(crate) struct Reconciler {
    catalog: Catalog,
    state: watch::Receiver<Arc<State>>,
    fleet: watch::Receiver<Arc<Fleet>>,
    images: watch::Receiver<Arc<Images>>,
    signatures: watch::Receiver<Arc<Collection>>,
    settings: Settings,
    placement: watch::Sender<Arc<Placement>>,
    published: Instant,
    /// The newest version that this task wrote.
    written: u64,
    /// Passes in a row that wrote something, for no other reason than the one before.
    unsettled: u32,
    /// Told when the first placement is there.
    first: Option<oneshot::Sender<()>>,
}

/// How a pass ended.
enum Pass {
    /// There was nothing to write.
    Settled,
    /// Something was written, or has changed meanwhile: look again.
    Again,
}

impl Reconciler {
    /// The placement, what resolves once there is one, and the task that makes it.
    pub(crate) fn new(
        catalog: Catalog,
        fleet: watch::Receiver<Arc<Fleet>>,
        (images, signatures): (watch::Receiver<Arc<Images>>, watch::Receiver<Arc<Collection>>),
        settings: Settings,
    ) -> (watch::Receiver<Arc<Placement>>, impl Future<Output = ()>, Self) {
        let (placement, receiver) = watch::channel(Arc::default());
        let (sender, first) = oneshot::channel();
        let state = catalog.watch();
        let first = async {
            if first.await.is_err() {
                std::future::pending().await
            }
        };
        let reconciler = Self {
            catalog,
            state,
            fleet,
            images,
            signatures,
            settings,
            placement,
            published: Instant::now(),
            written: 0,
            unsettled: 0,
            first: Some(sender),
        };
        (receiver, first, reconciler)
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let sleep = match self.pass().await {
                Ok(Pass::Settled) => IDLE,
                Ok(Pass::Again) if self.unsettled < PASSES_MAX => continue,
                Ok(Pass::Again) => {
                    tracing::warn!(passes = self.unsettled, "the resources do not settle");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(PAUSE) => continue,
                    }
                }
                Err(WriteError::Stopped) => return stop.cancelled().await,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "what was decided cannot be kept"
                    );
                    PAUSE
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                changed = self.fleet.changed() => if changed.is_err() { return },
                changed = self.images.changed() => if changed.is_err() { return },
                changed = self.signatures.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    async fn pass(&mut self) -> Result<Pass, WriteError> {
        let state = self.state.borrow_and_update().clone();
        let fleet = self.fleet.borrow_and_update().clone();
        let images = self.images.borrow_and_update().clone();
        let signatures = self.signatures.borrow_and_update().clone();
        if state.version != self.written {
            // Somebody else has written: there is a reason for this pass.
            self.unsettled = 0;
        }
        let outcome = tombolo_hub_core::reconcile(&Inputs {
            snapshot: &state.snapshot,
            fleet: &fleet,
            images: &images,
            demands: &demands(&state),
            signatures: &signatures,
            settings: &self.settings,
            now: &clock::now_rfc3339(),
        });
        let settled = outcome.writes.is_empty();
        if settled || self.published.elapsed() >= UNPUBLISHED_MAX {
            self.publish(outcome.placement);
        }
        if settled {
            self.unsettled = 0;
            return Ok(Pass::Settled);
        }
        let (writes, version) = (outcome.writes, state.version);
        let (put, ()) =
            self.catalog.transact(move |now| Ok((changes(&writes, now, now.version == version), ()))).await?;
        let versions = put.iter().filter_map(|object| object.metadata().resource_version.parse().ok());
        self.written = versions.max().unwrap_or(self.written);
        self.unsettled += 1;
        Ok(Pass::Again)
    }

    fn publish(&mut self, placement: Placement) {
        self.published = Instant::now();
        self.placement.send_if_modified(|known| {
            let changed = **known != placement;
            if changed {
                *known = Arc::new(placement);
            }
            changed
        });
        if let Some(first) = self.first.take() {
            let _ = first.send(());
        }
    }
}

/// The changes that are still right. What is left out is decided anew by the next pass.
fn changes(writes: &[Write], state: &State, unchanged: bool) -> Vec<Change> {
    let mut changes = Vec::new();
    for write in writes {
        match write {
            Write::Create(object) if state.snapshot.get(object.kind(), &object.key()).is_none() => {
                // A child whose owner is gone would stay for ever.
                if unchanged || owner_lives(object, state) {
                    changes.push(Change::Put(object.clone()));
                }
            }
            Write::Update(object) => {
                let current = state.snapshot.get(object.kind(), &object.key());
                let version = |object: &Object| object.metadata().resource_version.clone();
                if current.is_some_and(|current| version(&current) == version(object)) {
                    changes.push(Change::Put(object.clone()));
                }
            }
            // Whether something is needed no more depends on everything.
            Write::Delete { kind, key, uid } if unchanged => {
                let found = state.snapshot.get(*kind, key).filter(|object| object.metadata().uid == *uid);
                changes.extend(found.iter().flat_map(|object| state.removal(object)));
            }
            Write::Create(_) | Write::Delete { .. } => {}
        }
    }
    changes
}

fn owner_lives(object: &Object, state: &State) -> bool {
    let Some(owner) = object.metadata().controller() else { return true };
    state.snapshot.all().any(|other| other.metadata().uid == owner.uid)
}

#[cfg(test)]
mod tests {
    use tombolo_api::meta::{ObjectMeta, OwnerReference};
    use tombolo_api::serving::{Route, RouteSpec};
    use tombolo_hub_core::{Key, Kind};

    use super::*;

    fn route(name: &str, uid: &str, version: &str, owner: &str) -> Object {
        let owner = OwnerReference { controller: true, uid: owner.into(), ..OwnerReference::default() };
        let owner_references = if owner.uid.is_empty() { Vec::new() } else { vec![owner] };
        let metadata = ObjectMeta {
            name: name.into(),
            namespace: "n".into(),
            uid: uid.into(),
            resource_version: version.into(),
            owner_references,
            ..ObjectMeta::default()
        };
        Object::Route(Arc::new(Route::new(metadata, RouteSpec::default())))
    }

    #[test]
    fn what_was_decided_on_another_state_is_left_out() {
        let mut state = State::default();
        state.snapshot.put(route("a", "ua", "5", ""));
        let delete =
            |uid: &str| Write::Delete { kind: Kind::Route, key: Key::new("n", "a"), uid: uid.into() };
        for (write, unchanged, right) in [
            (Write::Update(route("a", "ua", "5", "")), false, true),
            (Write::Update(route("a", "ua", "4", "")), false, false),
            (Write::Update(route("b", "ub", "4", "")), false, false),
            (Write::Create(route("b", "", "", "ua")), false, true),
            (Write::Create(route("b", "", "", "gone")), false, false),
            (Write::Create(route("a", "", "", "")), false, false),
            (delete("ua"), true, true),
            (delete("ua"), false, false),
            (delete("another"), true, false),
        ] {
            let changes = changes(std::slice::from_ref(&write), &state, unchanged);
            assert_eq!(!changes.is_empty(), right, "{write:?}");
        }
    }
}
