//! Which revisions have been ready on this node with their present object, so that a reboot does not start them all again to
//! prove themselves. Answers from memory; a task writes what changed behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tombolo_api::desired::Desired;
use tombolo_api::{Digest, RevisionKey};

use crate::keep::Keep;

/// Between attempts to write while the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

/// Handle of the record.
#[derive(Clone, Debug)]
pub(crate) struct ReadyRecord {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What should be on the disk.
    revisions: Mutex<BTreeMap<RevisionKey, Digest>>,
    changed: Notify,
}

impl ReadyRecord {
    /// The record as it was left.
    pub(crate) fn load(keep: &Keep) -> Self {
        Self { shared: Arc::new(Shared { revisions: Mutex::new(keep.ready()), changed: Notify::new() }) }
    }

    /// Whether an instance of the revision with this very object has been ready.
    pub(crate) fn contains(&self, key: &RevisionKey, object: &Digest) -> bool {
        self.lock().get(key) == Some(object)
    }

    pub(crate) fn insert(&self, key: &RevisionKey, object: &Digest) {
        self.lock().insert(key.clone(), *object);
        self.shared.changed.notify_one();
    }

    /// Forgets what is not desired any more.
    pub(crate) fn retain(&self, desired: &Desired) {
        let mut revisions = self.lock();
        let before = revisions.len();
        revisions
            .retain(|key, object| desired.revisions.get(key).is_some_and(|(digest, _)| digest == object));
        if revisions.len() != before {
            self.shared.changed.notify_one();
        }
    }

    /// The task that writes changes; runs for ever.
    pub(crate) async fn write(self, keep: Keep) {
        let mut written = keep.ready();
        loop {
            self.shared.changed.notified().await;
            loop {
                let wanted = self.lock().clone();
                let changes = difference(&written, &wanted);
                if changes.is_empty() {
                    break;
                }
                match keep.change_ready(&changes).await {
                    Ok(()) => written = wanted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot record which revisions have been ready, trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RevisionKey, Digest>> {
        self.shared.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn difference(
    old: &BTreeMap<RevisionKey, Digest>,
    new: &BTreeMap<RevisionKey, Digest>,
) -> BTreeMap<RevisionKey, Option<Digest>> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), None));
    let come = new.iter().filter(|(key, digest)| old.get(*key) != Some(digest));
    gone.chain(come.map(|(key, digest)| (key.clone(), Some(*digest)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_what_leads_from_old_to_new() {
        let key = |name: &str| RevisionKey::new("default", name);
        let (x, y) = (Digest::of(b"x"), Digest::of(b"y"));
        let old = [(key("a"), x), (key("b"), x), (key("c"), x)].into();
        let new = [(key("b"), x), (key("c"), y), (key("d"), y)].into();
        let expected = [(key("a"), None), (key("c"), Some(y)), (key("d"), Some(y))].into();
        assert_eq!(difference(&old, &new), expected);
    }

    #[tokio::test]
    async fn survives_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(state.path()).unwrap();
        let record = ReadyRecord::load(&keep);
        let writer = tokio::spawn(record.clone().write(keep.clone()));
        let (key, object) = (RevisionKey::new("default", "a-00001"), Digest::of(b"a"));
        record.insert(&key, &object);
        while keep.ready().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writer.abort();
        let again = ReadyRecord::load(&keep);
        assert!(again.contains(&key, &object));
        assert!(!again.contains(&key, &Digest::of(b"b")));
        again.retain(&Desired::default());
        assert!(!again.contains(&key, &object));
    }
}
