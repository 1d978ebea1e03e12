//! The CDI specification of a machine's GPUs: each by index and by UUID, instances as `GPU:INSTANCE` and by UUID, and `all`.
//! Knows what is there from `files`, and not who asks for a device.
//!
//! Libraries are mounted under every name they have, so that no program has to run in the container to make links: containers
//! find them where their own linker looks, if that is where the host has them or where the configuration says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tombolo_cdi::{
    ContainerEdits, Device, DeviceNode, EnvVariable, InvalidName, Kind, Mount, Spec, SpecError,
};

use crate::config::{CdiConfig, Paths};
use crate::files::{self, Driver, Library};
use crate::gpu::Gpu;

/// Our own: what NVIDIA's tools write of the same GPUs is of `nvidia.com/gpu`, and of two definitions of one device neither counts.
const KIND: &str = "nvidia.tombolo.dev/gpu";
const ALL: &str = "all";

/// The file's name in the directory: no other tool's.
pub(crate) const FILE: &str = "tombolo-nvidia.json";

/// A container runtime that knows NVIDIA's variable does not do the same once more.
const ENV: [(&str, &str); 1] = [("NVIDIA_VISIBLE_DEVICES", "void")];

#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error("a GPU cannot be named: {0}")]
    Name(#[from] InvalidName),
    #[error("the specification breaks a rule: {0}")]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Env(#[from] tombolo_cdi::InvalidEnv),
}

/// The name of a GPU or instance as containers ask for it.
pub(crate) fn qualified(uuid: &str) -> String {
    format!("{KIND}={uuid}")
}

/// None: there is no GPU.
pub(crate) fn make(
    gpus: &[Gpu],
    driver: &Driver,
    paths: &Paths,
    config: &CdiConfig,
) -> Result<Option<Spec>, MakeError> {
    let mut devices: BTreeMap<String, ContainerEdits> = BTreeMap::new();
    let mut all = ContainerEdits::default();
    for gpu in gpus {
        let own = nodes(files::gpu_nodes(gpu, paths), paths);
        let Some(instances) = &gpu.instances else {
            devices.insert(gpu.index.to_string(), own.clone());
            devices.insert(gpu.uuid.0.clone(), own.clone());
            all.append(own);
            continue;
        };
        for instance in instances {
            let mut edits = own.clone();
            edits.append(nodes(files::instance_nodes(gpu, instance.place, paths), paths));
            devices.insert(format!("{}:{}", gpu.index, instance.index), edits.clone());
            devices.insert(instance.uuid.0.clone(), edits.clone());
            all.append(edits);
        }
    }
    if devices.is_empty() {
        return Ok(None);
    }
    devices.insert(ALL.to_owned(), all);
    let mut described = Vec::with_capacity(devices.len());
    for (name, container_edits) in devices {
        described.push(Device { name: name.parse()?, annotations: BTreeMap::new(), container_edits });
    }
    let kind: Kind = KIND.parse()?;
    Ok(Some(Spec::new(kind, described, of_driver(driver, paths, config)?)?))
}

/// What every container with a GPU gets.
fn of_driver(driver: &Driver, paths: &Paths, config: &CdiConfig) -> Result<ContainerEdits, MakeError> {
    let mut edits = nodes(driver.control_nodes.iter().map(|name| (*name).to_owned()).collect(), paths);
    for (name, value) in ENV {
        edits.env.push(EnvVariable::new(name, value)?);
    }
    for Library { file, names } in &driver.libraries {
        let same: Vec<PathBuf> = file.parent().map(Path::to_owned).into_iter().collect();
        let directories = match config.container_library_directories.as_slice() {
            [] => same.as_slice(),
            directories => directories,
        };
        for directory in directories {
            edits.mounts.extend(names.iter().map(|name| read_only(file, &directory.join(name))));
        }
    }
    edits.mounts.extend(driver.files.iter().map(|file| read_only(file, file)));
    edits.mounts.extend(driver.links.iter().map(|(file, name)| read_only(file, name)));
    for socket in &driver.sockets {
        // Not the file system's: what is behind it is the service's.
        edits
            .mounts
            .push(Mount { options: options(&["nosuid", "nodev", "noexec"]), ..read_only(socket, socket) });
    }
    Ok(edits)
}

fn read_only(host: &Path, container: &Path) -> Mount {
    Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        options: options(&["ro", "nosuid", "nodev"]),
        kind: String::new(),
    }
}

fn options(all: &[&str]) -> Vec<String> {
    all.iter().chain(&["rbind", "rprivate"]).map(|option| (*option).to_owned()).collect()
}

/// Nodes of `/dev` by their names below it.
fn nodes(names: Vec<String>, paths: &Paths) -> ContainerEdits {
    let node = |name: String| {
        let path = Path::new("/dev").join(&name);
        let host = paths.dev.join(&name);
        let host = host.strip_prefix(&paths.root).map_or(host.clone(), |rest| Path::new("/").join(rest));
        DeviceNode { host_path: (host != path).then_some(host), path, ..DeviceNode::default() }
    };
    ContainerEdits { device_nodes: names.into_iter().map(node).collect(), ..ContainerEdits::default() }
}

#[cfg(test)]
mod tests;
