//! Functions with devices: the generic plugin's own program, and nodes of a harmless number that no container has by default.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::{
    Device, DeviceId, DeviceNode, Edits, EditsError, Health, Resource, Scan, ScanError, SharedAccelerator,
    fixed, serve,
};
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

pub(super) const EYE: &str = "tests.example/eye";

/// A node with a plugin that offers what lies in `hardware/eye*`.
pub(super) struct Bench {
    plugin: Option<Process>,
    pub(super) node: Node,
    pub(super) site: Site,
}

impl Bench {
    async fn start(devices: &[&str]) -> Option<Self> {
        let mut bench = Self::without_plugin(devices, 600).await?;
        bench.start_plugin();
        bench.offers(devices.len()).await;
        Some(bench)
    }

    pub(super) async fn without_plugin(devices: &[&str], idle_timeout_s: u64) -> Option<Self> {
        let mut site = Site::start().await?;
        let node = site.node(NodeOptions::named("press-7").idle_timeout_s(idle_timeout_s)).await;
        let bench = Self { site, node, plugin: None };
        fs::create_dir_all(bench.hardware()).expect("a directory");
        devices.iter().for_each(|name| bench.plug(name));
        Some(bench)
    }

    fn hardware(&self) -> PathBuf {
        self.node.dir().join("hardware")
    }

    /// `/dev/full` under another name.
    fn plug(&self, name: &str) {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IWGRP;
        mknod(&self.hardware().join(name), SFlag::S_IFCHR, mode, makedev(1, 7))
            .expect("root may make device nodes");
    }

    fn unplug(&self, name: &str) {
        fs::remove_file(self.hardware().join(name)).expect("it is plugged");
    }

    fn start_plugin(&mut self) {
        self.plugin = Some(self.run_plugin());
    }

    fn run_plugin(&self) -> Process {
        let config = self.node.dir().join("eyes.toml");
        let text = format!(
            "interval_s = 1\n[roots]\ndev = \"{}\"\n[[resource]]\nname = \"{EYE}\"\nenv = {{ EYES = \"{{paths}}\" }}\n\
             [[resource.match]]\npath = \"/dev/eye*\"\n",
            self.hardware().display()
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(program("tombolo-device-plugin-generic"));
        command.arg("--config").arg(config).arg("--directory").arg(self.node.plugin_directory());
        self.node.start_beside("plugin", command).expect("a plugin starts")
    }

    /// Waits until the hub says that so many devices can be given.
    pub(super) async fn offers(&self, count: usize) {
        until(&format!("{count} allocatable devices at the hub"), 30, || async {
            let node = self.site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
            let status = &node["status"];
            let found = status["allocatable"][EYE].as_str().unwrap_or("0").to_owned();
            if found == count.to_string() { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    async fn answer(&self, service: &str, path: &str) -> String {
        until(&format!("{service}{path}"), 30, || self.node.answer(service, path)).await
    }

    /// Waits until a service's or its revisions' status at the hub says `word`.
    pub(super) async fn says(&self, service: &str, word: &str) {
        until(&format!("{word} in {service}'s status"), 30, || async {
            let told = self.site.hub.api.told(service).await.map_err(|error| error.to_string())?;
            if told.contains(word) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// Waits until the function has the device `name`, and no other.
    pub(super) async fn has(&self, service: &str, name: &str) {
        until(&format!("{service} to have {name}"), 60, || async {
            let env = self.node.answer(service, "/env").await?;
            if env.contains(&format!("EYES=/dev/{name}\n")) { Ok(()) } else { Err(env) }
        })
        .await;
        assert_eq!(self.answer(service, &format!("/open?/dev/{name}")).await, "opened");
    }
}

/// A plugin in this process: what it offers is sick if a file says so, and its devices need more than a node.
pub(super) struct Eyes {
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
    /// Of its own, so that it can die with everything that it is doing.
    runtime: Option<Runtime>,
}

impl Drop for Eyes {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Eyes {
    pub(super) fn serve(bench: &Bench, accelerator: Option<SharedAccelerator>) -> Self {
        Self::serve_with(bench, accelerator, &json!({ "env": ["LENS=wide"] }))
    }

    /// With these edits in the CDI specification of what it names.
    fn serve_with(bench: &Bench, accelerator: Option<SharedAccelerator>, lens: &Value) -> Self {
        let cdi = bench.node.dir().join("cdi");
        fs::create_dir_all(&cdi).expect("a directory");
        let spec = json!({
            "cdiVersion": "0.6.0",
            "kind": "tests.example/eye",
            "devices": [{ "name": "lens", "containerEdits": lens }],
        });
        fs::write(cdi.join("eye.json"), spec.to_string()).expect("a file");
        let resource = Resource {
            name: EYE.parse().expect("a name"),
            scan: Box::new(Scanner { hardware: bench.hardware(), accelerator }),
            watched: vec![bench.hardware()],
            interval: Duration::from_secs(1),
        };
        let directory = bench.node.plugin_directory();
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let task = runtime.spawn(async move {
            let stopped = async move { drop(stopped.await) };
            serve(&directory, fixed(vec![resource]), Metrics::default(), stopped).await.expect("it serves");
        });
        Self { stop: Some(stop), task: Some(task), runtime: Some(runtime) }
    }

    pub(super) async fn stop(mut self) {
        drop(self.stop.take());
        self.task.take().expect("it runs").await.expect("it ends");
    }

    /// Whatever it is doing, as at the end of a test.
    pub(super) fn kill(self) {}
}

struct Scanner {
    hardware: PathBuf,
    accelerator: Option<SharedAccelerator>,
}

impl Scan for Scanner {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.hardware).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().expect("text");
            if name.ends_with(".sick") {
                continue;
            }
            let is_sick = self.hardware.join(format!("{name}.sick")).exists();
            let health =
                if is_sick { Health::Unhealthy { why: "a test says so".into() } } else { Health::Healthy };
            devices.push(Device { id: name.parse().expect("an id"), health, numa: None });
        }
        Ok(devices)
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let mut edits = Edits { cdi: vec!["tests.example/eye=lens".into()], ..Edits::default() };
        for id in devices {
            let inside = format!("/dev/{id}");
            edits.env.insert("EYES".into(), inside.clone());
            edits.nodes.push(DeviceNode { host: self.hardware.join(id.as_str()), ..DeviceNode::at(inside) });
        }
        Ok(edits)
    }

    fn accelerator(&self) -> Option<SharedAccelerator> {
        self.accelerator.clone()
    }
}

pub(super) fn watching(name: &str) -> Function {
    Function::subject(name).env("MODE", "polite").limit(EYE, "1")
}

/// Not only when the next container needs them.
#[tokio::test]
async fn specifications_that_contradict_each_other_are_in_the_nodes_limitations() {
    let Some(bench) = Bench::without_plugin(&["eye0"], 60).await else { return };
    let _plugin = Eyes::serve(&bench, None);
    bench.offers(1).await;
    let told = "several files describe tests.example/eye=lens";
    let knows = async |is_told: bool| {
        until(&format!("{told:?} to be told: {is_told}"), 30, || async {
            let node = bench.site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
            let (hub, agent) = (&node["status"]["info"]["limitations"], bench.node.status().await?);
            let all = [hub, &agent["limitations"]].map(ToString::to_string);
            if all.iter().all(|all| all.contains(told) == is_told) { Ok(()) } else { Err(all.concat()) }
        })
        .await;
    };
    knows(false).await;
    let cdi = bench.node.dir().join("cdi");
    fs::copy(cdi.join("eye.json"), cdi.join("again.json")).expect("a file");
    knows(true).await;
    fs::remove_file(cdi.join("again.json")).expect("it is there");
    knows(false).await;
}

#[tokio::test]
async fn a_function_opens_the_device_it_was_given_and_no_other_does() {
    let Some(bench) = Bench::start(&["eye0", "eye1"]).await else { return };
    bench.site.hub.deploy(&watching("seeing")).await;
    bench.site.hub.deploy(&Function::subject("blind")).await;
    bench.has("seeing", "eye0").await;
    for (service, device) in [("seeing", "eye1"), ("blind", "eye0"), ("blind", "eye1")] {
        let refused = bench.answer(service, &format!("/open?/dev/{device}")).await;
        assert!(refused.starts_with("error"), "{service} opened {device}: {refused}");
    }
    let node = bench.site.hub.api.node("press-7").await.expect("the node is known");
    assert_eq!(
        (&node["status"]["capacity"][EYE], &node["status"]["allocatable"][EYE]),
        (&"2".into(), &"2".into())
    );
}

#[tokio::test]
async fn of_two_functions_and_one_device_one_waits_and_says_why() {
    let Some(bench) = Bench::start(&["eye0"]).await else { return };
    bench.site.hub.deploy(&watching("first")).await;
    bench.has("first", "eye0").await;
    bench.site.hub.deploy_unready(&watching("second")).await;
    bench.says("second", "InsufficientDevices").await;
    assert_eq!(bench.answer("first", "/open?/dev/eye0").await, "opened");
    bench.site.hub.api.delete_service("first").await.expect("it can be deleted");
    bench.has("second", "eye0").await;
}

/// Also when the plugin or the supervisor is killed with it, and while the plugin is not there.
#[tokio::test]
async fn a_device_stays_with_its_instance_when_the_agent_is_killed() {
    let Some(mut bench) = Bench::start(&["eye0"]).await else { return };
    bench.site.hub.deploy(&watching("first")).await;
    bench.has("first", "eye0").await;
    bench.site.hub.deploy_unready(&watching("second")).await;
    let before = bench.node.instances("first").await.expect("the agent says what it runs");
    assert_eq!(before.len(), 1);
    for (plugin_dies, supervisor_dies) in [(false, false), (true, false), (false, true)] {
        bench.node.kill_agent();
        if supervisor_dies {
            bench.node.kill_supervisor();
        }
        if plugin_dies {
            bench.plugin.take().expect("a plugin runs").kill().expect("it can be killed");
        }
        bench.node.start_agent().expect("the agent starts again");
        until("an answer", 30, || bench.node.answer("first", "/open?/dev/eye0")).await;
        if plugin_dies {
            bench.start_plugin();
        }
        until("the plugin to be back", 30, || async {
            let status = bench.node.status().await?;
            if status["allocatable"][EYE] == 1 { Ok(()) } else { Err(status["allocatable"].to_string()) }
        })
        .await;
        bench.says("second", "InsufficientDevices").await;
        assert_eq!(bench.node.instances("first").await.expect("the agent says what it runs"), before);
        assert!(bench.node.instances("second").await.expect("the agent says what it runs").is_empty());
    }
}

#[tokio::test]
async fn an_instance_whose_device_goes_moves_or_waits_for_one() {
    let Some(bench) = Bench::start(&["eye0", "eye1"]).await else { return };
    bench.site.hub.deploy(&watching("seeing")).await;
    bench.has("seeing", "eye0").await;
    bench.unplug("eye0");
    bench.has("seeing", "eye1").await;
    bench.offers(1).await;
    bench.unplug("eye1");
    bench.says("seeing", "InsufficientDevices").await;
    until("no instance without a device", 60, || async {
        let running = bench.node.instances("seeing").await?;
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    bench.plug("eye0");
    bench.has("seeing", "eye0").await;
}

#[tokio::test]
async fn a_new_revision_takes_the_only_device_over() {
    let Some(bench) = Bench::start(&["eye0"]).await else { return };
    bench.site.hub.deploy(&watching("seeing").env("VERSION", "1")).await;
    bench.has("seeing", "eye0").await;
    bench.site.hub.deploy(&watching("seeing").env("VERSION", "2")).await;
    assert_eq!(bench.answer("seeing", "/").await, "subject 2\n");
    bench.has("seeing", "eye0").await;
}

#[tokio::test]
async fn functions_that_idle_take_turns_on_one_device() {
    for tier in ["primed", "frozen"] {
        let Some(mut bench) = Bench::without_plugin(&["eye0"], 1).await else { return };
        bench.start_plugin();
        bench.offers(1).await;
        let turns = ["first", "second", "third"];
        for name in turns {
            bench.site.hub.deploy(&watching(name).annotation("tombolo.dev/idle-tier", tier)).await;
        }
        for name in turns.into_iter().chain(["first"]) {
            bench.has(name, "eye0").await;
        }
    }
}

/// A program that a specification has finish each container's root file system. It gets no `PATH`.
fn hook(bench: &Bench) -> PathBuf {
    let path = bench.node.dir().join("hook");
    fs::write(&path, "#!/bin/sh\necho \"$1\" > /run/rootfs/etc/hooked\n").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// What the plugin names in a CDI specification is there, too, and its hooks have run.
#[tokio::test]
async fn a_device_that_sickens_is_left_and_one_that_heals_is_used_again() {
    let Some(bench) = Bench::without_plugin(&["eye0"], 600).await else { return };
    let hook =
        json!({ "hookName": "createContainer", "path": hook(&bench), "args": ["hook", "create-symlinks"] });
    let lens = json!({ "env": ["LENS=wide"], "hooks": [hook] });
    let _plugin = Eyes::serve_with(&bench, None, &lens);
    bench.offers(1).await;
    bench.site.hub.deploy(&watching("seeing")).await;
    bench.has("seeing", "eye0").await;
    assert!(bench.answer("seeing", "/env").await.contains("LENS=wide\n"));
    assert_eq!(bench.answer("seeing", "/read?/etc/hooked").await, "create-symlinks\n");
    let sick = bench.hardware().join("eye0.sick");
    fs::write(&sick, "").expect("a file");
    bench.says("seeing", "DeviceUnhealthy").await;
    until("requests to be refused with the reason", 60, || async {
        let answer = bench.node.answer("seeing", "/").await;
        if answer.as_ref().is_err_and(|why| why.contains("DeviceUnhealthy")) { Ok(()) } else { Err(answer) }
    })
    .await;
    fs::remove_file(&sick).expect("it is there");
    bench.has("seeing", "eye0").await;
}

/// The node knows from before its reboot what to run, and there is no device for it yet.
#[tokio::test]
async fn after_a_reboot_a_request_waits_for_the_plugin() {
    let Some(mut bench) = Bench::start(&["eye0"]).await else { return };
    bench.site.hub.deploy(&watching("seeing")).await;
    bench.has("seeing", "eye0").await;
    bench.site.hub.kill();
    bench.plugin.take().expect("a plugin runs").kill().expect("it can be killed");
    bench.node.power_off().expect("its power can be cut");
    bench.node.start_agent().expect("the agent starts");
    until("its routes to be in force", 30, || async {
        if bench.node.is_ready().await { Ok(()) } else { Err("not ready") }
    })
    .await;
    let status = until("the reason", 30, || async {
        let status = bench.node.status().await?;
        if status["revisions"].to_string().contains("DevicesNotReady") {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
    .await;
    assert_eq!(status["allocatable"], serde_json::json!({}));
    let (answer, plugin) = tokio::join!(bench.node.answer("seeing", "/open?/dev/eye0"), async {
        until("the request to be held", 30, || async {
            let status = bench.node.status().await?;
            if status["counters"]["requestsHeld"] == 1 { Ok(()) } else { Err(status["counters"].to_string()) }
        })
        .await;
        bench.run_plugin()
    });
    bench.plugin = Some(plugin);
    assert_eq!(answer, Ok("opened".into()));
}
