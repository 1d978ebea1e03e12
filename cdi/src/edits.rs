//! What a container gets for a device: the typed form of `containerEdits`. How it is applied is `apply`'s.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Edits to an OCI specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVariable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "distinct")]
    pub net_devices: Vec<NetDevice>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<IntelRdt>,
    /// Groups of the process; 0 is ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

impl ContainerEdits {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds `others` after these.
    pub fn append(&mut self, others: Self) {
        self.env.extend(others.env);
        self.device_nodes.extend(others.device_nodes);
        self.net_devices.extend(others.net_devices);
        self.mounts.extend(others.mounts);
        self.hooks.extend(others.hooks);
        self.intel_rdt = others.intel_rdt.or(self.intel_rdt.take());
        self.additional_gids.extend(others.additional_gids);
    }
}

/// `NAME=value`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvVariable {
    name: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no environment variable: it has to be NAME=value")]
pub struct InvalidEnv(String);

impl EnvVariable {
    pub fn new(name: &str, value: &str) -> Result<Self, InvalidEnv> {
        format!("{name}={value}").parse()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for EnvVariable {
    type Err = InvalidEnv;

    fn from_str(text: &str) -> Result<Self, InvalidEnv> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(InvalidEnv(text.to_owned())),
        }
    }
}

impl TryFrom<String> for EnvVariable {
    type Error = InvalidEnv;

    fn try_from(text: String) -> Result<Self, InvalidEnv> {
        text.parse()
    }
}

impl From<EnvVariable> for String {
    fn from(variable: EnvVariable) -> Self {
        variable.to_string()
    }
}

impl fmt::Display for EnvVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// A device file. What is missing of its type and number is looked up on the host when it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
    /// On the host; none: the same.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_path")]
    pub host_path: Option<PathBuf>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none", deserialize_with = "kind")]
    pub kind: Option<DeviceType>,
    /// 0: not said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub major: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minor: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Permissions::is_all")]
    pub permissions: Permissions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DeviceType {
    #[serde(rename = "b")]
    Block,
    #[serde(rename = "c")]
    Char,
    /// A character device without a buffer.
    #[serde(rename = "u")]
    Unbuffered,
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceType {
    /// As it stands in a specification.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Block => "b",
            Self::Char => "c",
            Self::Unbuffered => "u",
            Self::Fifo => "p",
        }
    }
}

/// What the container's control group lets it do with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permissions {
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} are no permissions: they are letters of \"rwm\", or \"none\"")]
pub struct InvalidPermissions(String);

impl Permissions {
    pub const ALL: Self = Self { read: true, write: true, mknod: true };
    pub const NONE: Self = Self { read: false, write: false, mknod: false };

    fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    /// As an OCI specification says it; empty: nothing.
    pub(crate) fn access(self) -> String {
        let letters = [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')];
        letters.into_iter().filter_map(|(has, letter)| has.then_some(letter)).collect()
    }
}

impl Default for Permissions {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for Permissions {
    type Err = InvalidPermissions;

    fn from_str(text: &str) -> Result<Self, InvalidPermissions> {
        match text {
            "" => Ok(Self::ALL),
            "none" => Ok(Self::NONE),
            letters if letters.chars().all(|letter| "rwm".contains(letter)) => {
                let has = |letter| letters.contains(letter);
                Ok(Self { read: has('r'), write: has('w'), mknod: has('m') })
            }
            _ => Err(InvalidPermissions(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Permissions {
    type Error = InvalidPermissions;

    fn try_from(text: String) -> Result<Self, InvalidPermissions> {
        text.parse()
    }
}

impl From<Permissions> for String {
    fn from(permissions: Permissions) -> Self {
        if permissions == Permissions::NONE { "none".to_owned() } else { permissions.access() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    #[serde(deserialize_with = "path")]
    pub host_path: PathBuf,
    #[serde(deserialize_with = "path")]
    pub container_path: PathBuf,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// As in mount(2); empty: the options say it.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

/// A program that the container runtime runs at a moment of the container's life.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: HookName,
    #[serde(deserialize_with = "absolute_path")]
    pub path: PathBuf,
    /// With the program's name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVariable>,
    /// Seconds; none: without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<NonZeroU32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookName {
    /// As it stands in a specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// Shares of cache and memory bandwidth; fields as in the OCI specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IntelRdt {
    #[serde(rename = "closID", skip_serializing_if = "String::is_empty", deserialize_with = "clos_id")]
    pub clos_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub enable_monitoring: bool,
}

/// A network interface of the host that moves into the container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    #[serde(deserialize_with = "not_empty")]
    pub host_interface_name: String,
    /// In the container.
    #[serde(deserialize_with = "not_empty")]
    pub name: String,
}

/// Longest name of a class of service, bytes: the kernel makes a directory of it.
const CLOS_ID_BYTES_MAX: usize = 4095;

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Err(de::Error::custom("must not be empty")) } else { Ok(text) }
}

fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    not_empty(deserializer).map(PathBuf::from)
}

/// Vendors' tools write an empty text for what they do not say.
fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn absolute_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = path(deserializer)?;
    if path.is_absolute() { Ok(path) } else { Err(de::Error::custom("the path has to be absolute")) }
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceType>, D::Error> {
    let all = [DeviceType::Block, DeviceType::Char, DeviceType::Unbuffered, DeviceType::Fifo];
    let text = String::deserialize(deserializer)?;
    match all.into_iter().find(|kind| kind.letter() == text) {
        None if !text.is_empty() => {
            Err(de::Error::custom(format!("{text:?} is no type of device: it is one of b, c, u, p")))
        }
        known => Ok(known),
    }
}

fn clos_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let is_directory = id.len() <= CLOS_ID_BYTES_MAX && id != "." && id != ".." && !id.contains(['/', '\n']);
    // The root class is called by the root of the file system.
    if is_directory || id == "/" {
        Ok(id)
    } else {
        Err(de::Error::custom("closID has to be a name of a directory"))
    }
}

fn distinct<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetDevice>, D::Error> {
    let devices = Vec::<NetDevice>::deserialize(deserializer)?;
    let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
    for device in &devices {
        if !hosts.insert(&device.host_interface_name) || !names.insert(&device.name) {
            let NetDevice { host_interface_name, name } = device;
            let twice = format!("an interface is named twice: {host_interface_name:?} as {name:?}");
            return Err(de::Error::custom(twice));
        }
    }
    Ok(devices)
}
