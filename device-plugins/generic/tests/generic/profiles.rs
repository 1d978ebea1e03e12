//! Every ready profile is good and finds its hardware on a machine that has it, and only that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tombolo_device_generic::config::Config;
use tombolo_fake_machine::{MINORS, Machine, write};

use crate::ground::shown;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles")
}

/// A machine with one of everything, and what each profile finds on it.
fn everything(machine: &Machine) -> BTreeMap<&'static str, Vec<&'static str>> {
    let camera = machine.usb("1-1", "046d:0825", Some("CAM7"), 2);
    let video = machine.node("video0", MINORS[0], &camera, "1-1:1.0/video4linux/video0");
    write(&video, "index", "0");
    machine.udev(MINORS[0], &[("ID_V4L_CAPABILITIES", ":capture:")]);
    let adapter = machine.usb("1-2", "0403:6001", Some("A50285BI"), 3);
    machine.node("ttyUSB0", MINORS[1], &adapter, "1-2:1.0/ttyUSB0/tty/ttyUSB0");
    machine.mknod("gpiochip0", MINORS[2]);
    machine.usb("1-3", "1a6e:089a", None, 4);
    let coral = machine.pci("0000:03:00.0", "1ac1:089a", "0880ff", None);
    machine.node("apex_0", MINORS[3], &coral, "apex/apex_0");
    let hailo = machine.pci("0000:04:00.0", "1e60:2864", "120000", None);
    machine.node("hailo0", MINORS[3], &hailo, "hailo_chardev/hailo0");
    for (address, id, class, card) in [
        ("0000:00:02.0", "8086:a780", "030000", 0),
        ("0000:05:00.0", "1002:744c", "030000", 1),
        ("0000:06:00.0", "1002:74a1", "120000", 2),
        ("0000:07:00.0", "10de:2330", "030200", 3),
    ] {
        let gpu = machine.pci(address, id, class, None);
        for name in [format!("card{card}"), format!("renderD{}", 128 + card)] {
            machine.node(&format!("dri/{name}"), MINORS[3], &gpu, &format!("drm/{name}"));
        }
    }
    machine.pci("0000:05:00.1", "1002:ab30", "040300", None);
    machine.mknod("kfd", MINORS[2]);
    let soc = machine.path("sys/devices/platform/fdab0000.npu");
    machine.node("dri/renderD140", MINORS[4], &soc, "drm/renderD140");
    machine.udev(MINORS[4], &[("ID_PATH", "platform-fdab0000.npu")]);
    BTreeMap::from([
        (
            "amd-gpu",
            vec![
                "pci-0000:05:00.0 /dev/dri/card1 /dev/dri/renderD129",
                "pci-0000:06:00.0 /dev/dri/card2 /dev/dri/renderD130",
            ],
        ),
        ("cameras", vec!["usb-CAM7-1.0-video0 /dev/video0"]),
        ("coral", vec!["pci-0000:03:00.0 /dev/apex_0", "usb-1-3 /dev/bus/usb/001/004"]),
        ("gpio", vec!["gpiochip0 /dev/gpiochip0"]),
        ("hailo", vec!["pci-0000:04:00.0 /dev/hailo0"]),
        ("intel-gpu", vec!["pci-0000:00:02.0 /dev/dri/card0 /dev/dri/renderD128"]),
        ("rockchip-npu", vec!["dri_renderD140 /dev/dri/renderD140"]),
        ("serial", vec!["usb-A50285BI-1.0-ttyUSB0 /dev/ttyUSB0"]),
    ])
}

#[test]
fn every_profile_finds_its_hardware() {
    let Some(machine) = Machine::new() else { return };
    let expected = everything(&machine);
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let wanted =
            expected.get(&*name).unwrap_or_else(|| panic!("the machine of this test has nothing for {name}"));
        assert_eq!(&shown(&machine, &text), wanted, "{name}");
        seen.insert(name);
    }
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
}

#[test]
fn all_profiles_together_are_one_configuration() {
    let config = Config::load(&[directory()]).unwrap();
    assert_eq!(config.resources.len(), fs::read_dir(directory()).unwrap().count());
}

#[test]
fn what_the_book_shows_is_a_good_file() {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/device-plugins.md");
    let text = fs::read_to_string(book).unwrap();
    let shown: Vec<_> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(shown.len(), 1);
    assert_eq!(Config::parse(shown[0]).unwrap().resources.len(), 3);
}
