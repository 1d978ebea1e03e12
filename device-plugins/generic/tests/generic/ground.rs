//! What the plugin's file finds on a made-up machine.

use tombolo_device_generic::config::{Config, ResourceConfig};
use tombolo_device_generic::find::{Found, find};
use tombolo_device_sdk::Health;
use tombolo_fake_machine::Machine;

/// The machine's roots as the plugin's file says them.
pub(crate) fn roots(machine: &Machine) -> String {
    let (dev, sys, udev) = (machine.path("dev"), machine.path("sys"), machine.path("udev"));
    let (dev, sys, udev) = (dev.display(), sys.display(), udev.display());
    format!("[roots]\ndev = \"{dev}\"\nsys = \"{sys}\"\nudev = \"{udev}\"\n")
}

/// The one resource in this file.
pub(crate) fn resource(machine: &Machine, text: &str) -> ResourceConfig {
    let config = Config::parse(&format!("{}{text}", roots(machine))).unwrap();
    let [resource] = config.resources.try_into().unwrap();
    resource
}

/// What is found of the one resource in this file.
pub(crate) fn devices(machine: &Machine, text: &str) -> Vec<Found> {
    find(&resource(machine, text)).unwrap()
}

/// Devices with their paths, as `id /dev/a /dev/b`, and `!` before those that are unhealthy.
pub(crate) fn shown(machine: &Machine, text: &str) -> Vec<String> {
    let shown = |found: &Found| {
        let mark = if found.health == Health::Healthy { "" } else { "!" };
        let paths: String = found.nodes.iter().map(|node| format!(" {}", node.shown.display())).collect();
        format!("{mark}{}{paths}", found.id)
    };
    devices(machine, text).iter().map(shown).collect()
}

/// A file with one resource of one match.
pub(crate) fn file(conditions: &str) -> String {
    format!("[[resource]]\nname = \"example.com/thing\"\n[[resource.match]]\n{conditions}\n")
}
