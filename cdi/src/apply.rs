//! Edits carried out on an OCI specification (`config.json`). Looks at device files of the host, and at nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::edits::{ContainerEdits, DeviceNode, DeviceType, EnvVariable, Hook, IntelRdt, Mount, NetDevice};

/// Why the edits cannot be made; the specification is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("cannot look at device {path} of the host: is its driver loaded?")]
    Look { path: PathBuf, source: io::Error },
    #[error("{0} of the host is no device")]
    NoDevice(PathBuf),
    #[error("device {path} of the host is of type {is}, and the edits say {said}")]
    OtherType { path: PathBuf, is: &'static str, said: &'static str },
    #[error("`{0}` of the OCI specification is not of the type it has to be")]
    Shape(String),
}

impl ContainerEdits {
    /// Edits `config`, wholly or not at all. A device node replaces one of the same path, a mount one of the same
    /// destination, a variable one of the same name; all else is added.
    pub fn apply(&self, config: &mut Value) -> Result<(), ApplyError> {
        let mut edited = config.clone();
        add_variables(&mut edited, &self.env)?;
        add_groups(&mut edited, &self.additional_gids)?;
        let owner = Owner::of(&edited);
        for node in &self.device_nodes {
            add_device(&mut edited, node, owner)?;
        }
        add_mounts(&mut edited, &self.mounts)?;
        for hook in &self.hooks {
            list(&mut edited, &["hooks", hook.hook_name.as_str()])?.push(of_hook(hook));
        }
        if let Some(rdt) = &self.intel_rdt {
            object(&mut edited, &["linux"])?.insert("intelRdt".into(), of_rdt(rdt)?);
        }
        for NetDevice { host_interface_name, name } in &self.net_devices {
            object(&mut edited, &["linux", "netDevices"])?
                .insert(host_interface_name.clone(), json!({ "name": name }));
        }
        *config = edited;
        Ok(())
    }
}

fn add_variables(config: &mut Value, variables: &[EnvVariable]) -> Result<(), ApplyError> {
    if variables.is_empty() {
        return Ok(());
    }
    let env = list(config, &["process", "env"])?;
    for variable in variables {
        let is_same = |pair: &Value| {
            let name = pair.as_str().and_then(|pair| pair.split('=').next());
            name == Some(variable.name())
        };
        let text = Value::from(variable.to_string());
        match env.iter_mut().find(|pair| is_same(pair)) {
            Some(pair) => *pair = text,
            None => env.push(text),
        }
    }
    Ok(())
}

fn add_groups(config: &mut Value, groups: &[u32]) -> Result<(), ApplyError> {
    for group in groups.iter().filter(|group| **group != 0) {
        let all = list(config, &["process", "user", "additionalGids"])?;
        if !all.contains(&json!(group)) {
            all.push(json!(group));
        }
    }
    Ok(())
}

/// The process' user and group, where they are not root's.
#[derive(Clone, Copy)]
struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Owner {
    fn of(config: &Value) -> Self {
        let id = |name: &str| {
            let number = config["process"]["user"][name].as_u64().filter(|id| *id > 0)?;
            u32::try_from(number).ok()
        };
        Self { uid: id("uid"), gid: id("gid") }
    }
}

fn add_device(config: &mut Value, node: &DeviceNode, owner: Owner) -> Result<(), ApplyError> {
    let (kind, major, minor) = complete(node)?;
    let mut device = Map::new();
    device.insert("path".into(), json!(node.path));
    device.insert("type".into(), json!(kind));
    device.insert("major".into(), major.into());
    device.insert("minor".into(), minor.into());
    let optional =
        [("fileMode", node.file_mode), ("uid", node.uid.or(owner.uid)), ("gid", node.gid.or(owner.gid))];
    for (name, value) in optional {
        if let Some(value) = value {
            device.insert(name.into(), value.into());
        }
    }
    let devices = list(config, &["linux", "devices"])?;
    devices.retain(|device| device["path"].as_str().map(Path::new) != Some(&node.path));
    devices.push(device.into());
    let access = node.permissions.access();
    if matches!(kind, DeviceType::Block | DeviceType::Char) && !access.is_empty() {
        let rule = json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
        let rules = list(config, &["linux", "resources", "devices"])?;
        // Of several rules the last decides, so an old one does not do for a new one.
        rules.retain(|old| *old != rule);
        rules.push(rule);
    }
    Ok(())
}

/// Type and number, as far as the node does not say them those of the host's device. A link is followed: the names that
/// hardware keeps over reboots are links.
fn complete(node: &DeviceNode) -> Result<(DeviceType, u32, u32), ApplyError> {
    if let Some(kind) = node.kind
        && (node.major != 0 || kind == DeviceType::Fifo)
    {
        return Ok((kind, node.major, node.minor));
    }
    let path = node.host_path.as_ref().unwrap_or(&node.path);
    let metadata = fs::metadata(path).map_err(|source| ApplyError::Look { path: path.clone(), source })?;
    let file_type = metadata.file_type();
    let is = if file_type.is_block_device() {
        DeviceType::Block
    } else if file_type.is_char_device() {
        DeviceType::Char
    } else if file_type.is_fifo() {
        DeviceType::Fifo
    } else {
        return Err(ApplyError::NoDevice(path.clone()));
    };
    let kind = node.kind.unwrap_or(is);
    if kind != is && (kind, is) != (DeviceType::Unbuffered, DeviceType::Char) {
        return Err(ApplyError::OtherType { path: path.clone(), is: is.letter(), said: kind.letter() });
    }
    let number = metadata.rdev();
    match node.major {
        0 if kind != DeviceType::Fifo => Ok((kind, rustix::fs::major(number), rustix::fs::minor(number))),
        _ => Ok((kind, node.major, node.minor)),
    }
}

fn add_mounts(config: &mut Value, mounts: &[Mount]) -> Result<(), ApplyError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let has_users = config["linux"]["namespaces"]
        .as_array()
        .is_some_and(|all| all.iter().any(|namespace| namespace["type"] == "user"));
    let all = list(config, &["mounts"])?;
    for mount in mounts {
        all.retain(|old| old["destination"].as_str().map(Path::new) != Some(&mount.container_path));
        all.push(of_mount(mount, has_users));
    }
    // A mount below another's destination must come after it.
    all.sort_by_key(|mount| mount["destination"].as_str().map_or(0, depth));
    Ok(())
}

fn depth(destination: &str) -> usize {
    Path::new(destination).components().fold(0, |depth: usize, part| match part {
        Component::Normal(_) => depth + 1,
        Component::ParentDir => depth.saturating_sub(1),
        _ => depth,
    })
}

fn of_mount(mount: &Mount, has_users: bool) -> Value {
    let mut options = mount.options.clone();
    let has = |option: &str| mount.options.iter().any(|each| each == option);
    if has_users && !has("idmap") && !has("ridmap") {
        // What is root's on the host looks like root's inside.
        match (has("rbind"), has("bind")) {
            (true, _) => options.push("ridmap".to_owned()),
            (_, true) => options.push("idmap".to_owned()),
            _ => {}
        }
    }
    let mut made = json!({ "source": mount.host_path, "destination": mount.container_path });
    if !options.is_empty() {
        made["options"] = options.into();
    }
    if !mount.kind.is_empty() {
        made["type"] = mount.kind.as_str().into();
    }
    made
}

fn of_hook(hook: &Hook) -> Value {
    let mut made = json!({ "path": hook.path });
    if !hook.args.is_empty() {
        made["args"] = json!(hook.args);
    }
    if !hook.env.is_empty() {
        made["env"] = json!(hook.env);
    }
    if let Some(timeout) = hook.timeout {
        made["timeout"] = json!(timeout);
    }
    made
}

fn of_rdt(rdt: &IntelRdt) -> Result<Value, ApplyError> {
    serde_json::to_value(rdt).map_err(|error| ApplyError::Shape(format!("linux.intelRdt: {error}")))
}

/// The object at `path`, made where it is missing or null.
fn object<'a>(config: &'a mut Value, path: &[&str]) -> Result<&'a mut Map<String, Value>, ApplyError> {
    let wrong = || ApplyError::Shape(path.join("."));
    let mut at = config.as_object_mut().ok_or_else(wrong)?;
    for name in path {
        let next = at.entry(*name).or_insert(Value::Null);
        if next.is_null() {
            *next = Value::Object(Map::new());
        }
        at = next.as_object_mut().ok_or_else(wrong)?;
    }
    Ok(at)
}

/// The list at `path`, made where it is missing or null.
fn list<'a>(config: &'a mut Value, path: &[&str]) -> Result<&'a mut Vec<Value>, ApplyError> {
    let (last, parents) = path.split_last().expect("every list has a name");
    let next = object(config, parents)?.entry(*last).or_insert(Value::Null);
    if next.is_null() {
        *next = Value::Array(Vec::new());
    }
    next.as_array_mut().ok_or_else(|| ApplyError::Shape(path.join(".")))
}

#[cfg(test)]
mod tests;
