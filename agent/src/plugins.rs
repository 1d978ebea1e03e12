//! Starts what device plugins register at, or says why they cannot: then this node has no devices, and all else goes on.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_agent_core::devices::{Choice, Inventory};
use tombolo_agent_devices::{Allocator, Directories};

use crate::config::DevicesConfig;

/// A node's devices, for those who plan and make instances.
pub(crate) struct Plugins {
    pub(crate) inventory: watch::Receiver<Arc<Inventory>>,
    pub(crate) choices: watch::Sender<BTreeSet<Choice>>,
    /// Or why no plugin can register, for the node's limitations.
    pub(crate) allocator: Result<Allocator, String>,
    /// Does not end by itself.
    pub(crate) task: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Plugins {
    pub(crate) async fn start(config: &DevicesConfig) -> Self {
        let directories =
            Directories { plugins: config.plugin_directory.clone(), cdi: config.cdi_directories.clone() };
        let choices = watch::Sender::default();
        match tombolo_agent_devices::start(directories, choices.subscribe()).await {
            Ok(plugins) => {
                let (inventory, allocator, task) = plugins.split();
                Self { inventory, choices, allocator: Ok(allocator), task: Box::pin(task) }
            }
            Err(error) => {
                tracing::warn!(%error, "functions get no devices");
                let nothing = watch::Sender::default();
                let inventory = nothing.subscribe();
                let task = async move {
                    // Receivers take its end for the agent's.
                    let _nothing: watch::Sender<Arc<Inventory>> = nothing;
                    std::future::pending().await
                };
                Self {
                    inventory,
                    choices,
                    allocator: Err(format!("functions get no devices: {error}")),
                    task: Box::pin(task),
                }
            }
        }
    }
}
