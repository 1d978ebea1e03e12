//! For plugins whose hardware shows in the file system: reading `/dev`, `/sys` and udev's data below roots that can be moved.
//! What disappears while it is read is not there. It must not know what is looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use glob::MatchOptions;
use serde::Deserialize;

/// How deep nodes lie below their hardware: interfaces, classes and ports are at most so many directories.
const DEPTH_MAX: usize = 8;

/// Where the three trees are. The kubelet is told paths below `dev`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Roots {
    pub dev: PathBuf,
    pub sys: PathBuf,
    /// udev's own records.
    pub udev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { dev: "/dev".into(), sys: "/sys".into(), udev: "/run/udev/data".into() }
    }
}

/// Something in `/dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it lies, links followed.
    pub host: PathBuf,
    /// Where it was found, as if the root were `/dev`.
    pub shown: PathBuf,
    pub kind: NodeKind,
    /// What the kernel says of it, if it does.
    pub sysfs: Option<PathBuf>,
    /// The number of its inode: another one when the node was made anew.
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Character,
    Block,
    /// A file or a socket.
    Other,
    /// The kernel names it, and it does not lie there.
    Missing,
}

impl Node {
    /// For [`Scan::mark`](crate::Scan::mark).
    pub fn mark(&self) -> String {
        format!("{}#{}", self.host.display(), self.inode)
    }
}

/// What a node belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hardware {
    Usb { directory: PathBuf, vendor: u16, product: u16, serial: Option<String> },
    Pci { directory: PathBuf, vendor: u16, product: u16, class: String },
}

impl Hardware {
    /// Its directory in sysfs.
    pub fn directory(&self) -> &Path {
        let (Self::Usb { directory, .. } | Self::Pci { directory, .. }) = self;
        directory
    }

    /// The port of a USB device (`1-1.4`), the address of a PCI function (`0000:01:00.0`).
    pub fn place(&self) -> String {
        self.directory().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What lies in this directory of sysfs, if it is hardware of its own.
    pub fn at(directory: &Path) -> Option<Self> {
        let number = |name| hex4(read(directory, name)?.trim_start_matches("0x"));
        let own = || directory.to_owned();
        if let (Some(vendor), Some(product)) = (number("idVendor"), number("idProduct")) {
            let serial = read(directory, "serial").filter(|serial| !serial.is_empty());
            return Some(Self::Usb { directory: own(), vendor, product, serial });
        }
        let class = read(directory, "class")?.strip_prefix("0x")?.to_ascii_lowercase();
        Some(Self::Pci { directory: own(), vendor: number("vendor")?, product: number("device")?, class })
    }

    /// The nearest hardware that has `directory` in it.
    pub fn of(directory: &Path) -> Option<Self> {
        directory.ancestors().take(DEPTH_MAX).find_map(Self::at)
    }
}

impl Roots {
    /// What lies at the paths of this pattern below `/dev`, directories left out, in the order of their names.
    pub fn nodes(&self, pattern: &str) -> Vec<Node> {
        let root = glob::Pattern::escape(&self.dev.to_string_lossy());
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let found = glob::glob_with(&format!("{root}/{}", pattern), options);
        found.into_iter().flatten().flatten().filter_map(|path| self.node(&path)).collect()
    }

    /// What the kernel has a node for below this directory of sysfs, that of further hardware left out.
    pub fn nodes_below(&self, hardware: &Hardware) -> Vec<Node> {
        let mut names = BTreeSet::new();
        walk(hardware.directory(), DEPTH_MAX, &mut |directory| {
            if directory != hardware.directory() && Hardware::at(directory).is_some() {
                return false;
            }
            names.extend(device_name(directory).map(|name| (name, directory.to_owned())));
            true
        });
        names.into_iter().map(|(name, directory)| self.named(&name, directory)).collect()
    }

    /// The node of the hardware itself.
    pub fn own_node(&self, hardware: &Hardware) -> Option<Node> {
        let directory = hardware.directory();
        device_name(directory).map(|name| self.named(&name, directory.to_owned()))
    }

    /// Every node the kernel has.
    pub fn all_nodes(&self) -> Vec<Node> {
        let kinds = ["char", "block"].map(|kind| self.sys.join("dev").join(kind));
        let links = kinds.iter().flat_map(|kind| entries(kind));
        let directories: BTreeSet<_> = links.filter_map(|link| link.canonicalize().ok()).collect();
        let named = |directory: PathBuf| device_name(&directory).map(|name| self.named(&name, directory));
        directories.into_iter().filter_map(named).collect()
    }

    pub fn usb(&self) -> Vec<Hardware> {
        self.bus("usb")
    }

    pub fn pci(&self) -> Vec<Hardware> {
        self.bus("pci")
    }

    /// What udev and the kernel say of a node.
    pub fn properties(&self, node: &Node) -> BTreeMap<String, String> {
        let Some(directory) = &node.sysfs else { return BTreeMap::new() };
        let mut properties = kernel_properties(directory);
        if let Ok(subsystem) = fs::read_link(directory.join("subsystem")) {
            let name = subsystem.file_name().unwrap_or_default().to_string_lossy().into_owned();
            properties.insert("SUBSYSTEM".to_owned(), name);
        }
        let letter = if node.kind == NodeKind::Block { "b" } else { "c" };
        let record = read(directory, "dev").and_then(|number| read(&self.udev, &format!("{letter}{number}")));
        let lines = record.iter().flat_map(|record| record.lines());
        properties.extend(lines.filter_map(|line| pair(line.strip_prefix("E:")?)));
        properties
    }

    /// The NUMA node of what lies at `directory` of sysfs.
    pub fn numa(directory: &Path) -> Option<u32> {
        // -1 says that there is none.
        directory.ancestors().take(DEPTH_MAX).find_map(|directory| read(directory, "numa_node"))?.parse().ok()
    }

    fn bus(&self, name: &str) -> Vec<Hardware> {
        let mut directories: Vec<_> = entries(&self.sys.join("bus").join(name).join("devices"))
            .into_iter()
            .filter_map(|link| link.canonicalize().ok())
            .collect();
        directories.sort();
        directories.iter().filter_map(|directory| Hardware::at(directory)).collect()
    }

    /// What lies at a path that was found, a directory excepted.
    fn node(&self, path: &Path) -> Option<Node> {
        let host = path.canonicalize().ok()?;
        let meta = fs::metadata(&host).ok()?;
        let shown = Path::new("/dev").join(path.strip_prefix(&self.dev).ok()?);
        let (kind, class) = match meta.file_type() {
            kind if kind.is_dir() => return None,
            kind if kind.is_char_device() => (NodeKind::Character, "char"),
            kind if kind.is_block_device() => (NodeKind::Block, "block"),
            _ => return Some(Node { host, shown, kind: NodeKind::Other, sysfs: None, inode: meta.ino() }),
        };
        let (major, minor) = numbers(meta.rdev());
        let sysfs = self.sys.join("dev").join(class).join(format!("{major}:{minor}")).canonicalize().ok();
        Some(Node { host, shown, kind, sysfs, inode: meta.ino() })
    }

    /// The node that the kernel names so.
    fn named(&self, name: &str, directory: PathBuf) -> Node {
        let host = self.dev.join(name);
        let shown = Path::new("/dev").join(name);
        let missing = || Node { host, shown, kind: NodeKind::Missing, sysfs: None, inode: 0 };
        let node = self.node(&self.dev.join(name)).unwrap_or_else(missing);
        Node { sysfs: Some(directory), ..node }
    }
}

/// Four hexadecimal digits, as hardware's makers and products are numbered.
pub fn hex4(text: &str) -> Option<u16> {
    let digits = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

/// Major and minor number, as the kernel packs them for user space.
fn numbers(rdev: u64) -> (u64, u64) {
    ((rdev >> 8) & 0xfff | (rdev >> 32) & !0xfff, rdev & 0xff | (rdev >> 12) & !0xff)
}

/// An attribute in sysfs, or another small file.
pub fn read(directory: &Path, name: &str) -> Option<String> {
    fs::read_to_string(directory.join(name)).ok().map(|text| text.trim().to_owned())
}

fn device_name(directory: &Path) -> Option<String> {
    kernel_properties(directory).remove("DEVNAME")
}

fn kernel_properties(directory: &Path) -> BTreeMap<String, String> {
    read(directory, "uevent").unwrap_or_default().lines().filter_map(pair).collect()
}

fn pair(line: &str) -> Option<(String, String)> {
    line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Shows `enter` this directory and those below it that it lets be entered. Links are not followed.
fn walk(directory: &Path, depth: usize, enter: &mut impl FnMut(&Path) -> bool) {
    if !enter(directory) || depth == 0 {
        return;
    }
    for path in entries(directory) {
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            walk(&path, depth - 1, enter);
        }
    }
}
