//! How an instance comes to its devices: plugins prepare them, and what they answer becomes part of `config.json`. Which devices,
//! the plan has decided.
//!
//! What an instance has stands in a label of it, and that is all that is kept of it: the supervisor writes it before it makes
//! anything of the container, and it is gone with the instance.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::supervision::{InstanceId, InstanceRecord, Request};
use tombolo_agent_devices::{AllocateError, Allocator, Edits, Given};

use super::{Executor, Inner, Outcome, Trouble, launch};

/// The devices of an instance, as JSON.
const LABEL: &str = "tombolo.dev/devices";

/// In an instance's bundle, beside `config.json`: the edits that what it has of its devices was made by.
const GIVEN: &str = "given.json";

/// Reason of a start, or of devices given anew, that has to wait for a plugin.
pub(crate) const NOT_READY: &str = "DevicesNotReady";

impl Executor {
    /// Gives an instance's container its devices as they are now.
    pub(crate) fn refit(&self, instance: InstanceId, devices: Devices) {
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let result = refit(&inner, &instance, &devices).await;
            inner.tell(Outcome::Refitted { instance, result }).await;
        });
    }
}

impl Inner {
    /// Tells from now on when the host's nodes of its devices are others.
    pub(super) fn watch_nodes(&self, instance: &InstanceId) {
        self.holders.send_if_modified(|holders| holders.insert(instance.clone()));
    }
}

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
    allocator.allocate(devices).await.map_err(not_given)
}

fn not_given(error: AllocateError) -> Trouble {
    let reason = match &error {
        AllocateError::Absent(_) => NOT_READY,
        _ => "DeviceAllocationFailed",
    };
    Trouble::new(reason, with_causes(&error))
}

/// Makes what is given part of `config`.
pub(super) fn give(given: &Given, config: &mut Value) -> Result<(), Trouble> {
    given.edits.apply(config).map_err(|error| Trouble::new("DeviceAllocationFailed", with_causes(&error)))?;
    if let Some(annotations) = config["annotations"].as_object_mut() {
        annotations.extend(given.annotations.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    }
    Ok(())
}

/// What a container has of its devices, as its bundle says.
pub(super) struct Kept {
    config: Value,
    edits: Edits,
}

impl Kept {
    /// Writes down what the container of the bundle at `dir` is given.
    pub(super) fn write(dir: &Path, given: &Given) -> io::Result<()> {
        replace(&dir.join(GIVEN), &serde_json::to_vec(&given.edits)?)
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let config = serde_json::from_slice(&fs::read(dir.join(launch::CONFIG))?)?;
        Ok(Self { config, edits: serde_json::from_slice(&fs::read(dir.join(GIVEN))?)? })
    }

    /// Where the host has the nodes that were given.
    pub(super) fn host_paths(&self) -> impl Iterator<Item = &Path> {
        let nodes = self.edits.device_nodes.iter();
        nodes.map(|node| node.host_path.as_deref().unwrap_or(&node.path))
    }

    /// Whether the host's nodes are still those that the container has.
    pub(super) fn is_current(&self) -> bool {
        self.with(&self.edits).is_ok_and(|config| config == self.config)
    }

    /// The configuration with the nodes of `edits` in place of those it has.
    fn with(&self, edits: &Edits) -> Result<Value, Trouble> {
        let mut config = self.config.clone();
        config["linux"]["devices"] = json!([]);
        if let Some(rules) = config["linux"]["resources"]["devices"].as_array_mut() {
            // What denies is the node's own, all that allows is of devices.
            rules.retain(|rule| rule["allow"] == false);
        }
        let nodes = Edits { device_nodes: edits.device_nodes.clone(), ..Edits::default() };
        give(&Given { edits: nodes, ..Given::default() }, &mut config)?;
        Ok(config)
    }

    /// What is not a node is in the container from its beginning on.
    fn has_the_same_beside_nodes(&self, edits: &Edits) -> bool {
        self.edits.mounts == edits.mounts
            && self.edits.hooks == edits.hooks
            && self.edits.net_devices == edits.net_devices
    }
}

/// Has plugins prepare `devices` once more, and gives the running container the nodes that they answer. Whether they are others.
async fn refit(inner: &Inner, instance: &InstanceId, devices: &Devices) -> Result<bool, Trouble> {
    let given = match inner.tools.devices.as_ref().filter(|_| !devices.is_empty()) {
        Some(allocator) => allocator.allocate_again(devices).await.map_err(not_given)?,
        None => Given::default(),
    };
    let dir = launch::bundle_dir(&inner.tools.run_dir, instance);
    let kept = Kept::read(&dir).map_err(|error| Trouble::of_io("read", &dir.join(GIVEN), &error))?;
    if !kept.has_the_same_beside_nodes(&given.edits) {
        return Err(Trouble::new(
            "DeviceChanged",
            "its plugin gives other mounts than before, which a running container cannot get",
        ));
    }
    let config = kept.with(&given.edits)?;
    if config == kept.config {
        return Ok(false);
    }
    let new = dir.join("refit.json");
    let written = |error| Trouble::of_io("write", &new, &error);
    fs::write(&new, config.to_string()).map_err(written)?;
    let request = Request::Refit { id: instance.clone(), config: new.clone() };
    let refused = |error: crate::supervisor::CallError| Trouble::new("DeviceRefitFailed", error.to_string());
    inner.tools.supervisor.call(request).await.map_err(refused)?;
    fs::rename(&new, dir.join(launch::CONFIG)).map_err(written)?;
    Kept::write(&dir, &given).map_err(written)?;
    Ok(true)
}

fn replace(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
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

    /// Links play nodes that become others: nobody but root makes nodes.
    #[test]
    fn a_node_that_becomes_another_is_noticed_and_takes_the_place_of_the_former() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("camera");
        std::os::unix::fs::symlink("/dev/null", &host).unwrap();
        let node = tombolo_cdi::DeviceNode {
            path: "/dev/camera".into(),
            host_path: Some(host.clone()),
            ..Default::default()
        };
        let mut given = Given::default();
        given.edits.device_nodes.push(node);
        given.edits.env.push("A=1".parse().unwrap());
        let mut config = json!({
            "process": { "env": [] },
            "linux": { "resources": { "devices": [{ "allow": false, "access": "rwm" }], "pids": { "limit": 9 } } },
        });
        give(&given, &mut config).unwrap();
        fs::write(dir.path().join(launch::CONFIG), config.to_string()).unwrap();
        Kept::write(dir.path(), &given).unwrap();
        let kept = Kept::read(dir.path()).unwrap();
        assert!(kept.is_current() && kept.has_the_same_beside_nodes(&given.edits));
        assert_eq!(kept.host_paths().collect::<Vec<_>>(), [host.as_path()]);

        fs::remove_file(&host).unwrap();
        assert!(!kept.is_current(), "it is gone");
        std::os::unix::fs::symlink("/dev/zero", &host).unwrap();
        assert!(!kept.is_current(), "it is another");
        let other = kept.with(&given.edits).unwrap();
        assert_eq!(other["linux"]["devices"][0]["minor"], 5);
        let rule = json!({ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" });
        let rules = json!([{ "allow": false, "access": "rwm" }, rule]);
        assert_eq!(other["linux"]["resources"], json!({ "devices": rules, "pids": { "limit": 9 } }));
        assert_eq!(other["process"], json!({ "env": ["A=1"] }), "set once, at the start");

        given.edits.mounts.push(tombolo_cdi::Mount {
            host_path: "/a".into(),
            container_path: "/b".into(),
            options: vec![],
            kind: String::new(),
        });
        assert!(!kept.has_the_same_beside_nodes(&given.edits));
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
