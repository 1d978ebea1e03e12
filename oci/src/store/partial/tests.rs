//! What is left of a download after a power cut, whatever became of its end.

use std::fs;
use std::path::Path;

use super::*;
use crate::store::marks::beside;

const SIZE: usize = 100_000;

fn content() -> Vec<u8> {
    (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn open(dir: &Path, boot: &str) -> Partial {
    let store = Store::open_in_boot(dir, boot).unwrap();
    store.partial(&Digest::of(&content()), SIZE as u64).unwrap()
}

/// A download of which 30,000 and 60,000 bytes were synced, and 80,000 written.
fn cut_off() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut partial = open(dir.path(), "a");
    for end in [30_000, 60_000, 80_000] {
        partial.write(&content()[partial.len() as usize..end]).unwrap();
        if end < 80_000 {
            partial.sync().unwrap();
        }
    }
    let path = partial.path.clone();
    (dir, path)
}

#[test]
fn the_same_boot_loses_nothing() {
    let (dir, _) = cut_off();
    for _ in 0..3 {
        assert_eq!(open(dir.path(), "a").len(), 80_000);
    }
}

#[test]
fn another_boot_keeps_what_is_known_to_be_on_the_disk() {
    type Damage = fn(&mut Vec<u8>, &mut Vec<u8>);
    let cases: [(&str, Damage, u64); 9] = [
        ("none at all", |_, _| (), 60_000),
        ("a zeroed end", |data, _| data[60_500..].fill(0), 60_000),
        ("a torn end", |data, _| data.truncate(70_001), 60_000),
        ("an end of garbage", |data, _| data[61_000..].reverse(), 60_000),
        ("a file shorter than what was synced", |data, _| data.truncate(50_000), 30_000),
        ("damage between two marks", |data, _| data[40_000] ^= 1, 30_000),
        ("damage before the first mark", |data, _| data[0] ^= 1, 0),
        ("a torn mark", |_, marks| marks.truncate(marks.len() - 20), 30_000),
        ("no marks", |_, marks| marks.clear(), 0),
    ];
    for (what, damage, kept) in cases {
        let (dir, path) = cut_off();
        let (mut data, mut marks) = (fs::read(&path).unwrap(), fs::read(beside(&path)).unwrap());
        damage(&mut data, &mut marks);
        fs::write(&path, data).unwrap();
        fs::write(beside(&path), marks).unwrap();

        let mut partial = open(dir.path(), "b");
        assert_eq!(partial.len(), kept, "{what}");
        // It goes on, over a crash and one more power cut, and comes to a good end.
        partial.write(&content()[kept as usize..90_000]).unwrap();
        drop(partial);
        let mut partial = open(dir.path(), "b");
        assert_eq!(partial.len(), 90_000, "{what}");
        partial.sync().unwrap();
        drop(partial);
        let mut partial = open(dir.path(), "c");
        assert_eq!(partial.len(), 90_000, "{what}");
        partial.write(&content()[90_000..]).unwrap();
        partial.commit().unwrap();
        assert!(!beside(&path).exists(), "{what}");
        let store = Store::open(dir.path()).unwrap();
        assert!(store.verify(&Digest::of(&content())).unwrap(), "{what}");
    }
}

#[test]
fn damage_in_the_same_boot_costs_what_came_after_the_last_good_mark() {
    let (dir, path) = cut_off();
    let mut data = fs::read(&path).unwrap();
    data[45_000] ^= 1;
    fs::write(&path, data).unwrap();
    assert_eq!(open(dir.path(), "a").len(), 30_000);
}

#[test]
fn long_downloads_are_synced_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_in_boot(dir.path(), "a").unwrap();
    let size = SYNC_EVERY + 3 * PIECE as u64;
    let mut partial = store.partial(&Digest::of(b"x"), size).unwrap();
    while !partial.is_complete() {
        partial.write(&vec![0; PIECE]).unwrap();
    }
    drop((partial, store));
    let store = Store::open_in_boot(dir.path(), "b").unwrap();
    assert_eq!(store.partial(&Digest::of(b"x"), size).unwrap().len(), SYNC_EVERY);
}
