//! Versions of the specification, and which one a file has to name for what it uses. Knows the fields, not their meaning.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::edits::ContainerEdits;
use crate::spec::{Device, Spec};

/// A released version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    major: u8,
    minor: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of CDI that is known here: the newest is {newest}", newest = Version::NEWEST)]
pub struct InvalidVersion(String);

const fn version(major: u8, minor: u8) -> Version {
    Version { major, minor }
}

impl Version {
    pub const NEWEST: Self = version(1, 1);

    /// The least that a file without any newer field needs.
    const EARLIEST: Self = version(0, 3);

    const RELEASED: [Self; 10] = [
        version(0, 1),
        version(0, 2),
        Self::EARLIEST,
        version(0, 4),
        version(0, 5),
        version(0, 6),
        version(0, 7),
        version(0, 8),
        version(1, 0),
        Self::NEWEST,
    ];

    /// The least version that has everything `spec` uses.
    pub(crate) fn needed(spec: &Spec) -> Self {
        let mut least = Self::EARLIEST;
        let mut needs = |condition, version| {
            if condition {
                least = least.max(version);
            }
        };
        needs(!spec.annotations().is_empty() || spec.kind().class().contains('.'), version(0, 6));
        for Device { name, annotations, .. } in spec.devices() {
            needs(!name.as_str().starts_with(|first: char| first.is_ascii_alphabetic()), version(0, 5));
            needs(!annotations.is_empty(), version(0, 6));
        }
        for edits in spec.devices().iter().map(|device| &device.container_edits).chain([spec.edits()]) {
            needs(true, of_edits(edits));
        }
        least
    }
}

fn of_edits(edits: &ContainerEdits) -> Version {
    let rdt = edits.intel_rdt.as_ref();
    if !edits.net_devices.is_empty()
        || rdt.is_some_and(|rdt| !rdt.schemata.is_empty() || rdt.enable_monitoring)
    {
        version(1, 1)
    } else if rdt.is_some() || !edits.additional_gids.is_empty() {
        version(0, 7)
    } else if edits.device_nodes.iter().any(|node| node.host_path.is_some()) {
        version(0, 5)
    } else if edits.mounts.iter().any(|mount| !mount.kind.is_empty()) {
        version(0, 4)
    } else {
        Version::EARLIEST
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let plain = text.strip_prefix('v').unwrap_or(text);
        let known = Self::RELEASED.into_iter().find(|version| version.to_string() == plain);
        known.ok_or_else(|| InvalidVersion(text.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

impl TryFrom<String> for Version {
    type Error = InvalidVersion;

    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}
