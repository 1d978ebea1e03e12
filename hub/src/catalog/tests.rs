//! Resources over writes, conflicts, cascades and restarts.

use std::path::Path;

use tombolo_api::serving::{Service, ServiceSpec};

use super::*;

fn service(name: &str, image: &str) -> Object {
    let metadata = ObjectMeta { name: name.into(), namespace: "default".into(), ..ObjectMeta::default() };
    let mut spec = ServiceSpec::default();
    spec.template.metadata.name = image.into();
    Object::Service(Arc::new(Service::new(metadata, spec)))
}

fn open(dir: &Path) -> (Catalog, CancellationToken, tokio::task::JoinHandle<()>) {
    let (store, recovery) = Store::open(dir).unwrap();
    let (catalog, writer) = Catalog::open(store, &recovery).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(writer.run(stop.clone()));
    (catalog, stop, task)
}

async fn put(catalog: &Catalog, object: Object) -> Object {
    catalog.transact(move |_| Ok((vec![Change::Put(object)], ()))).await.unwrap().0.remove(0)
}

#[tokio::test]
async fn gives_identity_versions_and_generations() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, ..) = open(dir.path());
    let first = put(&catalog, service("a", "one")).await;
    assert_eq!(first.metadata().generation, 1);
    assert!(!first.metadata().uid.is_empty() && first.metadata().creation_timestamp.is_some());

    let same = put(&catalog, service("a", "one")).await;
    assert_eq!(same, first, "no change is no write");
    let mut labelled = service("a", "one");
    labelled.metadata_mut().labels.insert("l".into(), "m".into());
    let labelled = put(&catalog, labelled).await;
    assert_eq!(labelled.metadata().generation, 1);
    assert_ne!(labelled.metadata().resource_version, first.metadata().resource_version);
    let changed = put(&catalog, service("a", "two")).await;
    assert_eq!(changed.metadata().generation, 2);
    assert_eq!(changed.metadata().uid, first.metadata().uid);

    let events = catalog.since(version_of(first.metadata())).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].before.as_ref(), Some(&labelled));
    assert_eq!(events[1].after.as_ref(), Some(&changed));
}

#[tokio::test]
async fn a_refusal_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, ..) = open(dir.path());
    let before = catalog.state();
    let refused: Result<(Vec<Object>, ()), WriteError> =
        catalog.transact(|_| Err(Box::new(Status::bad_request("no")))).await;
    assert!(matches!(refused, Err(WriteError::Refused(_))));
    assert_eq!(catalog.state(), before);
}

#[tokio::test]
async fn a_reopened_store_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, stop, task) = open(dir.path());
    let metadata = ObjectMeta { name: "line-3".into(), ..ObjectMeta::default() };
    put(&catalog, service("a", "one")).await;
    put(&catalog, service("b", "one")).await;
    let both = vec![
        Change::PutNamespace(Box::new(metadata)),
        Change::Remove(Kind::Service, Key::new("default", "b")),
    ];
    catalog.transact(move |_| Ok((both, ()))).await.unwrap();
    let before = catalog.state();
    assert!(before.namespaces.contains_key("line-3"));
    stop.cancel();
    task.await.unwrap();
    drop(catalog);

    let (catalog, ..) = open(dir.path());
    assert_eq!(catalog.state(), before);
    assert!(
        catalog.since(before.version - 1).is_err(),
        "what a client missed is not remembered over a restart"
    );
}

#[tokio::test]
async fn a_version_is_shown_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (catalog, ..) = open(dir.path());
    let mut states = vec![catalog.state()];
    let steps = [
        ("a", Some("one")),
        ("b", Some("one")),
        ("a", Some("two")),
        ("b", None),
        ("b", Some("three")),
        ("a", None),
    ];
    for (name, image) in steps {
        let change = match image {
            Some(image) => Change::Put(service(name, image)),
            None => Change::Remove(Kind::Service, Key::new("default", name)),
        };
        catalog.transact(move |_| Ok((vec![change], ()))).await.unwrap();
        states.push(catalog.state());
    }
    for state in &states {
        assert_eq!(catalog.at(state.version).as_ref(), Ok(&state.snapshot), "{}", state.version);
    }
    let newest = states.last().unwrap().version;
    let too_large = VersionError::TooLarge { asked: newest + 1, current: newest };
    assert_eq!(catalog.at(newest + 1), Err(too_large));
    assert!(matches!(catalog.at(states[0].version - 1), Err(VersionError::Expired(_))));
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovery) = Store::open(dir.path()).unwrap();
    let mut batch = Batch::new();
    batch.put("r/services/default/a", "{}");
    store.commit(batch).unwrap();
    let error = Catalog::open(store, &recovery).err().unwrap();
    assert!(error.to_string().contains("r/services/default/a"), "{error}");
}
