//! The kubelet device-plugin API v1beta1, as the kubelet and every device plugin speak it over Unix sockets: messages,
//! client and server of both services. Beside it the accelerator service, which is Tombolo's own and which plugins may have. It
//! must not know what any device is, nor who uses it.

mod authority;
mod incoming;

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

pub use incoming::{Connection, Incoming, incoming};

/// Generated from `proto/deviceplugin.proto`.
#[allow(unreachable_pub, unused_qualifications, clippy::all)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// Generated from `proto/accelerator.proto`.
pub mod accelerator {
    #[allow(unreachable_pub, unused_qualifications, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("tombolo.accelerator.v1");
    }
}

/// What plugins say they speak when they register.
pub const VERSION: &str = "v1beta1";

/// Where plugins put their sockets, and find the kubelet's.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/kubelet/device-plugins";

/// The kubelet's socket in that directory.
pub const KUBELET_SOCKET: &str = "kubelet.sock";

/// The health of a device that may be allocated.
pub const HEALTHY: &str = "Healthy";

/// The health of a device that is there and must not be allocated.
pub const UNHEALTHY: &str = "Unhealthy";

/// The longest id of a device, in characters: the API's own bound.
pub const DEVICE_ID_CHARS_MAX: usize = 63;

/// How long `PreStartContainer` may take, because plugins may reset a device in it: the kubelet's own bound.
pub const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to the socket of a plugin or of the kubelet.
///
/// # Errors
/// Nobody answers there within `timeout`.
pub async fn connect(socket: &Path, timeout: Duration) -> Result<Channel, Error> {
    let address = format!("unix:{}", socket.display());
    Endpoint::from_shared(address)?.connect_timeout(timeout).connect().await
}

#[cfg(test)]
mod tests {
    use super::v1beta1::*;

    /// One field of type bytes, string or message.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short");
        assert!(length < 128, "one byte of length");
        [&[number << 3 | 2, length], content].concat()
    }

    fn varint(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    /// Decodes `bytes`, and says so if they are not all of what it encodes to.
    fn golden<M: prost::Message + Default>(bytes: &[Vec<u8>]) -> M {
        let bytes = bytes.concat();
        let message = M::decode(bytes.as_slice()).expect("decodes");
        assert_eq!(message.encode_to_vec(), bytes);
        message
    }

    #[test]
    fn registration_has_kubernetes_field_numbers() {
        let options = [varint(1, 1), varint(2, 1)].concat();
        let request: RegisterRequest =
            golden(&[field(1, b"v1beta1"), field(2, b"a.sock"), field(3, b"a.b/c"), field(4, &options)]);
        assert_eq!((request.version.as_str(), request.endpoint.as_str()), ("v1beta1", "a.sock"));
        assert_eq!(request.resource_name, "a.b/c");
        let options = request.options.expect("given");
        assert!(options.pre_start_required && options.get_preferred_allocation_available);
    }

    #[test]
    fn the_list_has_kubernetes_field_numbers() {
        let topology = field(1, &varint(1, 3));
        let device = [field(1, b"gpu0"), field(2, b"Healthy"), field(3, &topology)].concat();
        let list: ListAndWatchResponse = golden(&[field(1, &device)]);
        assert_eq!((list.devices[0].id.as_str(), list.devices[0].health.as_str()), ("gpu0", "Healthy"));
        assert_eq!(list.devices[0].topology.as_ref().expect("given").nodes[0].id, 3);
    }

    #[test]
    fn allocations_have_kubernetes_field_numbers() {
        let asked: AllocateRequest = golden(&[field(1, &[field(1, b"x"), field(1, b"y")].concat())]);
        assert_eq!(asked.container_requests[0].devices_ids, ["x", "y"]);
        let pair = [field(1, b"k"), field(2, b"v")].concat();
        let mount = [field(1, b"/in"), field(2, b"/out"), varint(3, 1)].concat();
        let node = [field(1, b"/dev/in"), field(2, b"/dev/out"), field(3, b"rw")].concat();
        let container = [field(1, &pair), field(2, &mount), field(3, &node), field(4, &pair)];
        let container = [container.concat(), field(5, &field(1, b"a.b/c=d"))].concat();
        let given: AllocateResponse = golden(&[field(1, &container)]);
        let given = &given.container_responses[0];
        assert_eq!((given.envs["k"].as_str(), given.annotations["k"].as_str()), ("v", "v"));
        let mount = &given.mounts[0];
        assert_eq!((mount.container_path.as_str(), mount.host_path.as_str()), ("/in", "/out"));
        assert!(mount.read_only);
        let node = &given.devices[0];
        assert_eq!((node.container_path.as_str(), node.host_path.as_str()), ("/dev/in", "/dev/out"));
        assert_eq!((node.permissions.as_str(), given.cdi_devices[0].name.as_str()), ("rw", "a.b/c=d"));
    }

    #[test]
    fn hints_and_starts_have_kubernetes_field_numbers() {
        let asked = [field(1, b"a"), field(1, b"b"), field(2, b"a"), varint(3, 2)].concat();
        let asked: PreferredAllocationRequest = golden(&[field(1, &asked)]);
        let asked = &asked.container_requests[0];
        assert_eq!((asked.available_device_i_ds.len(), asked.allocation_size), (2, 2));
        assert_eq!(asked.must_include_device_i_ds, ["a"]);
        let given: PreferredAllocationResponse = golden(&[field(1, &field(1, b"a"))]);
        assert_eq!(given.container_responses[0].device_i_ds, ["a"]);
        let start: PreStartContainerRequest = golden(&[field(1, b"a")]);
        assert_eq!(start.devices_ids, ["a"]);
    }

    #[test]
    fn the_accelerator_service_keeps_its_field_numbers() {
        use super::accelerator::v1::*;
        let description: Description = golden(&[varint(1, 1), field(2, b"why"), varint(3, 1)]);
        assert!(description.can_suspend && description.tells_memory);
        assert_eq!(description.cannot_suspend_because, "why");
        let pids = field(1, &[7, 8]);
        assert_eq!(golden::<SuspendRequest>(std::slice::from_ref(&pids)).pids, [7, 8]);
        assert_eq!(golden::<ResumeRequest>(std::slice::from_ref(&pids)).pids, [7, 8]);
        assert_eq!(golden::<ResumeResponse>(std::slice::from_ref(&pids)).resumed_pids, [7, 8]);
        let suspended: SuspendResponse = golden(&[pids, varint(2, 0)]);
        assert_eq!((suspended.moved_pids.as_slice(), suspended.freed_bytes), ([7, 8].as_slice(), Some(0)));
        let usage = [varint(1, 7), field(2, b"GPU-1"), varint(3, 9)].concat();
        let usage: UsageResponse = golden(&[field(1, &usage)]);
        let process = &usage.processes[0];
        assert_eq!((process.pid, process.device_id.as_str(), process.bytes), (7, "GPU-1", Some(9)));
        assert_eq!(accelerator_server::SERVICE_NAME, "tombolo.accelerator.v1.Accelerator");
    }

    #[test]
    fn services_have_kubernetes_names() {
        assert_eq!(registration_server::SERVICE_NAME, "v1beta1.Registration");
        assert_eq!(device_plugin_server::SERVICE_NAME, "v1beta1.DevicePlugin");
    }
}
