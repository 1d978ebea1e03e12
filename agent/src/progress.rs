//! How far the node's rollouts and takeovers are, and what memory its revisions were seen to need, over restarts and reboots. Answers
//! from memory; tasks write what changed behind. Must not know what any of these is: `tombolo_agent_core` decides.

use std::time::Duration;

use tokio::sync::watch;
use tombolo_agent_core::memory::Footprints;
use tombolo_agent_core::rollout::Rollouts;
use tombolo_agent_core::takeovers::Takeovers;

use crate::keep::{Keep, Record};

/// Between attempts to write while the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

/// What an agent goes on with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) rollouts: Rollouts,
    pub(crate) takeovers: Takeovers,
    pub(crate) footprints: Footprints,
}

impl Progress {
    /// As it was left. What cannot be read is begun anew: the newest revisions get all at once, are tried again, and memory is
    /// learnt anew.
    pub(crate) fn load(keep: &Keep) -> Self {
        Self {
            rollouts: read(keep, Record::Rollouts, Rollouts::decode),
            takeovers: read(keep, Record::Takeovers, Takeovers::decode),
            footprints: read(keep, Record::Footprints, Footprints::decode),
        }
    }
}

/// Where it goes what is to be written.
pub(crate) struct Records {
    /// How far rollouts are.
    pub(crate) rollouts: watch::Sender<Vec<u8>>,
    /// How far takeovers are.
    pub(crate) takeovers: watch::Sender<Vec<u8>>,
    /// What memory revisions were seen to need.
    pub(crate) footprints: watch::Sender<Vec<u8>>,
}

impl Records {
    /// As `progress` was left: that is not written again.
    pub(crate) fn new(progress: &Progress) -> Self {
        Self {
            rollouts: watch::Sender::new(progress.rollouts.encode()),
            takeovers: watch::Sender::new(progress.takeovers.encode()),
            footprints: watch::Sender::new(progress.footprints.encode()),
        }
    }
}

fn read<T: Default, E: std::error::Error + 'static>(
    keep: &Keep,
    record: Record,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> T {
    let Some(bytes) = keep.record(record) else { return T::default() };
    decode(&bytes).unwrap_or_else(|error| {
        tracing::warn!(?record, error = &error as &dyn std::error::Error, "a record begins anew");
        T::default()
    })
}

/// The task that writes what comes; ends with its sender.
pub(crate) async fn write(keep: Keep, record: Record, mut changes: watch::Receiver<Vec<u8>>) {
    while changes.changed().await.is_ok() {
        let bytes = changes.borrow_and_update().clone();
        if let Err(error) = keep.put_record(record, bytes).await {
            tracing::warn!(?record, %error, "cannot record how far the node is, trying again");
            tokio::time::sleep(RETRY).await;
            changes.mark_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent_core::actual::{Moment, RevisionActual, Takeover};
    use tombolo_api::report::RolledBack;
    use tombolo_api::{Digest, RevisionKey};

    use super::*;

    #[tokio::test]
    async fn survives_a_restart_and_what_is_neither() {
        let state = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(state.path()).unwrap();
        assert_eq!(Progress::load(&keep), Progress::default());
        let (key, object) = (RevisionKey::new("default", "a-00002"), Digest::of(b"a"));
        let why = RolledBack { reason: "NotReadyInTime".into(), message: "m".into() };
        let known = RevisionActual {
            takeover: Takeover::Undone(why.clone()),
            ..RevisionActual::new(object, false, Moment::default())
        };
        let takeovers = Takeovers::among(&[(key.clone(), known)].into());
        for (record, bytes) in
            [(Record::Rollouts, Rollouts::default().encode()), (Record::Takeovers, takeovers.encode())]
        {
            let sender = watch::Sender::new(Vec::new());
            let writer = tokio::spawn(write(keep.clone(), record, sender.subscribe()));
            sender.send_replace(bytes.clone());
            while keep.record(record).is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(sender);
            writer.await.unwrap();
            assert_eq!(keep.record(record), Some(bytes));
        }
        assert_eq!(Progress::load(&keep).takeovers.of(&key, &object), Takeover::Undone(why));
        for record in [Record::Rollouts, Record::Takeovers, Record::Footprints] {
            keep.put_record(record, b"neither".to_vec()).await.unwrap();
        }
        assert_eq!(Progress::load(&keep), Progress::default());
    }
}
