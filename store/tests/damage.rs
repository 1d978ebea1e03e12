//! The store against damaged files: it opens, and says truthfully whether something is missing.

#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tombolo_store::{Batch, OpenError, Recovery, Store};

const ITEMS: u32 = 1500;

#[test]
fn a_store_is_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/store");
    let (store, recovery) = Store::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    let mut batch = Batch::new();
    batch.put("a/1", "one").put("a/2", "two").put("b", vec![]).put("c", vec![7; 3 << 20]);
    store.commit(batch).unwrap();
    let mut batch = Batch::new();
    batch.delete("a/1").put("a/3", "three").delete("absent");
    store.commit(batch).unwrap();
    for _ in 0..2 {
        let (store, recovery) = reopen(&path, None);
        assert_eq!(recovery, Recovery::Clean);
        assert_eq!(store.get("a/1").unwrap(), None);
        assert_eq!(store.get("b").unwrap(), Some(vec![]));
        assert_eq!(store.get("c").unwrap(), Some(vec![7; 3 << 20]));
        let keys: Vec<_> = store.scan("a/").unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a/2", "a/3"]);
        assert_eq!(store.scan("").unwrap().len(), 4);
        drop(store);
    }
    drop(store);

    fn reopen(path: &Path, _: Option<()>) -> (Store, Recovery) {
        // The first handle is still open in this test: a second opening by the same process is refused as well.
        match Store::open(path) {
            Err(OpenError::InUse { pid, .. }) => {
                assert_eq!(pid, std::process::id().to_string());
                let copy = path
                    .with_file_name(format!("copy{}", fs::read_dir(path.parent().unwrap()).unwrap().count()));
                copy_dir(path, &copy);
                Store::open(&copy).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn hostile_keys_and_values_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    for key in ["", "\0root", &"k".repeat(1025)] {
        let mut batch = Batch::new();
        batch.put(key, "x");
        assert!(store.commit(batch).is_err(), "{key:?}");
    }
    let mut batch = Batch::new();
    batch.put("large", vec![0; tombolo_store::VALUE_MAX + 1]);
    assert!(store.commit(batch).is_err());
    assert!(store.scan("").unwrap().is_empty());
}

#[test]
fn many_threads_share_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = store.clone();
            scope.spawn(move || {
                for n in 0..50 {
                    let mut batch = Batch::new();
                    batch.put(format!("{thread}/{n}"), format!("{n}"));
                    store.commit(batch).unwrap();
                    assert!(store.get(&format!("{thread}/{n}")).unwrap().is_some());
                }
            });
        }
    });
    drop(store);
    let (store, recovery) = Store::open(dir.path()).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert_eq!(store.scan("").unwrap().len(), 400);
}

#[tokio::test]
async fn async_commits_are_durable_too() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut batch = Batch::new();
    batch.put("k", "v");
    store.commit_async(batch).await.unwrap();
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().0.get("k").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn a_torn_or_empty_snapshot_costs_nothing() {
    for keep in [0, 5, 40] {
        let (_dir, path) = filled();
        let snapshot = find(&path, "snap.").expect("sled made no snapshot");
        OpenOptions::new().write(true).open(snapshot).unwrap().set_len(keep).unwrap();
        let (store, recovery) = Store::open(&path).unwrap();
        assert!(recovery.is_complete(), "{recovery}");
        assert_ne!(recovery, Recovery::Clean);
        assert_filled(&store);
        drop(store);
        assert_eq!(Store::open(&path).unwrap().1, Recovery::Clean);
    }
}

#[test]
fn leftovers_and_a_lost_configuration_cost_nothing() {
    let (_dir, path) = filled();
    fs::write(path.join("snap.FFFFFFFFFFFFFFF0.generating"), b"").unwrap();
    let (store, recovery) = Store::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert_filled(&store);
    drop(store);
    fs::write(path.join("conf"), b"garbage of some length").unwrap();
    fs::write(path.join("commits"), b"torn").unwrap();
    let (store, recovery) = Store::open(&path).unwrap();
    if recovery.is_complete() {
        assert_filled(&store);
    } else {
        assert!(matches!(recovery, Recovery::StartedEmpty { .. }), "{recovery}");
    }
}

#[test]
fn damage_in_the_log_is_said() {
    // The head zeroed, garbage in the middle, the end zeroed: at several sizes.
    let mut said = 0;
    for (from, len, byte) in [
        (0, 64 << 10, Some(0)),
        (40 << 10, 800 << 10, None),
        (200 << 10, 4 << 10, None),
        (600 << 10, 100 << 10, Some(0)),
        (1100 << 10, 2 << 10, None),
    ] {
        for keep_snapshot in [true, false] {
            let (_dir, path) = filled();
            if !keep_snapshot {
                fs::remove_file(find(&path, "snap.").unwrap()).unwrap();
            }
            let log = OpenOptions::new().write(true).open(path.join("db")).unwrap();
            let garbage: Vec<u8> = (0..len as u32)
                .map(|i| byte.unwrap_or((i.wrapping_mul(2_654_435_761) >> 13) as u8))
                .collect();
            log.write_all_at(&garbage, from as u64).unwrap();
            let (store, recovery) = Store::open(&path).unwrap();
            let whole = is_filled(&store);
            assert_eq!(recovery.is_complete(), whole, "{from} {len} {byte:?} {keep_snapshot}: {recovery}");
            if let Recovery::StartedEmpty { moved_to } = &recovery {
                assert!(moved_to.join("db").exists());
                assert!(store.scan("").unwrap().is_empty());
            }
            said += u32::from(!whole);
            assert_works(store, &path);
        }
    }
    assert!(said >= 4, "the damage did not hit: {said}");
}

#[test]
fn a_lost_end_of_the_log_is_said() {
    // The end of the file may be room that was not written to yet.
    let mut said = 0;
    for eighths in 1..8 {
        let (_dir, path) = filled();
        fs::remove_file(find(&path, "snap.").unwrap()).unwrap();
        let log = OpenOptions::new().write(true).open(path.join("db")).unwrap();
        let len = log.metadata().unwrap().len();
        log.set_len(len * eighths / 8).unwrap();
        let (store, recovery) = Store::open(&path).unwrap();
        let whole = is_filled(&store);
        assert_eq!(recovery.is_complete(), whole, "{eighths} eighths left: {recovery}");
        said += u32::from(!whole);
        assert_works(store, &path);
    }
    assert!(said >= 3, "too little was cut off: {said}");
}

#[test]
fn garbage_everywhere_starts_empty() {
    let (dir, path) = filled();
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
            fs::write(entry.path(), vec![0xA5; 300_000]).unwrap();
        }
    }
    let (store, recovery) = Store::open(&path).unwrap();
    assert!(!recovery.is_complete(), "{recovery}");
    assert!(store.scan("").unwrap().is_empty());
    assert_works(store, &path);
    drop(dir);
}

/// A store of [`ITEMS`] items in several commits, closed.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, _) = Store::open(&path).unwrap();
    for n in 0..ITEMS / 50 {
        let mut batch = Batch::new();
        for i in n * 50..(n + 1) * 50 {
            batch.put(format!("item/{i:05}"), item(i));
        }
        store.commit(batch).unwrap();
    }
    drop(store);
    // A clean second opening writes a snapshot.
    drop(Store::open(&path).unwrap());
    (dir, path)
}

fn item(i: u32) -> Vec<u8> {
    vec![(i % 251) as u8; 200 + (i * 37 % 1500) as usize]
}

fn is_filled(store: &Store) -> bool {
    let items = store.scan("item/").unwrap();
    items.len() == ITEMS as usize && (0..ITEMS).zip(&items).all(|(i, (_, value))| *value == item(i))
}

fn assert_filled(store: &Store) {
    assert!(is_filled(store));
}

/// Whatever happened: it takes commits, and opens clean the next time.
fn assert_works(store: Store, path: &Path) {
    let mut batch = Batch::new();
    batch.put("after", "all");
    store.commit(batch).unwrap();
    drop(store);
    let (store, recovery) = Store::open(path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert_eq!(store.get("after").unwrap(), Some(b"all".to_vec()));
}

fn find(path: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|entry| entry.file_name().unwrap().to_str().unwrap().starts_with(prefix))
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
