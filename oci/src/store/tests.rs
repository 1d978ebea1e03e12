//! The store over crashes, damage and two users.

use std::collections::BTreeSet;

use super::*;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn content_reads_back_under_its_digest() {
    let (_dir, store) = open();
    let digest = store.put(b"content").unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    assert_eq!(store.put(b"content").unwrap(), digest);
    assert!(store.contains(&digest));
    assert_eq!(store.read_blob(&digest, 100).unwrap(), b"content");
    assert!(matches!(store.read_blob(&digest, 3), Err(StoreError::TooLarge { size: 7, .. })));
    let absent = Digest::of(b"absent");
    assert!(matches!(store.read_blob(&absent, 100), Err(StoreError::Missing(_))));
    assert_eq!(store.blobs().unwrap(), BTreeMap::from([(digest, 7)]));
}

#[test]
fn only_one_process_has_it() {
    let (dir, store) = open();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn what_a_crash_leaves_is_cleared_and_downloads_are_kept() {
    let (dir, store) = open();
    let content = vec![5; 1000];
    let digest = Digest::of(&content);
    let mut partial = store.partial(&digest, 1000).unwrap();
    partial.write(&content[..600]).unwrap();
    drop(partial);
    drop(store);
    fs::write(dir.path().join("tmp/half"), b"x").unwrap();
    fs::create_dir_all(dir.path().join("tmp/layer-x/fs")).unwrap();
    // A layer without its record was never complete.
    fs::create_dir_all(dir.path().join("layers").join(digest.hex()).join("fs")).unwrap();

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(store.layer_path(&digest), None);
    let mut partial = store.partial(&digest, 1000).unwrap();
    assert_eq!((partial.len(), partial.missing()), (600, 400));
    partial.write(&content[600..]).unwrap();
    partial.commit().unwrap();
    assert_eq!(store.read_blob(&digest, 2000).unwrap(), content);
    assert!(store.partials().unwrap().is_empty());
}

#[test]
fn every_piece_of_long_work_is_a_beat() {
    let (_dir, store) = open();
    // What is zero takes no room.
    let content = vec![0; 10 * PIECE];
    let digest = Digest::of(&content);
    let beats_of = |work: &dyn Fn()| {
        let before = store.beats();
        work();
        store.beats() - before
    };
    let partial =
        beats_of(&|| store.partial(&digest, content.len() as u64).unwrap().write(&content).unwrap());
    assert_eq!(partial, 0, "nothing was there to be read, and writing follows what comes");
    let resumed = beats_of(&|| store.partial(&digest, content.len() as u64).unwrap().commit().unwrap());
    let verified = beats_of(&|| assert!(store.verify(&digest).unwrap()));
    let removed = beats_of(&|| store.remove_blob(&digest).unwrap());
    assert!(resumed >= 10 && verified >= 10 && removed > 0, "{resumed} {verified} {removed}");
    assert_eq!(beats_of(&|| ()), 0);
}

#[test]
fn a_download_is_verified_as_a_whole() {
    let (_dir, store) = open();
    let digest = Digest::of(b"right");
    let mut partial = store.partial(&digest, 5).unwrap();
    partial.write(b"wrong").unwrap();
    assert!(matches!(partial.write(b"x"), Err(StoreError::SizeMismatch { .. })));
    assert!(matches!(partial.commit(), Err(StoreError::DigestMismatch { .. })));
    assert!(!store.contains(&digest) && store.partials().unwrap().is_empty());
    let partial = store.partial(&digest, 5).unwrap();
    assert!(matches!(partial.commit(), Err(StoreError::SizeMismatch { actual: 0, .. })));
    let mut partial = store.partial(&digest, 5).unwrap();
    partial.write(b"righ").unwrap();
    // The source announces another size now: what is here is longer than that.
    drop(partial);
    assert!(store.partial(&digest, 3).unwrap().is_empty());
}

#[test]
fn damage_of_a_document_is_noticed() {
    let (_dir, store) = open();
    let digest = store.put(b"document").unwrap();
    fs::write(store.blob_path(&digest), b"damaged!").unwrap();
    assert!(store.verify(&store.put(b"sound").unwrap()).unwrap());
    assert!(!store.verify(&digest).unwrap());
    assert!(matches!(store.read_blob(&digest, 100), Err(StoreError::DigestMismatch { .. })));
}

#[test]
fn a_file_becomes_a_blob_only_with_its_digest() {
    let (dir, store) = open();
    let path = dir.path().join("tmp/file");
    fs::write(&path, b"content").unwrap();
    let wrong = Digest::of(b"other");
    assert!(matches!(store.adopt(&path, &wrong), Err(StoreError::DigestMismatch { .. })));
    assert!(path.exists());
    store.adopt(&path, &Digest::of(b"content")).unwrap();
    assert!(!path.exists() && store.contains(&Digest::of(b"content")));
}

/// An archive without members, and what is left of a layer made in another way.
#[test]
fn an_unfinished_layer_makes_way_for_a_whole_one() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: unpacking needs root");
        return;
    }
    let (dir, store) = open();
    let archive = [0; 1024];
    let digest = store.put(&archive).unwrap();
    fs::create_dir_all(dir.path().join("layers").join(digest.hex()).join("fs/rest")).unwrap();
    let unpacked = store.unpack(&digest, &digest).unwrap();
    assert_eq!(store.layer_path(&digest), Some(unpacked.clone()));
    assert_eq!(fs::read_dir(unpacked).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    store.remove_layer(&digest).unwrap();

    let threads: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || store.unpack(&digest, &digest))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    assert!(store.layer_path(&digest).is_some());
    let removed = store.retain(&Keep::default()).unwrap();
    assert_eq!((removed.layers, removed.blobs), (1, 1));
    assert_eq!(store.layer_path(&digest), None);
}

#[test]
fn what_is_not_kept_goes() {
    let (_dir, store) = open();
    let (kept, gone) = (store.put(b"kept").unwrap(), store.put(b"gone").unwrap());
    let (wanted, unwanted) = (Digest::of(b"wanted"), Digest::of(b"unwanted"));
    for digest in [&wanted, &unwanted] {
        store.partial(digest, 10).unwrap().write(b"ten").unwrap();
    }
    let keep = Keep { blobs: BTreeSet::from([kept, wanted]), layers: BTreeSet::new() };
    let removed = store.retain(&keep).unwrap();
    assert_eq!(removed, Removed { blobs: 1, layers: 0, partials: 1, bytes: 7 });
    assert!(store.contains(&kept) && !store.contains(&gone));
    assert_eq!(store.partials().unwrap().len(), 1);
}

#[tokio::test]
async fn one_at_a_time_fetches_a_digest() {
    let (_dir, store) = open();
    let digest = Digest::of(b"x");
    let first = store.claim(&digest).await;
    let second = tokio::time::timeout(std::time::Duration::from_millis(50), store.claim(&digest)).await;
    assert!(second.is_err());
    store.claim(&Digest::of(b"y")).await;
    drop(first);
    store.claim(&digest).await;
}

#[test]
fn room_is_promised_once_and_given_back() {
    let (_dir, store) = open();
    let free = store.free().unwrap();
    let most = free / 4;
    let first = store.reserve(most).unwrap();
    let second = store.reserve(most).unwrap();
    let error = store.reserve(most * 3).unwrap_err();
    assert!(error.to_string().contains("are needed"), "{error}");
    assert!(error.to_string().contains("other downloads need"), "{error}");
    first.used(most);
    drop(second);
    drop(store.reserve(most * 3).unwrap());
    drop(first);
    drop(store.reserve(most * 3).unwrap());

    // What stays free is nobody's.
    store.keep_free(u64::MAX);
    assert!(matches!(store.reserve(1), Err(StoreError::NoRoom { needed: 1, .. })));
    let mut partial = store.partial(&Digest::of(b"x"), 1).unwrap();
    assert!(matches!(partial.write(b"x"), Err(StoreError::NoRoom { .. })));
}

/// A small blob that unpacks to a lot: it stops where the disk has only what stays free.
#[test]
fn unpacking_leaves_free_what_is_to_stay_free() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: unpacking needs root");
        return;
    }
    let (dir, store) = open();
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(64 << 20);
    header.set_mode(0o644);
    archive.append_data(&mut header, "zeros", io::repeat(0).take(64 << 20)).unwrap();
    let blob = store.put(&archive.into_inner().unwrap().finish().unwrap()).unwrap();
    store.keep_free(u64::MAX);
    let error = store.unpack(&blob, &Digest::of(b"any")).unwrap_err();
    assert!(crate::TransferError::from(error).is_disk_full());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_belongs_to_no_download_goes() {
    let (dir, store) = open();
    let (kept, gone) = (Digest::of(b"kept"), Digest::of(b"gone"));
    for digest in [&kept, &gone] {
        store.partial(digest, 10).unwrap().write(b"ten").unwrap();
    }
    let keep = Keep { blobs: BTreeSet::from([kept]), layers: BTreeSet::new() };
    store.retain(&keep).unwrap();
    let left: BTreeSet<_> = fs::read_dir(dir.path().join("partial"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, BTreeSet::from([kept.hex(), format!("{}.marks", kept.hex())]));
}
