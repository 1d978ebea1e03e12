//! Layers good and hostile. What is written needs root (owners, whiteouts); without it the tests say so.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: layers keep owners and whiteouts, which needs root");
    }
    root
}

/// One member: name, type, link target or content.
type Row<'a> = (&'a str, EntryType, &'a str);

/// Names go into the header as they are: the crate's builder would refuse the hostile ones.
fn archive(rows: &[Row<'_>]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, kind, text) in rows {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        let content = if is_link { "" } else { text };
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn unpack_as(&self, blob: &[u8], diff_id: &Digest, limits: &Limits) -> Result<Unpacked, UnpackError> {
        let path = self.dir.path().join("blob");
        fs::write(&path, blob).unwrap();
        let target = self.dir.path().join("target");
        fs::create_dir_all(&target).unwrap();
        unpack(File::open(path).unwrap(), diff_id, &target, limits)
    }

    fn unpack(&self, rows: &[Row<'_>]) -> Result<Unpacked, UnpackError> {
        let archive = archive(rows);
        self.unpack_as(&gzip(&archive), &Digest::of(&archive), &Limits::default())
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("target").join(ROOT)
    }
}

#[test]
fn members_become_files_with_their_attributes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(60), "f".repeat(90));
    let mut builder = Builder::new(archive(&[
        ("bin", EntryType::Directory, ""),
        ("bin/a", EntryType::Regular, "program"),
        ("bin/b", EntryType::Link, "bin/a"),
        ("bin/c", EntryType::Symlink, "a"),
        ("pipe", EntryType::Fifo, ""),
        ("dev/null", EntryType::Char, ""),
        ("./deep/er/file", EntryType::Regular, "x"),
    ]));
    // The end-of-archive blocks of the first part have to go before more is added.
    let mut bytes = builder.get_ref().clone();
    bytes.truncate(bytes.len() - 1024);
    builder = Builder::new(bytes);
    let mut header = Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(1001);
    builder.append_data(&mut header, &long, &b"long"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let unpacked = place.unpack_as(&gzip(&archive), &Digest::of(&archive), &Limits::default()).unwrap();
    let root = place.root();
    assert_eq!(fs::read(root.join("bin/b")).unwrap(), b"program");
    assert_eq!(
        fs::metadata(root.join("bin/a")).unwrap().ino(),
        fs::metadata(root.join("bin/b")).unwrap().ino()
    );
    assert_eq!(fs::read_link(root.join("bin/c")).unwrap(), Path::new("a"));
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(root.join("bin/a")).unwrap().mtime(), 7);
    let metadata = fs::metadata(root.join(&long)).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1000, 1001, 0o4755));
    assert!(!root.join("dev/null").exists());
    assert_eq!((unpacked.devices, unpacked.bytes), (1, 12));
    assert_eq!(recorded_bytes(&place.dir.path().join("target")), Some(12));
}

#[test]
fn deletions_become_whiteouts() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place
        .unpack(&[
            ("etc/.wh.gone", EntryType::Regular, ""),
            ("opt/.wh..wh..opq", EntryType::Regular, ""),
            ("var/.wh.log", EntryType::Regular, ""),
            ("var/log", EntryType::Directory, ""),
        ])
        .unwrap();
    let gone = fs::symlink_metadata(place.root().join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for (path, opaque) in [("opt", true), ("var/log", true), ("var", false)] {
        let mut value = [0; 8];
        let found = rustix::fs::getxattr(place.root().join(path), "trusted.overlay.opaque", &mut value[..]);
        assert_eq!(found.is_ok(), opaque, "{path}");
    }
}

#[test]
fn nothing_leaves_the_root() {
    if !is_root() {
        return;
    }
    let table: [&[Row<'_>]; 8] = [
        &[("../escaped", EntryType::Regular, "x")],
        &[("a/../../escaped", EntryType::Regular, "x")],
        &[("a", EntryType::Symlink, "../.."), ("a/escaped", EntryType::Regular, "x")],
        &[("a", EntryType::Symlink, "/"), ("a/escaped", EntryType::Regular, "x")],
        &[("a", EntryType::Symlink, "../../escaped"), ("a", EntryType::Regular, "x")],
        &[("a", EntryType::Link, "../../blob")],
        &[("b", EntryType::Symlink, "../.."), ("a", EntryType::Link, "b/blob")],
        &[("a", EntryType::Symlink, "../../"), ("a/.wh.blob", EntryType::Regular, "")],
    ];
    for rows in table {
        let place = Place::new();
        // Refused, or written somewhere inside: both are fine.
        let _ = place.unpack(rows);
        let mut outside: Vec<_> =
            fs::read_dir(place.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        outside.sort();
        assert_eq!(outside, ["blob", "target"], "{rows:?}");
        assert!(!Path::new("/escaped").exists(), "{rows:?}");
        assert!(fs::metadata(place.dir.path().join("blob")).unwrap().is_file(), "{rows:?}");
    }
    let refused = Place::new().unpack(&[("../x", EntryType::Regular, "")]).unwrap_err();
    assert!(matches!(refused, UnpackError::Refused { .. }), "{refused}");
}

#[test]
fn absolute_names_mean_the_layers_root() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.unpack(&[("/etc/name", EntryType::Regular, "x")]).unwrap();
    assert_eq!(fs::read(place.root().join("etc/name")).unwrap(), b"x");
}

#[test]
fn extended_headers_give_what_the_plain_one_cannot() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = Builder::new(Vec::new());
    let records: [(&str, &[u8]); 6] = [
        ("path", long.as_bytes()),
        ("mtime", b"12345.6"),
        ("uid", b"3000000"),
        ("SCHILY.xattr.user.kept", b"value"),
        // These would speak to overlayfs or to the host.
        ("SCHILY.xattr.user.overlay.redirect", b"/"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o600);
    builder.append_data(&mut header, "short", &b"x"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    place.unpack_as(&gzip(&archive), &Digest::of(&archive), &Limits::default()).unwrap();
    let path = place.root().join(&long);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mtime(), metadata.uid()), (12345, 3_000_000));
    let mut names = [0; 1000];
    let length = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    assert_eq!(&names[..length], b"user.kept\0");
}

#[test]
fn extended_headers_may_not_fill_the_memory() {
    if !is_root() {
        return;
    }
    let mut builder = Builder::new(Vec::new());
    let value = vec![b'v'; 60_000];
    for number in 0..30 {
        let name = format!("SCHILY.xattr.user.{number}");
        builder.append_pax_extensions([(name.as_str(), value.as_slice())]).unwrap();
    }
    let archive = builder.into_inner().unwrap();
    let refused = Place::new().unpack_as(&archive, &Digest::of(&archive), &Limits::default()).unwrap_err();
    assert!(refused.to_string().contains("extension headers"), "{refused}");
}

#[test]
fn every_compression_gives_the_same() {
    if !is_root() {
        return;
    }
    let content = archive(&[("file", EntryType::Regular, &"some text ".repeat(10_000))]);
    let zstd =
        |part: &[u8]| ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest);
    let (one, two) = content.split_at(40_000);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    for blob in [
        content.clone(),
        gzip(&content),
        [gzip(one), gzip(two)].concat(),
        zstd(&content),
        [&skippable[..], &zstd(one), &skippable, &zstd(two), &skippable].concat(),
    ] {
        let place = Place::new();
        place.unpack_as(&blob, &Digest::of(&content), &Limits::default()).unwrap();
        assert_eq!(fs::metadata(place.root().join("file")).unwrap().len(), 100_000);
    }
}

#[test]
fn links_and_deletions_without_an_object_are_refused() {
    if !is_root() {
        return;
    }
    let table: [&[Row<'_>]; 6] = [
        &[("a", EntryType::Link, "absent")],
        &[("a", EntryType::Link, "a")],
        &[("d", EntryType::Directory, ""), ("a", EntryType::Link, "d")],
        &[(".wh.gone", EntryType::Regular, ""), ("a", EntryType::Link, "gone")],
        &[(".wh.", EntryType::Regular, "")],
        &[("d/.wh...", EntryType::Regular, "")],
    ];
    for rows in table {
        let refused = Place::new().unpack(rows).unwrap_err();
        assert!(matches!(refused, UnpackError::Refused { .. }), "{rows:?}: {refused}");
    }
}

#[test]
fn damage_is_told_apart() {
    if !is_root() {
        return;
    }
    let content = archive(&[("file", EntryType::Regular, &"x".repeat(10_000))]);
    let (blob, diff_id) = (gzip(&content), Digest::of(&content));
    let other = Digest::of(b"other");
    let unpack = |blob: &[u8], diff_id: &Digest| {
        Place::new().unpack_as(blob, diff_id, &Limits::default()).unwrap_err()
    };
    assert!(matches!(unpack(&blob, &other), UnpackError::DiffIdMismatch { .. }));
    assert!(unpack(&blob[..blob.len() / 2], &diff_id).is_damage());
    assert!(unpack(b"", &diff_id).is_damage());
    let mut flipped = content.clone();
    flipped[0] ^= 1;
    assert!(unpack(&gzip(&flipped), &Digest::of(&flipped)).is_damage());
}

#[test]
fn bombs_end_at_their_limits() {
    if !is_root() {
        return;
    }
    let zeros = "\0".repeat(3 << 20);
    let content = archive(&[("zeros", EntryType::Regular, &zeros)]);
    let (blob, diff_id) = (gzip(&content), Digest::of(&content));
    let unpack = |limits: Limits| Place::new().unpack_as(&blob, &diff_id, &limits);
    assert!(unpack(Limits::default()).is_ok());
    let few_bytes = Limits { bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(unpack(few_bytes), Err(UnpackError::TooManyBytes(_))));
    let steep = Limits { ratio: 10, ratio_from: 1 << 20, ..Limits::default() };
    assert!(matches!(unpack(steep), Err(UnpackError::Ratio(10))));
    let rows: Vec<_> = (0..20).map(|number| format!("f{number}")).collect();
    let rows: Vec<Row<'_>> = rows.iter().map(|name| (name.as_str(), EntryType::Regular, "")).collect();
    let many = archive(&rows);
    let few_entries = Limits { entries: 10, ..Limits::default() };
    let refused = Place::new().unpack_as(&gzip(&many), &Digest::of(&many), &few_entries);
    assert!(matches!(refused, Err(UnpackError::TooManyEntries(10))));
}

#[test]
fn a_later_member_replaces_an_earlier() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place
        .unpack(&[
            ("a", EntryType::Directory, ""),
            ("a/b", EntryType::Regular, "old"),
            ("a/b", EntryType::Regular, "new"),
            ("c", EntryType::Regular, "file"),
            ("c", EntryType::Directory, ""),
            ("d", EntryType::Directory, ""),
            ("d/e", EntryType::Regular, ""),
            ("d", EntryType::Regular, "file"),
        ])
        .unwrap();
    assert_eq!(fs::read(place.root().join("a/b")).unwrap(), b"new");
    assert!(place.root().join("c").is_dir());
    assert_eq!(fs::read(place.root().join("d")).unwrap(), b"file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the bytes, it ends with a result.
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let diff_id = Digest::of(&bytes);
        let _ = Place::new().unpack_as(&bytes, &diff_id, &Limits::default());
    }
}
