//! The same input gives the same image.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, SystemTime};

use super::*;
use crate::image::{Config, Document, summary};

fn options(source: Source) -> BuildOptions {
    let config = RunConfig {
        entrypoint: vec!["/run".into()],
        env: vec!["A=1".into()],
        exposed_ports: vec!["8080/tcp".into()],
        ..RunConfig::default()
    };
    BuildOptions { source, config, platform: Platform::host() }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn directory(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lib")).unwrap();
    for name in names {
        let path = dir.path().join(name);
        fs::write(&path, name).unwrap();
        let mode = if *name == "run" { 0o775 } else { 0o600 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("run", dir.path().join("start")).unwrap();
    dir
}

#[test]
fn neither_times_nor_order_nor_modes_change_the_digest() {
    let (_dir, store) = store();
    let first = directory(&["run", "lib/b", "lib/a"]);
    let second = directory(&["lib/a", "lib/b", "run"]);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::options().write(true).open(second.path().join("lib/a")).unwrap().set_modified(old).unwrap();
    fs::set_permissions(second.path().join("lib/b"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::create_dir(second.path().join(".git")).unwrap();
    fs::write(second.path().join(".git/HEAD"), "x").unwrap();
    let build = |dir: &tempfile::TempDir| {
        build_directory(&options(Source::Directory(dir.path().into())), &store).unwrap()
    };
    let built = build(&first);
    assert_eq!(build(&second), built);
    fs::write(first.path().join("lib/a"), "changed").unwrap();
    assert_ne!(build(&first).manifest, built.manifest);
}

#[test]
fn files_in_memory_and_on_disk_make_the_same_image() {
    let (_dir, store) = store();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::write(dir.path().join("bin/run"), "program").unwrap();
    fs::set_permissions(dir.path().join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    let file = |path: &str| FileEntry { path: path.into(), executable: true, content: b"program".to_vec() };
    let in_memory = build_directory(&options(Source::Files(vec![file("bin/run")])), &store).unwrap();
    let on_disk = build_directory(&options(Source::Directory(dir.path().into())), &store).unwrap();
    assert_eq!(in_memory, on_disk);
    for both in [["a", "a"], ["a/b", "a"], ["a", "a/b"]] {
        let files = both.iter().map(|path| file(path)).collect();
        let twice = build_directory(&options(Source::Files(files)), &store);
        assert!(matches!(twice, Err(BuildError::Twice(_))), "{both:?}");
    }
    for bad in ["/x", "../x", "a//b", "a/.wh.b", ""] {
        assert!(
            matches!(
                build_directory(&options(Source::Files(vec![file(bad)])), &store),
                Err(BuildError::Path(_))
            ),
            "{bad}"
        );
    }
}

#[test]
fn the_documents_say_how_to_run_it() {
    let (_dir, store) = store();
    let dir = directory(&["run"]);
    let built = build_directory(&options(Source::Directory(dir.path().into())), &store).unwrap();
    let content = store.read_blob(&built.manifest, 1 << 20).unwrap();
    let Document::Manifest(manifest) = Document::parse(&built.manifest, &content).unwrap() else {
        panic!("no manifest")
    };
    assert_eq!(manifest.layers[0].digest, built.layers[0]);
    assert_eq!(store.blob_size(&built.layers[0]), Some(manifest.layers[0].size));
    let config = Config::parse(&built.config, &store.read_blob(&built.config, 1 << 20).unwrap()).unwrap();
    assert_eq!(config.run, options(Source::Files(vec![])).config);
    config.check(&built.manifest, &manifest, &Platform::host()).unwrap();
    if rustix::process::geteuid().is_root() {
        store.unpack(&built.layers[0], &config.diff_ids[0]).unwrap();
        let image = summary(&store, &built.manifest, &Platform::host()).unwrap().unwrap();
        assert_eq!(fs::read(image.layers[0].join("run")).unwrap(), b"run");
        let mode =
            |name: &str| fs::metadata(image.layers[0].join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("run"), mode("lib")), (0o755, 0o755));
    } else {
        eprintln!("SKIPPED: unpacking needs root");
    }
}

#[test]
fn what_an_image_cannot_hold_is_named() {
    let (_dir, store) = store();
    let dir = directory(&["run"]);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let error = build_directory(&options(Source::Directory(dir.path().into())), &store).unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
    let dir = directory(&["run", "lib/.wh.a"]);
    let error = build_directory(&options(Source::Directory(dir.path().into())), &store).unwrap_err();
    assert!(error.to_string().contains(".wh.a"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = build_directory(&options(Source::Directory(empty.path().into())), &store).unwrap_err();
    assert!(matches!(error, BuildError::Empty(_)));
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn an_image_on_a_base_has_the_layers_of_both() {
    let (_dir, store) = store();
    let dir = directory(&["run", "lib/a", "skip"]);
    let mut members = Members::default();
    members.add_tree(dir.path(), Path::new("app"), &|path, _| path != Path::new("skip")).unwrap();
    members.add_shared_directory(Path::new("tmp")).unwrap();
    members.add_content("etc/passwd", b"root".to_vec(), false).unwrap();
    assert!(members.contains(Path::new("app/lib/a")) && !members.contains(Path::new("app/skip")));
    let tmp = store.root().join("tmp");
    let (_file, upper) = write_layer(&members, &tmp).unwrap();
    assert_eq!(write_layer(&members, &tmp).unwrap().1, upper);
    let lower = Layer { digest: Digest::of(b"elsewhere"), diff_id: Digest::of(b"plain"), ..upper.clone() };
    let labels = BTreeMap::from([("org.opencontainers.image.revision".to_owned(), "4f".to_owned())]);
    let image = Composition { layers: vec![lower.clone(), upper.clone()], labels, ..Composition::default() };
    let documents = image.documents();
    assert_eq!(image.documents(), documents);
    let digest = Digest::of(&documents.manifest);
    let Document::Manifest(manifest) = Document::parse(&digest, &documents.manifest).unwrap() else {
        panic!("no manifest")
    };
    assert_eq!(
        manifest.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(),
        [lower.digest, upper.digest]
    );
    let config = Config::parse(&manifest.config.digest, &documents.config).unwrap();
    assert_eq!(config.diff_ids, [lower.diff_id, upper.diff_id]);
    for text in [&documents.manifest, &documents.config] {
        assert!(String::from_utf8_lossy(text).contains(r#""org.opencontainers.image.revision":"4f""#));
    }
}
