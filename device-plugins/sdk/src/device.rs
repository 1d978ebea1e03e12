//! What a scan finds: devices, their names and their health.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use tombolo_device_api::DEVICE_ID_CHARS_MAX;
use tombolo_device_api::v1beta1;

/// Names a device of a resource for as long as it exists, also while it is unplugged. At most 63 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no id of a device: it has 1 to {DEVICE_ID_CHARS_MAX} characters, none of them space or control"
)]
pub struct DeviceIdError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub id: DeviceId,
    pub health: Health,
    /// The NUMA node it is attached to, where there are several.
    pub numa: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// It is there, and must not be given to anybody.
    Unhealthy {
        why: String,
    },
}

impl DeviceId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let whole = (1..=DEVICE_ID_CHARS_MAX).contains(&text.chars().count());
        if !whole || text.chars().any(|char| char.is_whitespace() || char.is_control()) {
            return Err(DeviceIdError(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Device {
    pub(crate) fn message(&self) -> v1beta1::Device {
        let health = match self.health {
            Health::Healthy => tombolo_device_api::HEALTHY,
            Health::Unhealthy { .. } => tombolo_device_api::UNHEALTHY,
        };
        let topology = self
            .numa
            .map(|node| v1beta1::TopologyInfo { nodes: vec![v1beta1::NumaNode { id: node.into() }] });
        v1beta1::Device { id: self.id.to_string(), health: health.to_owned(), topology }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short_and_visible() {
        let longest = "x".repeat(DEVICE_ID_CHARS_MAX);
        for good in ["gpu0", "GPU-1/2:3", "ö", &longest] {
            assert_eq!(good.parse::<DeviceId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a\n", &format!("{longest}x")] {
            assert_eq!(bad.parse::<DeviceId>(), Err(DeviceIdError(bad.to_owned())));
        }
    }
}
