//! Ending everything that a node runs, for the node's own end.

use std::time::Duration;

use tombolo_agent_core::supervision::{Answer, InstanceId, InstancePhase, InstanceRecord, Request};

use super::Executor;
use crate::supervisor::{CallError, Supervisor};

/// How long instances may take to end when the whole node is cleared.
const CLEAR_GRACE: Duration = Duration::from_secs(10);

impl Executor {
    /// Ends every instance, and the supervisor.
    pub(crate) async fn clear(&self) -> Result<(), CallError> {
        let supervisor = &self.inner.tools.supervisor;
        for id in running(supervisor).await? {
            let ask_to_end = Request::Signal { id: id.clone(), signal: libc::SIGTERM };
            for request in [ask_to_end, Request::Thaw { id }] {
                match supervisor.call(request).await {
                    // It has ended meanwhile; whatever is left goes with the shutdown.
                    Ok(_) | Err(CallError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let deadline = tokio::time::Instant::now() + CLEAR_GRACE;
        while !running(supervisor).await?.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        supervisor.call(Request::Shutdown).await?;
        // What is not there needs no removal.
        let _ = std::fs::remove_dir_all(self.inner.tools.run_dir.join("bundles"));
        Ok(())
    }
}

async fn running(supervisor: &Supervisor) -> Result<Vec<InstanceId>, CallError> {
    let Answer::Instances(records) = supervisor.call(Request::List).await? else {
        return Err(CallError::Unexpected);
    };
    let runs = |record: &InstanceRecord| {
        matches!(record.phase, InstancePhase::Running | InstancePhase::Moving) || record.phase.is_stopped()
    };
    Ok(records.into_iter().filter(runs).map(|record| record.id).collect())
}
