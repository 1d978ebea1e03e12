//! What a plugin answers, as an edit of the container. Decides nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use tombolo_cdi::{
    ContainerEdits, DeviceNode, EnvVariable, InvalidEnv, InvalidName, InvalidPermissions, Mount,
    QualifiedName, asked_for,
};
use tombolo_device_api::v1beta1::{ContainerAllocateResponse, DeviceSpec};

/// Bits of a mode that are permissions.
const MODE: u32 = 0o7777;

/// What may be below a directory that a plugin names, and how deep: `/dev/snd`, `/dev/bus/usb`.
const DIRECTORY_ENTRIES_MAX: usize = 1024;
const DIRECTORY_DEPTH_MAX: usize = 4;

/// Where NVIDIA's plugin names GPUs for NVIDIA's container runtime, which does the rest: separated by commas, or as the directory
/// below which it has mounts of their names.
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES";
const VISIBLE_NONE: [&str; 3] = ["", "none", "void"];

/// The kind of the specification that NVIDIA's tool writes of the same GPUs.
const VISIBLE_KIND: &str = "nvidia.com/gpu";

/// Why a plugin's answer cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum EditsError {
    #[error("it sets {0}")]
    Env(#[from] InvalidEnv),
    #[error("it gives a device file {0}")]
    Permissions(#[from] InvalidPermissions),
    #[error("it names a CDI device: {0}")]
    Name(#[from] InvalidName),
    #[error("{0:?} is not an absolute path")]
    Relative(String),
    #[error("there are more than {DIRECTORY_ENTRIES_MAX} files below {0}: name the devices themselves")]
    TooMany(String),
    #[error("cannot look at {path} of the host: {source}")]
    Look { path: PathBuf, source: io::Error },
}

/// One plugin's answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) edits: ContainerEdits,
    pub(crate) cdi: Vec<QualifiedName>,
    /// What is named for a container runtime only, if nothing is named in `cdi`.
    pub(crate) visible: Vec<QualifiedName>,
    pub(crate) annotations: BTreeMap<String, String>,
}

pub(crate) fn answer(response: ContainerAllocateResponse) -> Result<Answer, EditsError> {
    let mut answer = Answer::default();
    for (name, value) in response.envs.into_iter().collect::<BTreeMap<_, _>>() {
        answer.edits.env.push(EnvVariable::new(&name, &value)?);
    }
    for mount in response.mounts {
        let access = if mount.read_only { "ro" } else { "rw" };
        answer.edits.mounts.push(Mount {
            host_path: absolute(mount.host_path)?,
            container_path: absolute(mount.container_path)?,
            options: ["rbind", "rprivate", access].map(str::to_owned).to_vec(),
            kind: String::new(),
        });
    }
    for device in response.devices {
        add_device(&device, &mut answer.edits.device_nodes)?;
    }
    for device in response.cdi_devices {
        answer.cdi.push(device.name.parse()?);
    }
    answer.annotations = response.annotations.into_iter().collect();
    // As plugins do that are older than the answer's own field for them.
    answer.cdi.extend(asked_for(&answer.annotations)?);
    if answer.cdi.is_empty() {
        answer.visible = visible(&answer.edits)?;
    }
    Ok(answer)
}

/// The CDI names of the GPUs that NVIDIA's container runtime would give.
fn visible(edits: &ContainerEdits) -> Result<Vec<QualifiedName>, InvalidName> {
    let Some(value) = edits.env.iter().find(|variable| variable.name() == VISIBLE) else {
        return Ok(Vec::new());
    };
    let named = |name: &str| format!("{VISIBLE_KIND}={name}").parse();
    if value.value().starts_with('/') {
        let below = |mount: &Mount| Some(mount.container_path.strip_prefix(value.value()).ok()?.to_owned());
        let names = edits.mounts.iter().filter_map(below);
        return names.map(|name| named(&name.to_string_lossy())).collect();
    }
    value.value().split(',').filter(|name| !VISIBLE_NONE.contains(name)).map(named).collect()
}

fn absolute(path: String) -> Result<PathBuf, EditsError> {
    if Path::new(&path).is_absolute() { Ok(path.into()) } else { Err(EditsError::Relative(path)) }
}

/// A device file as it is on the host; all device files below, if it is a directory.
fn add_device(device: &DeviceSpec, nodes: &mut Vec<DeviceNode>) -> Result<(), EditsError> {
    let (host, inside) = (absolute(device.host_path.clone())?, absolute(device.container_path.clone())?);
    let permissions = device.permissions.parse()?;
    let mut pending = vec![(host, inside, 0)];
    let mut seen = 1;
    while let Some((host, inside, depth)) = pending.pop() {
        let look = |source| EditsError::Look { path: host.clone(), source };
        let metadata = match fs::metadata(&host) {
            // A link that leads nowhere, or what has gone since it was seen: it is no device.
            Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => continue,
            found => found.map_err(look)?,
        };
        let kind = metadata.file_type();
        if kind.is_dir() && depth < DIRECTORY_DEPTH_MAX {
            let entries = match fs::read_dir(&host) {
                Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(look)?,
            };
            for entry in entries.flatten() {
                seen += 1;
                if seen > DIRECTORY_ENTRIES_MAX {
                    return Err(EditsError::TooMany(device.host_path.clone()));
                }
                pending.push((entry.path(), inside.join(entry.file_name()), depth + 1));
            }
        } else if depth == 0 || kind.is_char_device() || kind.is_block_device() {
            nodes.push(DeviceNode {
                path: inside,
                host_path: Some(host),
                file_mode: Some(metadata.mode() & MODE),
                uid: Some(metadata.uid()),
                gid: Some(metadata.gid()),
                permissions,
                ..DeviceNode::default()
            });
        }
    }
    Ok(())
}
