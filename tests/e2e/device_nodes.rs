//! Functions open the device nodes that they were given and no others, also when a device comes back as another node. The plugins
//! are programs of their own on made-up machines, and nodes have numbers that no container may open by default.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tombolo_fake_machine::Machine;
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

const CORAL: &str = "google.com/edgetpu";
const CAMERA: &str = "tombolo.dev/camera";
const EYE: &str = "tests.example/eye";

/// Nobody's: who may open it finds that there is no such device.
const NOBODYS: (u64, u64) = (240, 7);
const NO_SUCH_DEVICE: &str = "No such device";
const REFUSED: &str = "error Operation not permitted (os error 1)";
const MISSING: &str = "error No such file or directory (os error 2)";

/// Which who opens does no harm: it asks for quick wake-ups.
fn wake_ups() -> (u64, u64) {
    let text = fs::read_to_string("/proc/misc").expect("the kernel lists them");
    let line = text.lines().find(|line| line.ends_with(" cpu_dma_latency")).expect("every kernel has it");
    (10, line.split_whitespace().next().and_then(|minor| minor.parse().ok()).expect("a number"))
}

async fn answers(node: &Node, service: &str, path: &str, expected: &str) {
    until(&format!("{service}{path} to answer {expected}"), 30, || async {
        let answer = node.answer(service, path).await;
        if answer.as_deref().is_ok_and(|answer| answer.contains(expected)) { Ok(()) } else { Err(answer) }
    })
    .await;
}

fn edgetpu(node: &Node, machine: &Machine) -> Process {
    let mut command = Command::new(program("tombolo-device-plugin-edgetpu"));
    for root in ["dev", "sys"] {
        command.arg(format!("--{root}")).arg(machine.path(root));
    }
    command.arg("--directory").arg(node.plugin_directory());
    node.start_beside("plugin", command).expect("a plugin starts")
}

/// As a Coral accelerator does at its first use: it goes, and comes back at its port with other ids and another node.
#[tokio::test]
async fn an_accelerator_that_comes_back_as_another_reappears_in_the_running_function() {
    let Some(machine) = Machine::new() else { return };
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let fresh = machine.usb("1-4", "1a6e:089a", None, 4);
    let _plugin = edgetpu(&node, &machine);
    site.hub.deploy(&Function::subject("inspect").env("MODE", "polite").limit(CORAL, "1")).await;
    answers(&node, "inspect", "/open?/dev/bus/usb/001/004", "opened").await;
    let before = node.instances("inspect").await.expect("the agent says what it runs");
    assert_eq!(before.len(), 1);

    machine.unplug(&fresh, &["bus/usb/001/004"]);
    let used = machine.usb("1-4", "18d1:9302", None, 5);
    machine.replace("bus/usb/001/005", wake_ups());
    answers(&node, "inspect", "/open?/dev/bus/usb/001/005", "opened").await;
    answers(&node, "inspect", "/open?/dev/bus/usb/001/004", MISSING).await;

    // Also while there is no agent.
    node.kill_agent();
    machine.unplug(&used, &["bus/usb/001/005"]);
    machine.usb("1-4", "18d1:9302", None, 6);
    machine.replace("bus/usb/001/006", NOBODYS);
    node.start_agent().expect("the agent starts again");
    answers(&node, "inspect", "/open?/dev/bus/usb/001/006", NO_SUCH_DEVICE).await;
    answers(&node, "inspect", "/open?/dev/bus/usb/001/005", MISSING).await;
    let after = node.instances("inspect").await.expect("the agent says what it runs");
    assert_eq!(after, before, "the same process all the time");
}

/// A plugin that offers a link, and with it a view of the whole hardware: the nodes are there, and only the cgroup's rules decide.
fn eyes(node: &Node, hardware: &Path) -> Process {
    let config = node.dir().join("eyes.toml");
    let dev = hardware.display();
    let text = format!(
        "interval_s = 1\n[roots]\ndev = \"{dev}\"\n[[resource]]\nname = \"{EYE}\"\n\
         mounts = [{{ host = \"{dev}\", container = \"/hardware\", read_only = true }}]\n\
         [[resource.match]]\npath = \"/dev/eye*\"\n"
    );
    fs::write(&config, text).expect("a file");
    let mut command = Command::new(program("tombolo-device-plugin-generic"));
    command.arg("--config").arg(config).arg("--directory").arg(node.plugin_directory());
    node.start_beside("plugin", command).expect("a plugin starts")
}

fn make(hardware: &Path, name: &str, (major, minor): (u64, u64)) {
    let mode = Mode::from_bits_truncate(0o666);
    mknod(&hardware.join(name), SFlag::S_IFCHR, mode, makedev(major, minor)).expect("root may make nodes");
}

#[tokio::test]
async fn a_node_that_was_not_given_is_refused_where_it_is_seen() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let hardware = node.dir().join("hardware");
    fs::create_dir_all(&hardware).expect("a directory");
    make(&hardware, "lens4", NOBODYS);
    make(&hardware, "lens5", wake_ups());
    make(&hardware, "other", (NOBODYS.0, NOBODYS.1 + 1));
    symlink("lens4", hardware.join("eye0")).expect("a link");
    let _plugin = eyes(&node, &hardware);
    let seeing = Function::subject("seeing").env("MODE", "polite").limit(EYE, "1");
    site.hub.deploy(&seeing).await;
    site.hub.deploy(&Function::subject("blind")).await;
    answers(&node, "seeing", "/open?/dev/eye0", NO_SUCH_DEVICE).await;
    answers(&node, "seeing", "/open?/hardware/lens4", NO_SUCH_DEVICE).await;
    answers(&node, "seeing", "/open?/hardware/lens5", REFUSED).await;
    answers(&node, "seeing", "/open?/hardware/other", REFUSED).await;
    // One that has none cannot make one either.
    for path in ["/tmp/own", "/dev/own"] {
        answers(&node, "blind", &format!("/mknod?{path}"), REFUSED).await;
        answers(&node, "seeing", &format!("/mknod?{path}"), REFUSED).await;
    }
    let before = node.instances("seeing").await.expect("the agent says what it runs");

    // The device is another one at once, and the plugin's list has the same name in it.
    symlink("lens5", hardware.join("new")).expect("a link");
    fs::rename(hardware.join("new"), hardware.join("eye0")).expect("it is there");
    answers(&node, "seeing", "/open?/dev/eye0", "opened").await;
    answers(&node, "seeing", "/open?/hardware/lens5", "opened").await;
    answers(&node, "seeing", "/open?/hardware/lens4", REFUSED).await;
    assert_eq!(node.instances("seeing").await.expect("the agent says what it runs"), before);
}

/// `examples/camera-defects`: cameras of which one is in the dark and one sees noise, by devices that every machine has.
#[tokio::test]
async fn functions_look_through_the_cameras_they_were_given() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let hardware = node.dir().join("hardware");
    fs::create_dir_all(&hardware).expect("a directory");
    make(&hardware, "video0", (1, 5));
    make(&hardware, "video1", (1, 9));
    let config = node.dir().join("cameras.toml");
    let text = format!(
        "[roots]\ndev = \"{}\"\n[[resource]]\nname = \"{CAMERA}\"\nenv = {{ CAMERAS = \"{{paths}}\" }}\n\
         [[resource.match]]\npath = \"/dev/video*\"\n",
        hardware.display()
    );
    fs::write(&config, text).expect("a file");
    let mut command = Command::new(program("tombolo-device-plugin-generic"));
    command.arg("--config").arg(config).arg("--directory").arg(node.plugin_directory());
    let _plugin = node.start_beside("plugin", command).expect("a plugin starts");
    let looking = |name: &str| {
        let function = Function::camera_defects(name).env("FORMAT", "grey").limit(CAMERA, "1");
        function.env("WIDTH", "64").env("HEIGHT", "48")
    };
    for (name, least) in [("dark", 0), ("noisy", 100)] {
        site.hub.deploy(&looking(name)).await;
        let seen = until("a look", 30, || node.answer(name, "/inspect")).await;
        let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
        let brightness = seen["brightness"].as_u64().expect("a number");
        assert!((least..least + 56).contains(&brightness) && seen["defect"] == false, "{name}: {seen}");
    }
    answers(&node, "dark", "/check", "\"agree\":12,\"right\":12").await;
}
