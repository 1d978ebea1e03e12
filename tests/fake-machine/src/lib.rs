//! Made-up machines for tests of device plugins: `/dev`, `/sys` and udev's data in a directory, with real device nodes of
//! harmless numbers. It must not know any plugin.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;
use tombolo_device_sdk::machine::Roots;

/// null, zero, full, random, urandom: whoever opens one does no harm.
pub const MINORS: [u64; 5] = [3, 5, 7, 8, 9];

/// A machine, which ends with its test.
pub struct Machine {
    root: TempDir,
}

impl Machine {
    /// `None` where device nodes cannot be made, which is said aloud.
    pub fn new() -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        if mknod(&root.path().join("probe"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).is_err() {
            eprintln!("SKIPPED: device nodes can be made by root only");
            return None;
        }
        for directory in
            ["dev", "sys/bus/usb/devices", "sys/bus/pci/devices", "sys/dev/char", "sys/dev/block", "udev"]
        {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        Some(Self { root })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn roots(&self) -> Roots {
        Roots { dev: self.path("dev"), sys: self.path("sys"), udev: self.path("udev") }
    }

    /// A USB device at a port, with its own node `bus/usb/001/NUMBER` of number 1:3. Returns its directory in sysfs.
    pub fn usb(&self, port: &str, id: &str, serial: Option<&str>, number: u32) -> PathBuf {
        let directory = self.path("sys/devices/pci0000:00/0000:00:14.0/usb1").join(port);
        let (vendor, product) = id.split_once(':').unwrap();
        write(&directory, "idVendor", vendor);
        write(&directory, "idProduct", product);
        if let Some(serial) = serial {
            write(&directory, "serial", serial);
        }
        let name = format!("bus/usb/001/{number:03}");
        write(&directory, "uevent", &format!("DEVTYPE=usb_device\nDEVNAME={name}\n"));
        let link = self.path("sys/bus/usb/devices").join(port);
        if !link.exists() {
            symlink(&directory, link).unwrap();
        }
        self.mknod(&name, MINORS[0]);
        directory
    }

    /// A USB device goes, and its nodes too.
    pub fn unplug(&self, directory: &Path, nodes: &[&str]) {
        for node in nodes {
            fs::remove_file(self.path("dev").join(node)).unwrap();
        }
        fs::remove_file(self.path("sys/bus/usb/devices").join(directory.file_name().unwrap())).unwrap();
        fs::remove_dir_all(directory).unwrap();
    }

    /// A PCI function. Returns its directory in sysfs.
    pub fn pci(&self, address: &str, id: &str, class: &str, numa: Option<u32>) -> PathBuf {
        let directory = self.path("sys/devices/pci0000:00").join(address);
        let (vendor, product) = id.split_once(':').unwrap();
        write(&directory, "vendor", &format!("0x{vendor}"));
        write(&directory, "device", &format!("0x{product}"));
        write(&directory, "class", &format!("0x{class}"));
        write(&directory, "numa_node", &numa.map_or("-1".to_owned(), |node| node.to_string()));
        symlink(&directory, self.path("sys/bus/pci/devices").join(address)).unwrap();
        directory
    }

    /// A node `name` of number 1:`minor`, which the kernel has at `below` in the directory of its hardware.
    pub fn node(&self, name: &str, minor: u64, hardware: &Path, below: &str) -> PathBuf {
        let directory = hardware.join(below);
        write(&directory, "uevent", &format!("MAJOR=1\nMINOR={minor}\nDEVNAME={name}\n"));
        write(&directory, "dev", &format!("1:{minor}"));
        let link = self.path("sys/dev/char").join(format!("1:{minor}"));
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).unwrap();
        }
        symlink(&directory, link).unwrap();
        self.mknod(name, minor);
        directory
    }

    /// A node that the kernel says nothing of.
    pub fn mknod(&self, name: &str, minor: u64) {
        let path = self.path("dev").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, minor)).unwrap();
    }

    /// Makes a node another one, at once.
    pub fn replace(&self, name: &str, (major, minor): (u64, u64)) {
        let (path, new) = (self.path("dev").join(name), self.path("new-node"));
        mknod(&new, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// What udev has recorded of the node 1:`minor`.
    pub fn udev(&self, minor: u64, properties: &[(&str, &str)]) {
        let lines: String = properties.iter().map(|(key, value)| format!("E:{key}={value}\n")).collect();
        write(&self.path("udev"), &format!("c1:{minor}"), &format!("I:12345\n{lines}G:systemd\n"));
    }
}

/// A small file, as the kernel has them.
pub fn write(directory: &Path, name: &str, text: &str) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join(name), format!("{text}\n")).unwrap();
}
