//! What a container gets for the devices it was given. Pure: what is there is in the view.

use std::collections::BTreeSet;

use tombolo_cdi::{ContainerEdits, Spec};
use tombolo_device_sdk::{DeviceNode, Edits, Mount};

use crate::config::{Config, MpsConfig};
use crate::share::{Kind, Part};
use crate::spec;
use crate::view::View;

/// How much memory of its GPU a container declared, MiB.
const MEMORY_VARIABLE: &str = "TOMBOLO_GPU_MEMORY_MIB";

/// Where programs find the MPS control daemon's shared memory.
const SHM: &str = "/dev/shm";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    #[error(
        "the memory is of {0} GPUs, and a container uses that of one: ask for less, or for a GPU of its own"
    )]
    SeveralGpus(usize),
    #[error("the CDI specification could not be made: {0}")]
    Spec(String),
    #[error("{0} is in no CDI specification any more")]
    Gone(String),
}

/// For `parts`, all of one resource.
pub(crate) fn grant(parts: &[&Part], view: &View, config: &Config) -> Result<Edits, GrantError> {
    let uuids: BTreeSet<&str> = parts.iter().map(|part| part.uuid.0.as_str()).collect();
    if let Some(error) = &view.spec_error {
        return Err(GrantError::Spec(error.clone()));
    }
    let mut edits = if config.cdi.directory.as_os_str().is_empty() {
        let spec = view.spec.as_ref().ok_or_else(|| GrantError::Spec("there is no GPU".into()))?;
        direct(&uuids, spec)?
    } else {
        Edits { cdi: uuids.iter().map(|uuid| spec::qualified(uuid)).collect(), ..Edits::default() }
    };
    let count = u64::try_from(parts.len()).unwrap_or(u64::MAX);
    match parts.first().map(|part| part.kind) {
        Some(Kind::Memory { unit_mib, mps }) => {
            if uuids.len() > 1 {
                return Err(GrantError::SeveralGpus(uuids.len()));
            }
            let declared = count * unit_mib;
            edits.env.insert(MEMORY_VARIABLE.into(), declared.to_string());
            if mps {
                join_mps(&mut edits, &config.mps, declared);
            }
        }
        Some(Kind::Mps { replicas, gpu_bytes }) => {
            // Of each of its GPUs, at least one of the parts.
            let share = (count / u64::try_from(uuids.len()).unwrap_or(1)).max(1);
            let percent = (100 * share / u64::from(replicas)).max(1);
            edits.env.insert("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), percent.to_string());
            join_mps(&mut edits, &config.mps, share * (gpu_bytes >> 20) / u64::from(replicas));
        }
        Some(Kind::Whole | Kind::TimeSlice) | None => {}
    }
    Ok(edits)
}

/// The container's programs share their GPU through the control daemon, each held to `mib` of its memory.
fn join_mps(edits: &mut Edits, config: &MpsConfig, mib: u64) {
    let pipes = config.pipe_directory.display().to_string();
    edits.env.insert("CUDA_MPS_PIPE_DIRECTORY".into(), pipes);
    // The container's first GPU, however many the machine has.
    edits.env.insert("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT".into(), format!("0={mib}M"));
    edits.mounts.push(Mount {
        host: config.pipe_directory.clone(),
        container: config.pipe_directory.clone(),
        read_only: false,
    });
    edits.mounts.push(Mount { host: config.shm_directory.clone(), container: SHM.into(), read_only: false });
}

/// The same as by CDI, for a container runtime that does not know it.
fn direct(uuids: &BTreeSet<&str>, spec: &Spec) -> Result<Edits, GrantError> {
    let mut all = spec.edits().clone();
    for uuid in uuids {
        let device = spec.devices().iter().find(|device| device.name.as_str() == *uuid);
        let device = device.ok_or_else(|| GrantError::Gone((*uuid).to_owned()))?;
        all.append(device.container_edits.clone());
    }
    let ContainerEdits { env, device_nodes, mounts, .. } = all;
    let mut edits = Edits::default();
    for variable in env {
        edits.env.insert(variable.name().to_owned(), variable.value().to_owned());
    }
    let mut seen = BTreeSet::new();
    for node in device_nodes {
        let host = node.host_path.unwrap_or_else(|| node.path.clone());
        if seen.insert(node.path.clone()) {
            edits.nodes.push(DeviceNode { host, ..DeviceNode::at(node.path) });
        }
    }
    edits.mounts.extend(mounts.into_iter().map(|mount| Mount {
        read_only: mount.options.iter().any(|option| option == "ro"),
        host: mount.host_path,
        container: mount.container_path,
    }));
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Driver;
    use crate::gpu::Gpu;
    use crate::testing::{cut, gpu};

    fn view(gpus: &[Gpu], config: &Config) -> View {
        let driver = Driver { control_nodes: vec!["nvidiactl"], ..Driver::default() };
        View { spec: spec::make(gpus, &driver, &config.paths, &config.cdi).unwrap(), ..View::default() }
    }

    fn part(gpu: &Gpu, kind: Kind) -> Part {
        Part { uuid: gpu.uuid.clone(), gpu: gpu.uuid.clone(), place: None, kind }
    }

    fn granted(parts: &[Part], config: &Config) -> Result<Edits, GrantError> {
        let view = view(&[gpu(0), gpu(1), cut(2)], config);
        grant(&parts.iter().collect::<Vec<_>>(), &view, config)
    }

    #[test]
    fn a_gpu_is_given_by_its_cdi_name() {
        let config = Config::default();
        let edits = granted(&[part(&gpu(1), Kind::Whole), part(&gpu(0), Kind::Whole)], &config).unwrap();
        let names = [gpu(0), gpu(1)].map(|gpu| format!("nvidia.tombolo.dev/gpu={}", gpu.uuid));
        assert_eq!(edits, Edits { cdi: names.into(), ..Edits::default() });
        let twice = granted(&[part(&gpu(0), Kind::TimeSlice), part(&gpu(0), Kind::TimeSlice)], &config);
        assert_eq!(twice.unwrap().cdi.len(), 1);
    }

    #[test]
    fn without_cdi_it_is_given_node_by_node() {
        let mut config = Config::default();
        config.cdi.directory = "".into();
        let edits = granted(&[part(&gpu(0), Kind::Whole), part(&gpu(1), Kind::Whole)], &config).unwrap();
        let paths: Vec<_> = edits.nodes.iter().map(|node| node.container.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"]);
        assert_eq!(edits.env["NVIDIA_VISIBLE_DEVICES"], "void");
        assert!(edits.cdi.is_empty());
        let gone = granted(&[part(&gpu(7), Kind::Whole)], &config);
        assert_eq!(gone, Err(GrantError::Gone(gpu(7).uuid.0)));
    }

    #[test]
    fn memory_is_of_one_gpu_and_said_to_the_program() {
        let config = Config::default();
        let unit = |gpu: &Gpu, mps| part(gpu, Kind::Memory { unit_mib: 256, mps });
        let edits = granted(&[unit(&gpu(0), false), unit(&gpu(0), false)], &config).unwrap();
        assert_eq!(edits.env["TOMBOLO_GPU_MEMORY_MIB"], "512");
        assert!(edits.mounts.is_empty());
        let several = granted(&[unit(&gpu(0), false), unit(&gpu(1), false)], &config);
        assert_eq!(several, Err(GrantError::SeveralGpus(2)));
        let held = granted(&[unit(&gpu(0), true)], &config).unwrap();
        assert_eq!(held.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=256M");
        assert_eq!(held.env["CUDA_MPS_PIPE_DIRECTORY"], "/tmp/nvidia-mps");
    }

    #[test]
    fn with_mps_a_part_of_the_processors_and_of_the_memory_is_given() {
        let config = Config::default();
        let replica = || part(&gpu(0), Kind::Mps { replicas: 4, gpu_bytes: 16 << 30 });
        let edits = granted(&[replica()], &config).unwrap();
        assert_eq!(edits.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "25");
        assert_eq!(edits.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=4096M");
        let mounts: Vec<_> = edits.mounts.iter().map(|mount| mount.container.to_str().unwrap()).collect();
        assert_eq!(mounts, ["/tmp/nvidia-mps", "/dev/shm"]);
        let two = granted(&[replica(), replica()], &config).unwrap();
        assert_eq!(two.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "50");
        assert_eq!(two.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=8192M");
    }

    #[test]
    fn what_could_not_be_written_is_told_instead_of_given() {
        let config = Config::default();
        let view = View { spec_error: Some("the disk is full".into()), ..view(&[gpu(0)], &config) };
        let error = grant(&[&part(&gpu(0), Kind::Whole)], &view, &config).unwrap_err();
        assert!(error.to_string().contains("the disk is full"));
    }
}
