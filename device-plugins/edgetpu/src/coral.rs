//! Coral accelerators, on USB and on PCIe, as the resource `google.com/edgetpu`.
//!
//! On USB one is another device after its first use: the program that uses it sends it its firmware, and it comes back with
//! other ids, at the same port. Here it is one device with one id, which is away for a moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tombolo_device_sdk::machine::{Hardware, Node, NodeKind, Roots, read};
use tombolo_device_sdk::{
    Device, DeviceId, DeviceNode, Edits, EditsError, Health, Permissions, Resource, Scan, ScanError,
};

/// On USB before its first use, and after it.
const USB_IDS: [(u16, u16); 2] = [(0x1a6e, 0x089a), (0x18d1, 0x9302)];

const PCI_ID: (u16, u16) = (0x1ac1, 0x089a);

/// How often the state is read that the driver tells no changes of.
const INTERVAL: Duration = Duration::from_secs(10);

pub struct Coral {
    roots: Roots,
    /// As of the last scan.
    found: BTreeMap<DeviceId, Node>,
}

/// The resource as it is served.
pub fn resource(roots: Roots) -> Resource {
    let name = "google.com/edgetpu".parse().expect("a good name");
    let buses = roots.dev.join("bus/usb");
    let mut watched: Vec<PathBuf> =
        buses.read_dir().into_iter().flatten().flatten().map(|bus| bus.path()).collect();
    watched.extend([buses, roots.dev.clone()]);
    Resource { name, scan: Box::new(Coral { roots, found: BTreeMap::new() }), watched, interval: INTERVAL }
}

impl Scan for Coral {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let mut devices = Vec::new();
        self.found.clear();
        for hardware in corals(&self.roots) {
            let node = node(&self.roots, &hardware);
            let id = id(&hardware);
            let numa = Roots::numa(hardware.directory());
            devices.push(Device { id: id.clone(), health: health(&hardware, node.as_ref()), numa });
            self.found.extend(node.map(|node| (id, node)));
        }
        Ok(devices)
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let node = |id: &DeviceId| {
            let node = self.found.get(id).ok_or_else(|| EditsError::Gone(id.clone()))?;
            let (host, container) = (node.host.clone(), node.shown.clone());
            Ok(DeviceNode { host, container, permissions: Permissions::READ_WRITE })
        };
        let nodes = devices.iter().map(node).collect::<Result<_, EditsError>>()?;
        Ok(Edits { nodes, ..Edits::default() })
    }

    fn mark(&self, device: &DeviceId) -> String {
        self.found.get(device).map(Node::mark).unwrap_or_default()
    }
}

/// What the driver tells of accelerators on PCIe, for [`tombolo_device_sdk::metrics::Metrics::add`].
pub fn metrics(roots: Roots) -> impl Fn(&mut String) + Send + 'static {
    move |text| {
        let name = "tombolo_edgetpu_temperature_celsius";
        let _ = writeln!(text, "# HELP {name} Of the chip, as its driver tells it.\n# TYPE {name} gauge");
        for hardware in corals(&roots) {
            let node = node(&roots, &hardware)
                .and_then(|node| read(node.sysfs.as_deref()?, "temp")?.parse::<i32>().ok());
            if let Some(thousandths) = node {
                let _ = writeln!(
                    text,
                    "{name}{{device=\"{}\"}} {}",
                    id(&hardware),
                    f64::from(thousandths) / 1000.0
                );
            }
        }
    }
}

fn corals(roots: &Roots) -> Vec<Hardware> {
    let coral = |hardware: &Hardware| match hardware {
        Hardware::Usb { vendor, product, .. } => USB_IDS.contains(&(*vendor, *product)),
        Hardware::Pci { vendor, product, .. } => PCI_ID == (*vendor, *product),
    };
    roots.usb().into_iter().chain(roots.pci()).filter(coral).collect()
}

fn id(hardware: &Hardware) -> DeviceId {
    let bus = match hardware {
        Hardware::Usb { .. } => "usb",
        Hardware::Pci { .. } => "pci",
    };
    format!("{bus}-{}", hardware.place()).parse().expect("ports and addresses are short")
}

fn node(roots: &Roots, hardware: &Hardware) -> Option<Node> {
    match hardware {
        Hardware::Usb { .. } => roots.own_node(hardware),
        Hardware::Pci { .. } => {
            let apex = |node: &Node| node.shown.to_str().is_some_and(|path| path.starts_with("/dev/apex_"));
            roots.nodes_below(hardware).into_iter().find(apex)
        }
    }
}

fn health(hardware: &Hardware, node: Option<&Node>) -> Health {
    let unhealthy = |why: String| Health::Unhealthy { why };
    let Some(node) = node else {
        return unhealthy(format!("{} has no node: load its drivers, gasket and apex", hardware.place()));
    };
    if node.kind != NodeKind::Character {
        return unhealthy(format!("there is no device node {}", node.host.display()));
    }
    match node.sysfs.as_deref().and_then(|directory| read(directory, "status")) {
        Some(status) if status != "ALIVE" => unhealthy(format!("its driver says {status}")),
        _ => Health::Healthy,
    }
}
