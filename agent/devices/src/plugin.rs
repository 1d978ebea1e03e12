//! One plugin: the connection to it, and the calls on it, each with an end. Keeps no books.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tombolo_agent_core::devices::{Choice, Device, DeviceId, ResourceName};
use tombolo_device_api::v1beta1::device_plugin_client::DevicePluginClient;
use tombolo_device_api::v1beta1::{
    self as api, AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use tombolo_device_api::{DEVICE_ID_CHARS_MAX, HEALTHY, PRE_START_TIMEOUT};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::accelerator::Accelerator;
use crate::roll::Heard;

/// How long a plugin may take to answer when it registers. The kubelet's wait for its connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a hint may take: without one, an instance waits no longer than this.
const PREFERENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an allocation may take; the kubelet sets no end to it. Plugins load firmware in it.
const ALLOCATE_TIMEOUT: Duration = Duration::from_secs(60);

/// Devices of one resource: more than a message of gRPC's usual 4 MiB has room for, if they have names of any length. Eight GPUs
/// of 141 GiB in the smallest pieces, of 64 MiB, are 18,000.
pub(crate) const DEVICES_MAX: usize = 65_536;

/// NUMA nodes of one device.
const NUMA_MAX: usize = 64;

/// A plugin that answers.
#[derive(Clone, Debug)]
pub(crate) struct Plugin {
    pub(crate) resource: ResourceName,
    pub(crate) socket: PathBuf,
    pub(crate) options: DevicePluginOptions,
    channel: Channel,
    client: DevicePluginClient<Channel>,
}

impl Plugin {
    /// Connects to the plugin that has registered, and asks it for its options; `said` are those it registered with.
    pub(crate) async fn connect(
        resource: ResourceName,
        socket: PathBuf,
        said: DevicePluginOptions,
    ) -> Result<Self, Status> {
        let dialled = tombolo_device_api::connect(&socket, CONNECT_TIMEOUT);
        let channel = bounded(CONNECT_TIMEOUT, async {
            dialled.await.map_err(|error| {
                Status::unavailable(format!("cannot connect to {}: {error}", socket.display()))
            })
        })
        .await?;
        let mut client = DevicePluginClient::new(channel.clone());
        let asked = bounded(CONNECT_TIMEOUT, client.get_device_plugin_options(Empty {})).await;
        let options = match asked {
            Ok(options) => options.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => said,
            Err(status) => return Err(status),
        };
        Ok(Self { resource, socket, options, channel, client })
    }

    /// What the plugin does with processes, whether it can or not, by the same connection.
    pub(crate) fn accelerator(&self) -> Accelerator {
        Accelerator::over(self.channel.clone())
    }

    /// Passes on what the plugin lists until it stops; `number` tells it from others of its resource.
    pub(crate) async fn listen(mut self, number: u64, heard: mpsc::Sender<Heard>) {
        let why = match self.client.list_and_watch(Empty {}).await {
            Ok(lists) => {
                let mut lists = lists.into_inner();
                loop {
                    match lists.message().await {
                        Ok(Some(list)) => {
                            let devices = devices(&self.resource, list);
                            let said = Heard::Listed { resource: self.resource.clone(), number, devices };
                            if heard.send(said).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break "it ended its list".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    }
                }
            }
            Err(status) => status.message().to_owned(),
        };
        // Without a roll nobody wants to know.
        let _ = heard.send(Heard::Gone { resource: self.resource, number, why }).await;
    }

    /// What the plugin prefers; nothing if it has no opinion, or none in time.
    pub(crate) async fn prefer(mut self, choice: &Choice) -> BTreeSet<DeviceId> {
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.free.iter().map(|id| id.0.clone()).collect(),
            must_include_device_i_ds: Vec::new(),
            allocation_size: i32::try_from(choice.count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        match bounded(PREFERENCE_TIMEOUT, self.client.get_preferred_allocation(request)).await {
            Ok(answer) => {
                let first = answer.into_inner().container_responses.into_iter().next();
                first.into_iter().flat_map(|response| response.device_i_ds).map(DeviceId).collect()
            }
            Err(status) => {
                tracing::warn!(resource = %self.resource, why = status.message(), "a device plugin does not say what it prefers");
                BTreeSet::new()
            }
        }
    }

    /// Has the plugin prepare `devices` for a container.
    pub(crate) async fn allocate(
        mut self,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<ContainerAllocateResponse, Status> {
        let request = ContainerAllocateRequest { devices_ids: names(devices) };
        let request = AllocateRequest { container_requests: vec![request] };
        let answer = bounded(ALLOCATE_TIMEOUT, self.client.allocate(request)).await?;
        let first = answer.into_inner().container_responses.into_iter().next();
        first.ok_or_else(|| Status::internal("the plugin answered with no container"))
    }

    /// Tells the plugin that a container with `devices` is about to start, if it wants to know. It may reset them.
    pub(crate) async fn pre_start(mut self, devices: &BTreeSet<DeviceId>) -> Result<(), Status> {
        if self.options.pre_start_required {
            let request = PreStartContainerRequest { devices_ids: names(devices) };
            bounded(PRE_START_TIMEOUT, self.client.pre_start_container(request)).await?;
        }
        Ok(())
    }
}

fn names(devices: &BTreeSet<DeviceId>) -> Vec<String> {
    devices.iter().map(|id| id.0.clone()).collect()
}

async fn bounded<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late =
        |_| Status::deadline_exceeded(format!("the plugin did not answer within {} s", limit.as_secs()));
    tokio::time::timeout(limit, call).await.map_err(late)?
}

/// What a list says. Devices that cannot be named are left out.
fn devices(resource: &ResourceName, list: ListAndWatchResponse) -> BTreeMap<DeviceId, Device> {
    let listed = list.devices.len();
    if listed > DEVICES_MAX {
        tracing::warn!(%resource, listed, "a device plugin lists more than {DEVICES_MAX} devices, the rest is left out");
    }
    let is_named = |device: &api::Device| (1..=DEVICE_ID_CHARS_MAX).contains(&device.id.chars().count());
    let device = |device: api::Device| {
        let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes).take(NUMA_MAX);
        let numa = nodes.filter_map(|node| u32::try_from(node.id).ok()).collect();
        (DeviceId(device.id), Device { healthy: device.health == HEALTHY, numa })
    };
    let looked_at = list.devices.into_iter().take(DEVICES_MAX);
    let devices: BTreeMap<_, _> = looked_at.filter(is_named).map(device).collect();
    let left_out = listed.min(DEVICES_MAX) - devices.len();
    if left_out > 0 {
        tracing::warn!(
            %resource,
            left_out,
            "devices without a name of at most {DEVICE_ID_CHARS_MAX} characters, or twice the same"
        );
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(ids: impl Iterator<Item = String>) -> BTreeMap<DeviceId, Device> {
        let device = |id| api::Device { id, health: HEALTHY.into(), topology: None };
        let list = ListAndWatchResponse { devices: ids.map(device).collect() };
        devices(&ResourceName("a.example/x".into()), list)
    }

    #[test]
    fn the_smallest_pieces_of_many_gpus_are_all_counted() {
        let gpus = 0..8;
        let pieces = gpus.flat_map(|gpu| (0..2256).map(move |number| format!("GPU-{gpu}/64Mi/{number}")));
        assert_eq!(listed(pieces).len(), 8 * 2256);
    }

    #[test]
    fn what_cannot_be_named_and_what_has_no_end_is_left_out() {
        let odd = ["a", "a", "", &"x".repeat(DEVICE_ID_CHARS_MAX + 1)].map(str::to_owned);
        assert_eq!(listed(odd.into_iter()).into_keys().collect::<Vec<_>>(), [DeviceId("a".into())]);
        assert_eq!(listed((0..DEVICES_MAX + 5).map(|id| id.to_string())).len(), DEVICES_MAX);
    }
}
