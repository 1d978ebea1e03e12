//! Starts what device plugins register at, or says why they cannot: then this node has no devices, and all else goes on.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tombolo_agent_core::devices::overuse::Uses;
use tombolo_agent_core::devices::{Choice, Inventory};
use tombolo_agent_devices::{Allocator, Directories};

use crate::config::DevicesConfig;
use crate::usage::{self, Usage};

/// A node's devices, for those who plan and make instances.
pub(crate) struct Plugins {
    pub(crate) inventory: watch::Receiver<Arc<Inventory>>,
    pub(crate) choices: watch::Sender<BTreeSet<Choice>>,
    /// Or why no plugin can register, for the node's limitations.
    pub(crate) allocator: Result<Allocator, String>,
    /// What instances hold of accelerators' memory, and how these are.
    pub(crate) usage: Usage,
    /// What is wrong with the specifications of devices, for the node's limitations.
    pub(crate) specifications: watch::Receiver<Arc<Vec<String>>>,
    /// Does not end by itself.
    pub(crate) task: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Plugins {
    pub(crate) async fn start(config: &DevicesConfig) -> Self {
        let directories =
            Directories { plugins: config.plugin_directory.clone(), cdi: config.cdi_directories.clone() };
        let choices = watch::Sender::default();
        let uses = watch::Sender::default();
        let accelerators = watch::Sender::default();
        let (wrong, specifications) = watch::channel(Arc::default());
        let usage = Usage {
            uses: uses.subscribe(),
            overuses: Arc::default(),
            accelerators: accelerators.subscribe(),
        };
        match tombolo_agent_devices::start(directories, choices.subscribe()).await {
            Ok(plugins) => {
                let (inventory, allocator, serving) = plugins.split();
                let (told, tellings) = watch::channel(Arc::default());
                let following = allocator.clone().follow_usage(told);
                let (inspected, inspections) = watch::channel(Arc::default());
                let inspecting = allocator.clone().follow_accelerators(inspected);
                let figures_pause = Duration::from_secs(config.figures_interval_s);
                let held = uses.subscribe();
                let telling = usage::tell_accelerators(inspections, held, accelerators, figures_pause);
                let finding = usage::find_instances(tellings, uses);
                let watching = allocator.clone().watch_specifications(wrong);
                let task = async move {
                    tokio::join!(serving, following, finding, inspecting, telling, watching);
                };
                let (allocator, task) = (Ok(allocator), Box::pin(task));
                Self { inventory, choices, allocator, usage, specifications, task }
            }
            Err(error) => {
                tracing::warn!(%error, "functions get no devices");
                let nothing = watch::Sender::default();
                let inventory = nothing.subscribe();
                let task = async move {
                    // Receivers take its end for the agent's.
                    let _nothing: (watch::Sender<Arc<Inventory>>, watch::Sender<Arc<Uses>>, _, _) =
                        (nothing, uses, accelerators, wrong);
                    std::future::pending().await
                };
                Self {
                    inventory,
                    choices,
                    usage,
                    specifications,
                    allocator: Err(format!("functions get no devices: {error}")),
                    task: Box::pin(task),
                }
            }
        }
    }
}
