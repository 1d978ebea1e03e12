//! The agent's side of the accelerator service: a plugin that answers what a test says, one without the service, and none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tombolo_agent_core::devices::{Choice, Inventory, ResourceName};
use tombolo_agent_devices::{
    Abilities, Accelerator, AcceleratorError, Allocator, Directories, Held, Pid, Suspended, Told,
};
use tombolo_api::report::AcceleratorReport;
use tombolo_device_api::accelerator::v1::accelerator_server::{self, AcceleratorServer};
use tombolo_device_api::accelerator::v1::{
    DescribeRequest, Description, InspectRequest, InspectResponse, Inspection, ProcessUsage, ResumeRequest,
    ResumeResponse, SuspendRequest, SuspendResponse, UsageRequest, UsageResponse,
};
use tombolo_device_api::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use tombolo_device_api::v1beta1::registration_client::RegistrationClient;
use tombolo_device_api::v1beta1::{
    AllocateRequest, AllocateResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use tombolo_device_api::{KUBELET_SOCKET, VERSION};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// How long anything here may take; nothing is measured.
const PATIENCE: Duration = Duration::from_secs(20);

const GPU: &str = "example.com/gpu";

/// A plugin without devices. What it does with processes is the first thing that is left in `answers`: nothing, or an error.
#[derive(Clone, Default)]
struct Played {
    answers: Arc<Mutex<Vec<Status>>>,
    usage: Arc<Mutex<Vec<Result<UsageResponse, Status>>>>,
    inspections: Arc<Mutex<Vec<InspectResponse>>>,
    /// What is told of usage has no end.
    goes_on: Arc<AtomicBool>,
    /// Its list has come to an end.
    is_over: watch::Sender<bool>,
}

impl Played {
    fn answer(&self) -> Result<(), Status> {
        self.answers.lock().expect("no panic").pop().map_or(Ok(()), Err)
    }

    fn fails(&self, code: Code, message: &str) {
        self.answers.lock().expect("no panic").push(Status::new(code, message));
    }

    /// Serves at `socket` until it is killed.
    fn serve(&self, socket: &Path, is_accelerator: bool) -> JoinHandle<()> {
        let listener = UnixListener::bind(socket).expect("the socket can be made");
        let served = Server::builder()
            .add_service(DevicePluginServer::new(self.clone()))
            .add_optional_service(is_accelerator.then(|| AcceleratorServer::new(self.clone())))
            .serve_with_incoming(tombolo_device_api::incoming(listener));
        tokio::spawn(async { served.await.expect("it serves") })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl accelerator_server::Accelerator for Played {
    type UsageStream = Answers<UsageResponse>;
    type InspectStream = Answers<InspectResponse>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        self.answer()?;
        let cannot_suspend_because = "the driver is too old".to_owned();
        Ok(Response::new(Description { can_suspend: false, cannot_suspend_because, tells_memory: true }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        self.answer()?;
        Ok(Response::new(SuspendResponse { moved_pids: request.into_inner().pids, freed_bytes: Some(5) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.answer()?;
        Ok(Response::new(ResumeResponse { resumed_pids: request.into_inner().pids }))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<Self::UsageStream>, Status> {
        self.answer()?;
        let usage = std::mem::take(&mut *self.usage.lock().expect("no panic"));
        let usage = stream::iter(usage);
        Ok(Response::new(match self.goes_on.load(Ordering::Relaxed) {
            true => usage.chain(stream::pending()).boxed(),
            false => usage.boxed(),
        }))
    }

    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<Self::InspectStream>, Status> {
        self.answer()?;
        let inspections = std::mem::take(&mut *self.inspections.lock().expect("no panic"));
        Ok(Response::new(stream::iter(inspections.into_iter().map(Ok)).chain(stream::pending()).boxed()))
    }
}

#[tonic::async_trait]
impl DevicePlugin for Played {
    type ListAndWatchStream = Answers<ListAndWatchResponse>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let list = stream::iter([Ok(ListAndWatchResponse::default())]);
        let mut is_over = self.is_over.subscribe();
        let over = Box::pin(async move { is_over.wait_for(|is_over| *is_over).await.map(drop) });
        Ok(Response::new(list.chain(stream::pending()).take_until(over).boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::internal("not asked in these tests"))
    }

    async fn allocate(&self, _: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        Err(Status::internal("not asked in these tests"))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::internal("not asked in these tests"))
    }
}

/// A node with plugins of its own.
struct Node {
    dir: tempfile::TempDir,
    inventory: watch::Receiver<Arc<Inventory>>,
    allocator: Allocator,
    /// Without it the roll ends.
    _choices: watch::Sender<BTreeSet<Choice>>,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let directories = Directories { plugins: dir.path().join("plugins"), cdi: Vec::new() };
        let choices = watch::Sender::default();
        let plugins =
            tombolo_agent_devices::start(directories, choices.subscribe()).await.expect("it starts");
        let (inventory, allocator, task) = plugins.split();
        tokio::spawn(task);
        Self { dir, inventory, allocator, _choices: choices }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join("plugins").join(name)
    }

    /// Has the plugin at this socket register for `resource`, and waits until it is known.
    async fn register(&mut self, endpoint: &str, resource: &str) {
        let channel = tombolo_device_api::connect(&self.socket(KUBELET_SOCKET), PATIENCE).await;
        let request = RegisterRequest {
            version: VERSION.into(),
            endpoint: endpoint.into(),
            resource_name: resource.into(),
            options: None,
        };
        RegistrationClient::new(channel.expect("it answers")).register(request).await.expect("it is let in");
        let name = ResourceName(resource.into());
        let is_known = |inventory: &Arc<Inventory>| {
            inventory.resources.get(&name).is_some_and(|resource| resource.connected)
        };
        let known = tokio::time::timeout(PATIENCE, self.inventory.wait_for(is_known)).await;
        assert!(matches!(known.map(|known| known.is_ok()), Ok(true)), "{resource} is known");
    }

    async fn accelerator(&self, resource: &str) -> Result<Accelerator, AcceleratorError> {
        self.allocator.accelerator(&ResourceName(resource.into())).await
    }
}

fn pids(numbers: &[u32]) -> BTreeSet<Pid> {
    numbers.iter().copied().map(Pid).collect()
}

#[tokio::test]
async fn a_plugin_is_asked_by_the_resource_it_offers() {
    let mut node = Node::start().await;
    let played = Played::default();
    played.serve(&node.socket("gpu.sock"), true);
    node.register("gpu.sock", GPU).await;
    let accelerator = node.accelerator(GPU).await.expect("it is there");
    let abilities = accelerator.describe().await.expect("it answers");
    let suspend = Err("the driver is too old".to_owned());
    assert_eq!(abilities, Abilities { suspend, tells_memory: true });
    let suspended = accelerator.suspend(&pids(&[7, 8])).await;
    assert_eq!(suspended, Ok(Suspended { moved: pids(&[7, 8]), freed_bytes: Some(5) }));
    assert_eq!(accelerator.resume(&pids(&[7])).await, Ok(pids(&[7])));
    let nobody = node.accelerator("example.com/npu").await.expect_err("nobody offers it");
    assert_eq!(nobody, AcceleratorError::Absent("nobody offers example.com/npu".into()));
}

#[tokio::test]
async fn a_plugin_of_another_maker_cannot() {
    let mut node = Node::start().await;
    Played::default().serve(&node.socket("gpu.sock"), false);
    node.register("gpu.sock", GPU).await;
    let accelerator = node.accelerator(GPU).await.expect("it is there");
    let cannot = AcceleratorError::Cannot("it has no such service".into());
    assert_eq!(accelerator.describe().await, Err(cannot.clone()));
    assert_eq!(accelerator.suspend(&pids(&[7])).await, Err(cannot.clone()));
    assert_eq!(accelerator.resume(&pids(&[7])).await, Err(cannot.clone()));
    assert_eq!(accelerator.usage().await.err(), Some(cannot));
}

#[tokio::test]
async fn failures_are_told_apart_by_what_can_be_done() {
    use AcceleratorError::{Absent, Cannot, Late, NoRoom, Refused};
    let node = Node::start().await;
    let played = Played::default();
    let server = played.serve(&node.socket("gpu.sock"), true);
    let accelerator = Accelerator::connect(&node.socket("gpu.sock")).await.expect("it is there");
    for (code, wanted) in [
        (Code::Unimplemented, Cannot as fn(String) -> AcceleratorError),
        (Code::ResourceExhausted, NoRoom),
        (Code::FailedPrecondition, Refused),
        (Code::InvalidArgument, Refused),
        (Code::Internal, Refused),
        (Code::DeadlineExceeded, Late),
        (Code::Unavailable, Absent),
    ] {
        played.fails(code, "why");
        assert_eq!(accelerator.suspend(&pids(&[7])).await, Err(wanted("why".into())), "{code:?}");
        played.fails(code, "why");
        assert_eq!(accelerator.resume(&pids(&[7])).await, Err(wanted("why".into())), "{code:?}");
    }
    // A plugin may say this, and the end of one must not read like it.
    played.fails(Code::Unknown, "why");
    assert_eq!(accelerator.suspend(&pids(&[7])).await, Err(Refused("why".into())));
    let dying = UnixListener::bind(node.socket("dying.sock")).expect("the socket can be made");
    tokio::spawn(async move { while dying.accept().await.is_ok() {} });
    let lost = match Accelerator::connect(&node.socket("dying.sock")).await {
        Ok(accelerator) => accelerator.suspend(&pids(&[7])).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(lost, Err(Absent(_))), "{lost:?}");
    server.abort();
    let _ = server.await;
    let dead = Accelerator::connect(&node.socket("gpu.sock")).await;
    assert!(matches!(dead, Err(Absent(_))), "{dead:?}");
}

#[tokio::test]
async fn usage_comes_as_it_is_told_and_ends_with_why() {
    let node = Node::start().await;
    let played = Played::default();
    played.serve(&node.socket("gpu.sock"), true);
    let accelerator = Accelerator::connect(&node.socket("gpu.sock")).await.expect("it is there");
    let process = |pid, bytes| ProcessUsage { pid, device_id: "GPU-1".into(), bytes };
    let told = |processes| Ok(UsageResponse { processes });
    let held = |pid, bytes| Held { process: Pid(pid), device: "GPU-1".into(), bytes };
    *played.usage.lock().expect("no panic") = vec![
        told(vec![process(7, Some(9)), process(8, None)]),
        told(Vec::new()),
        Err(Status::unavailable("the driver is gone")),
    ];
    let mut usage = accelerator.usage().await.expect("it answers");
    assert_eq!(usage.next().await, Ok(vec![held(7, Some(9)), held(8, None)]));
    assert_eq!(usage.next().await, Ok(Vec::new()));
    assert_eq!(usage.next().await, Err(AcceleratorError::Absent("the driver is gone".into())));
    let mut ended = accelerator.usage().await.expect("it answers");
    assert!(matches!(ended.next().await, Err(AcceleratorError::Absent(_))));
}

fn told(pids: &[(u32, u64)]) -> Result<UsageResponse, Status> {
    let process = |(pid, bytes): &(u32, u64)| ProcessUsage {
        pid: *pid,
        device_id: "GPU-1".into(),
        bytes: Some(*bytes),
    };
    Ok(UsageResponse { processes: pids.iter().map(process).collect() })
}

#[tokio::test]
async fn usage_is_followed_while_the_plugin_is_there_and_anew_when_it_returns() {
    let mut node = Node::start().await;
    let following = watch::Sender::<Arc<Told<Held>>>::default();
    let mut seen = following.subscribe();
    tokio::spawn(node.allocator.clone().follow_usage(following));
    let known = async |seen: &mut watch::Receiver<Arc<Told<Held>>>, wanted: &[(&str, u32, u64)]| {
        let is_so = |told: &Arc<Told<Held>>| {
            let all = told.iter().flat_map(|(name, held)| held.iter().map(move |held| (name, held)));
            let all = all.map(|(name, held)| (name.0.as_str(), held.process.0, held.bytes.unwrap_or(0)));
            all.collect::<Vec<_>>() == wanted
        };
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(is_so)).await.map(|found| found.is_ok());
        assert!(matches!(waited, Ok(true)), "{wanted:?} is told, not {:?}", seen.borrow());
    };
    let played = Played::default();
    played.goes_on.store(true, Ordering::Relaxed);
    *played.usage.lock().expect("no panic") = vec![told(&[(7, 1)]), told(&[(7, 2), (8, 3)])];
    played.serve(&node.socket("gpu.sock"), true);
    Played::default().serve(&node.socket("other.sock"), false);
    node.register("other.sock", "example.com/other").await;
    node.register("gpu.sock", GPU).await;
    known(&mut seen, &[(GPU, 7, 2), (GPU, 8, 3)]).await;
    played.is_over.send_replace(true);
    known(&mut seen, &[]).await;
    played.is_over.send_replace(false);
    // Its driver does not answer at first.
    played.fails(Code::Unavailable, "the driver is gone");
    *played.usage.lock().expect("no panic") = vec![told(&[(9, 5)])];
    node.register("gpu.sock", GPU).await;
    known(&mut seen, &[(GPU, 9, 5)]).await;
    assert!(played.answers.lock().expect("no panic").is_empty(), "it was asked twice");
}

#[tokio::test]
async fn accelerators_are_followed_and_a_plugin_that_never_tells_is_not_asked_again() {
    let mut node = Node::start().await;
    let following = watch::Sender::<Arc<Told<AcceleratorReport>>>::default();
    let mut seen = following.subscribe();
    tokio::spawn(node.allocator.clone().follow_accelerators(following));
    let known = async |seen: &mut watch::Receiver<Arc<Told<AcceleratorReport>>>, wanted: &[(&str, u32)]| {
        let is_so = |told: &Arc<Told<AcceleratorReport>>| {
            let all = told.values().flatten().map(|it| (it.id.as_str(), it.power_watts.unwrap_or(0)));
            all.collect::<Vec<_>>() == wanted
        };
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(is_so)).await.map(|found| found.is_ok());
        assert!(matches!(waited, Ok(true)), "{wanted:?} is told, not {:?}", seen.borrow());
    };
    let inspection = |id: &str, milliwatts| Inspection {
        device_id: id.into(),
        power_milliwatts: Some(milliwatts),
        ..Inspection::default()
    };
    // One of an older version: with the service, and without this call.
    let older = Played::default();
    older.fails(Code::Unimplemented, "");
    older.serve(&node.socket("older.sock"), true);
    let played = Played::default();
    let told = |accelerators| InspectResponse { accelerators };
    *played.inspections.lock().expect("no panic") = vec![
        told(vec![inspection("GPU-1", 60_000)]),
        told(vec![inspection("GPU-1", 70_000), inspection("", 1), inspection("GPU-2", 60_500)]),
    ];
    played.serve(&node.socket("gpu.sock"), true);
    node.register("older.sock", "example.com/other").await;
    node.register("gpu.sock", GPU).await;
    known(&mut seen, &[("GPU-1", 70), ("GPU-2", 60)]).await;
    played.is_over.send_replace(true);
    known(&mut seen, &[]).await;
    assert!(older.answers.lock().expect("no panic").is_empty(), "it was asked");
}
