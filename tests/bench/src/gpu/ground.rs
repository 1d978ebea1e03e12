//! A node with the NVIDIA plugin, if there is a GPU, and functions of the packed image.

use std::path::Path;
use std::process::Command;

use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

use super::Pack;

/// What functions declare of a GPU.
pub(super) const MEMORY: &str = "tombolo.dev/gpu-memory";

/// A unit of it, MiB.
const UNIT_MIB: u64 = 256;

/// The node that the plugin looks for first.
const GPU_NODE: &str = "/dev/nvidia0";

/// A GPU that is shared by memory.
pub(super) struct Gpu {
    pub units: u64,
    pub unit_mib: u64,
    _plugin: Process,
}

pub(super) struct Ground<'a> {
    pub pack: &'a Pack,
    /// Or why there is none.
    pub gpu: Result<Gpu, String>,
    pub node: Node,
}

impl<'a> Ground<'a> {
    pub(super) async fn prepare(site: &mut Site, pack: &'a Pack, plugin_config: Option<&Path>) -> Ground<'a> {
        let node = site.node(NodeOptions::named("bench").idle_timeout_s(1)).await;
        let gpu = match plugin_config {
            None if !Path::new(GPU_NODE).exists() => {
                Err(format!("there is no NVIDIA GPU here (no {GPU_NODE})"))
            }
            config => Ok(start_plugin(&node, config).await),
        };
        Ground { pack, gpu, node }
    }

    /// Where a program computes.
    pub(super) fn device(&self) -> &'static str {
        if self.gpu.is_ok() { "cuda" } else { "cpu" }
    }

    /// The packed function.
    pub(super) fn function(&self, name: &str) -> Function {
        let health = serde_json::json!({ "httpGet": { "path": "/healthz" } });
        Function::directory(name, &self.pack.image, "/gpu-inference")
            .env("DEVICE", self.device())
            .probe("readinessProbe", health)
    }
}

async fn start_plugin(node: &Node, config: Option<&Path>) -> Gpu {
    let own = node.dir().join("nvidia.toml");
    let config = config.unwrap_or_else(|| {
        std::fs::write(&own, "[[gpu]]\nmatch = \"0\"\nshare = \"memory\"\n").expect("a file can be written");
        &own
    });
    let mut command = Command::new(program("tombolo-device-plugin-nvidia"));
    command.arg("--config").arg(config).arg("--directory").arg(node.plugin_directory());
    command.env("TOMBOLO_NVIDIA__CDI__DIRECTORY", node.dir().join("cdi"));
    command.env("TOMBOLO_NVIDIA__MEMORY__UNIT_MIB", UNIT_MIB.to_string());
    let plugin = node.start_beside("plugin", command).expect("the plugin starts");
    let units = until("the GPU's memory", 60, || async {
        let status = node.status().await?;
        match status["allocatable"][MEMORY].as_u64() {
            Some(units) if units > 0 => Ok(units),
            _ => Err(status["allocatable"].to_string()),
        }
    })
    .await;
    Gpu { units, unit_mib: UNIT_MIB, _plugin: plugin }
}
