//! Plugins made of the generated server, at real sockets: they register, list, die, come back, are slow, and are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tombolo_agent_core::devices::{Choice, DeviceId, Devices, Inventory, ResourceName};
use tombolo_agent_devices::{AllocateError, Allocator, Directories, StartError};
use tombolo_device_api::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use tombolo_device_api::v1beta1::registration_client::RegistrationClient;
use tombolo_device_api::v1beta1::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, Device, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, Mount, NumaNode, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest, TopologyInfo,
};
use tombolo_device_api::{HEALTHY, KUBELET_SOCKET, UNHEALTHY, VERSION, incoming};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

/// How long anything here may take; nothing is measured.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: its directories, and the kubelet's side.
struct Node {
    dir: tempfile::TempDir,
    inventory: watch::Receiver<Arc<Inventory>>,
    allocator: Allocator,
    choices: watch::Sender<BTreeSet<Choice>>,
    task: JoinHandle<()>,
}

impl Node {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory")).await
    }

    async fn start_in(dir: tempfile::TempDir) -> Self {
        let choices = watch::Sender::default();
        let directories =
            Directories { plugins: dir.path().join("plugins"), cdi: vec![dir.path().join("cdi")] };
        let plugins =
            tombolo_agent_devices::start(directories, choices.subscribe()).await.expect("it starts");
        let (inventory, allocator, task) = plugins.split();
        Self { dir, inventory, allocator, choices, task: tokio::spawn(task) }
    }

    fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }

    async fn register(&self, endpoint: &str, resource: &str, version: &str) -> Result<(), Status> {
        let channel = tombolo_device_api::connect(&self.plugins().join(KUBELET_SOCKET), PATIENCE)
            .await
            .expect("it answers");
        let request = RegisterRequest {
            version: version.into(),
            endpoint: endpoint.into(),
            resource_name: resource.into(),
            options: None,
        };
        RegistrationClient::new(channel).register(request).await.map(drop)
    }

    /// Waits until the resource is as `state` says it: its devices, capital ones unhealthy; `-` in front: not connected.
    async fn has(&mut self, resource: &str, state: &str) {
        let said = |inventory: &Arc<Inventory>| {
            let Some(resource) = inventory.resources.get(&ResourceName(resource.into())) else {
                return "none".into();
            };
            let devices = resource.devices.iter();
            let letters =
                devices.map(|(id, device)| if device.healthy { id.0.clone() } else { id.0.to_uppercase() });
            format!("{}{}", if resource.connected { "" } else { "-" }, letters.collect::<String>())
        };
        let found =
            tokio::time::timeout(PATIENCE, self.inventory.wait_for(|inventory| said(inventory) == state))
                .await;
        let found = found.map(|found| found.map(drop));
        assert!(matches!(found, Ok(Ok(()))), "{resource} is {}, not {state}", said(&self.inventory.borrow()));
    }
}

/// What a plugin does.
#[derive(Clone)]
struct Behaviour {
    devices: watch::Sender<&'static str>,
    options: DevicePluginOptions,
    answer: ContainerAllocateResponse,
    /// The call of this name does not return as long as it stands here.
    stuck: watch::Sender<&'static str>,
    /// Why no container may start, if so.
    unprepared: Option<&'static str>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Behaviour {
    fn with(devices: &'static str) -> Self {
        Self {
            devices: watch::Sender::new(devices),
            options: DevicePluginOptions::default(),
            answer: ContainerAllocateResponse::default(),
            stuck: watch::Sender::default(),
            unprepared: None,
            calls: Arc::default(),
        }
    }

    fn called(&self) -> Vec<String> {
        self.calls.lock().expect("no panic").clone()
    }

    /// Notes the call `name`, and returns when it may.
    async fn pass(&self, name: &str, said: &str) {
        self.calls.lock().expect("no panic").push(format!("{name}{said}"));
        self.stuck.subscribe().wait_for(|stuck| *stuck != name).await.expect("it is held here");
    }

    /// Waits until the call that is stuck is under way.
    async fn is_stuck(&self) {
        let stuck = *self.stuck.borrow();
        tokio::time::timeout(PATIENCE, async {
            while !self.called().iter().any(|call| call.starts_with(stuck)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it is called");
    }

    /// Serves at `name` in the directory until it is killed.
    fn serve(&self, directory: &Path, name: &str) -> Serving {
        let path = directory.join(name);
        let _ = std::fs::remove_file(&path);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(path).expect("a socket")
        };
        let service = DevicePluginServer::new(self.clone());
        runtime.spawn(async move {
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming(listener))
                .await
                .expect("it serves");
        });
        Serving(Some(runtime))
    }
}

/// A plugin's process: all of it ends at once, its connections included.
struct Serving(Option<tokio::runtime::Runtime>);

impl Serving {
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.take().expect("until now").shutdown_background();
    }
}

#[tonic::async_trait]
impl DevicePlugin for Behaviour {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        if *self.stuck.borrow() == "options" {
            self.pass("options", "").await;
        }
        Ok(Response::new(self.options))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let devices = self.devices.subscribe();
        let lists = stream::unfold((devices, true), |(mut devices, first)| async move {
            if !first {
                devices.changed().await.ok()?;
            }
            let device = |letter: char| Device {
                id: letter.to_lowercase().to_string(),
                health: if letter.is_lowercase() { HEALTHY } else { UNHEALTHY }.into(),
                topology: Some(TopologyInfo { nodes: vec![NumaNode { id: 1 }] }),
            };
            let now = *devices.wait_for(|devices| *devices != "never").await.ok()?;
            devices.mark_unchanged();
            if now == "end" {
                return None;
            }
            Some((Ok(ListAndWatchResponse { devices: now.chars().map(device).collect() }), (devices, false)))
        });
        Ok(Response::new(lists.boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let mut asked = request.into_inner().container_requests.remove(0);
        let said = format!(" {} of {}", asked.allocation_size, asked.available_device_i_ds.concat());
        self.pass("prefer", &said).await;
        let last = asked.available_device_i_ds.pop().into_iter().collect();
        let response = ContainerPreferredAllocationResponse { device_i_ds: last };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![response] }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests[0].devices_ids.concat();
        self.pass("allocate", &format!(" {ids}")).await;
        Ok(Response::new(AllocateResponse { container_responses: vec![self.answer.clone()] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.pass("start", &format!(" {}", request.into_inner().devices_ids.concat())).await;
        match self.unprepared {
            Some(why) => Err(Status::failed_precondition(why)),
            None => Ok(Response::new(PreStartContainerResponse {})),
        }
    }
}

const X: &str = "a.example/x";

fn devices(ids: &str) -> Devices {
    [(ResourceName(X.into()), ids.chars().map(|id| DeviceId(id.into())).collect())].into()
}

/// However fast it went: lists that came in between may never be seen.
#[tokio::test]
async fn devices_that_come_back_are_counted() {
    let mut node = Node::start().await;
    let plugin = Behaviour::with("ab");
    let serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "ab").await;
    let returns = |node: &Node| -> Vec<(String, u64)> {
        let inventory = node.inventory.borrow();
        let returns = &inventory.resources[&ResourceName(X.into())].returns;
        returns.iter().map(|(id, count)| (id.0.clone(), *count)).collect()
    };
    for list in ["aB", "abc", "bc"] {
        plugin.devices.send_replace(list);
        node.has(X, list).await;
    }
    assert_eq!(returns(&node), [("b".into(), 1)], "one that is new has not come back");
    // Neither have those of a plugin that did.
    serving.kill();
    node.has(X, "-bc").await;
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "bc").await;
    assert_eq!(returns(&node), [("b".into(), 1)]);
    plugin.devices.send_replace("abc");
    node.has(X, "abc").await;
    assert_eq!(returns(&node), [("a".into(), 1), ("b".into(), 1)]);
}

#[tokio::test]
async fn a_plugin_registers_lists_dies_and_comes_back() {
    let mut node = Node::start().await;
    let plugin = Behaviour::with("ab");
    let serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "ab").await;
    let numa = node.inventory.borrow().resources[&ResourceName(X.into())].devices[&DeviceId("a".into())]
        .numa
        .clone();
    assert_eq!(numa, [1].into());
    plugin.devices.send_replace("aBc");
    node.has(X, "aBc").await;
    serving.kill();
    node.has(X, "-aBc").await;
    let absent = node.allocator.allocate(&devices("a")).await;
    assert!(matches!(absent, Err(AllocateError::Absent(_))), "{absent:?}");
    let _again = plugin.serve(&node.plugins(), "x-2.sock");
    node.register("x-2.sock", X, VERSION).await.expect("its former self is dead");
    node.has(X, "aBc").await;
    plugin.devices.send_replace("end");
    node.has(X, "-aBc").await;
}

#[tokio::test]
async fn a_plugin_that_registers_again_at_its_own_socket_replaces_itself() {
    let mut node = Node::start().await;
    let (first, second) = (Behaviour::with("a"), Behaviour::with("b"));
    let _first = first.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let _second = second.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("the same plugin");
    node.has(X, "b").await;
    first.devices.send_replace("end");
    first.devices.closed().await;
    assert!(
        node.inventory.borrow().resources[&ResourceName(X.into())].connected,
        "who is replaced says nothing any more"
    );
}

#[tokio::test]
async fn registrations_are_refused_in_the_kubelets_words() {
    let mut node = Node::start().await;
    let plugin = Behaviour::with("a");
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    let refused = |result: Result<(), Status>| result.expect_err("it is refused").message().to_owned();
    let old = refused(node.register("x.sock", X, "v1alpha").await);
    assert_eq!(
        old,
        r#"requested API version "v1alpha" is not supported by kubelet. Supported version is ["v1beta1"]"#
    );
    for name in ["x", "kubernetes.io/x", "a.example/", "A_b/x", "a/b/c"] {
        let invalid = refused(node.register("x.sock", name, VERSION).await);
        assert_eq!(invalid, format!("the ResourceName {name:?} is invalid"));
    }
    for endpoint in ["", "..", "../x.sock", "/run/x.sock", "a/b.sock"] {
        let outside = refused(node.register(endpoint, X, VERSION).await);
        assert!(outside.contains("no name of a socket"), "{outside}");
    }
    let nobody = node.register("nobody.sock", X, VERSION).await.expect_err("nobody answers there");
    assert_eq!(nobody.code(), Code::Unavailable, "{nobody}");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let _other = plugin.serve(&node.plugins(), "y.sock");
    let twice = refused(node.register("y.sock", X, VERSION).await);
    assert!(twice.contains("another device plugin that is running has registered a.example/x"), "{twice}");
    node.has(X, "a").await;
}

#[tokio::test]
async fn another_kubelet_is_left_alone_and_what_a_dead_one_left_goes() {
    let node = Node::start().await;
    let occupied = tombolo_agent_devices::start(
        Directories { plugins: node.plugins(), cdi: Vec::new() },
        watch::Sender::default().subscribe(),
    );
    assert!(matches!(occupied.await, Err(StartError::Occupied(_))));
    node.register("nobody.sock", X, VERSION).await.expect_err("the first still answers");
    let plugins = node.plugins();
    drop(UnixListener::bind(plugins.join("stale.sock")).expect("a socket"));
    std::fs::write(plugins.join("kubelet_internal_checkpoint"), "{}").expect("a file");
    node.task.abort();
    assert!(node.task.await.expect_err("it was aborted").is_cancelled());
    let again = Node::start_in(node.dir).await;
    assert!(!plugins.join("stale.sock").exists() && plugins.join("kubelet_internal_checkpoint").exists());
    again.register("nobody.sock", X, VERSION).await.expect_err("it answers at a socket of its own");
}

#[tokio::test]
async fn an_agent_that_stops_takes_its_socket_away_and_no_other() {
    let Node { dir, task, .. } = Node::start().await;
    let path = dir.path().join("plugins").join(KUBELET_SOCKET);
    assert!(path.exists());
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    assert!(!path.exists());

    let Node { dir, task, .. } = Node::start_in(dir).await;
    std::fs::remove_file(&path).expect("the socket is there");
    let _another = UnixListener::bind(&path).expect("a socket");
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    assert!(path.exists());
    drop(dir);
}

#[tokio::test]
async fn what_a_plugin_prefers_is_asked_for_once() {
    let mut node = Node::start().await;
    let mut plugin = Behaviour::with("abc");
    plugin.options.get_preferred_allocation_available = true;
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "abc").await;
    assert!(node.inventory.borrow().resources[&ResourceName(X.into())].has_preference);
    let free = devices("abc").remove(&ResourceName(X.into())).expect("named");
    let choice = Choice { resource: ResourceName(X.into()), free, count: 1 };
    node.choices.send_replace([choice.clone()].into());
    let knows = |inventory: &Arc<Inventory>| inventory.preferences.contains_key(&choice);
    tokio::time::timeout(PATIENCE, node.inventory.wait_for(knows))
        .await
        .expect("an answer")
        .expect("it runs");
    assert_eq!(node.inventory.borrow().preferences[&choice], [DeviceId("c".into())].into());
    plugin.devices.send_replace("abcd");
    node.has(X, "abcd").await;
    assert_eq!(plugin.called(), ["prefer 1 of abc"]);
    node.choices.send_replace(BTreeSet::new());
    let forgot = |inventory: &Arc<Inventory>| inventory.preferences.is_empty();
    tokio::time::timeout(PATIENCE, node.inventory.wait_for(forgot))
        .await
        .expect("forgotten")
        .expect("it runs");
}

#[tokio::test]
async fn what_a_plugin_answers_becomes_an_edit_of_the_container() {
    let mut node = Node::start().await;
    let cdi = node.dir.path().join("cdi");
    let mut plugin = Behaviour::with("a");
    plugin.options.pre_start_required = true;
    plugin.answer = ContainerAllocateResponse {
        envs: [("B".into(), "2".into()), ("A".into(), "1".into())].into(),
        mounts: vec![Mount {
            container_path: "/lib/x".into(),
            host_path: "/usr/lib".into(),
            read_only: true,
        }],
        devices: vec![DeviceSpec {
            container_path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        annotations: [
            ("cdi.k8s.io/x_y".into(), "v.example/c=one,v.example/c=two".into()),
            ("k".into(), "v".into()),
        ]
        .into(),
        cdi_devices: vec![CdiDevice { name: "v.example/c=one".into() }],
    };
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let unresolved = node.allocator.allocate(&devices("a")).await.expect_err("no specification");
    assert!(unresolved.to_string().contains("v.example/c=one, v.example/c=two"), "{unresolved}");
    // Written after the agent has looked: it looks again.
    std::fs::create_dir(&cdi).expect("a directory");
    let spec = r#"{"cdiVersion":"0.6.0","kind":"v.example/c","containerEdits":{"env":["ALL=1"]},"devices":[
        {"name":"one","containerEdits":{"env":["ONE=1"]}},{"name":"two","containerEdits":{"env":["TWO=1"]}}]}"#;
    std::fs::write(cdi.join("c.json"), spec).expect("a file");
    let given = node.allocator.allocate(&devices("a")).await.expect("all is described");
    assert_eq!(plugin.called(), ["allocate a", "start a", "allocate a", "start a"]);
    // One that runs is not about to start: the plugin might reset the device under it.
    let again = node.allocator.allocate_again(&devices("a")).await.expect("it is given");
    assert_eq!(again, given);
    assert_eq!(plugin.called().last().map(String::as_str), Some("allocate a"));
    assert_eq!(given.annotations["k"], "v");
    let mut config = serde_json::json!({});
    given.edits.apply(&mut config).expect("it can be applied");
    assert_eq!(config["process"]["env"], serde_json::json!(["A=1", "B=2", "ALL=1", "ONE=1", "TWO=1"]));
    let node = &config["linux"]["devices"][0];
    assert_eq!(
        (node["path"].as_str(), node["major"].as_u64(), node["minor"].as_u64()),
        (Some("/dev/x"), Some(1), Some(3))
    );
    assert_eq!(node["fileMode"].as_u64(), Some(0o666));
    let rule = &config["linux"]["resources"]["devices"][0];
    assert_eq!((rule["access"].as_str(), rule["allow"].as_bool()), (Some("rw"), Some(true)));
    assert_eq!(config["mounts"][0]["options"], serde_json::json!(["rbind", "rprivate", "ro"]));
}

/// As NVIDIA's own plugin does with its defaults, and with its strategy `volume-mounts`.
#[tokio::test]
async fn gpus_that_are_named_for_nvidias_container_runtime_alone_are_given_by_their_specification() {
    let directory = "/var/run/nvidia-container-devices";
    let mount = |name: &str| Mount {
        container_path: format!("{directory}/{name}"),
        host_path: "/dev/null".into(),
        read_only: false,
    };
    let mounts = vec![mount("GPU-1"), mount("GPU-2")];
    for (value, mounts) in [("GPU-1,GPU-2", Vec::new()), (directory, mounts)] {
        let mut node = Node::start().await;
        let mut plugin = Behaviour::with("a");
        plugin.answer.envs = [("NVIDIA_VISIBLE_DEVICES".into(), value.into())].into();
        plugin.answer.mounts = mounts;
        let _serving = plugin.serve(&node.plugins(), "x.sock");
        node.register("x.sock", X, VERSION).await.expect("it is taken");
        node.has(X, "a").await;
        let nothing = node.allocator.allocate(&devices("a")).await.expect_err("no GPU would be in there");
        let nothing = format!("{nothing}");
        assert!(nothing.contains("nvidia.com/gpu=GPU-1, nvidia.com/gpu=GPU-2"), "{nothing}");
        assert!(nothing.contains("DEVICE_LIST_STRATEGY=cdi-cri"), "{nothing}");
        let cdi = node.dir.path().join("cdi");
        std::fs::create_dir(&cdi).expect("a directory");
        let spec = r#"{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[
            {"name":"GPU-1","containerEdits":{"env":["ONE=1"]}},
            {"name":"GPU-2","containerEdits":{"env":["TWO=1"]}}]}"#;
        std::fs::write(cdi.join("nvidia.json"), spec).expect("a file");
        let given = node.allocator.allocate(&devices("a")).await.expect("all is described");
        let env: Vec<_> = given.edits.env.iter().map(ToString::to_string).collect();
        assert_eq!(env, [&format!("NVIDIA_VISIBLE_DEVICES={value}"), "ONE=1", "TWO=1"]);
    }
}

#[tokio::test]
async fn gpus_that_are_given_otherwise_need_no_specification_of_nvidias() {
    for value in ["void", "none", "", "GPU-1"] {
        let mut node = Node::start().await;
        let mut plugin = Behaviour::with("a");
        plugin.answer.envs = [("NVIDIA_VISIBLE_DEVICES".into(), value.into())].into();
        if value == "GPU-1" {
            let null = || "/dev/null".to_owned();
            let permissions = "rw".into();
            plugin.answer.devices =
                vec![DeviceSpec { container_path: null(), host_path: null(), permissions }];
        }
        let _serving = plugin.serve(&node.plugins(), "x.sock");
        node.register("x.sock", X, VERSION).await.expect("it is taken");
        node.has(X, "a").await;
        let given = node.allocator.allocate(&devices("a")).await.expect("nothing is missing");
        assert_eq!(given.edits.env.len(), 1, "{value}");
    }
}

#[tokio::test]
async fn a_directory_of_devices_is_given_whole_and_what_is_missing_is_named() {
    let mut node = Node::start().await;
    let mut plugin = Behaviour::with("a");
    let directory = node.dir.path().join("dev");
    std::fs::create_dir_all(directory.join("bus")).expect("directories");
    std::os::unix::fs::symlink("/dev/null", directory.join("bus/1")).expect("a link");
    std::fs::write(directory.join("no-device"), "").expect("a file");
    // What leads nowhere is no device; the drivers of what was unplugged leave such links.
    std::os::unix::fs::symlink("/dev/no-such-device", directory.join("bus/2")).expect("a link");
    std::os::unix::fs::symlink("nothing", directory.join("gone")).expect("a link");
    let spec = |path: &Path| DeviceSpec {
        container_path: "/dev/usb".into(),
        host_path: path.to_str().expect("text").into(),
        permissions: "rw".into(),
    };
    plugin.answer.devices = vec![spec(&directory)];
    let serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let given = node.allocator.allocate(&devices("a")).await.expect("there is one");
    let paths: Vec<_> =
        given.edits.device_nodes.iter().map(|node| node.path.to_str().expect("text")).collect();
    assert_eq!(paths, ["/dev/usb/bus/1"]);
    serving.kill();
    node.has(X, "-a").await;
    plugin.answer.devices = vec![spec(Path::new("/dev/no-such-device"))];
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let missing = node.allocator.allocate(&devices("a")).await.expect_err("there is none");
    let AllocateError::Unfit { source, .. } = missing else { panic!("{missing}") };
    assert!(source.to_string().contains("/dev/no-such-device"), "{source}");
}

#[tokio::test]
async fn a_slow_plugin_holds_up_nobody_else_and_one_that_dies_in_a_call_fails_it() {
    let mut node = Node::start().await;
    let (slow, quick) = (Behaviour::with("a"), Behaviour::with("a"));
    slow.stuck.send_replace("allocate");
    let serving = slow.serve(&node.plugins(), "slow.sock");
    let _quick = quick.serve(&node.plugins(), "quick.sock");
    node.register("slow.sock", X, VERSION).await.expect("it is taken");
    node.register("quick.sock", "a.example/quick", VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    node.has("a.example/quick", "a").await;
    let allocator = node.allocator.clone();
    let waiting = tokio::spawn(async move { allocator.allocate(&devices("a")).await });
    let other: Devices =
        BTreeMap::from([(ResourceName("a.example/quick".into()), [DeviceId("a".into())].into())]);
    tokio::time::timeout(PATIENCE, node.allocator.allocate(&other))
        .await
        .expect("at once")
        .expect("it answers");
    slow.is_stuck().await;
    assert!(!waiting.is_finished());
    serving.kill();
    let failed = tokio::time::timeout(PATIENCE, waiting).await.expect("no longer waits").expect("no panic");
    assert!(matches!(failed, Err(AllocateError::Refused { .. })), "{failed:?}");
}

#[tokio::test]
async fn an_allocation_that_never_ends_is_given_up() {
    let mut node = Node::start().await;
    let stuck = Behaviour::with("a");
    stuck.stuck.send_replace("allocate");
    let _serving = stuck.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let allocator = node.allocator.clone();
    let waiting = tokio::spawn(async move { allocator.allocate(&devices("a")).await });
    stuck.is_stuck().await;
    tokio::time::pause();
    let Err(AllocateError::Refused { why, .. }) = waiting.await.expect("no panic") else {
        panic!("it is refused")
    };
    assert_eq!(why, "the plugin did not answer within 60 s");
}

/// As one that cannot reset the device, and one whose device hangs at that.
#[tokio::test]
async fn a_container_whose_plugin_does_not_prepare_its_start_gets_nothing() {
    let mut node = Node::start().await;
    let mut plugin = Behaviour::with("a");
    plugin.options.pre_start_required = true;
    let late = plugin.clone();
    plugin.unprepared = Some("it cannot be reset");
    let serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let Err(AllocateError::Refused { why, .. }) = node.allocator.allocate(&devices("a")).await else {
        panic!("it is refused")
    };
    assert_eq!(why, "it cannot be reset");
    serving.kill();
    node.has(X, "-a").await;
    late.stuck.send_replace("start");
    late.calls.lock().expect("no panic").clear();
    let _late = late.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "a").await;
    let allocator = node.allocator.clone();
    let waiting = tokio::spawn(async move { allocator.allocate(&devices("a")).await });
    late.is_stuck().await;
    tokio::time::pause();
    let Err(AllocateError::Refused { why, .. }) = waiting.await.expect("no panic") else {
        panic!("it is refused")
    };
    assert_eq!(why, "the plugin did not answer within 30 s");
}

/// Nobody waits longer for a hint: without one, the choice is the agent's.
#[tokio::test]
async fn a_preference_that_is_not_told_in_time_is_none() {
    let mut node = Node::start().await;
    let mut plugin = Behaviour::with("abc");
    plugin.options.get_preferred_allocation_available = true;
    plugin.stuck.send_replace("prefer");
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "abc").await;
    let free = devices("abc").remove(&ResourceName(X.into())).expect("named");
    let choice = Choice { resource: ResourceName(X.into()), free, count: 1 };
    node.choices.send_replace([choice.clone()].into());
    plugin.is_stuck().await;
    assert!(node.inventory.borrow().preferences.is_empty());
    // From now on time passes when nothing else can happen.
    tokio::time::pause();
    let knows = |inventory: &Arc<Inventory>| inventory.preferences.contains_key(&choice);
    let known = tokio::time::timeout(Duration::from_secs(6), node.inventory.wait_for(knows)).await;
    known.expect("after 5 s").expect("it runs");
    assert_eq!(node.inventory.borrow().preferences[&choice], BTreeSet::new());
}

#[tokio::test]
async fn a_plugin_that_does_not_tell_its_options_is_refused_and_holds_up_nobody() {
    let mut node = Node::start().await;
    let (stuck, quick) = (Behaviour::with("a"), Behaviour::with("a"));
    stuck.stuck.send_replace("options");
    let _stuck = stuck.serve(&node.plugins(), "x.sock");
    let _quick = quick.serve(&node.plugins(), "quick.sock");
    let quickly = async {
        stuck.is_stuck().await;
        node.register("quick.sock", "a.example/quick", VERSION).await.expect("it is taken");
        tokio::time::pause();
    };
    let (refused, ()) = tokio::join!(node.register("x.sock", X, VERSION), quickly);
    let refused = refused.expect_err("it never answered");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::DeadlineExceeded, "the plugin did not answer within 10 s")
    );
    tokio::time::resume();
    node.has("a.example/quick", "a").await;
    // Answering late makes it no plugin; registering again does.
    node.has(X, "none").await;
    stuck.stuck.send_replace("");
    node.register("x.sock", X, VERSION).await.expect("it answers now");
    node.has(X, "a").await;
}

#[tokio::test]
async fn the_devices_of_a_plugin_that_registers_again_and_never_lists_are_forgotten() {
    let mut node = Node::start().await;
    let (former, silent) = (Behaviour::with("ab"), Behaviour::with("never"));
    let serving = former.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "ab").await;
    serving.kill();
    node.has(X, "-ab").await;
    let _silent = silent.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("its former self is dead");
    node.has(X, "-ab").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    node.has(X, "none").await;
    tokio::time::resume();
    let other = node.register("other.sock", X, VERSION).await;
    assert!(other.is_err(), "it runs, and has the resource");
    silent.devices.send_replace("a");
    node.has(X, "a").await;
}

#[tokio::test]
async fn a_plugin_that_does_not_come_back_is_forgotten() {
    let mut node = Node::start().await;
    let plugin = Behaviour::with("ab");
    let serving = plugin.serve(&node.plugins(), "x.sock");
    node.register("x.sock", X, VERSION).await.expect("it is taken");
    node.has(X, "ab").await;
    serving.kill();
    node.has(X, "-ab").await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(301)).await;
    node.has(X, "none").await;
}

/// As grpc-go says it with the dialler that device plugins are written with: the authority is the socket's path.
#[tokio::test]
async fn a_plugin_that_names_the_sockets_path_as_its_authority_is_let_in() {
    let mut node = Node::start().await;
    let plugin = Behaviour::with("a");
    let _serving = plugin.serve(&node.plugins(), "x.sock");
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let headers = [
        // POST, http; path; authority; content-type.
        vec![0x83, 0x86],
        [&[0x04], &*text("/v1beta1.Registration/Register")].concat(),
        [&[0x01], &*text("/var/lib/kubelet/device-plugins/kubelet.sock")].concat(),
        [&[0x0f, 0x10], &*text("application/grpc")].concat(),
        [&[0x00], &*text("te"), &*text("trailers")].concat(),
    ];
    let fields = [(1, VERSION), (2, "x.sock"), (3, X)];
    let request: Vec<u8> =
        fields.iter().flat_map(|(number, value)| [vec![number << 3 | 2], text(value)].concat()).collect();
    let length = u32::try_from(request.len()).expect("short").to_be_bytes();
    let message = [&[0], &length[..], &request].concat();
    let call = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers.concat()),
        frame(0, 1, 1, &message),
    ];
    let mut connection = UnixStream::connect(node.plugins().join(KUBELET_SOCKET)).await.expect("it answers");
    connection.write_all(&call.concat()).await.expect("it is read");
    node.has(X, "a").await;
}
