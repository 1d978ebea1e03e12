//! The plugin's file: which resources there are, and what belongs to each. What is read here is good; every mistake is named
//! with its line and with what to write. It must not look at the machine's devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};
use tombolo_device_sdk::{Permissions, ResourceName};

pub use crate::pattern::{DevPath, HardwareId, PatternError, PciClass, Text};
use tombolo_device_sdk::machine::Roots;

/// How often devices are looked for without a sign of change: for what makes none, like a driver that is bound to a device.
const INTERVAL_S: u32 = 30;

/// How many containers may share a device. Each share is a device to the kubelet, told in one message of at most 4 MiB.
const SHARES_MAX: u32 = 1000;

/// All that one program serves.
#[derive(Debug, Default)]
pub struct Config {
    pub resources: Vec<ResourceConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("{} and {} both have the resource {name}: put its matches into one of them", first.display(), second.display())]
    Twice { name: ResourceName, first: PathBuf, second: PathBuf },
    #[error("there is no resource in {}: write a [[resource]] with a name and a [[resource.match]]", paths.join(", "))]
    Empty { paths: Vec<String> },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    roots: Roots,
    #[serde(default = "default_interval")]
    interval_s: NonZeroU32,
    #[serde(default)]
    resource: Vec<Entry>,
}

/// A resource with what its file says for all of its resources.
#[derive(Clone, Debug)]
pub struct ResourceConfig {
    pub entry: Entry,
    pub roots: Roots,
    pub interval: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    #[serde(deserialize_with = "parsed")]
    pub name: ResourceName,
    /// How many containers may have a device at the same time. Without it a device is one container's.
    #[serde(default)]
    pub shared: Option<Shares>,
    #[serde(default = "default_permissions", deserialize_with = "parsed")]
    pub permissions: Permissions,
    /// Variables of the container. `{paths}` is where it finds the nodes, `{ids}` the devices' ids, each with commas between.
    #[serde(default)]
    pub env: BTreeMap<String, Template>,
    /// Nodes that every container of this resource gets beside its devices.
    #[serde(default, deserialize_with = "parsed_list")]
    pub extra: Vec<DevPath>,
    /// Where the container finds the nodes; `{n}` counts them from 0. Without it, where the host has them.
    #[serde(default)]
    pub at: Option<Place>,
    #[serde(default)]
    pub mounts: Vec<MountConfig>,
    #[serde(rename = "match")]
    pub matches: Vec<Match>,
}

/// What must hold, all of it, for a node or a piece of hardware to be a device.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "RawMatch")]
pub struct Match {
    pub path: Option<DevPath>,
    /// One of these. More than one are the ids of one device in its several states, unless `identity` says otherwise.
    pub usb: Vec<HardwareId>,
    pub pci: Vec<HardwareId>,
    pub pci_class: Option<PciClass>,
    pub udev: BTreeMap<String, Text>,
    pub device: Unit,
    pub identity: Identity,
}

/// What one device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One node.
    Node,
    /// All nodes of one USB device or PCI function.
    Hardware,
}

/// By what a USB device is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// Its serial number; without one, its place.
    Serial,
    /// The port it is plugged into.
    Place,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    pub host: PathBuf,
    pub container: PathBuf,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct Shares(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(pub String);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Place(pub String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    #[serde(default, deserialize_with = "parsed_some")]
    path: Option<DevPath>,
    #[serde(default, deserialize_with = "parsed_list")]
    usb: Vec<HardwareId>,
    #[serde(default, deserialize_with = "parsed_list")]
    pci: Vec<HardwareId>,
    #[serde(default, deserialize_with = "parsed_some")]
    pci_class: Option<PciClass>,
    #[serde(default, deserialize_with = "parsed_map")]
    udev: BTreeMap<String, Text>,
    device: Option<Unit>,
    identity: Option<Identity>,
}

impl Config {
    /// Reads files, and of directories every `*.toml` in them.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn load(paths: &[PathBuf]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut origins: BTreeMap<ResourceName, PathBuf> = BTreeMap::new();
        for path in files(paths)? {
            let text = fs::read_to_string(&path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            for resource in Self::parse(&text)
                .map_err(|message| ConfigError::Invalid { path: path.clone(), message })?
                .resources
            {
                let name = resource.entry.name.clone();
                if let Some(first) = origins.insert(name.clone(), path.clone()) {
                    return Err(ConfigError::Twice { name, first, second: path });
                }
                config.resources.push(resource);
            }
        }
        if config.resources.is_empty() {
            let paths = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(ConfigError::Empty { paths });
        }
        Ok(config)
    }

    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut names = BTreeSet::new();
        if let Some(twice) = file.resource.iter().find(|entry| !names.insert(&entry.name)) {
            return Err(format!(
                "resource {} is there twice: put its matches under one [[resource]]",
                twice.name
            ));
        }
        let interval = Duration::from_secs(file.interval_s.get().into());
        let with_roots = |entry| ResourceConfig { entry, roots: file.roots.clone(), interval };
        Ok(Self { resources: file.resource.into_iter().map(with_roots).collect() })
    }
}

fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ConfigError> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut found =
                directory(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            found.sort();
            files.append(&mut found);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries
        .iter()
        .map(fs::DirEntry::path)
        .filter(|path| path.extension().is_some_and(|it| it == "toml"))
        .collect())
}

impl TryFrom<RawMatch> for Match {
    type Error = &'static str;

    fn try_from(raw: RawMatch) -> Result<Self, Self::Error> {
        let pci = !raw.pci.is_empty() || raw.pci_class.is_some();
        if raw.path.is_none() && raw.usb.is_empty() && !pci && raw.udev.is_empty() {
            return Err(
                "this match has no condition: write at least one of path, usb, pci, pci_class and udev",
            );
        }
        if pci && !raw.usb.is_empty() {
            return Err("nothing is a USB device and a PCI function: write two [[resource.match]]");
        }
        let hardware = pci || !raw.usb.is_empty();
        let device = raw.device.unwrap_or(if hardware { Unit::Hardware } else { Unit::Node });
        let identity =
            raw.identity.unwrap_or(if raw.usb.len() > 1 { Identity::Place } else { Identity::Serial });
        let RawMatch { path, usb, pci, pci_class, udev, .. } = raw;
        Ok(Self { path, usb, pci, pci_class, udev, device, identity })
    }
}

impl TryFrom<u32> for Shares {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, Self::Error> {
        if (1..=SHARES_MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(format!("{count} containers cannot share a device: write 1 to {SHARES_MAX}"))
        }
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        placeholders(&text, &["paths", "ids"]).map(|()| Self(text.clone()))
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        placeholders(&text, &["n"])?;
        if text.starts_with('/') {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no path: write one like \"/dev/camera{{n}}\""))
        }
    }
}

/// Whether all that stands in braces is `known`.
fn placeholders(text: &str, known: &[&str]) -> Result<(), String> {
    for part in text.split('{').skip(1) {
        let name = part.split_once('}').map(|(name, _)| name);
        if !name.is_some_and(|name| known.contains(&name)) {
            let known: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
            return Err(format!("{{{part} in {text:?} stands for nothing: write {}", known.join(" or ")));
        }
    }
    Ok(())
}

fn default_interval() -> NonZeroU32 {
    NonZeroU32::new(INTERVAL_S).unwrap_or(NonZeroU32::MIN)
}

fn default_permissions() -> Permissions {
    Permissions::READ_WRITE
}

/// A text that is parsed at once, so that a mistake is named with its line.
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(deserializer: D) -> Result<T, D::Error> {
    Parsed::deserialize(deserializer).map(|Parsed(it)| it)
}

fn parsed_some<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    parsed(deserializer).map(Some)
}

fn parsed_map<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let map: BTreeMap<String, Parsed<T>> = BTreeMap::deserialize(deserializer)?;
    Ok(map.into_iter().map(|(key, Parsed(it))| (key, it)).collect())
}

/// One text, or a list of them.
fn parsed_list<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(|it| vec![it]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(Parsed(it)) = seq.next_element()? {
                list.push(it);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}
