//! The accelerator service of a plugin that moves what a test says, on real sockets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tombolo_device_api::accelerator::v1::accelerator_client::AcceleratorClient;
use tombolo_device_api::accelerator::v1::{
    DescribeRequest, ProcessUsage, ResumeRequest, SuspendRequest, UsageRequest, UsageResponse,
};
use tombolo_device_api::connect;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::{
    Abilities, Accelerator, Device, DeviceId, Edits, EditsError, Held, MoveError, Pid, Resource, Scan,
    ScanError, ServeError, SharedAccelerator, Suspended, UsageError, fixed, serve,
};
use tombolo_fake_kubelet::{FakeKubelet, SOON};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Long enough to show that nothing comes of itself.
const QUIET: Duration = Duration::from_millis(700);

/// What the played hardware does, and did.
#[derive(Default)]
struct Stage {
    /// Moves of these processes do not end.
    held_up: BTreeSet<u32>,
    /// `+7` when a suspension of process 7 begins, `-7` when it ends; `<7`, `>7`: a resumption.
    log: Vec<String>,
    usage: Vec<(u32, u64)>,
    looks: usize,
}

#[derive(Clone, Default)]
struct Played(Arc<Mutex<Stage>>);

impl Played {
    fn moves(&self, processes: &BTreeSet<Pid>, begins: char, ends: char) -> Result<(), MoveError> {
        for sign in [begins, ends] {
            let lines = processes.iter().map(|pid| format!("{sign}{pid}"));
            self.0.lock().unwrap().log.extend(lines);
            while sign == begins && processes.iter().any(|pid| self.is_held_up(*pid)) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        match processes.first().map(|pid| pid.number()) {
            Some(666) => Err(MoveError::Refused("the driver says no".into())),
            Some(667) => Err(MoveError::OutOfMemory("it is full".into())),
            Some(668) => Err(MoveError::Cannot("too old".into())),
            Some(669) => panic!("a defect"),
            _ => Ok(()),
        }
    }

    fn is_held_up(&self, pid: Pid) -> bool {
        self.0.lock().unwrap().held_up.contains(&pid.number())
    }

    fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().log.clone()
    }

    async fn logs(&self, line: &str) {
        let wait = async {
            while !self.log().iter().any(|each| each == line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{line} in {:?}", self.log()));
    }
}

impl Accelerator for Played {
    fn describe(&self) -> Abilities {
        Abilities { suspend: Err("it is too old".to_owned()), tells_memory: true }
    }

    fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
        self.moves(processes, '+', '-')?;
        Ok(Suspended { moved: processes.clone(), freed_bytes: Some(5) })
    }

    fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
        self.moves(processes, '<', '>')?;
        Ok(processes.clone())
    }

    fn usage(&self) -> Result<Vec<Held>, UsageError> {
        let mut stage = self.0.lock().unwrap();
        stage.looks += 1;
        if stage.usage.iter().any(|(_, bytes)| *bytes == 0) {
            return Err(UsageError::NotNow("the driver is gone".into()));
        }
        let held = |(pid, bytes): &(u32, u64)| Held {
            process: (*pid).try_into().unwrap(),
            device: "GPU-1".parse().unwrap(),
            bytes: Some(*bytes),
        };
        Ok(stage.usage.iter().map(held).collect())
    }
}

/// No devices, and what can be done with processes.
struct Bare(Option<SharedAccelerator>);

impl Scan for Bare {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        Ok(Vec::new())
    }

    fn edits(&self, _: &[DeviceId]) -> Result<Edits, EditsError> {
        Ok(Edits::default())
    }

    fn accelerator(&self) -> Option<SharedAccelerator> {
        self.0.clone()
    }
}

/// A program with three resources: two that share an accelerator, and one without.
struct Ground {
    played: Played,
    kubelet: FakeKubelet,
    root: TempDir,
    end: oneshot::Sender<()>,
    program: JoinHandle<Result<(), ServeError>>,
}

impl Ground {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let kubelet = FakeKubelet::start(root.path()).await;
        let played = Played::default();
        let shared = SharedAccelerator::new(played.clone());
        let resource = |name: &str, accelerator| Resource {
            name: name.parse().unwrap(),
            scan: Box::new(Bare(accelerator)),
            watched: Vec::new(),
            interval: Duration::from_secs(3600),
        };
        let resources = fixed(vec![
            resource("example.com/whole", Some(shared.clone())),
            resource("example.com/part", Some(shared)),
            resource("example.com/lamp", None),
        ]);
        let directory = root.path().to_owned();
        let (end, ended) = oneshot::channel::<()>();
        let program = tokio::spawn(async move {
            serve(&directory, resources, Metrics::default(), async { drop(ended.await) }).await
        });
        Self { played, kubelet, root, end, program }
    }

    async fn client(&mut self, resource: &str) -> AcceleratorClient<Channel> {
        let endpoint = self.kubelet.registered(&format!("example.com/{resource}")).await.endpoint;
        AcceleratorClient::new(connect(&self.root.path().join(endpoint), SOON).await.unwrap())
    }
}

async fn suspend(client: &AcceleratorClient<Channel>, pids: &[u32]) -> Result<Vec<u32>, Status> {
    let answer = client.clone().suspend(SuspendRequest { pids: pids.to_vec() }).await?.into_inner();
    assert_eq!(answer.freed_bytes, Some(5));
    Ok(answer.moved_pids)
}

async fn resume(client: &AcceleratorClient<Channel>, pids: &[u32]) -> Result<Vec<u32>, Status> {
    Ok(client.clone().resume(ResumeRequest { pids: pids.to_vec() }).await?.into_inner().resumed_pids)
}

async fn next(usage: &mut Streaming<UsageResponse>) -> Result<Option<Vec<(u32, u64)>>, Status> {
    let message = tokio::time::timeout(SOON, usage.message()).await.expect("the usage comes")?;
    let held = |process: ProcessUsage| (process.pid, process.bytes.unwrap());
    Ok(message.map(|usage| usage.processes.into_iter().map(held).collect()))
}

#[tokio::test]
async fn a_plugin_without_the_service_is_one_that_cannot() {
    let mut ground = Ground::start().await;
    let mut lamp = ground.client("lamp").await;
    assert_eq!(lamp.describe(DescribeRequest {}).await.unwrap_err().code(), Code::Unimplemented);
    let description = ground.client("whole").await.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert!(!description.can_suspend && description.tells_memory);
    assert_eq!(description.cannot_suspend_because, "it is too old");
}

#[tokio::test]
async fn failures_are_told_by_what_a_caller_can_do_about_them() {
    let mut ground = Ground::start().await;
    let client = ground.client("whole").await;
    assert_eq!(suspend(&client, &[8, 7, 8]).await.unwrap(), [7, 8]);
    assert_eq!(resume(&client, &[7]).await.unwrap(), [7]);
    assert_eq!(suspend(&client, &[]).await.unwrap(), [0; 0]);
    for (pids, code, words) in [
        (vec![666], Code::FailedPrecondition, "the driver says no"),
        (vec![667], Code::ResourceExhausted, "it is full"),
        (vec![668], Code::Unimplemented, "too old"),
        (vec![669], Code::Internal, "panicked"),
        (vec![7, 0], Code::InvalidArgument, "0 is no number of a process"),
        (vec![std::process::id()], Code::InvalidArgument, "its own process"),
        ((1..6000).collect(), Code::InvalidArgument, "at most 4096"),
    ] {
        let refused = suspend(&client, &pids).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
        assert_eq!(resume(&client, &pids).await.unwrap_err().code(), code);
    }
    assert_eq!(suspend(&client, &[669, 7]).await.map_err(|status| status.code()), Ok(vec![7, 669]));
}

#[tokio::test]
async fn calls_for_one_process_take_turns_whichever_resource_they_come_by() {
    let mut ground = Ground::start().await;
    let (whole, part) = (ground.client("whole").await, ground.client("part").await);
    ground.played.0.lock().unwrap().held_up.insert(7);
    let first = tokio::spawn({
        let whole = whole.clone();
        async move { suspend(&whole, &[7, 8]).await }
    });
    ground.played.logs("+7").await;
    let mut second = tokio::spawn({
        let part = part.clone();
        async move { resume(&part, &[8]).await }
    });
    assert!(tokio::time::timeout(QUIET, &mut second).await.is_err(), "it waits for its turn");
    assert_eq!(suspend(&part, &[9]).await.unwrap(), [9], "others do not wait");
    // Nobody waits for it any more, and it is under way all the same.
    first.abort();
    assert!(tokio::time::timeout(QUIET, &mut second).await.is_err(), "it waits for its turn");
    ground.played.0.lock().unwrap().held_up.clear();
    assert_eq!(second.await.unwrap().unwrap(), [8]);
    assert_eq!(ground.played.log(), ["+7", "+8", "+9", "-9", "-7", "-8", "<8", ">8"]);
}

#[tokio::test]
async fn usage_is_told_at_once_and_on_change() {
    let mut ground = Ground::start().await;
    ground.played.0.lock().unwrap().usage = vec![(7, 100)];
    let mut usage = ground.client("whole").await.usage(UsageRequest {}).await.unwrap().into_inner();
    let mut other = ground.client("part").await.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut usage).await.unwrap(), Some(vec![(7, 100)]));
    assert_eq!(next(&mut other).await.unwrap(), Some(vec![(7, 100)]));
    let looks = ground.played.0.lock().unwrap().looks;
    let looked_again = async {
        while ground.played.0.lock().unwrap().looks < looks + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        told = usage.message() => panic!("what has not changed is told again: {told:?}"),
        () = looked_again => {}
    }
    ground.played.0.lock().unwrap().usage = vec![(7, 200), (8, 1)];
    assert_eq!(next(&mut usage).await.unwrap(), Some(vec![(7, 200), (8, 1)]));
    assert_eq!(next(&mut other).await.unwrap(), Some(vec![(7, 200), (8, 1)]));
    ground.played.0.lock().unwrap().usage = vec![(7, 0)];
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(next(&mut other).await.unwrap_err().code(), Code::Unavailable, "each is told");
}

#[tokio::test]
async fn streams_end_with_the_program() {
    let mut ground = Ground::start().await;
    let mut usage = ground.client("whole").await.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut usage).await.unwrap(), Some(Vec::new()));
    ground.end.send(()).unwrap();
    assert_eq!(next(&mut usage).await.map_err(|status| status.code()), Ok(None));
    tokio::time::timeout(SOON, ground.program).await.expect("it ends").unwrap().unwrap();
}
