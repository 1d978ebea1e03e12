//! How an instance comes to its devices: plugins prepare them, and what they answer becomes part of `config.json`. Which devices,
//! the plan has decided.
//!
//! What an instance has stands in a label of it, and that is all that is kept of it: the supervisor writes it before it makes
//! anything of the container, and it is gone with the instance.

use std::error::Error;

use serde_json::Value;
use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::supervision::InstanceRecord;
use tombolo_agent_devices::{AllocateError, Allocator, Given};

use super::Trouble;

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

/// Has plugins prepare `devices`; what the container gets for them.
pub(super) async fn allocate(allocator: Option<&Allocator>, devices: &Devices) -> Result<Given, Trouble> {
    let Some(allocator) = allocator.filter(|_| !devices.is_empty()) else { return Ok(Given::default()) };
    allocator.allocate(devices).await.map_err(|error| {
        let reason = match &error {
            AllocateError::Absent(_) => "DevicesNotReady",
            _ => "DeviceAllocationFailed",
        };
        Trouble::new(reason, with_causes(&error))
    })
}

/// Makes what is given part of `config`.
pub(super) fn give(given: &Given, config: &mut Value) -> Result<(), Trouble> {
    given.edits.apply(config).map_err(|error| Trouble::new("DeviceAllocationFailed", with_causes(&error)))?;
    if let Some(annotations) = config["annotations"].as_object_mut() {
        annotations.extend(given.annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    }
    Ok(())
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use tombolo_agent_core::devices::{DeviceId, ResourceName};
    use tombolo_agent_core::supervision::{InstanceId, InstancePhase, LogSpec};

    use super::*;

    #[test]
    fn a_restarted_agent_reads_in_the_labels_which_devices_an_instance_has() {
        let devices: Devices =
            [(ResourceName("a.example/x".into()), ["0", "1"].map(|id| DeviceId(id.into())).into())].into();
        let record = |labels: BTreeMap<String, String>| InstanceRecord {
            id: InstanceId("i".into()),
            phase: InstancePhase::Running,
            pid: 1,
            exit: None,
            log: LogSpec { path: "/log".into(), max_bytes: 1, max_files: 1 },
            labels,
            moved_bytes: 0,
        };
        let (name, text) = label(&devices).unwrap();
        assert_eq!(devices_of(&record([(name.to_owned(), text)].into())), devices);
        assert_eq!(label(&Devices::new()), None);
        assert_eq!(devices_of(&record(BTreeMap::new())), Devices::new());
    }

    #[test]
    fn what_a_plugin_gives_becomes_part_of_the_configuration_or_says_why_not() {
        let mut given = Given::default();
        given.edits.env.push("A=1".parse().unwrap());
        given.annotations.insert("k".into(), "v".into());
        let mut config = json!({ "process": { "env": [] }, "annotations": { "own": "1" } });
        give(&given, &mut config).unwrap();
        assert_eq!(config, json!({ "process": { "env": ["A=1"] }, "annotations": { "own": "1", "k": "v" } }));
        given
            .edits
            .device_nodes
            .push(tombolo_cdi::DeviceNode { path: "/dev/no-such-device".into(), ..Default::default() });
        let trouble = give(&given, &mut config).unwrap_err();
        assert_eq!(trouble.reason, "DeviceAllocationFailed");
        assert!(
            trouble.message.contains("/dev/no-such-device") && trouble.message.contains("No such file"),
            "{}",
            trouble.message
        );
    }
}
