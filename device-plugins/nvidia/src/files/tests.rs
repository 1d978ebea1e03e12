//! A driver laid out as distributions do, below a root of its own.

use std::os::unix::fs::symlink;

use super::*;
use crate::testing::{cut, gpu};

const VERSION: &str = "570.86.15";

pub(crate) struct Host {
    root: tempfile::TempDir,
    pub paths: Paths,
}

impl Host {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let below = |name: &str| root.path().join(name);
        let paths = Paths { root: below("root"), dev: below("dev"), proc: below("proc"), sys: below("sys") };
        Self { root, paths }
    }

    pub(crate) fn put(&self, path: &str, text: &[u8]) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        symlink(target, self.root.path().join(path)).unwrap();
    }

    /// Libraries with their links in `directory`.
    fn install(&self, directory: &str, names: &[&str]) {
        for name in names {
            self.put(&format!("root{directory}/{name}.so.{VERSION}"), b"");
            self.link(&format!("root{directory}/{name}.so.1"), &format!("{name}.so.{VERSION}"));
        }
    }

    fn look(&self, config: &CdiConfig) -> Driver {
        Driver::look(VERSION, &self.paths, config)
    }
}

fn files(driver: &Driver) -> Vec<&str> {
    driver.libraries.iter().map(|library| library.file.to_str().unwrap()).collect()
}

#[test]
fn libraries_are_found_by_the_linkers_cache() {
    let host = Host::new();
    host.install("/opt/driver/lib", &["libcuda", "libnvidia-ml", "libnvidia-glcore", "libcudart"]);
    host.link("root/opt/driver/lib/libcuda.so", "libcuda.so.1");
    host.put("root/opt/driver/lib/libnvidia-ml.so.535.1", b"");
    host.link("root/opt/driver/lib/libnvidia-cfg.so.570.86.15", "/elsewhere/libnvidia-cfg.so");
    let machine = if cfg!(target_arch = "x86_64") { 0x03 } else { 0x0a };
    let cache = ld_cache::tests::cache(&[(machine, "libcuda.so.1", "/opt/driver/lib/libcuda.so.1")]);
    host.put("root/etc/ld.so.cache", &cache);
    let driver = host.look(&CdiConfig::default());
    assert_eq!(
        files(&driver),
        ["/opt/driver/lib/libcuda.so.570.86.15", "/opt/driver/lib/libnvidia-ml.so.570.86.15"]
    );
    assert_eq!(driver.libraries[0].names, ["libcuda.so.570.86.15", "libcuda.so", "libcuda.so.1"]);
    let all = host.look(&CdiConfig { capabilities: vec![Capability::All], ..CdiConfig::default() });
    assert_eq!(all.libraries.len(), 4);
    assert!(Driver::look("999.1", &host.paths, &CdiConfig::default()).libraries.is_empty());
}

#[test]
fn configured_directories_go_before_usual_ones() {
    let host = Host::new();
    host.install("/usr/lib64", &["libcuda", "libnvidia-ml"]);
    host.install("/home/kubernetes/nvidia/lib", &["libcuda"]);
    let config =
        CdiConfig { library_directories: vec!["/home/kubernetes/nvidia/lib".into()], ..CdiConfig::default() };
    let driver = host.look(&config);
    assert_eq!(
        files(&driver),
        ["/home/kubernetes/nvidia/lib/libcuda.so.570.86.15", "/usr/lib64/libnvidia-ml.so.570.86.15"]
    );
}

#[test]
fn programs_firmware_sockets_and_nodes_are_found_where_they_are() {
    let host = Host::new();
    for path in [
        "root/usr/bin/nvidia-smi",
        "root/usr/bin/nvidia-cuda-mps-control",
        "root/lib/firmware/nvidia/570.86.15/gsp_ga10x.bin",
        "root/lib/firmware/nvidia/570.86.15/readme",
        "root/lib/firmware/nvidia/535.1/gsp_ga10x.bin",
        "root/var/run/nvidia-persistenced/socket",
        "dev/nvidiactl",
        "dev/nvidia-uvm",
    ] {
        host.put(path, b"");
    }
    let driver = host.look(&CdiConfig { capabilities: vec![Capability::Utility], ..CdiConfig::default() });
    let files = ["/usr/bin/nvidia-smi", "/lib/firmware/nvidia/570.86.15/gsp_ga10x.bin"];
    assert_eq!(driver.files, files.map(PathBuf::from));
    assert_eq!(driver.sockets, [PathBuf::from("/var/run/nvidia-persistenced/socket")]);
    assert_eq!(driver.control_nodes, ["nvidiactl", "nvidia-uvm"]);
}

#[test]
fn a_gpus_nodes_and_place_are_the_kernels() {
    let host = Host::new();
    let one = gpu(3);
    host.put("sys/bus/pci/devices/0000:03:00.0/numa_node", b"1\n");
    for name in ["card1", "renderD128", "renderD129", "controlD64"] {
        host.put(&format!("sys/bus/pci/devices/0000:03:00.0/drm/{name}/dev"), b"");
    }
    host.put("dev/dri/card1", b"");
    host.put("dev/dri/renderD128", b"");
    assert_eq!(gpu_nodes(&one, &host.paths), ["nvidia3", "dri/card1", "dri/renderD128"]);
    assert_eq!(numa(&one, &host.paths), Some(1));
    host.put("sys/bus/pci/devices/0000:03:00.0/numa_node", b"-1\n");
    assert_eq!(numa(&one, &host.paths), None);
    assert_eq!(numa(&gpu(4), &host.paths), None);
}

#[test]
fn an_instances_nodes_are_those_that_the_driver_names() {
    let host = Host::new();
    let place = Place { gpu_instance: 7, compute_instance: 0 };
    host.put(
        "proc/driver/nvidia/capabilities/gpu2/mig/gi7/access",
        b"DeviceFileMinor: 66\nDeviceFileMode: 292\n",
    );
    host.put("proc/driver/nvidia/capabilities/gpu2/mig/gi7/ci0/access", b"DeviceFileMinor: 67\n");
    assert_eq!(
        instance_nodes(&cut(2), place, &host.paths),
        ["nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67"]
    );
    assert!(instance_nodes(&cut(1), place, &host.paths).is_empty());
}
