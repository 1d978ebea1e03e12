//! The store on a disk that fills up: refuses, stays readable, works again when there is room. On a loop-mounted ext4.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use tombolo_store::{Batch, CommitError, Recovery, Store};

/// A small ext4 of its own; unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let disk = Self { dir };
        let ran = run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])
            && run("mount", &["-o", "loop", image.to_str().unwrap(), disk.path().to_str().unwrap()]);
        ran.then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Writes a file until nothing more fits.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &[self.path().to_str().unwrap()]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).status().is_ok_and(|status| status.success())
}

fn put(store: &Store, key: &str, size: usize) -> Result<(), CommitError> {
    let mut batch = Batch::new();
    batch.put(key, vec![key.len() as u8; size]);
    store.commit(batch)
}

fn reads(store: &Store, key: &str) -> bool {
    store.get(key).unwrap().is_some()
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        println!(
            "SKIP: a_full_disk_refuses_and_recovers: cannot mount a loop device (root and mkfs.ext4 needed)"
        );
        return;
    };
    let dir = disk.path().join("store");
    let (store, _) = Store::open(&dir).unwrap();
    put(&store, "before", 1000).unwrap();
    let filler = disk.fill();
    let error = put(&store, "during", 1000).unwrap_err();
    assert!(matches!(error, CommitError::DiskFull { .. }), "{error}");
    assert!(reads(&store, "before") && !reads(&store, "during"));

    // A restart on the full disk: still readable.
    drop(store);
    let (store, recovery) = Store::open(&dir).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert!(reads(&store, "before"));
    assert!(put(&store, "during", 1000).is_err());

    fs::remove_file(filler).unwrap();
    put(&store, "after", 1000).unwrap();
    drop(store);
    let (store, recovery) = Store::open(&dir).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert!(reads(&store, "before") && !reads(&store, "during") && reads(&store, "after"));
}

/// The disk fills up between the check for room and the write: the engine itself meets the error.
#[test]
fn a_write_that_fails_half_way_is_undone() {
    let Some(disk) = SmallDisk::mount() else {
        println!(
            "SKIP: a_write_that_fails_half_way_is_undone: cannot mount a loop device (root and mkfs.ext4 needed)"
        );
        return;
    };
    let dir = disk.path().join("store");
    block_file_size_signal();
    let (store, _) = Store::open(&dir).unwrap();
    put(&store, "before", 1000).unwrap();
    // A limit on file size makes writes fail although the disk has room: the one way to get past the check for sure.
    let mut failures = 0;
    let log = fs::metadata(dir.join("db")).unwrap().len();
    with_file_size_limit(log + (64 << 10), || {
        for n in 0..20 {
            failures += u32::from(put(&store, &format!("big/{n}"), 100_000).is_err());
        }
    });
    assert!(failures > 0, "no write failed");
    // The next commit opens the engine anew; until then readers may be told that it is closed, never something wrong.
    assert!(!matches!(store.get("before"), Ok(None)));
    put(&store, "after", 1000).unwrap();
    assert!(reads(&store, "before"));
    let kept: Vec<_> = (0..20).filter(|n| reads(&store, &format!("big/{n}"))).collect();
    assert_eq!(kept.len() as u32, 20 - failures);
    drop(store);
    let (store, recovery) = Store::open(&dir).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert!(reads(&store, "before") && reads(&store, "after"));
    let found: Vec<_> = (0..20).filter(|n| reads(&store, &format!("big/{n}"))).collect();
    assert_eq!(found, kept);
}

fn with_file_size_limit(bytes: u64, act: impl FnOnce()) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
    act();
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
}

/// SIGXFSZ would end the process: the error is wanted instead. Threads made from now on inherit it.
fn block_file_size_signal() {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().unwrap();
}
