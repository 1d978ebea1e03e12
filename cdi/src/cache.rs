//! All specifications of some directories, and which of them counts for a device.
//!
//! A later directory goes before an earlier one. Two files of one directory that name the same device make it unusable: nobody
//! can know which is meant. A file that cannot be used takes nothing away from others; why it cannot is kept as data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::apply::ApplyError;
use crate::edits::ContainerEdits;
use crate::name::QualifiedName;
use crate::spec::{Format, ParseError, Spec};

/// Where specifications are by default: what administrators wrote, and what is made at every boot, which goes before it.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Longest file, bytes: a machine full of GPUs, cut into instances, takes a few hundred kilobytes.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Most files of a directory: what looks like more is a mistake.
const FILES_MAX: usize = 4096;

/// What the directories say.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    directories: Vec<PathBuf>,
    stamps: BTreeMap<PathBuf, Stamp>,
    specs: Vec<Spec>,
    /// Which specification and which of its devices.
    devices: BTreeMap<QualifiedName, (usize, usize)>,
    conflicts: BTreeMap<QualifiedName, Conflict>,
    errors: BTreeMap<PathBuf, FileError>,
}

/// Files of the same priority that name the same device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict(pub Vec<PathBuf>);

/// Why a file or a directory is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("cannot be read: {0}")]
    Read(String),
    #[error("{0}")]
    Parse(String),
    #[error("longer than {FILE_BYTES_MAX} bytes")]
    TooLong,
    #[error("more than {FILES_MAX} specifications in a directory: the rest is left out")]
    TooMany,
}

/// Why a container cannot have what it asks for; its specification is as it was.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Devices that no specification describes, each with the conflict that is to blame for it, if any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unresolved(pub Vec<(QualifiedName, Option<Conflict>)>);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no CDI specification describes ")?;
        for (index, (name, conflict)) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
            if let Some(Conflict(paths)) = conflict {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(f, " (several do, remove all but one: {})", paths.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Tells two contents of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Cache {
    /// Reads the directories; a later one goes before an earlier one, a missing one is empty.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut cache = Self { directories: directories.to_owned(), ..Self::default() };
        for directory in directories {
            // Taken before the contents, so that what changes in between is seen the next time.
            let stamps = stamps(directory, &mut cache.errors);
            cache.add_directory(stamps.keys());
            cache.stamps.extend(stamps);
        }
        cache
    }

    /// Reads again if a file was added, changed or removed since; says whether it was. Costs one look at every file.
    pub fn refresh(&mut self) -> bool {
        let mut ignored = BTreeMap::new();
        let now: BTreeMap<_, _> =
            self.directories.iter().flat_map(|directory| stamps(directory, &mut ignored)).collect();
        let is_changed = now != self.stamps;
        if is_changed {
            *self = Self::read(&self.directories);
        }
        is_changed
    }

    /// Every device that can be asked for.
    pub fn devices(&self) -> impl Iterator<Item = &QualifiedName> {
        self.devices.keys()
    }

    pub fn contains(&self, name: &QualifiedName) -> bool {
        self.devices.contains_key(name)
    }

    /// Files and directories that are not used.
    pub fn errors(&self) -> &BTreeMap<PathBuf, FileError> {
        &self.errors
    }

    pub fn conflicts(&self) -> &BTreeMap<QualifiedName, Conflict> {
        &self.conflicts
    }

    /// What a container gets for all of `names`: what a file says for all its devices once, before the first of them.
    pub fn edits(&self, names: &[QualifiedName]) -> Result<ContainerEdits, Unresolved> {
        let (mut edits, mut used, mut unresolved) = (ContainerEdits::default(), BTreeSet::new(), Vec::new());
        for name in names {
            let Some((spec, device)) = self.devices.get(name) else {
                unresolved.push((name.clone(), self.conflicts.get(name).cloned()));
                continue;
            };
            if used.insert(spec) {
                edits.append(self.specs[*spec].edits().clone());
            }
            edits.append(self.specs[*spec].devices()[*device].container_edits.clone());
        }
        if unresolved.is_empty() { Ok(edits) } else { Err(Unresolved(unresolved)) }
    }

    /// Gives the container of the OCI specification `config` the devices `names`, all or none.
    pub fn apply(&self, config: &mut Value, names: &[QualifiedName]) -> Result<(), InjectError> {
        Ok(self.edits(names)?.apply(config)?)
    }

    /// Takes in the files of one directory, over those of the directories before it.
    fn add_directory<'a>(&mut self, files: impl Iterator<Item = &'a PathBuf>) {
        let mut named: BTreeMap<QualifiedName, Vec<(PathBuf, usize, usize)>> = BTreeMap::new();
        for path in files {
            let spec = match read(path) {
                Ok(spec) => spec,
                Err(error) => {
                    self.errors.insert(path.clone(), error);
                    continue;
                }
            };
            let index = self.specs.len();
            for (number, device) in spec.devices().iter().enumerate() {
                let name = spec.kind().device(device.name.clone());
                named.entry(name).or_default().push((path.clone(), index, number));
            }
            self.specs.push(spec);
        }
        for (name, places) in named {
            self.conflicts.remove(&name);
            self.devices.remove(&name);
            if let [(_, spec, device)] = places.as_slice() {
                self.devices.insert(name, (*spec, *device));
            } else {
                let paths = places.into_iter().map(|(path, ..)| path).collect();
                self.conflicts.insert(name, Conflict(paths));
            }
        }
    }
}

/// The specification files of a directory, in the order of their names.
fn stamps(directory: &Path, errors: &mut BTreeMap<PathBuf, FileError>) -> BTreeMap<PathBuf, Stamp> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
        Err(error) => {
            errors.insert(directory.to_owned(), FileError::Read(error.to_string()));
            return found;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                errors.insert(directory.to_owned(), FileError::Read(error.to_string()));
                continue;
            }
        };
        if Format::of(&path).is_none() {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                found.insert(path, Stamp::of(&metadata));
            }
            Ok(_) => {}
            Err(error) => {
                errors.insert(path, FileError::Read(error.to_string()));
            }
        }
    }
    if found.len() > FILES_MAX {
        errors.insert(directory.to_owned(), FileError::TooMany);
        found = found.into_iter().take(FILES_MAX).collect();
    }
    found
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn read(path: &Path) -> Result<Spec, FileError> {
    let format = Format::of(path).ok_or_else(|| FileError::Read("not a specification".to_owned()))?;
    let unread = |error: io::Error| FileError::Read(error.to_string());
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(unread)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLong);
    }
    Spec::parse(&bytes, format).map_err(|error: ParseError| FileError::Parse(error.to_string()))
}

#[cfg(test)]
mod tests;
