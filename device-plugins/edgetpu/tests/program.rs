//! The program on made-up machines, against a fake kubelet.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::process::{Child, Command};
use std::time::Duration;

use tombolo_device_api::v1beta1::ContainerAllocateResponse;
use tombolo_fake_kubelet::{FakeKubelet, Plugin, SOON};
use tombolo_fake_machine::{MINORS, Machine, write};

const CORAL: &str = "google.com/edgetpu";
const TPU: &str = "google.com/tpu";

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The program, which does not outlive its test.
struct Program(Child);

impl Program {
    fn start(machine: &Machine, more: &[&str]) -> Self {
        fs::create_dir_all(machine.path("plugins")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo-device-plugin-edgetpu"));
        for root in ["dev", "sys"] {
            command.arg(format!("--{root}")).arg(machine.path(root));
        }
        Self(command.arg("--directory").arg(machine.path("plugins")).args(more).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn paths(given: &ContainerAllocateResponse) -> Vec<&str> {
    given.devices.iter().map(|node| &*node.container_path).collect()
}

/// The node of the one device, once it can be had.
async fn had(plugin: &Plugin, id: &str) -> String {
    let had = async {
        loop {
            match plugin.allocate(&[id]).await {
                Ok(given) => return paths(&given)[0].to_owned(),
                Err(_away) => tokio::time::sleep(PAUSE).await,
            }
        }
    };
    tokio::time::timeout(SOON, had).await.expect("it can be had")
}

#[tokio::test]
async fn a_coral_on_usb_is_one_device_before_and_after_its_first_use() {
    let Some(machine) = Machine::new() else { return };
    let _program = Program::start(&machine, &[]);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin(CORAL).await;
    plugin.list(&[]).await;
    machine.usb("2-1", "046d:0825", None, 2);
    let fresh = machine.usb("1-4", "1a6e:089a", None, 4);
    plugin.list(&[("usb-1-4", "Healthy")]).await;
    assert_eq!(had(&plugin, "usb-1-4").await, "/dev/bus/usb/001/004");
    machine.unplug(&fresh, &["bus/usb/001/004"]);
    let used = machine.usb("1-4", "18d1:9302", None, 5);
    // Whether or not it was seen to be away: the node that a container has is worth nothing any more.
    assert_eq!(plugin.next_list().await, Some(BTreeMap::new()));
    plugin.list(&[("usb-1-4", "Healthy")]).await;
    assert_eq!(had(&plugin, "usb-1-4").await, "/dev/bus/usb/001/005");
    machine.unplug(&used, &["bus/usb/001/005"]);
    plugin.list(&[]).await;
    assert!(!kubelet.registered_again(TPU), "there is none, and none will come");
}

#[tokio::test]
async fn a_coral_on_pcie_is_as_well_as_its_driver_says() {
    let Some(machine) = Machine::new() else { return };
    let card = machine.pci("0000:03:00.0", "1ac1:089a", "0880ff", Some(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let _program = Program::start(&machine, &["--metrics", &address]);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin(CORAL).await;
    plugin.list(&[("pci-0000:03:00.0", "Unhealthy")]).await;
    let status = plugin.allocate(&["pci-0000:03:00.0"]).await.unwrap_err();
    assert!(status.message().contains("load its drivers, gasket and apex"), "{status}");

    let apex = card.join("apex/apex_0");
    write(&apex, "status", "ALIVE");
    write(&apex, "temp", "41550");
    machine.node("apex_0", MINORS[0], &card, "apex/apex_0");
    plugin.list(&[("pci-0000:03:00.0", "Healthy")]).await;
    assert_eq!(had(&plugin, "pci-0000:03:00.0").await, "/dev/apex_0");
    let text = scrape(&address);
    let temperature = "tombolo_edgetpu_temperature_celsius{device=\"pci-0000:03:00.0\"} 41.55";
    assert!(text.lines().any(|line| line == temperature), "{text}");
    let devices = "tombolo_device_plugin_devices{resource=\"google.com/edgetpu\",health=\"healthy\"} 1";
    assert!(text.lines().any(|line| line == devices), "{text}");

    write(&apex, "status", "DEAD");
    plugin.list(&[("pci-0000:03:00.0", "Unhealthy")]).await;
    let status = plugin.allocate(&["pci-0000:03:00.0"]).await.unwrap_err();
    assert!(status.message().contains("its driver says DEAD"), "{status}");
    write(&apex, "status", "ALIVE");
    plugin.list(&[("pci-0000:03:00.0", "Healthy")]).await;
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn some_tpus_of_a_machine_are_named_and_all_are_not() {
    let Some(machine) = Machine::new() else { return };
    for at in 0..4 {
        let chip = machine.pci(&format!("0000:00:0{}.0", 4 + at), "1ae0:005e", "120000", Some(at / 2));
        machine.node(&format!("accel{at}"), MINORS[0], &chip, &format!("accel/accel{at}"));
    }
    machine.pci("0000:00:01.0", "1ae0:0042", "020000", None);
    let _program = Program::start(&machine, &[]);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin(TPU).await;
    let all = ["pci-0000:00:04.0", "pci-0000:00:05.0", "pci-0000:00:06.0", "pci-0000:00:07.0"];
    plugin.list(&all.map(|id| (id, "Healthy"))).await;
    let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let one = plugin.allocate(&all[2..3]).await.unwrap();
    assert_eq!(paths(&one), ["/dev/accel2"]);
    let (visible, bounds, host) = ("TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS");
    assert_eq!(one.envs, env(&[(visible, "2"), (bounds, "1,1,1"), (host, "1,1,1")]));
    let chosen = plugin.prefer(&all[1..], &[], 2).await.unwrap();
    assert_eq!(chosen, [all[2], all[3]], "on one NUMA node");
    let two = plugin.allocate(&[all[3], all[2]]).await.unwrap();
    assert_eq!(two.envs, env(&[(visible, "2,3"), (bounds, "1,2,1"), (host, "1,1,1")]));
    let whole = plugin.allocate(&all).await.unwrap();
    assert_eq!((paths(&whole).len(), whole.envs), (4, BTreeMap::new()));
}

#[tokio::test]
async fn a_tpu_that_its_user_drives_comes_with_what_that_takes() {
    let Some(machine) = Machine::new() else { return };
    let chip = machine.pci("0000:00:05.0", "1ae0:0063", "120000", None);
    symlink("../../../kernel/iommu_groups/7", chip.join("iommu_group")).unwrap();
    machine.mknod("vfio/vfio", MINORS[1]);
    let _program = Program::start(&machine, &[]);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin(TPU).await;
    plugin.list(&[("pci-0000:00:05.0", "Unhealthy")]).await;
    machine.mknod("vfio/7", MINORS[0]);
    plugin.list(&[("pci-0000:00:05.0", "Healthy")]).await;
    let given = plugin.allocate(&["pci-0000:00:05.0"]).await.unwrap();
    assert_eq!(paths(&given), ["/dev/vfio/7", "/dev/vfio/vfio"]);
}
