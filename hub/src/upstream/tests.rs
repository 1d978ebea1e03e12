//! For whom what is fetched.

use serde_json::json;
use tombolo_api::serving::Revision;
use tombolo_hub_core::{Object, Snapshot};

use super::*;
use crate::config::UpstreamConfig;

#[test]
fn nodes_cannot_have_the_hub_ask_anybody_they_like() {
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": { "name": "a-00001", "namespace": "default" },
        "spec": { "containers": [{ "name": "user-container", "image": "named.example/app:v1" }] },
    }))
    .unwrap();
    let mut snapshot = Snapshot::default();
    snapshot.put(Object::Revision(revision.into()));
    let (_state, receiver) = watch::channel(Arc::new(State { snapshot, version: 1, ..State::default() }));
    let nothing = String::new();
    let covered = UpstreamConfig {
        prefix: "covered.example/team".into(),
        url: "http://mirror".into(),
        ca_file: "".into(),
        user: nothing.clone(),
        password: nothing,
        password_file: "".into(),
    };
    let config = RegistryConfig { upstreams: vec![covered], ..RegistryConfig::default() };
    let dir = tempfile::tempdir().unwrap();
    let upstreams = Upstreams::open(dir.path(), &config, receiver).unwrap();
    for (host, repository, for_nodes) in [
        ("named.example", "app", true),
        ("named.example", "other", false),
        ("covered.example", "team/any", true),
        ("covered.example", "other", false),
        ("127.0.0.1:22", "app", false),
    ] {
        let repository = repository.parse().unwrap();
        let asked = upstreams.allowed(Asker::Node, host, &repository);
        assert_eq!(asked.is_ok(), for_nodes, "{host}/{repository}");
        if let Err(refused) = asked {
            assert!(refused.to_string().contains("no revision names an image of"), "{refused}");
        }
        assert!(upstreams.allowed(Asker::Person, host, &repository).is_ok());
    }
}
