//! How far the node's rollouts are, over restarts and reboots. Answers from memory; a task writes what changed behind.
//! Must not know what a rollout is: `tombolo_agent_core::rollout` decides.

use std::time::Duration;

use tokio::sync::watch;
use tombolo_agent_core::rollout::Rollouts;

use crate::keep::Keep;

/// Between attempts to write while the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

/// The rollouts as they were left. What cannot be read is begun anew: the newest revisions get all at once.
pub(crate) fn load(keep: &Keep) -> Rollouts {
    let Some(bytes) = keep.rollouts() else { return Rollouts::default() };
    Rollouts::decode(&bytes).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "rollouts begin anew");
        Rollouts::default()
    })
}

/// The task that writes what comes; ends with its sender.
pub(crate) async fn write(keep: Keep, mut changes: watch::Receiver<Vec<u8>>) {
    while changes.changed().await.is_ok() {
        let bytes = changes.borrow_and_update().clone();
        if let Err(error) = keep.put_rollouts(bytes).await {
            tracing::warn!(%error, "cannot record how far rollouts are, trying again");
            tokio::time::sleep(RETRY).await;
            changes.mark_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn survives_a_restart_and_what_is_no_rollout() {
        let state = tempfile::tempdir().unwrap();
        let (keep, _) = Keep::open(state.path()).unwrap();
        assert_eq!(load(&keep), Rollouts::default());
        let sender = watch::Sender::new(Vec::new());
        let writer = tokio::spawn(write(keep.clone(), sender.subscribe()));
        sender.send_replace(Rollouts::default().encode());
        while keep.rollouts().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(sender);
        writer.await.unwrap();
        assert!(Rollouts::decode(&keep.rollouts().unwrap()).is_ok());
        keep.put_rollouts(b"no rollouts".to_vec()).await.unwrap();
        assert_eq!(load(&keep), Rollouts::default());
    }
}
