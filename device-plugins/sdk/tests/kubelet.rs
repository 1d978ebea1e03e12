//! A plugin that scans what a test says, against a fake kubelet on real sockets.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::{
    Change, Device, DeviceId, DeviceNode, Edits, EditsError, Health, Resource, Scan, ScanError, ServeError,
    serve,
};
use tombolo_fake_kubelet::{FakeKubelet, Plugin, SOON};
use tonic::Code;

const LAMP: &str = "example.com/lamp";

/// Long enough to show that nothing comes of itself.
const QUIET: Duration = Duration::from_millis(700);

/// Devices are files in a directory: `name` holds `healthy`, or why it is not. A directory that is not there is a failure, a
/// file `panic` in it a panic, and one called `twin` is a device with the id of another one.
struct Lamps {
    directory: PathBuf,
    scans: Arc<AtomicUsize>,
}

impl Lamps {
    /// A file that makes scans hang while it is there.
    fn gate(&self) -> PathBuf {
        self.directory.with_file_name("gate")
    }
}

impl Scan for Lamps {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        while self.gate().exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.scans.fetch_add(1, Ordering::SeqCst);
        let failed = |source| ScanError::Read { path: self.directory.clone(), source };
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert_ne!(name, "panic", "as asked for");
            let id = if name == "twin" { "a" } else { &name };
            let health = match fs::read_to_string(&path).map_err(failed)?.as_str() {
                "healthy" => Health::Healthy,
                why => Health::Unhealthy { why: why.to_owned() },
            };
            let numa = name.strip_prefix("numa").and_then(|rest| rest[..1].parse().ok());
            devices.push(Device { id: id.parse().unwrap(), health, numa });
        }
        Ok(devices)
    }

    fn mark(&self, device: &DeviceId) -> String {
        // A mobile one that was plugged again is another file.
        let mobile = device.as_str() == "mobile";
        let file = mobile.then(|| fs::metadata(self.directory.join("mobile")).ok()).flatten();
        file.map_or_else(String::new, |meta| meta.ino().to_string())
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let nodes = devices.iter().map(|id| DeviceNode::at(format!("/dev/{id}"))).collect();
        let env = BTreeMap::from([("LAMPS".to_owned(), devices.len().to_string())]);
        Ok(Edits { nodes, env, ..Edits::default() })
    }
}

/// A program with a plugin, in a directory of its own.
struct Ground {
    root: TempDir,
    scans: Arc<AtomicUsize>,
    metrics: Metrics,
    changes: mpsc::Sender<Change>,
    end: Option<oneshot::Sender<()>>,
    program: JoinHandle<Result<(), ServeError>>,
}

impl Ground {
    /// The lamps that there are at first, all of them healthy.
    async fn start(lamps: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("plugins")).unwrap();
        fs::create_dir(root.path().join("lamps")).unwrap();
        let (changes, receiver) = mpsc::channel(8);
        let (end, ended) = oneshot::channel::<()>();
        let (directory, metrics) = (root.path().join("plugins"), Metrics::default());
        let counted = metrics.clone();
        let program = tokio::spawn(async move {
            let ended = async { drop(ended.await) };
            serve(&directory, receiver, counted, ended).await
        });
        let ground = Self { root, scans: Arc::default(), metrics, changes, end: Some(end), program };
        for lamp in lamps {
            ground.lamp(lamp, "healthy");
        }
        ground.add(LAMP).await;
        ground
    }

    async fn add(&self, name: &str) {
        let scan = Box::new(Lamps { directory: self.lamps(), scans: Arc::clone(&self.scans) });
        let (watched, interval) = (vec![self.lamps()], Duration::from_secs(3600));
        let resource = Resource { name: name.parse().unwrap(), scan, watched, interval };
        assert!(self.changes.send(Change::Add(resource)).await.is_ok());
    }

    fn plugins(&self) -> PathBuf {
        self.root.path().join("plugins")
    }

    fn lamps(&self) -> PathBuf {
        self.root.path().join("lamps")
    }

    fn socket(&self) -> PathBuf {
        self.plugins().join("example.com_lamp.sock")
    }

    /// Plugs a lamp, or changes its health, in one step.
    fn lamp(&self, name: &str, health: &str) {
        let half = self.root.path().join("half");
        fs::write(&half, health).unwrap();
        fs::rename(half, self.lamps().join(name)).unwrap();
    }

    fn unplug(&self, name: &str) {
        fs::remove_file(self.lamps().join(name)).unwrap();
    }

    async fn kubelet(&self) -> FakeKubelet {
        FakeKubelet::start(&self.plugins()).await
    }

    /// Gives what it stood on, so that another program can.
    async fn end(mut self) -> TempDir {
        let _ = self.end.take().unwrap().send(());
        tokio::time::timeout(SOON, &mut self.program).await.expect("it ends").unwrap().unwrap();
        assert!(!self.socket().exists(), "its socket is removed");
        self.root
    }
}

async fn becomes(what: &str, is: impl Fn() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn registers_once_and_tells_changes_only() {
    let ground = Ground::start(&["a", "b"]).await;
    let mut kubelet = ground.kubelet().await;
    let request = kubelet.registered(LAMP).await;
    assert_eq!((request.version.as_str(), request.endpoint.as_str()), ("v1beta1", "example.com_lamp.sock"));
    let options = request.options.unwrap();
    assert!(options.get_preferred_allocation_available && !options.pre_start_required);
    let mut plugin = Plugin::connect(&ground.socket()).await;
    let first = plugin.next_list().await.unwrap();
    assert_eq!(first.keys().collect::<Vec<_>>(), ["a", "b"], "the whole list at once");
    let scans = ground.scans.load(Ordering::SeqCst);
    fs::set_permissions(ground.lamps(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    becomes("it looks again", || ground.scans.load(Ordering::SeqCst) > scans).await;
    assert!(plugin.is_quiet(QUIET).await, "what has not changed is not told again");
    assert!(!kubelet.registered_again(LAMP));
    ground.end().await;
}

#[tokio::test]
async fn a_device_comes_goes_sickens_and_heals() {
    let ground = Ground::start(&["a"]).await;
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    plugin.list(&[("a", "Healthy")]).await;
    ground.lamp("b", "healthy");
    plugin.list(&[("a", "Healthy"), ("b", "Healthy")]).await;
    ground.lamp("a", "the bulb is broken");
    plugin.list(&[("a", "Unhealthy"), ("b", "Healthy")]).await;
    ground.unplug("b");
    plugin.list(&[("a", "Unhealthy")]).await;
    ground.lamp("a", "healthy");
    plugin.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn a_device_that_comes_back_is_told_to_have_gone() {
    let ground = Ground::start(&["a", "mobile"]).await;
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    let list = |ids: &[&str]| -> Option<BTreeMap<String, String>> {
        Some(ids.iter().map(|id| ((*id).to_owned(), "Healthy".to_owned())).collect())
    };
    assert_eq!(plugin.next_list().await, list(&["a", "mobile"]));
    // In one step: no scan ever misses it.
    ground.lamp("mobile", "healthy");
    assert_eq!(plugin.next_list().await, list(&["a"]));
    assert_eq!(plugin.next_list().await, list(&["a", "mobile"]));
    ground.lamp("a", "healthy");
    assert!(plugin.is_quiet(QUIET).await, "the other one is the same, whatever became of its file");
    let mut late = Plugin::connect(&ground.socket()).await;
    assert_eq!(late.next_list().await, list(&["a", "mobile"]), "who comes later has nothing to forget");
    ground.end().await;
}

#[tokio::test]
async fn allocates_what_is_there_and_healthy() {
    let ground = Ground::start(&["a", "b"]).await;
    ground.lamp("c", "the bulb is broken");
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    plugin.list(&[("a", "Healthy"), ("b", "Healthy"), ("c", "Unhealthy")]).await;
    let given = plugin.allocate(&["a", "b"]).await.unwrap();
    assert_eq!(given.envs["LAMPS"], "2");
    let nodes: Vec<_> = given.devices.iter().map(|node| (&*node.host_path, &*node.permissions)).collect();
    assert_eq!(nodes, [("/dev/a", "rw"), ("/dev/b", "rw")]);
    for (ids, code, words) in [
        (vec!["a", "x"], Code::NotFound, "example.com/lamp: there is no device \"x\""),
        (vec!["c"], Code::FailedPrecondition, "device \"c\" is unhealthy: the bulb is broken"),
        (vec![], Code::InvalidArgument, "no device is named"),
    ] {
        let scans = ground.scans.load(Ordering::SeqCst);
        let status = plugin.allocate(&ids).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains(words), "{status}");
        becomes("a refusal is a reason to look", || ground.scans.load(Ordering::SeqCst) > scans).await;
    }
    let text = ground.metrics.text();
    for line in [
        "tombolo_device_plugin_devices{resource=\"example.com/lamp\",health=\"healthy\"} 2",
        "tombolo_device_plugin_devices{resource=\"example.com/lamp\",health=\"unhealthy\"} 1",
        "tombolo_device_plugin_registered{resource=\"example.com/lamp\"} 1",
        "tombolo_device_plugin_allocations_total{resource=\"example.com/lamp\"} 1",
        "tombolo_device_plugin_allocation_refusals_total{resource=\"example.com/lamp\"} 3",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in {text}");
    }
    ground.end().await;
}

#[tokio::test]
async fn prefers_what_must_be_then_one_numa_node() {
    let all = ["numa0-a", "numa0-b", "numa1-a", "numa1-b", "numa1-c"];
    let ground = Ground::start(&all).await;
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    plugin.next_list().await.unwrap();
    assert_eq!(plugin.prefer(&all, &[], 3).await.unwrap(), ["numa1-a", "numa1-b", "numa1-c"]);
    assert_eq!(plugin.prefer(&all, &["numa0-b"], 2).await.unwrap(), ["numa0-b", "numa0-a"]);
    assert_eq!(plugin.prefer(&all[..3], &[], 2).await.unwrap(), ["numa0-a", "numa0-b"]);
    let status = plugin.prefer(&all[..1], &[], 2).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    ground.end().await;
}

#[tokio::test]
async fn waits_for_the_kubelet_and_finds_the_next_one() {
    let ground = Ground::start(&["a"]).await;
    becomes("it serves before there is a kubelet", || ground.socket().exists()).await;
    let mut kubelet = ground.kubelet().await;
    let mut plugin = kubelet.plugin(LAMP).await;
    plugin.list(&[("a", "Healthy")]).await;
    kubelet.kill().await;
    // One that starts deletes the plugin's socket, and with it every way to the old one.
    for _ in 0..3 {
        let mut kubelet = ground.kubelet().await;
        kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
        kubelet.kill().await;
    }
    // One that does not.
    fs::remove_file(ground.plugins().join("kubelet.sock")).unwrap();
    let kept = fs::read_dir(ground.plugins()).unwrap().count();
    assert_eq!(kept, 1, "the plugin's socket");
    let away = tempfile::tempdir().unwrap();
    let mut kubelet = FakeKubelet::start(away.path()).await;
    fs::rename(away.path().join("kubelet.sock"), ground.plugins().join("kubelet.sock")).unwrap();
    kubelet.registered(LAMP).await;
    ground.end().await;
}

#[tokio::test]
async fn a_deleted_socket_is_made_again() {
    let ground = Ground::start(&["a"]).await;
    let mut kubelet = ground.kubelet().await;
    kubelet.registered(LAMP).await;
    fs::remove_file(ground.socket()).unwrap();
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    fs::remove_dir_all(ground.plugins()).unwrap();
    fs::create_dir(ground.plugins()).unwrap();
    let mut kubelet = ground.kubelet().await;
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn a_kubelet_that_forgets_the_resource_is_told_again() {
    let ground = Ground::start(&["a"]).await;
    let mut kubelet = ground.kubelet().await;
    drop(kubelet.plugin(LAMP).await);
    // Its socket is as it was; only that it does not follow the list tells that it has forgotten.
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn a_refusal_is_tried_again() {
    let ground = Ground::start(&["a"]).await;
    let plugins = ground.plugins();
    let mut kubelet = FakeKubelet::start(&plugins).await;
    kubelet.registered(LAMP).await;
    kubelet.refuse(Some("requested API version \"v1beta1\" is not supported"));
    fs::remove_file(ground.socket()).unwrap();
    let registered = "tombolo_device_plugin_registered{resource=\"example.com/lamp\"} 0";
    becomes("it is known to be refused", || ground.metrics.text().contains(registered)).await;
    assert!(!kubelet.registered_again(LAMP));
    kubelet.refuse(None);
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn a_scan_that_fails_keeps_the_list_for_a_while() {
    let ground = Ground::start(&["a"]).await;
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    plugin.list(&[("a", "Healthy")]).await;
    let scans = ground.scans.load(Ordering::SeqCst);
    fs::rename(ground.lamps(), ground.root.path().join("away")).unwrap();
    let next = plugin.next_list().await.unwrap();
    assert!(ground.scans.load(Ordering::SeqCst) >= scans + 3, "not at the first failure");
    assert_eq!(next, BTreeMap::from([("a".to_owned(), "Unhealthy".to_owned())]), "there, and not to be had");
    let status = plugin.allocate(&["a"]).await.unwrap_err();
    assert!(status.message().contains("cannot be looked at: cannot read"), "{status}");
    fs::rename(ground.root.path().join("away"), ground.lamps()).unwrap();
    plugin.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn a_plugins_defect_is_a_failed_scan() {
    let ground = Ground::start(&["a"]).await;
    let mut plugin = ground.kubelet().await.plugin(LAMP).await;
    plugin.list(&[("a", "Healthy")]).await;
    for (defect, words) in [("panic", "the scan panicked"), ("twin", "two devices have the id a")] {
        ground.lamp(defect, "healthy");
        plugin.list(&[("a", "Unhealthy")]).await;
        let status = plugin.allocate(&["a"]).await.unwrap_err();
        assert!(status.message().contains(words), "{status}");
        ground.unplug(defect);
        plugin.list(&[("a", "Healthy")]).await;
    }
    ground.end().await;
}

#[tokio::test]
async fn a_scan_that_hangs_refuses_allocations_and_holds_up_nothing_else() {
    let ground = Ground::start(&["a"]).await;
    let mut kubelet = ground.kubelet().await;
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    let gate = ground.root.path().join("gate");
    fs::write(&gate, "").unwrap();
    ground.lamp("b", "healthy");
    hangs(ground.socket()).await;
    fs::remove_file(&gate).unwrap();
    let mut plugin = Plugin::connect(&ground.socket()).await;
    plugin.list(&[("a", "Healthy"), ("b", "Healthy")]).await;
    plugin.allocate(&["b"]).await.unwrap();
    ground.end().await;
}

/// Allocates until a scan is in the way.
async fn hangs(socket: PathBuf) {
    let plugin = Plugin::connect(&socket).await;
    loop {
        match plugin.allocate(&["a"]).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(status) => {
                assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
                return;
            }
        }
    }
}

#[tokio::test]
async fn resources_come_and_go() {
    let ground = Ground::start(&["a"]).await;
    let mut kubelet = ground.kubelet().await;
    let mut first = kubelet.plugin(LAMP).await;
    first.list(&[("a", "Healthy")]).await;
    ground.add("example.com/lantern").await;
    kubelet.plugin("example.com/lantern").await.list(&[("a", "Healthy")]).await;
    assert!(ground.changes.send(Change::Remove(LAMP.parse().unwrap())).await.is_ok());
    assert_eq!(first.next_list().await, None, "the list ends");
    becomes("the socket is removed", || !ground.socket().exists()).await;
    assert!(!ground.metrics.text().contains("example.com/lamp\""));
    assert!(ground.metrics.text().contains("example.com/lantern\""));
    ground.add(LAMP).await;
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    ground.end().await;
}

#[tokio::test]
async fn two_programs_do_not_fight_for_a_resource() {
    let ground = Ground::start(&["a"]).await;
    let mut kubelet = ground.kubelet().await;
    kubelet.registered(LAMP).await;
    let (changes, receiver) = mpsc::channel(1);
    let (end, ended) = oneshot::channel::<()>();
    let plugins = ground.plugins();
    let second = tokio::spawn(async move {
        let ended = async { drop(ended.await) };
        serve(&plugins, receiver, Metrics::default(), ended).await
    });
    let scan = Lamps { directory: ground.lamps(), scans: Arc::default() };
    let (name, watched) = (LAMP.parse().unwrap(), vec![]);
    let resource = Resource { name, scan: Box::new(scan), watched, interval: Duration::from_secs(3600) };
    assert!(changes.send(Change::Add(resource)).await.is_ok());
    tokio::time::sleep(QUIET).await;
    assert!(!kubelet.registered_again(LAMP), "the second waits");
    let _root = ground.end().await;
    kubelet.plugin(LAMP).await.list(&[("a", "Healthy")]).await;
    let _ = end.send(());
    tokio::time::timeout(SOON, second).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_directory_too_deep_for_sockets_is_an_error() {
    let deep = Path::new("/").join("d".repeat(100));
    let scan = Lamps { directory: PathBuf::new(), scans: Arc::default() };
    let (name, watched, interval) = (LAMP.parse().unwrap(), vec![], Duration::from_secs(1));
    let resources =
        tombolo_device_sdk::fixed(vec![Resource { name, scan: Box::new(scan), watched, interval }]);
    let error = serve(&deep, resources, Metrics::default(), std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("give a shorter --directory"), "{error}");
}
