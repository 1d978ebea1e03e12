//! Functions with devices: the generic plugin's own program, and nodes of a harmless number that no container has by default.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

const EYE: &str = "tests.example/eye";

/// A node with a plugin that offers what lies in `hardware/eye*`.
struct Bench {
    plugin: Option<Process>,
    node: Node,
    site: Site,
}

impl Bench {
    async fn start(devices: &[&str]) -> Option<Self> {
        let mut site = Site::start().await?;
        let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
        let mut bench = Self { site, node, plugin: None };
        fs::create_dir_all(bench.hardware()).expect("a directory");
        devices.iter().for_each(|name| bench.plug(name));
        bench.start_plugin();
        bench.offers(devices.len()).await;
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
        let config = self.node.dir().join("eyes.toml");
        let text = format!(
            "interval_s = 1\n[roots]\ndev = \"{}\"\n[[resource]]\nname = \"{EYE}\"\nenv = {{ EYES = \"{{paths}}\" }}\n\
             [[resource.match]]\npath = \"/dev/eye*\"\n",
            self.hardware().display()
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(program("tombolo-device-plugin-generic"));
        command.arg("--config").arg(config).arg("--directory").arg(self.node.plugin_directory());
        self.plugin = Some(self.node.start_beside("plugin", command).expect("a plugin starts"));
    }

    /// Waits until the hub says that so many devices can be given.
    async fn offers(&self, count: usize) {
        until(&format!("{count} allocatable devices at the hub"), 30, || async {
            let node = self.site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
            let status = &node["status"];
            if status["allocatable"][EYE] == count.to_string() { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }

    async fn answer(&self, service: &str, path: &str) -> String {
        until(&format!("{service}{path}"), 30, || self.node.answer(service, path)).await
    }

    /// Waits until a service's or its revisions' status at the hub says `word`.
    async fn says(&self, service: &str, word: &str) {
        until(&format!("{word} in {service}'s status"), 30, || async {
            let told = self.site.hub.api.told(service).await.map_err(|error| error.to_string())?;
            if told.contains(word) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// Waits until the function has the device `name`, and no other.
    async fn has(&self, service: &str, name: &str) {
        until(&format!("{service} to have {name}"), 60, || async {
            let env = self.node.answer(service, "/env").await?;
            if env.contains(&format!("EYES=/dev/{name}\n")) { Ok(()) } else { Err(env) }
        })
        .await;
        assert_eq!(self.answer(service, &format!("/open?/dev/{name}")).await, "opened");
    }
}

fn watching(name: &str) -> Function {
    Function::subject(name).env("MODE", "polite").limit(EYE, "1")
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

/// Also when the plugin is killed, and while it is not there.
#[tokio::test]
async fn a_device_stays_with_its_instance_when_the_agent_is_killed() {
    let Some(mut bench) = Bench::start(&["eye0"]).await else { return };
    bench.site.hub.deploy(&watching("first")).await;
    bench.has("first", "eye0").await;
    bench.site.hub.deploy_unready(&watching("second")).await;
    let before = bench.node.instances("first").await.expect("the agent says what it runs");
    assert_eq!(before.len(), 1);
    for plugin_dies in [false, true] {
        bench.node.kill_agent();
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
