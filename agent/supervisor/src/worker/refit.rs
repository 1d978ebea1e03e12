//! Giving an instance that is there other devices than it has: its cgroup's rules first, then the nodes below its `/dev`.
//!
//! The worker enters the container's mount namespace to make nodes, where everything but this program is the container's to
//! change. Only `/dev` itself and directories below it are walked, one by one, through no link and into no other mount, so
//! that no node is made and nothing is removed anywhere else.
//!
//! A container with a user namespace of its own has a `/dev` in which device nodes are worth nothing. There a node lies on a
//! file system of the worker's, owned by the container's users, and is mounted over a file of its name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, makedev, mkdirat, mknodat, umask};
use nix::unistd::{Gid, Pid, Uid, UnlinkatFlags, fchdir, fchownat, setfsgid, setfsuid, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use crate::cgroup::{CgroupPath, Hierarchies};
use crate::devices::{self, Fitted};
use crate::rootfs::mount_for_nodes;
use crate::sys;

/// Where nodes must be.
const DEV: &str = "/dev";

/// Of a node whose specification says nothing, as the container runtime has it.
const MODE: u32 = 0o666;

/// Of directories on the way to a node.
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Directories between `/dev` and a node.
const DEPTH_MAX: usize = 16;

/// An instance to be given other devices.
#[derive(Debug)]
pub(crate) struct RefitTask {
    /// The specification whose devices they are.
    pub(crate) config: PathBuf,
    /// Of the container's init.
    pub(crate) init: Pid,
    pub(crate) cgroup: CgroupPath,
    /// The instance's directory.
    pub(crate) directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RefitError {
    #[error("cannot read the specification {path}")]
    Specification { path: PathBuf, source: oci_spec::OciSpecError },
    #[error("cannot read or keep which devices it has")]
    Keep(#[source] io::Error),
    #[error("cannot change which devices it may open")]
    Rules(#[source] io::Error),
    #[error("cannot enter the container")]
    Enter(#[source] io::Error),
    #[error("the device node {0} is not below /dev")]
    Outside(PathBuf),
    #[error("the way to {path} leads through something that the function has put there")]
    Obstructed { path: PathBuf, source: io::Error },
    #[error("cannot {act} the device node {path}")]
    Node { act: &'static str, path: PathBuf, source: io::Error },
}

/// Gives it the devices of the specification. Nothing is lost by doing it again, whoever died in between.
pub(crate) fn refit(task: &RefitTask, hierarchies: &Hierarchies) -> Result<(), RefitError> {
    let specification = |source| RefitError::Specification { path: task.config.clone(), source };
    let spec = Spec::load(&task.config).map_err(specification)?;
    let before = Fitted::read(&task.directory).map_err(RefitError::Keep)?;
    let after = Fitted::of(&spec, before.root);
    for node in &after.nodes {
        way(node.path())?;
    }
    let directory = File::open(&task.directory).map_err(RefitError::Keep)?;
    let container = sys::pidfd_open(task.init).map_err(RefitError::Enter)?;
    before.united(&after).write(directory.as_fd()).map_err(RefitError::Keep)?;
    devices::restrict(&before, &after, hierarchies, &task.cgroup).map_err(RefitError::Rules)?;
    // What is made has the mode that it is made with.
    umask(Mode::empty());
    let mounts = match after.root {
        Some(root) => make_nodes(&after.nodes, root, &task.directory)?,
        None => Vec::new(),
    };
    setns(&container, CloneFlags::CLONE_NEWNS).map_err(|error| RefitError::Enter(error.into()))?;
    let dev = File::open(DEV).map_err(RefitError::Enter)?;
    for node in &before.nodes {
        if !after.nodes.iter().any(|other| other.path() == node.path()) {
            remove(node, dev.as_fd(), after.root)?;
        }
    }
    let mut mounts = mounts.into_iter();
    for node in &after.nodes {
        put(node, dev.as_fd(), after.root, mounts.next())?;
    }
    after.write(directory.as_fd()).map_err(RefitError::Keep)
}

/// Makes each node on a file system that only this process has, as a mount that is nowhere yet. In their order.
pub(crate) fn make_nodes(
    nodes: &[LinuxDevice],
    root: u32,
    covered: &Path,
) -> Result<Vec<OwnedFd>, RefitError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| RefitError::Enter(error.into()))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .and_then(|()| mount_for_nodes(covered))
        .map_err(|error| RefitError::Enter(error.into()))?;
    let place = File::open(covered).map_err(RefitError::Enter)?;
    nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let name = index.to_string();
            make(node, place.as_fd(), &name, root)?;
            let tree = sys::clone_tree(&covered.join(&name), false);
            tree.map_err(|source| RefitError::Node { act: "mount", path: node.path().clone(), source })
        })
        .collect()
}

/// Makes a node owned by the users that `root` is the first of.
pub(crate) fn make(
    node: &LinuxDevice,
    place: BorrowedFd<'_>,
    name: &str,
    root: u32,
) -> Result<(), RefitError> {
    let failed =
        |error: Errno| RefitError::Node { act: "make", path: node.path().clone(), source: error.into() };
    let mode = Mode::from_bits_truncate(node.file_mode().unwrap_or(MODE));
    mknodat(Some(place.as_raw_fd()), name, kind(node), mode, number(node)).map_err(failed)?;
    // The file system was empty, and nobody else sees it.
    let owner = |id: Option<u32>| Some(root.saturating_add(id.unwrap_or(0)));
    fchownat(
        Some(place.as_raw_fd()),
        name,
        owner(node.uid()).map(Uid::from_raw),
        owner(node.gid()).map(Gid::from_raw),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(failed)
}

fn kind(node: &LinuxDevice) -> SFlag {
    match node.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        _ => SFlag::S_IFCHR,
    }
}

fn number(node: &LinuxDevice) -> libc::dev_t {
    makedev(node.major().cast_unsigned(), node.minor().cast_unsigned())
}

/// What lies at a place.
enum There {
    Nothing,
    /// This very device.
    It,
    Device,
    Other,
}

fn look(node: &LinuxDevice, parent: BorrowedFd<'_>, name: &str) -> Result<There, Errno> {
    let stat: FileStat = match fstatat(Some(parent.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(There::Nothing),
        Err(error) => return Err(error),
    };
    let found = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    Ok(match found {
        _ if found == kind(node) && stat.st_rdev == number(node) => There::It,
        SFlag::S_IFCHR | SFlag::S_IFBLK | SFlag::S_IFIFO => There::Device,
        _ => There::Other,
    })
}

/// Takes a node away. What is not a device any more is the function's own, and so is a way that is not one of plain directories.
fn remove(node: &LinuxDevice, dev: BorrowedFd<'_>, root: Option<u32>) -> Result<(), RefitError> {
    let (directories, name) = way(node.path())?;
    let Ok(Some(parent)) = walk(dev, &directories, node.path(), None) else { return Ok(()) };
    let removed = match look(node, parent.as_fd(), name) {
        Ok(There::It | There::Device) => clear(parent.as_fd(), name, root),
        Ok(There::Nothing | There::Other) => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| RefitError::Node {
        act: "remove",
        path: node.path().clone(),
        source: error.into(),
    })
}

/// Takes away what lies at the place of a node: nothing of that name may stay, or the node could not be there.
fn clear(parent: BorrowedFd<'_>, name: &str, root: Option<u32>) -> Result<(), Errno> {
    if root.is_some() {
        // A mount can be taken off only by a path, and only from where the function cannot put another in its place.
        fchdir(parent.as_raw_fd())?;
        match umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing was mounted there.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    unlinkat(Some(parent.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir)
}

/// Puts a node where it is not yet.
fn put(
    node: &LinuxDevice,
    dev: BorrowedFd<'_>,
    root: Option<u32>,
    mounted: Option<OwnedFd>,
) -> Result<(), RefitError> {
    let (directories, name) = way(node.path())?;
    let Some(parent) = walk(dev, &directories, node.path(), Some(root))? else { return Ok(()) };
    let failed =
        |error: Errno| RefitError::Node { act: "make", path: node.path().clone(), source: error.into() };
    match look(node, parent.as_fd(), name).map_err(failed)? {
        There::It => return Ok(()),
        There::Nothing => {}
        There::Device | There::Other => clear(parent.as_fd(), name, root).map_err(failed)?,
    }
    if let Some(tree) = mounted {
        as_user(root, || {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = Mode::from_bits_truncate(0o644);
            openat(Some(parent.as_raw_fd()), name, flags, mode).map(|fd| drop(sys::received_fd(fd)))
        })
        .map_err(failed)?;
        return sys::attach_tree_at(tree.as_fd(), parent.as_fd(), Path::new(name))
            .map_err(|source| RefitError::Node { act: "mount", path: node.path().clone(), source });
    }
    let mode = Mode::from_bits_truncate(node.file_mode().unwrap_or(MODE));
    mknodat(Some(parent.as_raw_fd()), name, kind(node), mode, number(node)).map_err(failed)?;
    own(node, parent.as_fd(), name).map_err(failed)
}

/// Gives the node its owner, unless the function has put something else there meanwhile.
fn own(node: &LinuxDevice, parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let there = sys::received_fd(openat(Some(parent.as_raw_fd()), name, flags, Mode::empty())?);
    if !matches!(look_at(node, &there)?, There::It) {
        return Err(Errno::EEXIST);
    }
    let (uid, gid) = (node.uid().map(Uid::from_raw), node.gid().map(Gid::from_raw));
    fchownat(Some(there.as_raw_fd()), "", uid, gid, AtFlags::AT_EMPTY_PATH)
}

fn look_at(node: &LinuxDevice, there: &OwnedFd) -> Result<There, Errno> {
    let stat = nix::sys::stat::fstat(there.as_raw_fd())?;
    let found = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    Ok(if found == kind(node) && stat.st_rdev == number(node) { There::It } else { There::Other })
}

/// Directories below `/dev`, and a name.
fn way(path: &Path) -> Result<(Vec<&str>, &str), RefitError> {
    let outside = || RefitError::Outside(path.to_owned());
    let below = path.strip_prefix(DEV).map_err(|_| outside())?;
    let mut names = Vec::new();
    for part in below.components() {
        match part {
            Component::Normal(name) => names.push(name.to_str().ok_or_else(outside)?),
            _ => return Err(outside()),
        }
    }
    let name = names.pop().filter(|_| names.len() <= DEPTH_MAX).ok_or_else(outside)?;
    Ok((names, name))
}

/// The directory at the end of the way, every one that is missing made by `makes`; none: one is missing, and nobody makes it.
fn walk(
    dev: BorrowedFd<'_>,
    directories: &[&str],
    path: &Path,
    makes: Option<Option<u32>>,
) -> Result<Option<File>, RefitError> {
    let obstructed = |source| RefitError::Obstructed { path: path.to_owned(), source };
    let mut at = File::from(dev.try_clone_to_owned().map_err(obstructed)?);
    for name in directories {
        let next = match (sys::open_child_directory(at.as_fd(), name), makes) {
            (Err(error), Some(root)) if error.kind() == io::ErrorKind::NotFound => {
                as_user(root, || mkdirat(Some(at.as_raw_fd()), *name, DIRECTORY_MODE))
                    .map_err(|error| obstructed(error.into()))?;
                sys::open_child_directory(at.as_fd(), name)
            }
            (Err(error), None) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            (opened, _) => opened,
        };
        at = next.map_err(obstructed)?;
    }
    Ok(Some(at))
}

/// Makes files as the container's root: the file system of a container with a user namespace knows nobody else.
fn as_user<T>(root: Option<u32>, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let Some(root) = root else { return make() };
    setfsgid(Gid::from_raw(root));
    setfsuid(Uid::from_raw(root));
    let made = make();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    made
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_is_below_dev_has_a_way() {
        let names = |path: &'static str| way(Path::new(path)).map(|(on, name)| (on.join("+"), name)).ok();
        assert_eq!(names("/dev/bus/usb/001/004"), Some(("bus+usb+001".into(), "004")));
        assert_eq!(names("/dev/a"), Some((String::new(), "a")));
        for outside in ["/dev", "/dev/../etc/passwd", "/dev/a/../../etc/x", "/devil/a", "/etc/x", "dev/a"] {
            assert!(names(outside).is_none(), "{outside}");
        }
    }

    #[test]
    fn a_way_through_a_link_is_not_gone() {
        let (dev, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = Path::new("/dev/bus/usb/001");
        let walk = |makes| {
            let at = File::open(dev.path()).unwrap();
            walk(at.as_fd(), &["bus", "usb"], path, makes)
        };
        assert!(walk(None).unwrap().is_none());
        fs::create_dir(dev.path().join("bus")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dev.path().join("bus/usb")).unwrap();
        assert!(matches!(walk(Some(None)), Err(RefitError::Obstructed { .. })));
        assert!(matches!(walk(None), Err(RefitError::Obstructed { .. })));
        fs::remove_file(dev.path().join("bus/usb")).unwrap();
        assert!(walk(Some(None)).unwrap().is_some());
        assert!(dev.path().join("bus/usb").is_dir());
    }
}
