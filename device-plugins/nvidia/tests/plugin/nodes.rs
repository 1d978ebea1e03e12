//! Device nodes that are missing, with a script in place of NVIDIA's program that makes them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tombolo_device_api::accelerator::v1::InspectRequest;
use tombolo_device_api::{HEALTHY, UNHEALTHY};
use tombolo_fake_nvml::script::Gpu;

use crate::machine::{Machine, gpu, mig, until, uuid};

/// Makes a harmless node of the name that is asked for. `DEV` is replaced.
const PROGRAM: &str = r#"#!/bin/sh
echo "$*" >> DEV/calls
[ ! -e DEV/broken ] || { echo "no module" >&2; exit 1; }
make() { [ -e "DEV/$1" ] || ln -s /dev/null "DEV/$1"; }
for word in "$@"; do
    case $word in
        -u) make nvidia-uvm ;;
        -c=255) make nvidiactl ;;
        -c=*) [ "$1" = -u ] || make "nvidia${word#-c=}" ;;
        /*) mkdir -p DEV/nvidia-caps; make "nvidia-caps/nvidia-cap$(sed -n 's/DeviceFileMinor: //p' "$word")" ;;
    esac
done
"#;

/// A machine on which only these nodes are.
fn machine(gpus: Vec<Gpu>, nodes: &[&str]) -> Machine {
    let machine = Machine::new(gpus);
    for entry in fs::read_dir(machine.host("dev")).unwrap() {
        let entry = entry.unwrap();
        if !nodes.contains(&entry.file_name().to_str().unwrap()) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    machine.put("nvidia-modprobe", &PROGRAM.replace("DEV", machine.host("dev").to_str().unwrap()));
    fs::set_permissions(machine.host("nvidia-modprobe"), fs::Permissions::from_mode(0o755)).unwrap();
    machine
}

fn config(machine: &Machine) -> String {
    format!("[nodes]\ncommand = [{:?}]\n", machine.host("nvidia-modprobe"))
}

fn calls(machine: &Machine) -> Vec<String> {
    let text = fs::read_to_string(machine.host("dev/calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn device_nodes_that_are_missing_are_made() {
    let cut = Gpu { mig: Some(vec![mig(1, 7)]), ..gpu(1) };
    let mut machine = machine(vec![gpu(0), cut], &["nvidia0"]);
    let capabilities = machine.host("proc/driver/nvidia/capabilities/gpu1/mig/gi7");
    machine.put("proc/driver/nvidia/capabilities/gpu1/mig/gi7/access", "DeviceFileMinor: 66\n");
    machine.put("proc/driver/nvidia/capabilities/gpu1/mig/gi7/ci0/access", "DeviceFileMinor: 67\n");
    machine.start(&config(&machine)).await;
    let mut whole = machine.kubelet().plugin("nvidia.com/gpu").await;
    whole.list(&[(&uuid(0), HEALTHY)]).await;
    let mut instances = machine.kubelet().plugin("nvidia.com/mig-1g.2gb").await;
    let instance = mig(1, 7).uuid;
    instances.list(&[(&instance, HEALTHY)]).await;
    let files = ["access", "ci0/access"].map(|file| format!("-f {}", capabilities.join(file).display()));
    assert_eq!(calls(&machine), [format!("-c=1 -c=255 {} {}", files[0], files[1]), "-u -c=0".to_owned()]);
    let given = instances.allocate(&[&instance]).await.unwrap();
    let config = machine.container(&[given.cdi_devices[0].name.as_str()]);
    let nodes = config["linux"]["devices"].as_array().unwrap();
    let nodes: Vec<_> = nodes.iter().map(|node| node["path"].as_str().unwrap()).collect();
    let expected =
        ["nvidiactl", "nvidia-uvm", "nvidia1", "nvidia-caps/nvidia-cap66", "nvidia-caps/nvidia-cap67"];
    assert_eq!(nodes, expected.map(|name| format!("/dev/{name}")));
}

#[tokio::test]
async fn a_gpu_without_its_nodes_is_out_of_use_until_they_are_there() {
    let mut machine = machine(vec![gpu(0), gpu(1)], &["nvidia0", "nvidiactl"]);
    machine.put("dev/broken", "");
    machine.start(&config(&machine)).await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let mut told = client.inspect(InspectRequest {}).await.unwrap().into_inner();
    let all = told.message().await.unwrap().unwrap().accelerators;
    assert!(all[0].fault.contains("there is no /dev/nvidia-uvm: "), "{}", all[0].fault);
    assert!(all[1].fault.contains("there is no /dev/nvidia-uvm, /dev/nvidia1: "), "{}", all[1].fault);
    assert!(all[0].fault.contains("failed (exit status: 1): no module"), "{}", all[0].fault);
    machine.log("device nodes cannot be made").await;
    machine.device("nvidia-uvm");
    machine.measured(&format!("tombolo_gpu_healthy{{gpu=\"{}\"}} 1", uuid(0))).await;
    machine.measured(&format!("tombolo_gpu_healthy{{gpu=\"{}\"}} 0", uuid(1))).await;
    assert_eq!(calls(&machine).len(), 2, "it is not tried at every look");
}

#[tokio::test]
async fn device_nodes_are_left_to_the_machine_that_wants_to_make_them() {
    let mut machine = machine(vec![gpu(0)], &["nvidia0", "nvidiactl"]);
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), UNHEALTHY)]).await;
    machine.device("nvidia-uvm");
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
    let spec = machine.host("cdi/tombolo-nvidia.json");
    until("containers get it", || fs::read_to_string(&spec).unwrap().contains("nvidia-uvm")).await;
}
