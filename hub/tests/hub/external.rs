//! A hub whose registry is another one: what is pushed to the hub is there, and what was read is served without it.

use reqwest::Method;
use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_hub::config::{Config, ExternalConfig};

use crate::support::{Client, SERVICES, SERVING, config, hub, hub_with, read, service};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn with_external(dir: &std::path::Path, base: &str) -> Config {
    let mut config = config(dir);
    config.registry.external = Some(ExternalConfig {
        url: base.to_owned(),
        ca_file: "".into(),
        user: String::new(),
        password: String::new(),
        password_file: "".into(),
    });
    config
}

/// In two requests, or in three with a piece.
async fn push_blob(client: &Client, content: &[u8], in_pieces: bool) -> Value {
    let digest = Digest::of(content);
    let begun = client.request(Method::POST, "/v2/line/app/blobs/uploads/").send().await.unwrap();
    assert_eq!(begun.status(), 202);
    let mut place = begun.headers()["location"].to_str().unwrap().to_owned();
    assert!(place.starts_with("/v2/line/app/blobs/uploads/"), "{place}");
    let mut rest = content.to_vec();
    if in_pieces {
        let first = rest.drain(..rest.len() / 2).collect::<Vec<_>>();
        let range = format!("0-{}", first.len() - 1);
        let sent = client.request(Method::PATCH, &place).header("Content-Range", range).body(first);
        let sent = sent.send().await.unwrap();
        assert_eq!(sent.status(), 202);
        place = sent.headers()["location"].to_str().unwrap().to_owned();
    }
    let put = client.request(Method::PUT, &format!("{place}?digest={digest}")).body(rest);
    assert_eq!(put.send().await.unwrap().status(), 201);
    json!({"mediaType": "application/vnd.example", "digest": digest.to_string(), "size": content.len()})
}

#[tokio::test]
async fn what_is_pushed_to_the_hub_is_at_the_other_registry() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (other, there) = hub(other_dir.path()).await;
    let (hub, here) = hub_with(with_external(dir.path(), there.base())).await;
    here.send(Method::POST, SERVICES, &service("a", "hub.tombolo/line/app:v1")).await;

    let layer: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let config = push_blob(&here, b"{}", false).await;
    let layer_named = push_blob(&here, &layer, true).await;
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer_named]});
    let content = serde_json::to_vec(&manifest).unwrap();
    let digest = Digest::of(&content);
    let put =
        here.request(Method::PUT, "/v2/line/app/manifests/v1").header("Content-Type", MANIFEST).body(content);
    let put = put.send().await.unwrap();
    assert_eq!(
        (put.status().as_u16(), &put.headers()["docker-content-digest"]),
        (201, &digest.to_string().parse().unwrap())
    );

    for client in [&here, &there] {
        assert_eq!(
            client.get("/v2/line/app/tags/list").await,
            (200, json!({"name": "line/app", "tags": ["v1"]}))
        );
        assert_eq!(client.get("/v2/line/app/manifests/v1").await, (200, manifest.clone()));
        let head = client.request(Method::HEAD, &format!("/v2/line/app/blobs/{}", Digest::of(&layer)));
        assert_eq!(head.send().await.unwrap().headers()["content-length"], layer.len().to_string());
    }
    assert!(!dir.path().join("registry/repositories/line").exists(), "the hub has none of its own");
    // The other registry's refusals are its own.
    let (code, body) =
        read(here.request(Method::GET, "/v2/line/app/manifests/v2").send().await.unwrap()).await;
    assert_eq!((code, &body["errors"][0]["code"]), (404, &json!("MANIFEST_UNKNOWN")));
    // The tag is looked up there, as soon as it is pushed here.
    let pinned = json!(format!("hub.tombolo/line/app@{digest}"));
    let image = |list: &Value| list["items"][0]["status"]["containerStatuses"][0]["imageDigest"].clone();
    here.until(&format!("{SERVING}/namespaces/default/revisions"), |list| image(list) == pinned).await;

    let by_digest =
        [format!("/v2/line/app/manifests/{digest}"), format!("/v2/line/app/blobs/{}", Digest::of(&layer))];
    for path in &by_digest {
        assert_eq!(here.request(Method::GET, path).send().await.unwrap().status(), 200);
    }
    // Without it: what nodes read by digest is here, and the rest says why not.
    other.stop().await.unwrap();
    let blob = here.request(Method::GET, &by_digest[1]).send().await.unwrap();
    assert_eq!(Digest::of(&blob.bytes().await.unwrap()), Digest::of(&layer));
    assert_eq!(here.get(&by_digest[0]).await.0, 200);
    let (code, body) = here.get("/v2/line/app/tags/list").await;
    let message = body["errors"][0]["message"].as_str().unwrap();
    assert!(
        code == 502 && message.contains("the external registry") && message.contains("cannot be reached"),
        "{body}"
    );
    hub.stop().await.unwrap();
}
