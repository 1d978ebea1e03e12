//! What an instance's labels say of its devices. They are all that is kept of an allocation: written before anything of the
//! container is made, and gone with the instance. Gives none away.

use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::supervision::InstanceRecord;

/// The devices of an instance, as JSON.
const LABEL: &str = "tombolo.dev/devices";

/// The label of an instance with these devices; none without any.
pub(super) fn label(devices: &Devices) -> Option<(&'static str, String)> {
    let text = || serde_json::to_string(devices).expect("names and ids are plain data");
    (!devices.is_empty()).then(|| (LABEL, text()))
}

/// The devices of an instance that was found.
pub(crate) fn devices_of(record: &InstanceRecord) -> Devices {
    let Some(text) = record.labels.get(LABEL) else { return Devices::new() };
    serde_json::from_str(text).unwrap_or_else(|error| {
        tracing::warn!(instance = %record.id, %error, "cannot read which devices an instance has");
        Devices::new()
    })
}
