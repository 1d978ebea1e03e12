//! TPUs of Google's cloud, as the resource `google.com/tpu`: older ones have a driver of their own (`/dev/accel*`), newer ones
//! are driven by the program that uses them (`/dev/vfio/*`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tombolo_device_sdk::machine::{Hardware, Node, NodeKind, Roots};
use tombolo_device_sdk::{
    Device, DeviceId, DeviceNode, Edits, EditsError, Health, Permissions, Resource, Scan, ScanError,
};

const VENDOR: u16 = 0x1ae0;

/// v2 and v3, v4 in two forms, v5p, v5e, v6e, 7x.
const PRODUCTS: [u16; 7] = [0x0027, 0x0056, 0x005e, 0x0062, 0x0063, 0x006f, 0x0076];

/// What every program needs that drives a device itself.
const VFIO: &str = "vfio/vfio";

/// How often chips are looked at that nothing happened to.
const INTERVAL: Duration = Duration::from_secs(30);

pub struct Tpu {
    roots: Roots,
    /// As of the last scan.
    chips: BTreeMap<DeviceId, Chip>,
}

struct Chip {
    /// Its number on this machine, by which programs name it.
    index: usize,
    node: Option<Node>,
}

/// The resource as it is served. `None` on a machine without TPUs: none is ever plugged in.
pub fn resource(roots: Roots) -> Option<Resource> {
    if chips(&roots).is_empty() {
        return None;
    }
    let name = "google.com/tpu".parse().expect("a good name");
    let watched: Vec<PathBuf> = vec![roots.dev.clone(), roots.dev.join("vfio")];
    Some(Resource {
        name,
        scan: Box::new(Tpu { roots, chips: BTreeMap::new() }),
        watched,
        interval: INTERVAL,
    })
}

impl Scan for Tpu {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let mut devices = Vec::new();
        self.chips.clear();
        for (index, hardware) in chips(&self.roots).iter().enumerate() {
            let id: DeviceId = format!("pci-{}", hardware.place()).parse().expect("addresses are short");
            let node = node(&self.roots, hardware);
            let health = match &node {
                Some(node) if node.kind == NodeKind::Character => Health::Healthy,
                Some(node) => {
                    Health::Unhealthy { why: format!("there is no device node {}", node.host.display()) }
                }
                None => Health::Unhealthy {
                    why: "it has neither an accel nor a vfio node: load its driver, or bind it to vfio-pci"
                        .to_owned(),
                },
            };
            devices.push(Device { id: id.clone(), health, numa: Roots::numa(hardware.directory()) });
            self.chips.insert(id, Chip { index, node });
        }
        Ok(devices)
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let mut edits = Edits::default();
        let mut indices = Vec::new();
        for id in devices {
            let gone = || EditsError::Gone(id.clone());
            let chip = self.chips.get(id).ok_or_else(gone)?;
            edits.nodes.push(device_node(chip.node.as_ref().ok_or_else(gone)?));
            indices.push(chip.index);
        }
        if edits.nodes.iter().any(|node| node.container.starts_with("/dev/vfio")) {
            edits.nodes.extend(self.roots.nodes(VFIO).iter().map(device_node));
        }
        // With all chips a program finds its way by itself; with some it must be told which, and how they lie.
        if indices.len() < self.chips.len() {
            indices.sort_unstable();
            let bounds = match indices.len() {
                1 => Some("1,1,1"),
                2 => Some("1,2,1"),
                _ => None,
            };
            let indices: Vec<_> = indices.iter().map(usize::to_string).collect();
            edits.env.insert("TPU_VISIBLE_CHIPS".to_owned(), indices.join(","));
            if let Some(bounds) = bounds {
                edits.env.insert("TPU_CHIPS_PER_HOST_BOUNDS".to_owned(), bounds.to_owned());
                edits.env.insert("TPU_HOST_BOUNDS".to_owned(), "1,1,1".to_owned());
            }
        }
        Ok(edits)
    }
}

/// In the order of their addresses, which is that of their numbers.
fn chips(roots: &Roots) -> Vec<Hardware> {
    let chip = |hardware: &Hardware| matches!(hardware, Hardware::Pci { vendor: VENDOR, product, .. } if PRODUCTS.contains(product));
    roots.pci().into_iter().filter(chip).collect()
}

fn node(roots: &Roots, hardware: &Hardware) -> Option<Node> {
    let accel = |node: &Node| node.shown.to_str().is_some_and(|path| path.starts_with("/dev/accel"));
    roots.nodes_below(hardware).into_iter().find(accel).or_else(|| {
        let group = hardware.directory().join("iommu_group").read_link().ok()?;
        roots.nodes(&format!("vfio/{}", group.file_name()?.to_str()?)).pop()
    })
}

fn device_node(node: &Node) -> DeviceNode {
    DeviceNode {
        host: node.host.clone(),
        container: node.shown.clone(),
        permissions: Permissions::READ_WRITE,
    }
}
