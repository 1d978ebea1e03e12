//! What the plugin takes for a device, what it calls it, and when it is unhealthy.

use std::fs;
use std::os::unix::fs::symlink;

use tombolo_device_sdk::Health;
use tombolo_fake_machine::{MINORS, Machine, write};

use crate::ground::{devices, file, resource, shown};

#[test]
fn nodes_by_path() {
    let Some(machine) = Machine::new() else { return };
    for (at, name) in ["video0", "video1", "gpiochip0", "snd/pcm0"].iter().enumerate() {
        machine.mknod(name, MINORS[at]);
    }
    fs::create_dir(machine.path("dev/video-directory")).unwrap();
    fs::write(machine.path("dev/video-file"), "").unwrap();
    assert_eq!(
        shown(&machine, &file("path = \"/dev/video*\"")),
        ["!video-file /dev/video-file", "video0 /dev/video0", "video1 /dev/video1"]
    );
    assert_eq!(shown(&machine, &file("path = \"/dev/video[1-9]\"")), ["video1 /dev/video1"]);
    assert_eq!(shown(&machine, &file("path = \"/dev/snd/*\"")), ["snd_pcm0 /dev/snd/pcm0"]);
    assert_eq!(shown(&machine, &file("path = \"/dev/*\"")).len(), 4, "a * ends at a /");
    assert_eq!(shown(&machine, &file("path = \"/dev/nothing\"")), Vec::<String>::new());
}

#[test]
fn a_link_is_followed_and_stays_the_containers_path() {
    let Some(machine) = Machine::new() else { return };
    machine.mknod("ttyUSB0", MINORS[0]);
    fs::create_dir_all(machine.path("dev/serial/by-id")).unwrap();
    symlink("../../ttyUSB0", machine.path("dev/serial/by-id/scale")).unwrap();
    symlink("../../ttyUSB9", machine.path("dev/serial/by-id/gone")).unwrap();
    let found = devices(&machine, &file("path = \"/dev/serial/by-id/*\""));
    let [scale] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(scale.nodes[0].host, machine.path("dev/ttyUSB0").canonicalize().unwrap());
    assert_eq!(scale.nodes[0].shown.to_str(), Some("/dev/serial/by-id/scale"));
    assert_eq!(scale.health, Health::Healthy);
}

#[test]
fn usb_devices_keep_their_id_by_serial_number_or_port() {
    let Some(machine) = Machine::new() else { return };
    let with_serial = machine.usb("1-1", "0bda:5830", Some("A-17"), 5);
    machine.usb("1-2", "0bda:5830", None, 6);
    machine.usb("1-3", "046d:c52b", None, 7);
    let text = file("usb = \"0bda:5830\"");
    assert_eq!(shown(&machine, &text), ["usb-1-2 /dev/bus/usb/001/006", "usb-A-17 /dev/bus/usb/001/005"]);
    machine.unplug(&with_serial, &["bus/usb/001/005"]);
    assert_eq!(shown(&machine, &text), ["usb-1-2 /dev/bus/usb/001/006"]);
    machine.usb("1-4.2", "0bda:5830", Some("A-17"), 9);
    assert_eq!(shown(&machine, &text)[1], "usb-A-17 /dev/bus/usb/001/009", "another port, the same device");
    machine.usb("1-5", "0bda:5830", Some("A-17"), 10);
    assert_eq!(
        shown(&machine, &text)[1..],
        ["usb-A-17-1-4.2 /dev/bus/usb/001/009", "usb-A-17-1-5 /dev/bus/usb/001/010"],
        "a serial number that two have names neither"
    );
    let by_place = shown(&machine, &file("usb = \"0bda:*\"\nidentity = \"place\""));
    assert_eq!(
        by_place.iter().map(|it| it.split(' ').next().unwrap()).collect::<Vec<_>>(),
        ["usb-1-2", "usb-1-4.2", "usb-1-5"]
    );
}

#[test]
fn a_device_that_comes_back_under_another_id_is_the_same() {
    let Some(machine) = Machine::new() else { return };
    let text = file("usb = [\"1a6e:089a\", \"18d1:9302\"]");
    let before = machine.usb("1-4", "1a6e:089a", None, 4);
    assert_eq!(shown(&machine, &text), ["usb-1-4 /dev/bus/usb/001/004"]);
    machine.unplug(&before, &["bus/usb/001/004"]);
    machine.usb("1-4", "18d1:9302", Some("0001"), 5);
    assert_eq!(shown(&machine, &text), ["usb-1-4 /dev/bus/usb/001/005"]);
}

#[test]
fn nodes_of_one_usb_device_are_one_device_or_several() {
    let Some(machine) = Machine::new() else { return };
    let camera = machine.usb("1-1", "046d:0825", Some("CAM7"), 3);
    for (at, name) in ["video4", "video5"].iter().enumerate() {
        let below = format!("1-1:1.0/video4linux/{name}");
        let directory = machine.node(name, MINORS[at + 1], &camera, &below);
        write(&directory, "index", &at.to_string());
    }
    machine.udev(MINORS[1], &[("ID_V4L_CAPABILITIES", ":capture:")]);
    machine.udev(MINORS[2], &[("ID_V4L_CAPABILITIES", ":")]);
    assert_eq!(
        shown(&machine, &file("usb = \"046d:*\"\npath = \"/dev/video*\"")),
        ["usb-CAM7 /dev/video4 /dev/video5"]
    );
    assert_eq!(
        shown(&machine, &file("path = \"/dev/video*\"")),
        ["usb-CAM7-1.0-video0 /dev/video4", "usb-CAM7-1.0-video1 /dev/video5"]
    );
    let captures = "udev = { ID_V4L_CAPABILITIES = \"*:capture:*\" }";
    assert_eq!(shown(&machine, &file(captures)), ["usb-CAM7-1.0-video0 /dev/video4"]);
    let grouped = shown(&machine, &file("path = \"/dev/video*\"\ndevice = \"hardware\""));
    assert_eq!(grouped, ["usb-CAM7 /dev/video4 /dev/video5"]);
}

#[test]
fn hardware_without_its_node_is_unhealthy() {
    let Some(machine) = Machine::new() else { return };
    let accelerator = machine.pci("0000:01:00.0", "1e60:2864", "120000", Some(1));
    let text = file("pci = \"1e60:*\"\npath = \"/dev/hailo*\"");
    assert_eq!(shown(&machine, &text), ["!pci-0000:01:00.0"]);
    machine.node("hailo0", MINORS[0], &accelerator, "hailo_chardev/hailo0");
    assert_eq!(shown(&machine, &text), ["pci-0000:01:00.0 /dev/hailo0"]);
    assert_eq!(devices(&machine, &text)[0].numa, Some(1));
    fs::remove_file(machine.path("dev/hailo0")).unwrap();
    let found = devices(&machine, &file("pci = \"1e60:*\""));
    let Health::Unhealthy { why } = &found[0].health else { panic!("{found:?}") };
    assert!(why.contains("dev/hailo0 is not there"), "{why}");
}

#[test]
fn functions_by_class() {
    let Some(machine) = Machine::new() else { return };
    for (address, id, class, name) in [
        ("0000:00:02.0", "8086:a780", "030000", "card0"),
        ("0000:01:00.0", "1002:744c", "038000", "card1"),
        ("0000:01:00.1", "1002:ab30", "040300", "audio"),
    ] {
        let directory = machine.pci(address, id, class, None);
        machine.node(&format!("dri/{name}"), MINORS[0], &directory, &format!("drm/{name}"));
    }
    assert_eq!(
        shown(&machine, &file("pci_class = \"03\"")),
        ["pci-0000:00:02.0 /dev/dri/card0", "pci-0000:01:00.0 /dev/dri/card1"]
    );
    assert_eq!(
        shown(&machine, &file("pci_class = \"0380\"\npci = \"1002:*\"")),
        ["pci-0000:01:00.0 /dev/dri/card1"]
    );
}

#[test]
fn what_every_container_needs_must_be_there() {
    let Some(machine) = Machine::new() else { return };
    machine.mknod("dri/renderD128", MINORS[0]);
    let text = "[[resource]]\nname = \"example.com/gpu\"\nextra = [\"/dev/kfd\", \"/dev/perhaps*\"]\n\
                [[resource.match]]\npath = \"/dev/dri/renderD*\"\n";
    assert_eq!(shown(&machine, text), ["!dri_renderD128 /dev/dri/renderD128"]);
    machine.mknod("kfd", MINORS[1]);
    assert_eq!(shown(&machine, text), ["dri_renderD128 /dev/dri/renderD128"]);
}

#[test]
fn a_tree_that_is_not_there_is_an_error() {
    let Some(machine) = Machine::new() else { return };
    fs::remove_dir_all(machine.path("dev")).unwrap();
    let resource = resource(&machine, &file("path = \"/dev/video*\""));
    let error = tombolo_device_generic::find::find(&resource).unwrap_err();
    assert!(error.to_string().contains("cannot read"), "{error}");
}
