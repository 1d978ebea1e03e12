//! What a container gets for the devices it was given. Pure: what is there is in the view.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_cdi::{ContainerEdits, Spec};
use tombolo_device_sdk::{DeviceNode, Edits, Mount};

use crate::config::{Config, MpsConfig};
use crate::gpu::Uuid;
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
    #[error(
        "some of the GPUs are shared through MPS and some in turns, and a program uses those of one kind: ask for fewer, or share \
         them in the same way"
    )]
    SeveralKinds,
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
    if parts.iter().any(|part| part.kind.needs_mps() != parts[0].kind.needs_mps()) {
        return Err(GrantError::SeveralKinds);
    }
    match parts.first().map(|part| part.kind) {
        Some(Kind::Memory { unit_mib, mps }) => {
            if uuids.len() > 1 {
                return Err(GrantError::SeveralGpus(uuids.len()));
            }
            let declared = u64::try_from(parts.len()).unwrap_or(u64::MAX).saturating_mul(unit_mib);
            edits.env.insert(MEMORY_VARIABLE.into(), declared.to_string());
            if mps {
                join_mps(&mut edits, &config.mps, &[declared]);
            }
        }
        Some(Kind::Mps { .. }) => {
            let shares = shares(parts, view);
            // One number for all GPUs of a program: what it has least of.
            let percent = shares.iter().map(|share| share.percent).min().unwrap_or(1).max(1);
            edits.env.insert("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".into(), percent.to_string());
            let limits: Vec<u64> = shares.iter().map(|share| share.mib).collect();
            join_mps(&mut edits, &config.mps, &limits);
        }
        Some(Kind::Whole | Kind::TimeSlice) | None => {}
    }
    Ok(edits)
}

/// What a container has of one GPU that is shared through MPS.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    percent: u64,
    mib: u64,
}

/// Of each GPU, in the order of their buses.
fn shares(parts: &[&Part], view: &View) -> Vec<Share> {
    let mut gpus: BTreeMap<(Option<&str>, &Uuid), (u64, Share)> = BTreeMap::new();
    for part in parts {
        let Kind::Mps { replicas, gpu_bytes } = part.kind else { continue };
        let bus = view.gpus.get(&part.gpu).map(|gpu| gpu.bus.as_str());
        let (count, share) = gpus.entry((bus, &part.gpu)).or_default();
        *count += 1;
        let replicas = u64::from(replicas);
        *share = Share { percent: 100 * *count / replicas, mib: *count * (gpu_bytes >> 20) / replicas };
    }
    gpus.into_values().map(|(_, share)| share).collect()
}

/// The container's programs share their GPUs through the control daemon, each held to so many MiB of each GPU's memory.
fn join_mps(edits: &mut Edits, config: &MpsConfig, limits: &[u64]) {
    let pipes = config.pipe_directory.display().to_string();
    edits.env.insert("CUDA_MPS_PIPE_DIRECTORY".into(), pipes);
    // They are the container's GPUs, however many the machine has.
    let limits: Vec<String> = limits.iter().enumerate().map(|(gpu, mib)| format!("{gpu}={mib}M")).collect();
    if limits.len() > 1 {
        // Otherwise a program counts the fastest first.
        edits.env.insert("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into());
    }
    edits.env.insert("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT".into(), limits.join(","));
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
        let known = gpus.iter().map(|gpu| (gpu.uuid.clone(), gpu.clone())).collect();
        let spec = spec::make(gpus, &driver, &config.paths, &config.cdi).unwrap();
        View { spec, gpus: known, ..View::default() }
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
    fn with_mps_each_gpu_has_its_limit() {
        let config = Config::default();
        let replica = |gpu: &Gpu, replicas, gib: u64| part(gpu, Kind::Mps { replicas, gpu_bytes: gib << 30 });
        let edits = granted(&[replica(&gpu(1), 4, 16), replica(&gpu(0), 4, 16)], &config).unwrap();
        assert_eq!(edits.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=4096M,1=4096M");
        assert_eq!(edits.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "25");
        assert_eq!(edits.env["CUDA_DEVICE_ORDER"], "PCI_BUS_ID", "as the limits are counted");
        let unlike = [replica(&gpu(1), 2, 32), replica(&gpu(0), 4, 16), replica(&gpu(1), 2, 32)];
        let edits = granted(&unlike, &config).unwrap();
        assert_eq!(edits.env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=4096M,1=32768M");
        assert_eq!(edits.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "25", "no more than it has of any");
        let one = granted(&[replica(&gpu(1), 4, 16)], &config).unwrap();
        assert!(!one.env.contains_key("CUDA_DEVICE_ORDER"));
        for parts in [[Kind::TimeSlice, unlike[0].kind], [unlike[0].kind, Kind::TimeSlice]] {
            let mixed = granted(&[part(&gpu(0), parts[0]), part(&gpu(1), parts[1])], &config);
            assert_eq!(mixed, Err(GrantError::SeveralKinds));
        }
    }

    #[test]
    fn what_could_not_be_written_is_told_instead_of_given() {
        let config = Config::default();
        let view = View { spec_error: Some("the disk is full".into()), ..view(&[gpu(0)], &config) };
        let error = grant(&[&part(&gpu(0), Kind::Whole)], &view, &config).unwrap_err();
        assert!(error.to_string().contains("the disk is full"));
    }
}
