//! What a layer will hold: files, links and directories by their path in the image, sorted.
//!
//! Must not know how they are written down.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use super::BuildError;
use crate::layer::WHITEOUT;

/// Files of one layer: a function has a few thousand; a home directory chosen by mistake has more.
pub(super) const ENTRIES_MAX: usize = 200_000;

/// Bytes of all files: beyond it the directory is not a function.
pub(super) const BYTES_MAX: u64 = 8 << 30;

/// Mode of a directory, unless it is one for everybody's temporary files.
const DIRECTORY: u32 = 0o755;

/// The members of a layer. Whatever a path is below of is a directory among them.
#[derive(Clone, Debug, Default)]
pub struct Members {
    by_path: BTreeMap<PathBuf, Kind>,
    /// Of the files on the disk.
    bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Directory { mode: u32 },
    Symlink(PathBuf),
    File { executable: bool, content: Content },
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    OnDisk(PathBuf),
    InMemory(Vec<u8>),
}

impl Members {
    /// Adds everything below `root` that is wanted, at the path `at` of the image. `wanted` is given paths below `root` and
    /// whether they are directories; what is below a directory that is not wanted is not asked for.
    pub fn add_tree(
        &mut self,
        root: &Path,
        at: &Path,
        wanted: &dyn Fn(&Path, bool) -> bool,
    ) -> Result<(), BuildError> {
        self.collect(root, Path::new(""), at, wanted)
    }

    /// Adds a file of the disk, with its own permission to be executed.
    pub fn add_file(&mut self, at: &Path, from: &Path) -> Result<(), BuildError> {
        let read = |source| BuildError::Read { path: from.to_owned(), source };
        let metadata = from.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(BuildError::Unsupported { path: from.to_owned(), what: "no regular file" });
        }
        let executable = metadata.permissions().mode() & 0o111 != 0;
        self.count(metadata.len(), from)?;
        self.add(at, Kind::File { executable, content: Content::OnDisk(from.to_owned()) })
    }

    /// Adds a file that is in memory.
    pub fn add_content(&mut self, at: &str, content: Vec<u8>, executable: bool) -> Result<(), BuildError> {
        if !at.split('/').all(is_plain) {
            return Err(BuildError::Path(at.to_owned()));
        }
        self.add(Path::new(at), Kind::File { executable, content: Content::InMemory(content) })
    }

    pub fn add_symlink(&mut self, at: &Path, target: &Path) -> Result<(), BuildError> {
        self.add(at, Kind::Symlink(target.to_owned()))
    }

    /// Adds a directory that everybody may write into, as `/tmp` is.
    pub fn add_shared_directory(&mut self, at: &Path) -> Result<(), BuildError> {
        self.add(at, Kind::Directory { mode: 0o1777 })
    }

    /// Whether something is there already.
    pub fn contains(&self, at: &Path) -> bool {
        self.by_path.contains_key(at)
    }

    /// Whether there is anything but directories.
    pub fn has_file(&self) -> bool {
        self.by_path.values().any(|kind| matches!(kind, Kind::File { .. }))
    }

    /// The files that come from the disk, where they are now: what a copy of the layer depends on.
    pub fn files_on_disk(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.by_path.iter().filter_map(|(at, kind)| match kind {
            Kind::File { content: Content::OnDisk(from), .. } => Some((at.as_path(), from.as_path())),
            _ => None,
        })
    }

    /// Links, and what they say they lead to.
    pub fn symlinks(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.by_path.iter().filter_map(|(at, kind)| match kind {
            Kind::Symlink(target) => Some((at.as_path(), target.as_path())),
            _ => None,
        })
    }

    pub(super) fn sorted(&self) -> impl Iterator<Item = (&Path, &Kind)> {
        self.by_path.iter().map(|(path, kind)| (path.as_path(), kind))
    }

    fn collect(
        &mut self,
        root: &Path,
        below: &Path,
        at: &Path,
        wanted: &dyn Fn(&Path, bool) -> bool,
    ) -> Result<(), BuildError> {
        let directory = root.join(below);
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| BuildError::Read { path, source }
        };
        for entry in fs::read_dir(&directory).map_err(read(&directory))? {
            let entry = entry.map_err(read(&directory))?;
            let (path, full) = (below.join(entry.file_name()), entry.path());
            let metadata = full.symlink_metadata().map_err(read(&full))?;
            let kind = metadata.file_type();
            if !wanted(&path, kind.is_dir()) {
                continue;
            }
            if entry.file_name().as_bytes().starts_with(WHITEOUT) {
                return Err(BuildError::Unsupported { path: full, what: "named as deletions are" });
            }
            if self.by_path.len() >= ENTRIES_MAX {
                return Err(BuildError::TooManyEntries { path: root.to_owned() });
            }
            let place = at.join(&path);
            if kind.is_dir() {
                self.add(&place, Kind::Directory { mode: DIRECTORY })?;
                self.collect(root, &path, at, wanted)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&full).map_err(read(&full))?;
                self.add(&place, Kind::Symlink(target))?;
            } else if kind.is_file() {
                self.count(metadata.len(), root)?;
                let executable = metadata.permissions().mode() & 0o111 != 0;
                self.add(&place, Kind::File { executable, content: Content::OnDisk(full) })?;
            } else {
                return Err(BuildError::Unsupported { path: full, what: "a socket, pipe or device" });
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64, from: &Path) -> Result<(), BuildError> {
        self.bytes += bytes;
        match self.bytes > BYTES_MAX {
            true => Err(BuildError::TooManyBytes { path: from.to_owned() }),
            false => Ok(()),
        }
    }

    fn add(&mut self, at: &Path, kind: Kind) -> Result<(), BuildError> {
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if at.as_os_str().is_empty() || !at.components().all(plain) {
            return Err(BuildError::Path(at.display().to_string()));
        }
        let twice = |path: &Path| BuildError::Twice(path.display().to_string());
        for parent in at.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match self.by_path.entry(parent.to_owned()) {
                Entry::Vacant(vacant) => drop(vacant.insert(Kind::Directory { mode: DIRECTORY })),
                // Its own parents are there too then.
                Entry::Occupied(there) if matches!(there.get(), Kind::Directory { .. }) => break,
                Entry::Occupied(_) => return Err(twice(parent)),
            }
        }
        match self.by_path.entry(at.to_owned()) {
            Entry::Vacant(vacant) => drop(vacant.insert(kind)),
            Entry::Occupied(there) => match (there.get(), &kind) {
                (Kind::Directory { .. }, Kind::Directory { .. }) => {}
                _ => return Err(twice(at)),
            },
        }
        Ok(())
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty() && part != "." && part != ".." && !part.as_bytes().starts_with(WHITEOUT)
}
