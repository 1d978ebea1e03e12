//! What a container gets for its devices: plugins are asked to prepare them, and what they answer is made into one edit of
//! `config.json`. Gives none away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tombolo_agent_core::devices::{Devices, ResourceName};
use tombolo_cdi::{ContainerEdits, QualifiedName, Unresolved};
use tonic::Status;

use crate::accelerator::{Accelerator, AcceleratorError};
use crate::edits::{self, Answer, EditsError};
use crate::roll::Connected;
use crate::specifications::Specifications;

/// Asks for devices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Allocator {
    pub(crate) connected: watch::Receiver<Connected>,
    specifications: Specifications,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    pub edits: ContainerEdits,
    pub annotations: BTreeMap<String, String>,
}

/// Why a container cannot have its devices.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    #[error("the device plugin of {0} is not there at the moment; what has devices keeps them")]
    Absent(ResourceName),
    #[error("the device plugin of {resource} does not give devices: {why}")]
    Refused { resource: ResourceName, why: String },
    #[error("what the device plugin of {resource} answers cannot be carried out")]
    Unfit { resource: ResourceName, source: EditsError },
    #[error("{0}: is the plugin's or the driver's specification in a directory of devices.cdi_directories?")]
    Unresolved(#[from] Unresolved),
    #[error(
        "the device plugin of {resource} names GPUs in NVIDIA_VISIBLE_DEVICES, for NVIDIA's container runtime, and {source}: let \
         it name CDI devices (DEVICE_LIST_STRATEGY=cdi-cri), or write their specification with `nvidia-ctk cdi generate`"
    )]
    ForRuntime { resource: ResourceName, source: Unresolved },
    #[error("CDI specifications cannot be read: a fault of the agent, please report it with the agent's log")]
    Faulty,
}

impl Allocator {
    pub(crate) fn new(connected: watch::Receiver<Connected>, directories: Vec<PathBuf>) -> Self {
        Self { connected, specifications: Specifications::new(directories) }
    }

    /// Tells what is wrong with the CDI specifications, a sentence each, whenever that changes; until nobody wants to know.
    pub async fn watch_specifications(self, told: watch::Sender<Arc<Vec<String>>>) {
        self.specifications.watch(told).await;
    }

    /// What the plugin of `resource` does with processes, whether it can or not.
    pub async fn accelerator(&self, resource: &ResourceName) -> Result<Accelerator, AcceleratorError> {
        let plugin = self.connected.borrow().get(resource).map(|(_, plugin)| plugin.socket.clone());
        let absent = || AcceleratorError::Absent(format!("nobody offers {resource}"));
        Accelerator::connect(&plugin.ok_or_else(absent)?).await
    }

    /// Has every plugin prepare its part of `devices`, before a container is made that has them.
    pub async fn allocate(&self, devices: &Devices) -> Result<Given, AllocateError> {
        self.ask(devices, true).await
    }

    /// The same for a container that runs with them: no plugin is told that it is about to start.
    pub async fn allocate_again(&self, devices: &Devices) -> Result<Given, AllocateError> {
        self.ask(devices, false).await
    }

    async fn ask(&self, devices: &Devices, is_about_to_start: bool) -> Result<Given, AllocateError> {
        let connected = self.connected.borrow().clone();
        let mut given = Answer::default();
        for (resource, ids) in devices {
            let (_, plugin) =
                connected.get(resource).cloned().ok_or_else(|| AllocateError::Absent(resource.clone()))?;
            let refused = |status: Status| AllocateError::Refused {
                resource: resource.clone(),
                why: status.message().to_owned(),
            };
            let response = plugin.clone().allocate(ids).await.map_err(refused)?;
            if is_about_to_start {
                plugin.pre_start(ids).await.map_err(refused)?;
            }
            let unfit = |source| AllocateError::Unfit { resource: resource.clone(), source };
            let answer = edits::answer(response).map_err(unfit)?;
            let has_nodes = !answer.edits.device_nodes.is_empty();
            given.edits.append(answer.edits);
            match self.resolve(answer.visible).await {
                Ok(edits) => given.edits.append(edits),
                Err(AllocateError::Unresolved(why)) if has_nodes => {
                    tracing::warn!(%resource, %why, "a container gets nodes of NVIDIA GPUs, and not the driver's libraries");
                }
                Err(AllocateError::Unresolved(source)) => {
                    return Err(AllocateError::ForRuntime { resource: resource.clone(), source });
                }
                Err(error) => return Err(error),
            }
            given.cdi.extend(answer.cdi);
            given.annotations.extend(answer.annotations);
        }
        let Answer { mut edits, cdi, annotations, .. } = given;
        edits.append(self.resolve(cdi).await?);
        Ok(Given { edits, annotations })
    }

    /// What the specifications say of `names`; they are read again if they have changed.
    async fn resolve(&self, mut names: Vec<QualifiedName>) -> Result<ContainerEdits, AllocateError> {
        if names.is_empty() {
            return Ok(ContainerEdits::default());
        }
        // Named in a field and, for older runtimes, in an annotation too.
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let specifications = self.specifications.clone();
        let resolved = tokio::task::spawn_blocking(move || specifications.edits(&names));
        Ok(resolved.await.map_err(|_| AllocateError::Faulty)??)
    }
}
