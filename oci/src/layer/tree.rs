//! Writes members of a layer below one directory, in the form that overlayfs takes for a lower layer.
//!
//! Every name is resolved by the kernel with that directory as its root (`openat2`, `RESOLVE_IN_ROOT`): an archive with
//! symbolic links in its way ends up somewhere else inside, never outside. Deletions of lower files become whiteouts
//! (character device 0:0) and opaque directories (`trusted.overlay.opaque`). Must not know archives' bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::decode::stream_error;
use super::members::{Kind, Member};
use super::{UnpackError, WHITEOUT};
use crate::store::failed;

const PIECE: usize = 128 * 1024;
/// Linux's own bounds: what is longer could be written piecewise, but never opened by its name.
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;
/// The kernel's bound of one attribute.
const MAX_XATTR: usize = 64 * 1024;

const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of the file system that once made whiteouts this way; they mean nothing to anybody else.
const AUFS: &[u8] = b".wh..wh.";

/// A lower layer in the making.
pub(super) struct Tree {
    root: OwnedFd,
    /// Names that this layer deletes below: a directory that takes such a name must hide the one below.
    whiteouts: BTreeSet<Vec<u8>>,
    /// Modification times of directories, set at the end: every file written changes them.
    directories: BTreeMap<Vec<u8>, i64>,
    /// The directory written to last: archives come in order, so most members are in the same one.
    parent: Option<(Vec<u8>, OwnedFd)>,
    piece: Vec<u8>,
    bytes: u64,
    devices: u64,
}

/// A member's place: its directory and its name there, both without `.`, `..` or empty parts.
struct Place<'a> {
    parents: Vec<&'a [u8]>,
    name: &'a [u8],
    path: Vec<u8>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, UnpackError> {
        let root: OwnedFd = File::open(root).map_err(failed("open", root))?.into();
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(write_error(b"/"))?;
        Ok(Self {
            root,
            whiteouts: BTreeSet::new(),
            directories: BTreeMap::new(),
            parent: None,
            piece: vec![0; PIECE],
            bytes: 0,
            devices: 0,
        })
    }

    /// Writes one member, whose content, if it is a file, `content` gives.
    pub(super) fn write(&mut self, member: &Member, content: &mut impl Read) -> Result<(), UnpackError> {
        let parts = parts(&member.path)?;
        let Some((name, parents)) = parts.split_last() else { return self.write_root(member) };
        let place = Place { parents: parents.to_vec(), name, path: parts.join(&b'/') };
        if let Some(deleted) = name.strip_prefix(WHITEOUT) {
            return self.delete_below(&place, deleted);
        }
        let parent = self.open_parent(&place.parents)?;
        let written = match &member.kind {
            Kind::File { size } => self.write_file(&parent, &place, member, *size, content),
            Kind::Directory => self.write_directory(&parent, &place, member),
            Kind::Symlink(target) => self.write_node(&parent, &place, member, |parent, name| {
                rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name)
            }),
            Kind::Fifo => self.write_node(&parent, &place, member, |parent, name| {
                rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            }),
            Kind::HardLink(target) => self.write_link(&parent, &place, target),
            Kind::Device => {
                self.devices += 1;
                Ok(())
            }
        };
        self.parent.get_or_insert((place.parents.join(&b'/'), parent));
        written
    }

    /// Sets what could only be set at the end; gives bytes of files and devices left out.
    pub(super) fn finish(self) -> Result<(u64, u64), UnpackError> {
        for (path, mtime) in &self.directories {
            match open_inside(&self.root, path) {
                Ok(directory) => {
                    rustix::fs::futimens(&directory, &times(*mtime)).map_err(write_error(path))?
                }
                // Another member took its name later.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(write_error(path)(error)),
            }
        }
        Ok((self.bytes, self.devices))
    }

    fn write_root(&mut self, member: &Member) -> Result<(), UnpackError> {
        if member.kind != Kind::Directory {
            return Err(refused(&member.path, "only a directory can be the root"));
        }
        set_attributes(&self.root, member, b"/")?;
        self.directories.insert(b".".to_vec(), member.mtime);
        Ok(())
    }

    fn write_file(
        &mut self,
        parent: &OwnedFd,
        place: &Place<'_>,
        member: &Member,
        size: u64,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = OsStr::from_bytes(place.name);
        let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let mut file: File = match open() {
            Err(Errno::EXIST) => {
                self.clear(parent, place)?;
                open()
            }
            opened => opened,
        }
        .map_err(write_error(&place.path))?
        .into();
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.piece.len());
            let count = content
                .read(&mut self.piece[..most])
                .map_err(|error| stream_error(error, &String::from_utf8_lossy(&place.path)))?;
            file.write_all(&self.piece[..count]).map_err(|error| write_io_error(&place.path, error))?;
            left -= count as u64;
        }
        self.bytes += size;
        set_attributes(&file, member, &place.path)?;
        rustix::fs::futimens(&file, &times(member.mtime)).map_err(write_error(&place.path))
    }

    fn write_directory(
        &mut self,
        parent: &OwnedFd,
        place: &Place<'_>,
        member: &Member,
    ) -> Result<(), UnpackError> {
        let name = OsStr::from_bytes(place.name);
        let make = || rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
        let hides = self.whiteouts.contains(&place.path);
        match make() {
            Err(Errno::EXIST) => {
                let present = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(write_error(&place.path))?;
                if FileType::from_raw_mode(present.st_mode) != FileType::Directory {
                    self.clear(parent, place)?;
                    make().map_err(write_error(&place.path))?;
                }
            }
            made => made.map_err(write_error(&place.path))?,
        }
        let directory = open_directory(parent, name).map_err(write_error(&place.path))?;
        if hides {
            set_opaque(&directory, &place.path)?;
        }
        set_attributes(&directory, member, &place.path)?;
        self.directories.insert(place.path.clone(), member.mtime);
        Ok(())
    }

    /// Writes a symbolic link or a fifo.
    fn write_node(
        &mut self,
        parent: &OwnedFd,
        place: &Place<'_>,
        member: &Member,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        let name = OsStr::from_bytes(place.name);
        let made = match make(parent, name) {
            Err(Errno::EXIST) => {
                self.clear(parent, place)?;
                make(parent, name)
            }
            made => made,
        };
        let error = write_error(&place.path);
        if made == Err(Errno::NOENT) {
            return Err(refused(&place.path, "it is a symbolic link to nothing"));
        }
        let (uid, gid) = owner(member, &place.path)?;
        made.and_then(|()| rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            .and_then(|()| match member.kind {
                Kind::Fifo => {
                    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(member.mode), AtFlags::empty())
                }
                _ => Ok(()),
            })
            .and_then(|()| {
                rustix::fs::utimensat(parent, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            })
            .map_err(error)
    }

    fn write_link(&mut self, parent: &OwnedFd, place: &Place<'_>, target: &[u8]) -> Result<(), UnpackError> {
        let parts = parts(target)?;
        let Some((target_name, target_parents)) = parts.split_last() else {
            return Err(refused(&place.path, "it is a hard link to the root"));
        };
        if parts.join(&b'/') == place.path {
            return Err(refused(&place.path, "it is a hard link to itself"));
        }
        let absent = "it is a hard link to a file that this layer does not have";
        let target_parent =
            open_inside(&self.root, &target_parents.join(&b'/')).map_err(|_| refused(&place.path, absent))?;
        let target_name = OsStr::from_bytes(target_name);
        let present = rustix::fs::statat(&target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| refused(&place.path, absent))?;
        match FileType::from_raw_mode(present.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(refused(&place.path, absent)),
        }
        let name = OsStr::from_bytes(place.name);
        let link = || rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                self.clear(parent, place)?;
                // What was in the way may have been the target itself, by another name.
                link().map_err(|error| match error {
                    Errno::NOENT => refused(&place.path, absent),
                    error => write_error(&place.path)(error),
                })
            }
            linked => linked.map_err(write_error(&place.path)),
        }
    }

    /// A whiteout: hides one name, or with the opaque mark everything in its directory, of the layers below.
    fn delete_below(&mut self, place: &Place<'_>, deleted: &[u8]) -> Result<(), UnpackError> {
        let parent = self.open_parent(&place.parents)?;
        if place.name == OPAQUE {
            return set_opaque(&parent, &place.path);
        }
        if place.name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(deleted, b"" | b"." | b"..") {
            return Err(refused(&place.path, "it deletes no name"));
        }
        let name = OsStr::from_bytes(deleted);
        let mut path = place.parents.join(&b'/');
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(deleted);
        match rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            // This layer has the name already: it stays, and a directory hides the one below.
            Err(Errno::EXIST) => {
                if let Ok(directory) = open_directory(&parent, name) {
                    set_opaque(&directory, &path)?;
                }
            }
            made => made.map_err(write_error(&path))?,
        }
        self.whiteouts.insert(path);
        Ok(())
    }

    /// Removes what has the place's name, which this layer says twice.
    fn clear(&mut self, parent: &OwnedFd, place: &Place<'_>) -> Result<(), UnpackError> {
        self.parent = None;
        let name = OsStr::from_bytes(place.name);
        let removed = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                // The standard library removes trees without following links.
                let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
                fs::remove_dir_all(Path::new(&path).join(name))
            }
            removed => removed.map_err(io::Error::from),
        };
        removed.map_err(|error| write_io_error(&place.path, error))
    }

    /// Opens a directory, and makes it and its parents where the archive has no members for them.
    fn open_parent(&mut self, parents: &[&[u8]]) -> Result<OwnedFd, UnpackError> {
        let path = parents.join(&b'/');
        if let Some((cached, directory)) = self.parent.take()
            && cached == path
        {
            return Ok(directory);
        }
        match open_inside(&self.root, &path) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            opened => return opened.map_err(|error| parent_error(&path, error)),
        }
        let mut directory = open_inside(&self.root, b"").map_err(write_error(b"/"))?;
        for depth in 1..=parents.len() {
            let path = parents[..depth].join(&b'/');
            let name = OsStr::from_bytes(parents[depth - 1]);
            let missing = match open_inside(&self.root, &path) {
                Err(Errno::NOTDIR) if self.whiteouts.contains(&path) => {
                    rustix::fs::unlinkat(&directory, name, AtFlags::empty()).map_err(write_error(&path))?;
                    true
                }
                Err(Errno::NOENT) => true,
                opened => {
                    directory = opened.map_err(|error| parent_error(&path, error))?;
                    false
                }
            };
            if missing {
                rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))
                    .map_err(|error| parent_error(&path, error))?;
                directory = open_directory(&directory, name).map_err(|error| parent_error(&path, error))?;
                if self.whiteouts.contains(&path) {
                    set_opaque(&directory, &path)?;
                }
            }
        }
        Ok(directory)
    }
}

/// The parts of a member's name. A leading slash means the layer's root, as every tool takes it.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    if path.len() > MAX_PATH {
        return Err(refused(&path[..200], "its name is longer than Linux allows"));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(path, "its name has `..` in it")),
            _ if part.contains(&0) => return Err(refused(path, "its name has a zero byte in it")),
            _ if part.len() > MAX_NAME => return Err(refused(path, "its name is longer than Linux allows")),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

fn open_inside(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            // The kernel saw a rename elsewhere while it resolved `..`, and asks to be called again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Owner first: changing it clears set-id bits and capabilities.
fn set_attributes(file: &impl std::os::fd::AsFd, member: &Member, path: &[u8]) -> Result<(), UnpackError> {
    let (uid, gid) = owner(member, path)?;
    let file: BorrowedFd<'_> = file.as_fd();
    rustix::fs::fchown(file, uid, gid).map_err(write_error(path))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(member.mode)).map_err(write_error(path))?;
    for (name, value) in &member.xattrs {
        // Nothing else: overlay's own attributes would let a layer redirect into another, security labels are the host's.
        let wanted =
            name == "security.capability" || name.starts_with("user.") && !name.starts_with("user.overlay.");
        if !wanted {
            continue;
        }
        if value.len() > MAX_XATTR {
            return Err(refused(path, "it has an attribute of more than 64 KiB"));
        }
        rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()).map_err(write_error(path))?;
    }
    Ok(())
}

fn set_opaque(directory: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
    rustix::fs::fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(write_error(path))
}

fn owner(member: &Member, path: &[u8]) -> Result<(Option<Uid>, Option<Gid>), UnpackError> {
    // The highest number means "no change" to the kernel.
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(member.uid), id(member.gid)) {
        (Some(uid), Some(gid)) => Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))),
        _ => Err(refused(path, "its owner is not a number that Linux has")),
    }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn refused(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Refused { path: excerpt(path), reason }
}

fn parent_error(path: &[u8], error: Errno) -> UnpackError {
    match error {
        Errno::NOTDIR | Errno::EXIST => refused(path, "it is needed as a directory and is none"),
        Errno::LOOP => refused(path, "its symbolic links lead in a circle"),
        Errno::XDEV => refused(path, "it leads to another file system"),
        error => write_error(path)(error),
    }
}

fn write_error(path: &[u8]) -> impl FnOnce(Errno) -> UnpackError + use<> {
    let path = path.to_vec();
    move |error| write_io_error(&path, error.into())
}

fn write_io_error(path: &[u8], source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failed("write", Path::new(OsStr::from_bytes(path)))(source).into()
        }
        _ => UnpackError::Write { path: excerpt(path), source },
    }
}

fn excerpt(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
