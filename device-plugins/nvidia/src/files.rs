//! What of the driver is on the host: libraries, programs, firmware, sockets, device nodes. Looks, and makes nothing of it;
//! every path it gives is the host's, without the root under which the plugin sees the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{Capability, CdiConfig, Paths};
use crate::gpu::{Gpu, Place};
use crate::ld_cache;

/// By these the linker's cache is asked where the driver is.
const KNOWN_BY: [&str; 2] = ["libcuda.so.1", "libnvidia-ml.so.1"];

/// Where it is, if the cache does not know.
const LIBRARY_DIRECTORIES: [&str; 5] = [
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
];

const PROGRAM_DIRECTORIES: [&str; 6] =
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/nvidia/bin"];

const FIRMWARE_DIRECTORIES: [&str; 2] = ["/lib/firmware/nvidia", "/usr/lib/firmware/nvidia"];

/// Of the whole driver.
const CONTROL_NODES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];

/// By these programs of containers speak with the driver's services.
const SOCKETS: [&str; 2] = ["/var/run/nvidia-persistenced/socket", "/var/run/nvidia-fabricmanager/socket"];

/// Most links that are followed for a library's name.
const LINKS_MAX: usize = 8;

/// Without version, by what they are for.
const COMPUTE: [&str; 12] = [
    "libcuda",
    "libcudadebugger",
    "libnvidia-allocator",
    "libnvidia-compiler",
    "libnvidia-fatbinaryloader",
    "libnvidia-gpucomp",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-opencl",
    "libnvidia-pkcs11",
    "libnvidia-pkcs11-openssl3",
    "libnvidia-ptxjitcompiler",
];
const UTILITY: [&str; 3] = ["libnvidia-cfg", "libnvidia-ml", "libnvidia-nscq"];
const VIDEO: [&str; 3] = ["libnvcuvid", "libnvidia-encode", "libnvidia-opticalflow"];

const COMPUTE_PROGRAMS: [&str; 2] = ["nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
const UTILITY_PROGRAMS: [&str; 3] = ["nvidia-debugdump", "nvidia-persistenced", "nvidia-smi"];

/// A file and all its names: its own first, then the links to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Library {
    pub file: PathBuf,
    pub names: Vec<String>,
}

/// The driver's parts that containers get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Driver {
    pub libraries: Vec<Library>,
    /// Programs, firmware and whatever else is where it is on the host.
    pub files: Vec<PathBuf>,
    /// Files by another name: the file, the name.
    pub links: Vec<(PathBuf, PathBuf)>,
    pub sockets: Vec<PathBuf>,
    /// Names below `/dev`.
    pub control_nodes: Vec<&'static str>,
}

impl Driver {
    pub(crate) fn look(version: &str, paths: &Paths, config: &CdiConfig) -> Self {
        let inside = |path: &Path| under(&paths.root, path);
        let is_there = |path: &PathBuf| inside(path).exists();
        let has =
            |capability| config.capabilities.iter().any(|each| [capability, Capability::All].contains(each));
        let mut files = Vec::new();
        for (capability, names) in
            [(Capability::Compute, &COMPUTE_PROGRAMS[..]), (Capability::Utility, &UTILITY_PROGRAMS[..])]
        {
            for name in names.iter().filter(|_| has(capability)) {
                let mut places = PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
                files.extend(places.find(is_there));
            }
        }
        files.extend(firmware(version, paths));
        Self {
            libraries: libraries(version, paths, config),
            files,
            links: Vec::new(),
            sockets: SOCKETS.iter().map(PathBuf::from).filter(is_there).collect(),
            control_nodes: CONTROL_NODES.into_iter().filter(|name| paths.dev.join(name).exists()).collect(),
        }
    }
}

/// Names below `/dev` of the nodes that a GPU has for itself: its own, and those of the display system.
pub(crate) fn gpu_nodes(gpu: &Gpu, paths: &Paths) -> Vec<String> {
    if let Some(nodes) = &gpu.nodes {
        return nodes.clone();
    }
    let mut nodes = vec![format!("nvidia{}", gpu.minor)];
    let display = paths.sys.join("bus/pci/devices").join(&gpu.bus).join("drm");
    let mut display: Vec<_> = names(&display)
        .filter(|name| name.starts_with("card") || name.starts_with("renderD"))
        .map(|name| format!("dri/{name}"))
        .filter(|name| paths.dev.join(name).exists())
        .collect();
    display.sort();
    nodes.extend(display);
    nodes
}

/// Names below `/dev` of the nodes by which the driver lets a program use an instance.
pub(crate) fn instance_nodes(gpu: &Gpu, place: Place, paths: &Paths) -> Vec<String> {
    capabilities(gpu, place, paths).into_iter().map(|(_, name)| name).collect()
}

/// The same, with the kernel's files that name them.
pub(crate) fn capabilities(gpu: &Gpu, place: Place, paths: &Paths) -> Vec<(PathBuf, String)> {
    let Place { gpu_instance, compute_instance } = place;
    let capabilities =
        paths.proc.join(format!("driver/nvidia/capabilities/gpu{}/mig/gi{gpu_instance}", gpu.minor));
    let files = [capabilities.join("access"), capabilities.join(format!("ci{compute_instance}/access"))];
    let named = |file: PathBuf| {
        let text = fs::read_to_string(&file).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:"))?;
        let minor: u32 = value.trim().parse().ok()?;
        Some((file, format!("nvidia-caps/nvidia-cap{minor}")))
    };
    files.into_iter().filter_map(named).collect()
}

/// The NUMA node that a GPU is attached to, where there are several.
pub(crate) fn numa(gpu: &Gpu, paths: &Paths) -> Option<u32> {
    let file = paths.sys.join("bus/pci/devices").join(&gpu.bus).join("numa_node");
    // -1: the machine has none.
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// `path` of the host as the plugin sees it.
pub(crate) fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Where a library of the driver's is to be loaded from: a path stays one, a name is the linker's matter on the plugin's own file
/// system.
pub(crate) fn library(name: &Path, paths: &Paths, config: &CdiConfig) -> PathBuf {
    if name.components().count() > 1 || paths.root == Path::new("/") {
        return name.to_owned();
    }
    let places = library_directories(paths, config);
    let mut places = places.iter().map(|directory| under(&paths.root, directory).join(name));
    places.find(|place| place.exists()).unwrap_or_else(|| name.to_owned())
}

fn libraries(version: &str, paths: &Paths, config: &CdiConfig) -> Vec<Library> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for directory in library_directories(paths, config) {
        let here = under(&paths.root, &directory);
        let mut all: Vec<String> = names(&here).collect();
        all.sort();
        for name in &all {
            let Some(stem) = name.strip_suffix(version).and_then(|stem| stem.strip_suffix(".so.")) else {
                continue;
            };
            let path = here.join(name);
            let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
            if is_link || !is_wanted(stem, &config.capabilities) || !seen.insert(name.clone()) {
                continue;
            }
            let links = all.iter().filter(|link| *link != name && leads_to(&here, link, name)).cloned();
            let names = [name.clone()].into_iter().chain(links).collect();
            found.push(Library { file: directory.join(name), names });
        }
    }
    found
}

/// On the host, those that are configured first.
fn library_directories(paths: &Paths, config: &CdiConfig) -> Vec<PathBuf> {
    let cache = fs::read(paths.root.join("etc/ld.so.cache")).unwrap_or_default();
    let cached = KNOWN_BY.iter().flat_map(|name| ld_cache::find(&cache, name));
    let cached = cached.filter_map(|path| path.parent().map(Path::to_owned));
    let usual = LIBRARY_DIRECTORIES.iter().map(PathBuf::from);
    let mut seen = BTreeSet::new();
    let all = config.library_directories.iter().cloned().chain(cached).chain(usual);
    all.filter(|directory| seen.insert(directory.clone())).collect()
}

fn is_wanted(stem: &str, capabilities: &[Capability]) -> bool {
    capabilities.iter().any(|capability| match capability {
        Capability::Compute => COMPUTE.contains(&stem),
        Capability::Utility => UTILITY.contains(&stem),
        Capability::Video => VIDEO.contains(&stem),
        Capability::All => true,
    })
}

/// Whether `link` is a link to `name`, over others if need be, all in this directory.
fn leads_to(directory: &Path, link: &str, name: &str) -> bool {
    let mut at = PathBuf::from(link);
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(directory.join(&at)) else { return false };
        if target.components().count() != 1 {
            return false;
        }
        if target == Path::new(name) {
            return true;
        }
        at = target;
    }
    false
}

fn firmware(version: &str, paths: &Paths) -> Vec<PathBuf> {
    let directories = FIRMWARE_DIRECTORIES.iter().map(|directory| Path::new(directory).join(version));
    let Some(directory) = directories.into_iter().find(|directory| under(&paths.root, directory).is_dir())
    else {
        return Vec::new();
    };
    let here = under(&paths.root, &directory);
    let mut files: Vec<_> = names(&here)
        .filter(|name| name.starts_with("gsp") && name.ends_with(".bin"))
        .map(|name| directory.join(name))
        .collect();
    files.sort();
    files
}

/// The names in a directory; one that is not there has none.
pub(crate) fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
pub(crate) mod tests;
