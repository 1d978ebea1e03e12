//! Whether a node can give an instance what it asks for, whoever else may have it now.

use super::pool::most_together;
use super::{Asked, GPU_MEMORY, Known, ResourceName};
use crate::actual::Moment;
use crate::routes::Unavailable;

/// Why a node cannot give what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub why: Unavailable,
    /// Requests may wait for it to pass.
    pub passes: bool,
}

/// Why the node cannot give `asked`, first what no waiting removes. `None`: there are so many healthy devices, free or not.
pub fn obstacle(asked: &Asked, known: &Known, now: Moment) -> Option<Obstacle> {
    asked
        .iter()
        .filter_map(|(name, count)| of_one(name, *count, known, now))
        .min_by_key(|obstacle| obstacle.passes)
}

fn of_one(name: &ResourceName, count: u32, known: &Known, now: Moment) -> Option<Obstacle> {
    let not = |reason: &str, message: String, passes| {
        Some(Obstacle { why: Unavailable { reason: reason.into(), message }, passes })
    };
    let Some(resource) = known.inventory.resources.get(name) else {
        return if now < known.awaited_until {
            not("DevicesNotReady", format!("no device plugin has registered {name} on this node yet"), true)
        } else {
            let what = format!("no device plugin offers {name} on this node");
            let do_what = "start one, or place the function by a nodeSelector where one is";
            not("InsufficientDevices", format!("{what}: {do_what}"), false)
        };
    };
    if !resource.connected {
        let message =
            format!("the device plugin of {name} is not there at the moment; what has devices keeps them");
        return not("DevicesNotReady", message, true);
    }
    let (all, healthy) =
        (most_together(name, resource.devices.keys()), most_together(name, resource.healthy()));
    if all < count as usize {
        let most = if name.0 == GPU_MEMORY { "its largest accelerator has" } else { "this node has" };
        let message = format!(
            "one instance needs {count} of {name}, and {most} {all}: lower its limit, or place it on another node"
        );
        return not("InsufficientDevices", message, false);
    }
    if healthy < count as usize {
        let whose = if name.0 == GPU_MEMORY { "an accelerator's" } else { "this node's" };
        let message = format!(
            "{healthy} of {whose} {all} of {name} are healthy, and one instance needs {count}; it starts when a device is \
             healthy again"
        );
        return not("DeviceUnhealthy", message, false);
    }
    None
}
