//! Which devices of a resource are on this machine now: the file's matches against the trees.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tombolo_device_sdk::{DeviceId, Health, ScanError};

use crate::config::{Entry, Match, ResourceConfig, Unit};
use crate::identity::{self, Serials};
use tombolo_device_sdk::machine::{Hardware, Node, NodeKind, Roots};

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: DeviceId,
    pub nodes: Vec<FoundNode>,
    pub health: Health,
    pub numa: Option<u32>,
    /// Another one when its nodes were made anew.
    pub mark: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundNode {
    /// The node itself, on this machine.
    pub host: PathBuf,
    /// The path at which it was found, as if the root were `/dev`.
    pub shown: PathBuf,
}

/// One device before it has its id.
struct Candidate {
    name: String,
    nodes: Vec<Node>,
    hardware: Option<PathBuf>,
}

/// # Errors
/// One of the trees is not there.
pub fn find(resource: &ResourceConfig) -> Result<Vec<Found>, ScanError> {
    let ResourceConfig { entry, roots, .. } = resource;
    let hardware = entry.matches.iter().any(|it| !it.usb.is_empty() || it.is_pci());
    for root in [Some(&roots.dev), hardware.then_some(&roots.sys)].into_iter().flatten() {
        fs::read_dir(root).map_err(|source| ScanError::Read { path: root.clone(), source })?;
    }
    let missing = missing_extra(entry, roots);
    let serials = Serials::count(&roots.usb());
    let mut found: BTreeMap<DeviceId, Found> = BTreeMap::new();
    for one in &entry.matches {
        for candidate in candidates(one, roots, &serials) {
            let id = identity::id(&candidate.name, None);
            // What two matches find is one device.
            found.entry(id.clone()).or_insert_with(|| judge(id, candidate, missing.as_deref()));
        }
    }
    Ok(found.into_values().collect())
}

/// The nodes that every container of the resource gets.
pub fn extra(resource: &ResourceConfig) -> Vec<FoundNode> {
    let ResourceConfig { entry, roots, .. } = resource;
    entry.extra.iter().flat_map(|path| roots.nodes(path.below_dev())).map(FoundNode::from).collect()
}

impl Match {
    fn is_pci(&self) -> bool {
        !self.pci.is_empty() || self.pci_class.is_some()
    }

    fn covers(&self, hardware: &Hardware) -> bool {
        match hardware {
            Hardware::Usb { vendor, product, .. } => self.usb.iter().any(|id| id.covers(*vendor, *product)),
            Hardware::Pci { vendor, product, class, .. } => {
                (self.pci.is_empty() || self.pci.iter().any(|id| id.covers(*vendor, *product)))
                    && self.pci_class.as_ref().is_none_or(|own| own.covers(class))
            }
        }
    }

    fn allows(&self, node: &Node, roots: &Roots) -> bool {
        if self.udev.is_empty() {
            return true;
        }
        let properties = roots.properties(node);
        self.udev.iter().all(|(key, text)| properties.get(key).is_some_and(|value| text.covers(value)))
    }
}

fn candidates(one: &Match, roots: &Roots, serials: &Serials) -> Vec<Candidate> {
    let hardware = match (one.usb.is_empty(), one.is_pci()) {
        (false, _) => roots.usb(),
        (true, true) => roots.pci(),
        (true, false) => return of_nodes(one, roots, serials),
    };
    let at_path = one.path.as_ref().map(|path| roots.nodes(path.below_dev()));
    let mut candidates = Vec::new();
    for hardware in hardware.iter().filter(|hardware| one.covers(hardware)) {
        let own = match &at_path {
            Some(at_path) => {
                let below = roots.nodes_below(hardware);
                let theirs = |node: &&Node| below.iter().any(|it| it.host == node.host);
                at_path.iter().filter(theirs).cloned().collect()
            }
            None if one.is_pci() => roots.nodes_below(hardware),
            None => roots.own_node(hardware).into_iter().collect(),
        };
        let nodes: Vec<Node> = own.into_iter().filter(|node| one.allows(node, roots)).collect();
        if one.device == Unit::Node {
            candidates.extend(nodes.into_iter().map(|node| single(node, one, serials)));
        } else if !nodes.is_empty() || one.udev.is_empty() {
            let name = identity::of_hardware(hardware, one.identity, serials);
            candidates.push(Candidate { name, nodes, hardware: Some(hardware.directory().to_owned()) });
        }
    }
    candidates
}

/// Devices of a match that names no hardware.
fn of_nodes(one: &Match, roots: &Roots, serials: &Serials) -> Vec<Candidate> {
    let all = one.path.as_ref().map_or_else(|| roots.all_nodes(), |path| roots.nodes(path.below_dev()));
    let nodes = all.into_iter().filter(|node| one.allows(node, roots));
    if one.device == Unit::Node {
        return nodes.map(|node| single(node, one, serials)).collect();
    }
    let mut groups: BTreeMap<String, Candidate> = BTreeMap::new();
    for node in nodes {
        let candidate = match node.sysfs.as_deref().and_then(Hardware::of) {
            Some(hardware) => Candidate {
                name: identity::of_hardware(&hardware, one.identity, serials),
                nodes: vec![node],
                hardware: Some(hardware.directory().to_owned()),
            },
            None => single(node, one, serials),
        };
        match groups.get_mut(&candidate.name) {
            Some(group) => group.nodes.extend(candidate.nodes),
            None => drop(groups.insert(candidate.name.clone(), candidate)),
        }
    }
    groups.into_values().collect()
}

fn single(node: Node, one: &Match, serials: &Serials) -> Candidate {
    let name = identity::of_node(&node, one.identity, serials);
    Candidate { name, hardware: node.sysfs.clone(), nodes: vec![node] }
}

fn judge(id: DeviceId, candidate: Candidate, missing: Option<&str>) -> Found {
    let Candidate { nodes, hardware, .. } = candidate;
    let broken = nodes.iter().find_map(|node| match node.kind {
        NodeKind::Character | NodeKind::Block => None,
        NodeKind::Other => Some(format!("{} is no device node", node.host.display())),
        NodeKind::Missing => {
            Some(format!("the kernel has the device, and {} is not there", node.host.display()))
        }
    });
    let no_nodes = || {
        let hardware = hardware.as_deref().unwrap_or(Path::new("/sys")).display();
        nodes
            .is_empty()
            .then(|| format!("{hardware} has no node that is asked for: its driver is not loaded"))
    };
    let why = missing.map(str::to_owned).or(broken).or_else(no_nodes);
    let health = why.map_or(Health::Healthy, |why| Health::Unhealthy { why });
    let numa = hardware.as_deref().and_then(Roots::numa);
    let mark = nodes.iter().map(Node::mark).collect::<Vec<_>>().join(" ");
    let mut nodes: Vec<_> = nodes.into_iter().map(FoundNode::from).collect();
    nodes.sort();
    nodes.dedup();
    Found { id, nodes, health, numa, mark }
}

/// Why no container of this resource can start, if one of the extra paths is not there.
fn missing_extra(entry: &Entry, roots: &Roots) -> Option<String> {
    let missing =
        entry.extra.iter().find(|path| path.is_literal() && roots.nodes(path.below_dev()).is_empty())?;
    Some(format!("{missing} is not there, which every container of this resource needs"))
}

impl From<Node> for FoundNode {
    fn from(node: Node) -> Self {
        Self { host: node.host, shown: node.shown }
    }
}
