//! One specification file: a kind, its devices and what all of them share. Reads and writes the text, and holds nothing that
//! the rules forbid. Which file counts when several name a device is the cache's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::annotations::annotations;
use crate::edits::ContainerEdits;
use crate::name::{DeviceName, Kind};
use crate::version::Version;

/// Whoever makes containers reads the file, under whatever user.
const FILE_MODE: u32 = 0o644;

/// A specification that keeps the rules.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Wire")]
pub struct Spec {
    #[serde(rename = "cdiVersion")]
    version: Version,
    kind: Kind,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(rename = "containerEdits", skip_serializing_if = "ContainerEdits::is_empty")]
    edits: ContainerEdits,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: DeviceName,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    pub container_edits: ContainerEdits,
}

/// The file before its parts have been seen together.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    cdi_version: Version,
    kind: Kind,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

/// Parts that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("there are no devices: a specification has at least one")]
    NoDevices,
    #[error("device {0} is there twice")]
    Twice(DeviceName),
    #[error("device {0} has no edits")]
    NoEdits(DeviceName),
    #[error("cdiVersion is {said}, and what is used is there since {needed} only")]
    TooOld { said: Version, needed: Version },
}

/// How a file is written; its ending says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("not a specification of CDI {newest}: {why}", newest = Version::NEWEST)]
    Invalid { why: String },
    #[error("the text is not UTF-8")]
    NotText(#[from] std::str::Utf8Error),
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{0} ends neither in .json nor in .yaml")]
    Ending(PathBuf),
    #[error("cannot encode the specification: {0}")]
    Encode(String),
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
}

impl Spec {
    /// A specification of the least version that has all of this, so that the oldest reader can use it.
    pub fn new(kind: Kind, devices: Vec<Device>, edits: ContainerEdits) -> Result<Self, SpecError> {
        let mut spec = Self { version: Version::NEWEST, kind, annotations: BTreeMap::new(), devices, edits };
        spec.version = Version::needed(&spec);
        spec.checked()
    }

    pub fn parse(bytes: &[u8], format: Format) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(bytes)?;
        let parsed = match format {
            Format::Json => serde_json::from_str(text).map_err(|error| error.to_string()),
            Format::Yaml => of_yaml(text),
        };
        parsed.map_err(|why| ParseError::Invalid { why })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// At least one, no two of the same name.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// What a container gets once, whichever of the devices it has.
    pub fn edits(&self) -> &ContainerEdits {
        &self.edits
    }

    /// Writes the file so that a reader sees the old one or the new one. Says whether there was anything to change.
    pub fn write(&self, path: &Path) -> Result<bool, WriteError> {
        let format = Format::of(path).ok_or_else(|| WriteError::Ending(path.to_owned()))?;
        let text = self.encode(format).map_err(WriteError::Encode)?;
        if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(false);
        }
        let replaced = replace(path, text.as_bytes());
        replaced.map_err(|source| WriteError::Write { path: path.to_owned(), source })?;
        Ok(true)
    }

    fn encode(&self, format: Format) -> Result<String, String> {
        match format {
            Format::Json => {
                serde_json::to_string_pretty(self).map(|text| text + "\n").map_err(|error| error.to_string())
            }
            Format::Yaml => serde_saphyr::to_string(self).map_err(|error| error.to_string()),
        }
    }

    fn checked(self) -> Result<Self, SpecError> {
        let mut names = BTreeSet::new();
        for device in &self.devices {
            if !names.insert(&device.name) {
                return Err(SpecError::Twice(device.name.clone()));
            }
            if device.container_edits.is_empty() {
                return Err(SpecError::NoEdits(device.name.clone()));
            }
        }
        if names.is_empty() {
            return Err(SpecError::NoDevices);
        }
        match Version::needed(&self) {
            needed if needed > self.version => Err(SpecError::TooOld { said: self.version, needed }),
            _ => Ok(self),
        }
    }
}

impl TryFrom<Wire> for Spec {
    type Error = SpecError;

    fn try_from(wire: Wire) -> Result<Self, SpecError> {
        let Wire { cdi_version: version, kind, annotations, devices, container_edits: edits } = wire;
        Self { version, kind, annotations, devices, edits }.checked()
    }
}

impl Format {
    /// None: no specification.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "yaml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// By way of JSON, so that there is one reader of specifications in a program and not two: it is a tenth of a megabyte.
fn of_yaml(text: &str) -> Result<Spec, String> {
    // Vendors' tools write YAML 1.1: a file's mode begins with 0.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let value: serde_json::Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    serde_json::from_str(&value.to_string()).map_err(|error| {
        let why = error.to_string();
        // Where that is in the JSON is of no use to whoever wrote YAML.
        why.split(" at line ").next().unwrap_or_default().to_owned()
    })
}

/// The file in between has an ending that no reader takes for a specification.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().prefix(".cdi-").suffix(".part").tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
