//! User namespaces: which host users an instance's users are, and mounts seen through that mapping.
//!
//! Every instance gets a range of host users of its own, so that even a process that escapes one container has no power
//! over the files and processes of another. Its layers stay owned by whoever owns them on the disk and are id-mapped.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;

use crate::sys;

/// First host user given away: above what login managers and container engines hand out by default.
const BASE: u32 = 1_000_000;

/// Users of one instance: the whole of what a program expects to have.
pub(crate) const USERS: u32 = 65_536;

/// Overlayfs takes id-mapped layers since this kernel.
const KERNEL: (u32, u32) = (5, 19);

/// The range of host users of the instance in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserRange {
    pub(crate) first: u32,
}

impl UserRange {
    pub(crate) fn of_slot(slot: u16) -> Self {
        Self { first: BASE + u32::from(slot) * USERS }
    }
}

/// Whether instances can have user namespaces here; if not, why.
pub(crate) fn probe() -> Result<(), String> {
    let release = nix::sys::utsname::uname().map_err(|error| error.to_string())?;
    let release = release.release().to_string_lossy().into_owned();
    if parse_release(&release).is_none_or(|version| version < KERNEL) {
        return Err(format!("kernel {release} is older than {}.{}", KERNEL.0, KERNEL.1));
    }
    make(UserRange::of_slot(0)).map(drop).map_err(|error| error.to_string())
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A user namespace with the mapping of `range`, held open by its descriptor. No process is in it.
pub(crate) fn make(range: UserRange) -> io::Result<OwnedFd> {
    let sleeper = sys::fork_sleeper_in_user_namespace()?;
    let opened = (|| {
        let map = format!("0 {} {USERS}\n", range.first);
        fs::write(format!("/proc/{sleeper}/uid_map"), &map)?;
        fs::write(format!("/proc/{sleeper}/gid_map"), &map)?;
        fs::File::open(format!("/proc/{sleeper}/ns/user"))
    })();
    let _ = kill(sleeper, Signal::SIGKILL);
    let _ = waitpid(sleeper, None);
    Ok(opened?.into())
}

/// Whether the file system that `directory` is on can be seen through the mapping of `users`.
pub(crate) fn can_map(directory: &Path, users: BorrowedFd<'_>) -> io::Result<()> {
    let tree = sys::clone_tree(directory, false)?;
    sys::set_mount_attributes(tree.as_fd(), false, libc::MOUNT_ATTR_IDMAP, Some(users))
}

/// Mounts what is at `source` also at `target`, read only or not, with its owners mapped into `users` if given.
pub(crate) fn bind(
    source: &Path,
    target: &Path,
    recursive: bool,
    read_only: bool,
    users: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let tree = sys::clone_tree(source, recursive)?;
    let mut attributes = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    if users.is_some() {
        attributes |= libc::MOUNT_ATTR_IDMAP;
    }
    if attributes != 0 {
        sys::set_mount_attributes(tree.as_fd(), recursive, attributes, users)?;
    }
    sys::attach_tree(tree.as_fd(), target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_understood() {
        assert_eq!(parse_release("6.18.44-fc-v769"), Some((6, 18)));
        assert_eq!(parse_release("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_release("6.1"), Some((6, 1)));
        assert_eq!(parse_release("linux"), None);
    }

    #[test]
    fn ranges_do_not_overlap_and_end_in_time() {
        let last =
            UserRange::of_slot(u16::try_from(tombolo_agent_core::supervision::INSTANCES_MAX).unwrap() - 1);
        assert_eq!(UserRange::of_slot(1).first - UserRange::of_slot(0).first, USERS);
        assert!(last.first.checked_add(USERS).is_some_and(|end| end < u32::MAX / 2));
    }
}
