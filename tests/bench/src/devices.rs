//! What devices cost a node without accelerators at hand: memory of an agent that knows sixty-four, and the time that giving one to
//! an instance adds to its start. The generic device plugin offers nodes of the null device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

use crate::client;
use crate::memory::pss_mb;
use crate::report::Row;
use crate::sample::Sample;

const DEVICES: usize = 64;
const RESOURCE: &str = "bench.tombolo.dev/null";

/// Bars: memory in megabytes, time in milliseconds.
const MEMORY_MB: f64 = 1.0;
const ALLOCATE_MS: f64 = 2.0;

/// Until allocators and caches have come to rest.
const REST: Duration = Duration::from_secs(5);

/// Between coming to rest and the request.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let mut node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
    let plain = Function::hello("plain").annotation("tombolo.dev/idle-tier", "cold");
    let image = site.hub.deploy(&plain).await;
    until("the plain service at rest", 120, || at_rest(&node, "plain")).await;
    tokio::time::sleep(REST).await;
    let before = pss_mb(node.agent().pid());
    let offer = Offer::start(&node.plugin_directory());
    let given = Function::hello("given").annotation("tombolo.dev/idle-tier", "cold").limit(RESOURCE, "1");
    site.hub.api.create_service(&given.service(&image)).await.expect("a service can be created");
    until("the service with a device at rest", 120, || at_rest(&node, "given")).await;
    tokio::time::sleep(REST).await;
    let after = pss_mb(node.agent().pid());
    let (mut without, mut with) = (Sample::default(), Sample::default());
    for _ in 0..rounds {
        for (name, sample) in [("plain", &mut without), ("given", &mut with)] {
            until(&format!("{name} at rest"), 120, || at_rest(&node, name)).await;
            tokio::time::sleep(PAUSE).await;
            sample.add(client::time(node.router(), &format!("{name}.default.localhost")));
        }
    }
    drop(offer);
    let (without, with) = (without.quantile_ms(0.5), with.quantile_ms(0.5));
    Some(vec![
        Row::bounded("devices", "agent-64-devices-pss", after - before, "MB", MEMORY_MB),
        Row::plain("devices", "cold-p50", without, "ms"),
        Row::plain("devices", "cold-with-device-p50", with, "ms"),
        Row::bounded("devices", "allocate-to-start-p50", with - without, "ms", ALLOCATE_MS),
    ])
}

/// Device nodes, and the plugin that offers them.
struct Offer {
    _plugin: Process,
    /// Device nodes must be on a file system that has them, which a temporary directory's may not be.
    _nodes: tempfile::TempDir,
    _config: tempfile::TempDir,
}

impl Offer {
    fn start(plugins: &Path) -> Self {
        let nodes = tempfile::tempdir_in("/dev").expect("a directory of device nodes");
        let null = makedev(1, 3);
        for number in 0..DEVICES {
            let path = nodes.path().join(format!("null{number}"));
            mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), null).expect("a device node");
        }
        let config = tempfile::tempdir().expect("a temporary directory");
        let file: PathBuf = config.path().join("devices.toml");
        let text = format!(
            "[[resource]]\nname = \"{RESOURCE}\"\n[[resource.match]]\npath = \"{}/null*\"\n",
            nodes.path().display()
        );
        fs::write(&file, text).expect("a file can be written");
        let mut command = Command::new(program("tombolo-device-plugin-generic"));
        command.arg("--config").arg(&file).arg("--directory").arg(plugins);
        let log = config.path().join("plugin.log");
        let plugin = Process::start("device plugin", command, None, &log).expect("the plugin starts");
        Self { _plugin: plugin, _nodes: nodes, _config: config }
    }
}

/// Whether the service is ready and runs nothing.
async fn at_rest(node: &Node, name: &str) -> Result<(), String> {
    let status = node.status().await?;
    let revisions = status["revisions"].as_array().cloned().unwrap_or_default();
    let prefix = format!("{name}-");
    let of_service = revisions
        .iter()
        .find(|revision| revision["name"].as_str().is_some_and(|revision| revision.starts_with(&prefix)));
    let Some(revision) = of_service else { return Err(format!("no revision of {name}")) };
    let running = revision["instances"].as_array().map_or(0, Vec::len);
    if revision["phase"] == "Ready" && running == 0 { Ok(()) } else { Err(revision.to_string()) }
}
