//! A disk that becomes full at any moment of a pull: it is said, nothing of what was verified is lost, and the pull goes on from
//! there once there is room again.

#[path = "support/registry.rs"]
mod registry;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry::{check_asked, image, on_the_disk, serve};
use tombolo_oci::image::Platform;
use tombolo_oci::{Client, Endpoint, Progress, Scheme, Store};

/// Bytes of the disk: room for the image, as far as is known before, and a little.
const DISK: usize = 24 << 20;

/// A small file system of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: a disk of one's own needs root");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let options = format!("size={DISK}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        assert!(mounted.expect("mount").success());
        Some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_at_any_moment_costs_nothing_that_was_had() {
    let Some(disk) = Disk::mount() else { return };
    let built = tempfile::tempdir().expect("a directory");
    let (mut registry, image) = image(built.path());
    let (filler, full_at) = (disk.path().join("filler"), Arc::new(AtomicUsize::new(0)));
    let (path, at) = (filler.clone(), full_at.clone());
    registry.after_piece = Some(Box::new(move |given| {
        if given == at.load(Ordering::SeqCst) {
            fill(&path);
        }
    }));
    let registry = Arc::new(registry);
    let address = serve(registry.clone()).await.to_string();
    let client = Client::new(Endpoint { scheme: Scheme::Http, address, auth: None, server_name: None });
    let client = client.expect("a client");
    let (repository, platform) = ("a".parse().expect("a name"), Platform::host());
    let mut refused = 0;
    for moment in (0..).step_by(2) {
        let dir = disk.path().join("store");
        let store = Store::open(&dir).expect("a store");
        registry.given.store(0, Ordering::SeqCst);
        full_at.store(moment, Ordering::SeqCst);
        let pulled = client.pull(&store, &repository, &image, &platform, &Progress::default()).await;
        let pieces = registry.given.load(Ordering::SeqCst);
        if let Err(error) = pulled {
            assert_eq!(error.reason(), "DiskFull", "{moment}: {error}");
            refused += 1;
        }
        // What a full disk leaves can be opened, and taken away, without a byte of room.
        drop(store);
        let store = Store::open(&dir).expect("a store on a full disk, which nobody writes to any more");
        let _ = std::fs::remove_file(&filler);
        full_at.store(usize::MAX, Ordering::SeqCst);
        let there = on_the_disk(&dir, &registry);
        registry.asked.lock().expect("no panic").clear();
        let summary = client.pull(&store, &repository, &image, &platform, &Progress::default()).await;
        let summary = summary.unwrap_or_else(|error| panic!("{moment}, with room again: {error}"));
        check_asked(&there, &registry);
        for blob in &summary.blobs {
            assert!(store.verify(blob).expect("a blob"), "{moment}: {blob}");
        }
        fill(&filler);
        store.retain(&tombolo_oci::store::Keep::default()).expect("what is not kept goes from a full disk");
        std::fs::remove_file(&filler).expect("the filler");
        if moment >= pieces {
            break;
        }
    }
    assert!(refused > 10, "{refused} pulls met a full disk");
}
