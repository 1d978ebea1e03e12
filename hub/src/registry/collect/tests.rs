//! What is collected, and what is not.

use serde_json::json;
use tombolo_oci::image::OCI_MANIFEST;

use super::super::digests::Sha512;
use super::*;

const CONFIG: &[u8] = b"{}";

/// A registry, and a moment after everything that was done before it.
fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    (dir, registry)
}

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(60)
}

fn push(registry: &Registry, repository: &Repository, content: &[u8]) -> Digest {
    let digest = registry.0.images.put(content).unwrap();
    registry.0.names.add_blob(repository, &digest).unwrap();
    digest
}

fn push_image(registry: &Registry, repository: &Repository, layer: &[u8]) -> (Digest, Digest) {
    let blob =
        |digest: Digest, size: usize| json!({"mediaType": "x/y", "digest": digest.to_string(), "size": size});
    let config = push(registry, repository, CONFIG);
    let layer_digest = push(registry, repository, layer);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blob(config, CONFIG.len()),
        "layers": [blob(layer_digest, layer.len())],
    });
    let digest = registry.0.images.put(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    registry.0.names.add_manifest(repository, &digest, OCI_MANIFEST).unwrap();
    (digest, layer_digest)
}

#[test]
fn what_a_manifest_names_stays() {
    let (_dir, registry) = registry();
    let (a, b): (Repository, Repository) = ("a".parse().unwrap(), "b/c".parse().unwrap());
    let (manifest, layer) = push_image(&registry, &a, b"layer");
    let left = push(&registry, &a, b"a push that broke off");
    registry.0.names.add_blob(&b, &layer).unwrap();

    assert_eq!(registry.collect(SystemTime::UNIX_EPOCH).unwrap(), Collected::default(), "all is in use");
    let collected = registry.collect(later()).unwrap();
    assert_eq!(collected, Collected { links: 2, blobs: 1, bytes: 21 });
    assert!(!registry.0.images.contains(&left));
    assert!(!registry.0.names.has_blob(&b, &layer), "mounted, and never named");
    assert!(registry.0.names.has_blob(&a, &layer) && registry.0.images.contains(&layer));

    assert!(registry.0.names.remove_manifest(&a, &manifest).unwrap());
    let collected = registry.collect(later()).unwrap();
    assert_eq!((collected.links, collected.blobs), (2, 3));
    assert!(registry.0.images.blobs().unwrap().is_empty());
}

#[test]
fn what_a_manifest_names_by_another_digest_stays_and_such_names_go_with_it() {
    let (_dir, registry) = registry();
    let a: Repository = "a".parse().unwrap();
    let names = &registry.0.names;
    let blob = |content: &[u8]| {
        names.add_other_name(&Sha512::of(content), &push(&registry, &a, content)).unwrap();
        json!({"mediaType": "x/y", "digest": Sha512::of(content).to_string(), "size": content.len()})
    };
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob(CONFIG), "layers": [blob(b"layer")]});
    let manifest = registry.0.images.put(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    names.add_manifest(&a, &manifest, OCI_MANIFEST).unwrap();
    blob(b"left");

    assert_eq!(registry.collect(later()).unwrap(), Collected { links: 1, blobs: 1, bytes: 4 });
    assert_eq!(names.other_name(&Sha512::of(b"layer")).unwrap(), Some(Digest::of(b"layer")));
    assert_eq!(names.other_name(&Sha512::of(b"left")).unwrap(), None);
    assert!(names.remove_manifest(&a, &manifest).unwrap());
    registry.collect(later()).unwrap();
    assert_eq!(names.other_name(&Sha512::of(b"layer")).unwrap(), None);
}

#[test]
fn a_push_under_way_keeps_what_it_was_told_is_there() {
    let (_dir, registry) = registry();
    let a: Repository = "a".parse().unwrap();
    let blob = push(&registry, &a, b"layer");
    let before = SystemTime::now() + Duration::from_millis(1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(registry.0.names.use_blob(&a, &blob).unwrap());
    assert_eq!(registry.collect(before).unwrap(), Collected::default());
    // Old content that is mounted elsewhere has a new link.
    let b: Repository = "b".parse().unwrap();
    registry.0.names.remove_blob(&a, &blob).unwrap();
    registry.0.names.add_blob(&b, &blob).unwrap();
    assert_eq!(registry.collect(before).unwrap(), Collected::default());
    assert!(registry.0.images.contains(&blob));
}

#[test]
fn a_damaged_manifest_costs_nothing_more() {
    let (_dir, registry) = registry();
    let a: Repository = "a".parse().unwrap();
    let (manifest, layer) = push_image(&registry, &a, b"layer");
    std::fs::write(registry.0.images.blob_path(&manifest), b"{}").unwrap();
    assert_eq!(registry.collect(later()).unwrap(), Collected::default());
    assert!(registry.0.names.has_blob(&a, &layer) && registry.0.images.contains(&layer));
}

#[test]
fn a_registry_without_links_gets_them() {
    let (dir, registry) = registry();
    let a: Repository = "a".parse().unwrap();
    let (_, layer) = push_image(&registry, &a, b"layer");
    drop(registry);
    std::fs::remove_dir_all(dir.path().join("repositories/a/_blobs")).unwrap();
    std::fs::remove_file(dir.path().join("repositories/.linked")).unwrap();
    let registry = Registry::open(dir.path()).unwrap();
    assert!(registry.0.names.has_blob(&a, &layer));
}
