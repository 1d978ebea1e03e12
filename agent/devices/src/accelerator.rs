//! What a plugin for accelerators does with the processes of containers, beside giving devices: tells what they hold, moves that
//! to the host's memory and back; and how accelerators are. Asks, and decides nothing; which processes a container has, others know.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use tombolo_api::report::AcceleratorReport;
use tombolo_device_api::accelerator::v1::accelerator_client::AcceleratorClient;
use tombolo_device_api::accelerator::v1::{
    DescribeRequest, InspectRequest, ProcessUsage, ResumeRequest, SuspendRequest, UsageRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::follow::Matter;

/// How long a plugin may take to answer what costs nothing. Those of this project give up before.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a move may take. Plugins of this project give up before, and say so.
const MOVE_TIMEOUT: Duration = Duration::from_secs(130);

/// Names a process on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(pub u32);

/// What a plugin can do with processes at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Why processes cannot be suspended, if they cannot.
    pub suspend: Result<(), String>,
    pub tells_memory: bool,
}

/// What became of processes that were to be suspended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspended {
    /// Those whose state is in the host's memory now; the others had none.
    pub moved: BTreeSet<Pid>,
    /// None: it is not told.
    pub freed_bytes: Option<u64>,
}

/// What one process holds on one accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub process: Pid,
    /// The accelerator's own id, which may be that of several devices of a resource.
    pub device: String,
    /// None: it is not told.
    pub bytes: Option<u64>,
}

/// Why a plugin has not done it, by what can be done about that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceleratorError {
    /// Do without: the plugin has no such service, or its driver lacks the calls.
    #[error("the device plugin cannot do that: {0}")]
    Cannot(String),
    /// At resuming: suspend somebody else. At suspending: the node's memory does not suffice.
    #[error("there is no room: {0}")]
    NoRoom(String),
    /// All is as it was, or as the message says.
    #[error("the device plugin refuses: {0}")]
    Refused(String),
    /// It may still come to an end: the same call again waits for that.
    #[error("the device plugin has not answered in time: {0}")]
    Late(String),
    #[error("the device plugin is not there at the moment: {0}")]
    Absent(String),
}

/// A plugin's word on processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Accelerator {
    client: AcceleratorClient<Channel>,
}

/// What a plugin tells of one matter, for as long as it is there.
#[derive(Debug)]
pub struct Stream<T: Matter> {
    told: Streaming<T::Message>,
}

impl Accelerator {
    /// Connects to a plugin's socket. Whether it has the service shows at the first call.
    pub async fn connect(socket: &Path) -> Result<Self, AcceleratorError> {
        let channel = tombolo_device_api::connect(socket, LOOK_TIMEOUT).await;
        let absent = |error| AcceleratorError::Absent(format!("{}: {error}", socket.display()));
        Ok(Self::over(channel.map_err(absent)?))
    }

    pub(crate) fn over(channel: Channel) -> Self {
        Self { client: AcceleratorClient::new(channel) }
    }

    pub async fn describe(&self) -> Result<Abilities, AcceleratorError> {
        let mut client = self.client.clone();
        let description = bounded(LOOK_TIMEOUT, client.describe(DescribeRequest {})).await?.into_inner();
        let suspend = if description.can_suspend { Ok(()) } else { Err(description.cannot_suspend_because) };
        Ok(Abilities { suspend, tells_memory: description.tells_memory })
    }

    /// Moves what the processes have to the host's memory: all or none. They must not be frozen yet.
    pub async fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, AcceleratorError> {
        let request = SuspendRequest { pids: processes.iter().map(|pid| pid.0).collect() };
        let answer = bounded(MOVE_TIMEOUT, self.client.clone().suspend(request)).await?.into_inner();
        let moved = answer.moved_pids.into_iter().map(Pid).collect();
        Ok(Suspended { moved, freed_bytes: answer.freed_bytes })
    }

    /// Moves it back, and lets them go on: all or none. They must not be frozen any more. Gives those that had something.
    pub async fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, AcceleratorError> {
        let request = ResumeRequest { pids: processes.iter().map(|pid| pid.0).collect() };
        let answer = bounded(MOVE_TIMEOUT, self.client.clone().resume(request)).await?.into_inner();
        Ok(answer.resumed_pids.into_iter().map(Pid).collect())
    }

    /// Begins to hear what all processes of the node hold.
    pub async fn usage(&self) -> Result<Stream<Held>, AcceleratorError> {
        let told = bounded(LOOK_TIMEOUT, self.client.clone().usage(UsageRequest {})).await?.into_inner();
        Ok(Stream { told })
    }

    /// Begins to hear how the node's accelerators are.
    pub async fn inspect(&self) -> Result<Stream<AcceleratorReport>, AcceleratorError> {
        let told = bounded(LOOK_TIMEOUT, self.client.clone().inspect(InspectRequest {})).await?.into_inner();
        Ok(Stream { told })
    }
}

impl<T: Matter> Stream<T> {
    /// Everything: at once, and then whenever something of it has changed. After an error nothing comes.
    pub async fn next(&mut self) -> Result<Vec<T>, AcceleratorError> {
        match self.told.message().await {
            Ok(Some(message)) => Ok(T::read(message)),
            Ok(None) => Err(AcceleratorError::Absent("it ended what it told".to_owned())),
            Err(status) => Err(error(&status)),
        }
    }
}

impl From<ProcessUsage> for Held {
    fn from(usage: ProcessUsage) -> Self {
        Self { process: Pid(usage.pid), device: usage.device_id, bytes: usage.bytes }
    }
}

async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, AcceleratorError> {
    let late = |_| AcceleratorError::Late(format!("not within {} s", limit.as_secs()));
    tokio::time::timeout(limit, call).await.map_err(late)?.map_err(|status| error(&status))
}

fn error(status: &Status) -> AcceleratorError {
    let why = status.message().to_owned();
    // Only what comes of the connection has a source.
    if status.source().is_some() {
        return AcceleratorError::Absent(why);
    }
    match status.code() {
        Code::Unimplemented if why.is_empty() => {
            AcceleratorError::Cannot("it has no such service".to_owned())
        }
        Code::Unimplemented => AcceleratorError::Cannot(why),
        Code::ResourceExhausted => AcceleratorError::NoRoom(why),
        Code::DeadlineExceeded => AcceleratorError::Late(why),
        Code::Unavailable | Code::Cancelled => AcceleratorError::Absent(why),
        _ => AcceleratorError::Refused(why),
    }
}
