//! What is remembered of bundles: those that are done with, so that a stick that stays plugged in is not imported again and
//! again, and what was taken of one that is not done yet, so that it is not collected before the rest comes.
//!
//! Kept in the agent's store, as one value. What cannot be read is forgotten, which costs another look at a bundle.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tombolo_api::Digest;
use tombolo_api::manifest::Version;

use crate::keep::{Keep, Record};

/// Bundles that are remembered: more sticks than lie in a drawer.
const SETTLED_MAX: usize = 32;

/// Content that must not be collected though nothing in force wants it yet: blobs and unpacked layers, by digest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins(Arc<Mutex<BTreeSet<Digest>>>);

impl Pins {
    /// What is pinned now.
    pub(crate) fn all(&self) -> BTreeSet<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, digests: BTreeSet<Digest>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }
}

/// The book of bundles.
#[derive(Debug)]
pub(crate) struct Bundles {
    keep: Keep,
    state: State,
    /// What `under_way` pins, and a while longer: until something newer is in force, so that there is no moment in between.
    pins: Pins,
    pinned_for: Option<Version>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    /// Digests of their `index.json`, the newest last.
    settled: Vec<Digest>,
    under_way: Option<UnderWay>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UnderWay {
    version: Version,
    pins: BTreeSet<Digest>,
}

impl Bundles {
    /// As it was left.
    pub(crate) fn load(keep: &Keep, in_force: Option<Version>) -> Self {
        let bytes = keep.record(Record::Bundles).unwrap_or_default();
        let mut state: State = serde_json::from_slice(&bytes).unwrap_or_default();
        state.under_way = state.under_way.filter(|under_way| Some(under_way.version) > in_force);
        let pins = Pins::default();
        pins.set(state.under_way.as_ref().map(|under_way| under_way.pins.clone()).unwrap_or_default());
        let pinned_for = state.under_way.as_ref().map(|under_way| under_way.version);
        Self { keep: keep.clone(), state, pins, pinned_for }
    }

    pub(crate) fn pins(&self) -> Pins {
        self.pins.clone()
    }

    pub(super) fn is_settled(&self, id: &Digest) -> bool {
        self.state.settled.contains(id)
    }

    /// This one need not be looked at again.
    pub(super) async fn settle(&mut self, id: Digest) {
        if self.is_settled(&id) {
            return;
        }
        self.state.settled.push(id);
        let surplus = self.state.settled.len().saturating_sub(SETTLED_MAX);
        self.state.settled.drain(..surplus);
        self.write().await;
    }

    /// From now on this is kept for what will be in force then.
    pub(super) async fn begin(&mut self, version: Version, pins: BTreeSet<Digest>) {
        self.pins.set(pins.clone());
        self.pinned_for = Some(version);
        self.state.under_way = Some(UnderWay { version, pins });
        self.write().await;
    }

    /// Whatever was under way is in force, or will never be.
    pub(super) async fn in_force(&mut self, version: Version) {
        if self.pinned_for.is_some_and(|pinned_for| version > pinned_for) {
            self.pins.set(BTreeSet::new());
            self.pinned_for = None;
        }
        if self.state.under_way.as_ref().is_some_and(|under_way| version >= under_way.version) {
            self.state.under_way = None;
            self.write().await;
        }
    }

    /// That it cannot be written is no reason not to import: a restart would only look again, or copy again.
    async fn write(&self) {
        let bytes = serde_json::to_vec(&self.state).expect("a record is plain data");
        if let Err(error) = self.keep.put_record(Record::Bundles, bytes).await {
            tracing::warn!(%error, "cannot remember what was imported");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn remembers_over_restarts_and_pins_until_something_newer_is_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(dir.path()).unwrap();
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        let version = |generation| Version { epoch: 1, generation };
        let mut bundles = Bundles::load(&keep, None);
        for number in 0..=SETTLED_MAX {
            bundles.settle(digest(number)).await;
        }
        bundles.begin(version(5), BTreeSet::from([digest(0)])).await;
        let again = Bundles::load(&keep, Some(version(4)));
        assert!(
            !again.is_settled(&digest(0))
                && again.is_settled(&digest(1))
                && again.is_settled(&digest(SETTLED_MAX))
        );
        assert_eq!(again.pins().all(), BTreeSet::from([digest(0)]));
        assert_eq!(Bundles::load(&keep, Some(version(5))).pins().all(), BTreeSet::new());
        bundles.in_force(version(4)).await;
        bundles.in_force(version(5)).await;
        assert_eq!(bundles.pins().all(), BTreeSet::from([digest(0)]), "the executor may not know of it yet");
        bundles.in_force(version(6)).await;
        assert_eq!(bundles.pins().all(), BTreeSet::new());
        assert_eq!(Bundles::load(&keep, None).pins().all(), BTreeSet::new());
    }
}
