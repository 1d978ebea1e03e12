//! The root file system of an instance, built in a mount namespace that only the worker and the container see.
//!
//! ```text
//! /run               small tmpfs, covers the host's /run: its path is open to the container's users whatever the
//! │                  permissions of the run directory are
//! ├── instance       the instance's directory below the run directory (bind mount)
//! ├── bundle         config.json as the container runtime gets it
//! ├── layers/N       the image's layers, read only, id-mapped
//! ├── binds/N        files and directories of the host that the specification mounts
//! ├── cgroups        its own cgroups, read only: what it has at /sys/fs/cgroup
//! ├── nodes          small tmpfs with device nodes, only in a user namespace
//! ├── writable       tmpfs with a bound: overlayfs' upper and work directories
//! └── rootfs         the overlay
//! ```
//!
//! The host's mount table shows nothing of it, and it is gone when its last process is.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown, fchown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};

use crate::cgroup::Shown;
use crate::sys;
use crate::user_namespace::{self, UserRange};

const SCAFFOLD: &str = "/run";
pub(crate) const INSTANCE: &str = "/run/instance";
pub(crate) const BUNDLE: &str = "/run/bundle";
pub(crate) const ROOTFS: &str = "/run/rootfs";
pub(crate) const NODES: &str = "/run/nodes";
pub(crate) const CGROUPS: &str = "/run/cgroups";
const BINDS: &str = "/run/binds";
const LAYERS: &str = "/run/layers";
const WRITABLE: &str = "/run/writable";

/// For directories, mount points and `config.json`.
const SCAFFOLD_BYTES: u64 = 1 << 20;
const SCAFFOLD_INODES: u64 = 1024;

/// Writable layer of a read-only root file system, closed again before the program starts: the mount points that the
/// image lacks are made in it.
const MOUNT_POINTS_BYTES: u64 = 256 << 10;

/// Bytes of the writable layer for each file in it: below that, inodes would be the larger part of the memory used.
const BYTES_PER_INODE: u64 = 4096;

/// Inodes that even the smallest writable layer has.
const INODES_MIN: u64 = 256;

/// For device nodes, which have no content; a thousand of them, as many as a plugin's directory may have.
const NODES_OPTIONS: &str = "mode=755,size=64k,nr_inodes=2048";

/// Most layers: overlayfs takes no more.
const LAYERS_MAX: usize = 500;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot make a mount namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot {act} {path}")]
    Prepare { act: &'static str, path: PathBuf, source: io::Error },
    #[error("the image has {0} layers, and overlayfs takes {LAYERS_MAX} at most: build it with fewer")]
    TooManyLayers(usize),
    #[error("the image has no layers")]
    NoLayers,
    #[error("cannot mount layer {path}")]
    Layer { path: PathBuf, source: io::Error },
    #[error("cannot mount the overlay of {0} layers")]
    Overlay(usize, #[source] io::Error),
}

/// What the instance's users are on the host.
pub(crate) struct Users {
    pub(crate) range: UserRange,
    pub(crate) namespace: OwnedFd,
}

/// A file or directory of the host that the specification mounts.
pub(crate) struct HostSource {
    pub(crate) path: PathBuf,
    pub(crate) recursive: bool,
}

fn prepare<T>(act: &'static str, path: impl AsRef<Path>, result: io::Result<T>) -> Result<T, RootfsError> {
    result.map_err(|source| RootfsError::Prepare { act, path: path.as_ref().to_owned(), source })
}

/// Leaves the host's mount namespace and builds the scaffold. Paths below the host's `/run` do not exist afterwards, so
/// whatever is needed of them is named here. Returns the new paths of `sources`, in their order.
pub(crate) fn raise_scaffold(
    instance: &Path,
    sources: &[HostSource],
    layers: &[PathBuf],
    users: Option<&Users>,
) -> Result<Vec<PathBuf>, RootfsError> {
    if layers.is_empty() {
        return Err(RootfsError::NoLayers);
    }
    if layers.len() > LAYERS_MAX {
        return Err(RootfsError::TooManyLayers(layers.len()));
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| RootfsError::Namespace(error.into()))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .map_err(|error| RootfsError::Namespace(error.into()))?;
    // Built over the instance's directory, and moved over /run when no path of the host is needed any more.
    let itself = prepare("bind", instance, sys::clone_tree(instance, false))?;
    mount_tmpfs(instance, SCAFFOLD_BYTES, SCAFFOLD_INODES)?;
    let here =
        |path: &str| instance.join(path.strip_prefix("/run/").expect("the paths above are below /run"));
    for directory in [INSTANCE, BUNDLE, ROOTFS, BINDS, LAYERS, WRITABLE] {
        prepare("make", directory, fs::create_dir(here(directory)))?;
    }
    prepare("bind", instance, sys::attach_tree(itself.as_fd(), &here(INSTANCE)))?;
    let namespace = users.map(|users| users.namespace.as_fd());
    for (index, layer) in layers.iter().enumerate() {
        let target = here(LAYERS).join(index.to_string());
        prepare("make", &target, fs::create_dir(&target))?;
        user_namespace::bind(layer, &target, false, true, namespace)
            .map_err(|source| RootfsError::Layer { path: layer.clone(), source })?;
    }
    let mut paths = Vec::with_capacity(sources.len());
    for (index, source) in sources.iter().enumerate() {
        bind_host_source(source, &here(BINDS).join(index.to_string()), namespace)?;
        paths.push(Path::new(BINDS).join(index.to_string()));
    }
    let moved = mount(Some(instance), SCAFFOLD, None::<&str>, MsFlags::MS_MOVE, None::<&str>);
    prepare("cover", SCAFFOLD, moved.map_err(io::Error::from))?;
    prepare("enter", SCAFFOLD, std::env::set_current_dir(SCAFFOLD))?;
    Ok(paths)
}

fn bind_host_source(
    source: &HostSource,
    target: &Path,
    users: Option<BorrowedFd<'_>>,
) -> Result<(), RootfsError> {
    let HostSource { path, recursive } = source;
    let is_directory = prepare("read", path, fs::metadata(path))?.is_dir();
    let made = if is_directory { fs::create_dir(target) } else { fs::File::create(target).map(drop) };
    prepare("make", target, made)?;
    // Not every file system can be id-mapped; its owners are then nobody inside, its contents the same.
    let bound = match user_namespace::bind(path, target, *recursive, false, users) {
        Err(_) if users.is_some() => user_namespace::bind(path, target, *recursive, false, None),
        bound => bound,
    };
    prepare("bind", path, bound)
}

/// A directory of the scaffold on which device nodes can be opened.
pub(crate) fn place_nodes() -> Result<fs::File, RootfsError> {
    prepare("make", NODES, fs::create_dir(NODES))?;
    let mounted = mount_for_nodes(Path::new(NODES));
    prepare("mount a tmpfs at", NODES, mounted.map_err(io::Error::from))?;
    prepare("open", NODES, fs::File::open(NODES))
}

/// Mounts the cgroups that the container may see below [`CGROUPS`].
pub(crate) fn place_cgroups(shown: &[Shown]) -> Result<(), RootfsError> {
    prepare("make", CGROUPS, fs::create_dir(CGROUPS))?;
    for Shown { directory, name, .. } in shown {
        let target = Path::new(CGROUPS).join(name);
        prepare("make", &target, fs::create_dir_all(&target))?;
        prepare("bind", directory, user_namespace::bind(directory, &target, false, true, None))?;
    }
    // Only then: nothing can be mounted where a link is, and one hierarchy may be mounted at two places.
    for Shown { name, links, .. } in shown {
        for link in links {
            let path = Path::new(CGROUPS).join(link);
            match symlink(name, &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => prepare("make", &path, made)?,
            }
        }
    }
    Ok(())
}

/// Mounts a file system at `path` on which device nodes can be opened.
pub(crate) fn mount_for_nodes(path: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(NODES_OPTIONS))
}

/// Mounts the overlay of the scaffold's `layers` layers and a writable layer of `bytes`.
pub(crate) fn mount_overlay(layers: usize, bytes: u64, users: Option<&Users>) -> Result<(), RootfsError> {
    let bytes = if bytes == 0 { MOUNT_POINTS_BYTES } else { bytes };
    mount_tmpfs(Path::new(WRITABLE), bytes, (bytes / BYTES_PER_INODE).max(INODES_MIN))?;
    // The root directory looks like the topmost layer's.
    let top = Path::new(LAYERS).join("0");
    let mode = prepare("read", &top, fs::metadata(&top))?.permissions().mode() & 0o7777;
    let owner = users.map_or(0, |users| users.range.first);
    for directory in ["upper", "work"] {
        let path = Path::new(WRITABLE).join(directory);
        prepare("make", &path, fs::create_dir(&path))?;
        prepare("own", &path, chown(&path, Some(owner), Some(owner)))?;
        prepare("open", &path, fs::set_permissions(&path, fs::Permissions::from_mode(mode)))?;
    }
    // mount(2) takes one page of options: relative to the layers, each takes four bytes of it.
    let lower: Vec<String> = (0..layers).map(|index| index.to_string()).collect();
    let options = format!("lowerdir={},upperdir=../writable/upper,workdir=../writable/work", lower.join(":"));
    prepare("enter", LAYERS, std::env::set_current_dir(LAYERS))?;
    mount(Some("overlay"), ROOTFS, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
        .map_err(|error| RootfsError::Overlay(layers, error.into()))?;
    prepare("enter", SCAFFOLD, std::env::set_current_dir(SCAFFOLD))
}

/// Makes the directory `path` of the overlay where the image lacks it, as every container runtime does for the working
/// directory. Links lead nowhere but into the image.
pub(crate) fn complete_directory(path: &Path, users: Option<&Users>) -> Result<(), RootfsError> {
    let root = prepare("open", ROOTFS, fs::File::open(ROOTFS))?;
    let owner = users.map_or(0, |users| users.range.first);
    let mut so_far = PathBuf::new();
    let mut parent = prepare("open", ROOTFS, root.try_clone())?;
    for part in path.components().filter(|part| !matches!(part, Component::RootDir)) {
        so_far.push(part);
        let opened = match sys::open_directory_in(root.as_fd(), &so_far) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made =
                    mkdirat(Some(parent.as_raw_fd()), part.as_os_str(), Mode::from_bits_truncate(0o755));
                prepare("make", path, made.map_err(io::Error::from))?;
                let opened = prepare("open", path, sys::open_directory_in(root.as_fd(), &so_far))?;
                prepare("own", path, fchown(&opened, Some(owner), Some(owner)))?;
                prepare("open", path, opened.set_permissions(fs::Permissions::from_mode(0o755)))?;
                Ok(opened)
            }
            opened => opened,
        };
        parent = prepare("enter", path, opened)?;
    }
    Ok(())
}

fn mount_tmpfs(path: &Path, bytes: u64, inodes: u64) -> Result<(), RootfsError> {
    let options = format!("mode=755,size={bytes},nr_inodes={inodes}");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let mounted = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()));
    prepare("mount a tmpfs at", path, mounted.map_err(io::Error::from))
}
