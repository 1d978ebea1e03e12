//! What the agent keeps in its store, and the only file that names the store.
//!
//! | key | value |
//! |---|---|
//! | `manifest` | the accepted manifest, as signed |
//! | `object/{hex}` | an object that manifest names |
//! | `ready/{namespace}/{name}` | digest of the revision object an instance of which has been ready |
//! | `rollouts` | how far the traffic of routes has moved |
//! | `takeovers` | which revisions are taking the place of others, and which were undone |
//! | `bundles` | which bundles are done with, and what is taken of one that is not |
//! | `refused` | the last refusal, and how many there were |
//! | `outbox`, `event/{seq}` | the outbox's name and next number, and its events |
//!
//! Manifest and objects change in one batch: a stop at any moment leaves the old state or the new one. It must not know
//! where manifests come from nor what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tombolo_api::report::{Event, Refused};
use tombolo_api::{Digest, RevisionKey};
use tombolo_store::{Batch, CommitError, OpenError, Recovery, Store};

use crate::accepted::unverified;

const MANIFEST: &str = "manifest";
const REFUSED: &str = "refused";
const OUTBOX: &str = "outbox";
const OBJECT: &str = "object/";
const READY: &str = "ready/";
const EVENT: &str = "event/";

/// The opened store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    store: Store,
}

/// A manifest and the contents of the objects it names, as they lie on a disk: not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) manifest: Vec<u8>,
    pub(crate) contents: BTreeMap<Digest, Vec<u8>>,
}

/// The last refusal and the number of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refusals {
    /// Since the store was made.
    pub(crate) count: u64,
    /// Absent once a manifest was accepted after it.
    pub(crate) last: Option<Refused>,
}

/// Which outbox this is, and the number of its next event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OutboxMeta {
    pub(crate) id: String,
    pub(crate) next_seq: u64,
}

/// What is kept as one value, whose content others know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Rollouts,
    Takeovers,
    Bundles,
    Footprints,
}

impl Record {
    fn key(self) -> &'static str {
        match self {
            Self::Rollouts => "rollouts",
            Self::Takeovers => "takeovers",
            Self::Bundles => "bundles",
            Self::Footprints => "footprints",
        }
    }
}

/// Why something could not be kept. What was kept before is untouched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("{0}: free space there, or move the state directory to a larger disk; what runs goes on")]
    DiskFull(CommitError),
    #[error(transparent)]
    Failed(CommitError),
}

impl From<CommitError> for KeepError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DiskFull { .. } => Self::DiskFull(error),
            error => Self::Failed(error),
        }
    }
}

impl Keep {
    /// Opens the store below `state_dir`. The text says what was damaged, if anything was.
    pub(crate) fn open(state_dir: &Path) -> Result<(Self, Option<String>), OpenError> {
        let (store, recovery) = Store::open(&state_dir.join("store"))?;
        let damage = (recovery != Recovery::Clean).then(|| recovery.to_string());
        Ok((Self { store }, damage))
    }

    /// The manifest and those of its objects that can be read.
    pub(crate) fn manifest(&self) -> Option<Kept> {
        let manifest = self.read(MANIFEST)?;
        let mut contents = BTreeMap::new();
        for entry in unverified(&manifest)?.objects {
            if let Some(content) = self.object(&entry.digest) {
                contents.insert(entry.digest, content);
            }
        }
        Some(Kept { manifest, contents })
    }

    /// An object's content, checked.
    pub(crate) fn object(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.read(&object_key(digest)).filter(|content| Digest::of(content) == *digest)
    }

    /// Makes `kept` the accepted manifest, in one step. `contents` may lack objects that are held already.
    pub(crate) async fn accept(&self, kept: &Kept) -> Result<(), KeepError> {
        let mut batch = Batch::new();
        let digests = |bytes: &[u8]| -> BTreeSet<Digest> {
            unverified(bytes)
                .map(|manifest| manifest.objects.iter().map(|entry| entry.digest).collect())
                .unwrap_or_default()
        };
        let wanted = digests(&kept.manifest);
        let held = self.read(MANIFEST).map(|bytes| digests(&bytes)).unwrap_or_default();
        for digest in held.difference(&wanted) {
            batch.delete(object_key(digest));
        }
        for (digest, content) in &kept.contents {
            if !held.contains(digest) || self.object(digest).is_none() {
                batch.put(object_key(digest), content.clone());
            }
        }
        batch.put(MANIFEST, kept.manifest.clone());
        let refusals = Refusals { last: None, ..self.refusals() };
        batch.put(REFUSED, json(&refusals));
        self.store.commit_async(batch).await.map_err(KeepError::from)
    }

    pub(crate) fn refusals(&self) -> Refusals {
        self.read(REFUSED).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(crate) async fn put_refusals(&self, refusals: &Refusals) -> Result<(), KeepError> {
        let mut batch = Batch::new();
        batch.put(REFUSED, json(refusals));
        self.store.commit_async(batch).await.map_err(KeepError::from)
    }

    /// Which revision objects have been ready on this node.
    pub(crate) fn ready(&self) -> BTreeMap<RevisionKey, Digest> {
        let read = |(key, value): (String, Vec<u8>)| {
            let (namespace, name) = key.strip_prefix(READY)?.split_once('/')?;
            let digest = std::str::from_utf8(&value).ok()?.parse().ok()?;
            Some((RevisionKey::new(namespace, name), digest))
        };
        self.scan(READY).into_iter().filter_map(read).collect()
    }

    /// Changes the record of ready revisions: `None` forgets one.
    pub(crate) async fn change_ready(
        &self,
        changes: &BTreeMap<RevisionKey, Option<Digest>>,
    ) -> Result<(), KeepError> {
        let mut batch = Batch::new();
        for (key, digest) in changes {
            let name = format!("{READY}{key}");
            match digest {
                Some(digest) => batch.put(name, digest.to_string().into_bytes()),
                None => batch.delete(name),
            };
        }
        self.store.commit_async(batch).await.map_err(KeepError::from)
    }

    /// A record, as last put.
    pub(crate) fn record(&self, record: Record) -> Option<Vec<u8>> {
        self.read(record.key())
    }

    pub(crate) async fn put_record(&self, record: Record, bytes: Vec<u8>) -> Result<(), KeepError> {
        let mut batch = Batch::new();
        batch.put(record.key(), bytes);
        self.store.commit_async(batch).await.map_err(KeepError::from)
    }

    /// The outbox as it was left, its events in order.
    pub(crate) fn outbox(&self) -> Option<(OutboxMeta, Vec<Event>)> {
        let meta = serde_json::from_slice(&self.read(OUTBOX)?).ok()?;
        let events =
            self.scan(EVENT).into_iter().filter_map(|(_, bytes)| serde_json::from_slice(&bytes).ok());
        Some((meta, events.collect()))
    }

    /// Changes the outbox in one step.
    pub(crate) async fn change_outbox(
        &self,
        meta: &OutboxMeta,
        add: &[Event],
        remove: &[u64],
    ) -> Result<(), KeepError> {
        let mut batch = Batch::new();
        for seq in remove {
            batch.delete(event_key(*seq));
        }
        for event in add {
            batch.put(event_key(event.seq), json(event));
        }
        batch.put(OUTBOX, json(meta));
        self.store.commit_async(batch).await.map_err(KeepError::from)
    }

    /// A value; one that cannot be read is as if it were not there, since all of them can be had again.
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.store.get(key).unwrap_or_else(|error| {
            tracing::warn!(key, %error, "a value in the store cannot be read");
            None
        })
    }

    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        self.store.scan(prefix).unwrap_or_else(|error| {
            tracing::warn!(prefix, %error, "values in the store cannot be read");
            Vec::new()
        })
    }
}

fn object_key(digest: &Digest) -> String {
    format!("{OBJECT}{}", digest.hex())
}

/// Fixed width, so that the order of keys is the order of events.
fn event_key(seq: u64) -> String {
    format!("{EVENT}{seq:020}")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is kept is plain data")
}

#[cfg(test)]
pub(crate) mod tests;
