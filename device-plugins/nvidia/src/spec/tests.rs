//! What a specification says of a machine's GPUs.

use super::*;
use crate::testing::{cut, gpu};

fn driver() -> Driver {
    Driver {
        libraries: vec![Library {
            file: "/usr/lib64/libcuda.so.570".into(),
            names: vec!["libcuda.so.570".into(), "libcuda.so.1".into()],
        }],
        files: vec!["/usr/bin/nvidia-smi".into(), "/lib/firmware/nvidia/570/gsp.bin".into()],
        links: vec![("/usr/lib/a".into(), "/usr/lib/b".into())],
        sockets: vec!["/var/run/nvidia-persistenced/socket".into()],
        control_nodes: vec!["nvidiactl", "nvidia-uvm"],
    }
}

fn made(gpus: &[Gpu], config: &CdiConfig) -> Spec {
    make(gpus, &driver(), &Paths::default(), config).unwrap().unwrap()
}

fn nodes_of<'a>(spec: &'a Spec, name: &str) -> Vec<&'a str> {
    let device = spec.devices().iter().find(|device| device.name.as_str() == name).unwrap();
    device.container_edits.device_nodes.iter().map(|node| node.path.to_str().unwrap()).collect()
}

#[test]
fn gpus_are_named_by_index_and_uuid_and_all() {
    let spec = made(&[gpu(0), gpu(1)], &CdiConfig::default());
    assert_eq!(spec.kind().to_string(), "nvidia.tombolo.dev/gpu");
    let names: Vec<_> = spec.devices().iter().map(|device| device.name.as_str()).collect();
    let uuids = [gpu(0).uuid.0, gpu(1).uuid.0];
    assert_eq!(names, ["0", "1", &uuids[0], &uuids[1], "all"]);
    assert_eq!(nodes_of(&spec, "1"), ["/dev/nvidia1"]);
    assert_eq!(nodes_of(&spec, &uuids[0]), ["/dev/nvidia0"]);
    assert_eq!(nodes_of(&spec, "all"), ["/dev/nvidia0", "/dev/nvidia1"]);
    assert_eq!(qualified(&uuids[0]), format!("nvidia.tombolo.dev/gpu={}", uuids[0]));
}

#[test]
fn instances_are_named_by_their_gpu_and_have_its_node() {
    let spec = made(&[cut(0), gpu(1)], &CdiConfig::default());
    let instance = &cut(0).instances.unwrap()[1];
    assert_eq!(nodes_of(&spec, "0:1"), ["/dev/nvidia0"]);
    assert_eq!(nodes_of(&spec, &instance.uuid.0), ["/dev/nvidia0"]);
    assert!(spec.devices().iter().all(|device| device.name.as_str() != "0"), "the whole is not to be had");
}

#[test]
fn every_container_gets_the_driver_under_all_its_names() {
    let spec = made(&[gpu(0)], &CdiConfig::default());
    let mounts: Vec<_> = spec
        .edits()
        .mounts
        .iter()
        .map(|mount| (mount.host_path.to_str().unwrap(), mount.container_path.to_str().unwrap()))
        .collect();
    let same = |path| (path, path);
    assert_eq!(
        mounts,
        [
            same("/usr/lib64/libcuda.so.570"),
            ("/usr/lib64/libcuda.so.570", "/usr/lib64/libcuda.so.1"),
            same("/usr/bin/nvidia-smi"),
            same("/lib/firmware/nvidia/570/gsp.bin"),
            ("/usr/lib/a", "/usr/lib/b"),
            same("/var/run/nvidia-persistenced/socket"),
        ]
    );
    assert!(spec.edits().mounts[0].options.contains(&"ro".to_owned()));
    assert!(!spec.edits().mounts[5].options.contains(&"ro".to_owned()), "a socket is spoken with");
    let paths: Vec<_> = spec.edits().device_nodes.iter().map(|node| node.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/dev/nvidiactl", "/dev/nvidia-uvm"]);
    assert_eq!(spec.edits().env[0].to_string(), "NVIDIA_VISIBLE_DEVICES=void");
}

#[test]
fn libraries_go_where_the_configuration_says() {
    let config = CdiConfig {
        container_library_directories: vec!["/usr/lib64".into(), "/usr/lib/x86_64-linux-gnu".into()],
        ..CdiConfig::default()
    };
    let spec = made(&[gpu(0)], &config);
    let names = spec.edits().mounts.iter().map(|mount| mount.container_path.to_str().unwrap());
    let libraries: Vec<_> = names.filter(|name| name.contains("libcuda")).collect();
    assert_eq!(
        libraries,
        [
            "/usr/lib64/libcuda.so.570",
            "/usr/lib64/libcuda.so.1",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.570",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        ]
    );
}

#[test]
fn a_plugin_in_a_container_tells_the_hosts_paths() {
    let host = |root: &str, dev: &str| {
        let paths = Paths { root: root.into(), dev: dev.into(), ..Paths::default() };
        let spec = make(&[gpu(0)], &driver(), &paths, &CdiConfig::default()).unwrap().unwrap();
        spec.devices()[0].container_edits.device_nodes[0].host_path.clone()
    };
    assert_eq!(host("/", "/dev"), None);
    assert_eq!(host("/host", "/host/dev"), None);
    assert_eq!(host("/host", "/other"), Some("/other/nvidia0".into()));
}

#[test]
fn without_gpus_there_is_no_specification() {
    assert_eq!(make(&[], &driver(), &Paths::default(), &CdiConfig::default()).unwrap(), None);
    let empty = Gpu { instances: Some(Vec::new()), ..gpu(0) };
    assert_eq!(make(&[empty], &driver(), &Paths::default(), &CdiConfig::default()).unwrap(), None);
}
