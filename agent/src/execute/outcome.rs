//! What came of an action, as the reconciler is told. Does nothing about it.

use std::sync::Arc;

use tombolo_agent_core::supervision::{ExitRecord, InstanceId};
use tombolo_api::Digest;
use tombolo_api::desired::RevisionObject;

use super::Trouble;
use super::suspend::{RestoreError, SuspendError};
use crate::probe::ProbeEvent;
use crate::supervisor::CallError;

/// What came of an action.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    ImagePrepared {
        object: Arc<RevisionObject>,
        digest: Digest,
        result: Result<Image, Trouble>,
    },
    /// With the pid of its init, which waits.
    Primed {
        instance: InstanceId,
        result: Result<i32, Trouble>,
    },
    /// With the pid of its init. It is being probed.
    Launched {
        instance: InstanceId,
        result: Result<i32, Trouble>,
    },
    Frozen {
        instance: InstanceId,
        result: Result<(), CallError>,
    },
    Thawed {
        instance: InstanceId,
        result: Result<(), CallError>,
    },
    Suspended {
        instance: InstanceId,
        /// Bytes that are in the node's memory now.
        result: Result<u64, SuspendError>,
    },
    Restored {
        instance: InstanceId,
        result: Result<(), RestoreError>,
    },
    /// Its container has the devices that it was given as they are now; whether that is other than it had.
    Refitted {
        instance: InstanceId,
        result: Result<bool, Trouble>,
    },
    /// The host's nodes of its devices are not those it was given.
    NodesChanged {
        instance: InstanceId,
    },
    Probed(ProbeEvent),
    ExitExplained {
        instance: InstanceId,
        exit: ExitRecord,
        last_words: Option<String>,
    },
    Deleted {
        instance: InstanceId,
    },
    DeleteFailed {
        instance: InstanceId,
        exit: ExitRecord,
    },
}

impl From<ProbeEvent> for Outcome {
    fn from(event: ProbeEvent) -> Self {
        Self::Probed(event)
    }
}

/// An image that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Something had to be fetched.
    pub(crate) fetched: bool,
    /// It is not signed, and its namespace wants to be told.
    pub(crate) caution: Option<Trouble>,
}
