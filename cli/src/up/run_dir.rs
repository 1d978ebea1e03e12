//! The run directory of `up`: whether it may be used, and its removal. It is made by `up`, so only `up` removes it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::claim;

/// Refuses a directory that holds something else: at the end it is removed with everything in it. Returns whether it
/// is new or empty, and not left by another run.
pub(super) fn check(dir: &Path) -> anyhow::Result<bool> {
    let mut entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => {
            return Err(error).with_context(|| format!("--run-dir {} cannot be used", dir.display()));
        }
    };
    let fresh = entries.next().is_none();
    if !fresh && !dir.join(claim::FILE).is_file() {
        bail!(
            "--run-dir {} is not empty, and it is removed at the end: name an empty or a new directory",
            dir.display()
        );
    }
    Ok(fresh)
}

/// Removes the directory. What is mounted in it is unmounted first, so that nothing outside is removed through a mount.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    if has_supervisor(dir) {
        bail!(
            "a runtime supervisor still runs in {}: start `tombolo up` again to take it over",
            dir.display()
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("the mounts cannot be read")?;
    for mount in mounts_below(dir, &mounts) {
        umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("{} cannot be unmounted", mount.display()))?;
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", dir.display()))
        }
        _ => Ok(()),
    }
}

fn has_supervisor(dir: &Path) -> bool {
    let dial = || {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&dir.join("supervisor.sock"))?)
    };
    dial().is_ok()
}

/// Mount points in `dir`, the newest first: a mount on top of another one comes before it.
fn mounts_below(dir: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let point =
        |line: &str| Some(PathBuf::from(std::ffi::OsString::from_vec(unescaped(line.split(' ').nth(4)?))));
    let mut found: Vec<PathBuf> =
        mountinfo.lines().filter_map(point).filter(|point| point != dir && point.starts_with(dir)).collect();
    found.reverse();
    found
}

/// The kernel writes spaces and the like as `\040`.
fn unescaped(text: &str) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let digits =
            after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_or_an_empty_directory_is_taken() {
        let root = tempfile::tempdir().unwrap();
        assert!(check(&root.path().join("absent")).unwrap());
        assert!(check(root.path()).unwrap());
        std::fs::write(root.path().join("letter"), "dear").unwrap();
        let error = check(root.path()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        std::fs::write(root.path().join(claim::FILE), "").unwrap();
        assert!(!check(root.path()).unwrap());
    }

    #[test]
    fn removal_is_whole_and_may_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("a/b/c"), "d").unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
        remove(&dir).unwrap();
    }

    #[test]
    fn a_living_supervisor_keeps_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(&root.path().join("supervisor.sock")).unwrap();
        nix::sys::socket::bind(fd.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        assert!(remove(root.path()).is_err());
        assert!(root.path().join("supervisor.sock").exists());
        drop(fd);
        remove(root.path()).unwrap();
        assert!(!root.path().exists());
    }

    #[test]
    fn mounts_below_are_found_newest_first() {
        let mountinfo = "\
21 1 0:5 / /run rw - tmpfs tmpfs rw
22 21 0:6 / /run/up rw - tmpfs tmpfs rw
23 22 0:7 / /run/up/a rw - overlay overlay rw
24 22 0:8 / /run/up/b\\040c rw - nsfs nsfs rw
25 21 0:9 / /run/upper rw - tmpfs tmpfs rw
";
        assert_eq!(
            mounts_below(Path::new("/run/up"), mountinfo),
            [PathBuf::from("/run/up/b c"), "/run/up/a".into()]
        );
        assert_eq!(unescaped("a\\134\\"), b"a\\\\");
    }
}
