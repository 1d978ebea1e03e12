//! The registry over HTTP, as any client of the OCI distribution API uses it.

use reqwest::Method;
use serde_json::{Value, json};
use tombolo_api::Digest;

use crate::support::{Client, SERVICES, SERVING, hub, read, service};

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest(layers: &[&[u8]]) -> Vec<u8> {
    let blob = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()});
    let layers: Vec<Value> =
        layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": blob("application/vnd.oci.image.config.v1+json", CONFIG),
        "layers": layers,
    });
    serde_json::to_vec(&manifest).unwrap()
}

/// Pushes a blob in pieces of `piece` bytes.
async fn push_blob(client: &Client, repository: &str, content: &[u8], piece: usize) -> u16 {
    let begun =
        client.request(Method::POST, &format!("/v2/{repository}/blobs/uploads/")).send().await.unwrap();
    assert_eq!(begun.status(), 202);
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    let mut start = 0;
    for piece in content.chunks(piece) {
        let range = format!("{start}-{}", start + piece.len() - 1);
        let sent =
            client.request(Method::PATCH, &location).header("Content-Range", range).body(piece.to_vec());
        let sent = sent.send().await.unwrap();
        assert_eq!(sent.status(), 202);
        start += piece.len();
        assert_eq!(sent.headers()["range"], format!("0-{}", start - 1));
    }
    let finish = client.request(Method::PUT, &format!("{location}?digest={}", Digest::of(content)));
    finish.send().await.unwrap().status().as_u16()
}

async fn push_manifest(client: &Client, repository: &str, target: &str, content: &[u8]) -> (u16, Value) {
    let put = client
        .request(Method::PUT, &format!("/v2/{repository}/manifests/{target}"))
        .header("Content-Type", MANIFEST_TYPE)
        .body(content.to_vec());
    read(put.send().await.unwrap()).await
}

async fn push_image(client: &Client, repository: &str, tag: &str, layer: &[u8]) -> Digest {
    assert_eq!(push_blob(client, repository, CONFIG, 1000).await, 201);
    assert_eq!(push_blob(client, repository, layer, 1000).await, 201);
    let content = manifest(&[layer]);
    assert_eq!(push_manifest(client, repository, tag, &content).await.0, 201);
    Digest::of(&content)
}

fn code_of(errors: &Value) -> &str {
    errors["errors"][0]["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn an_image_is_pushed_read_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    assert_eq!(client.get("/v2/").await, (200, json!({})));
    let layer: Vec<u8> = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = push_image(&client, "line/hello", "v1", &layer).await;

    for target in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/line/hello/manifests/{target}");
        let head = client.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!(head.headers()["docker-content-digest"], digest.to_string());
        let got = client.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(got.headers()["content-type"], MANIFEST_TYPE);
        assert_eq!(Digest::of(&got.bytes().await.unwrap()), digest);
    }
    let blob = format!("/v2/line/hello/blobs/{}", Digest::of(&layer));
    let head = client.request(Method::HEAD, &blob).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"20000".parse().unwrap()));
    let whole = client.request(Method::GET, &blob).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(whole, layer);
    let part = client.request(Method::GET, &blob).header("Range", "bytes=19990-").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), &part.headers()["content-range"]),
        (206, &"bytes 19990-19999/20000".parse().unwrap())
    );
    assert_eq!(part.bytes().await.unwrap(), layer[19990..]);
    let beyond = client.request(Method::GET, &blob).header("Range", "bytes=20000-").send().await.unwrap();
    assert_eq!(beyond.status(), 416);

    assert_eq!(client.get("/v2/line/hello/tags/list").await.1["tags"], json!(["v1"]));
    let mount = format!("/v2/other/blobs/uploads/?mount={}&from=line/hello", Digest::of(&layer));
    assert_eq!(client.request(Method::POST, &mount).send().await.unwrap().status(), 201);
    let unknown = format!("/v2/other/blobs/uploads/?mount={}&from=line/hello", Digest::of(b"?"));
    assert_eq!(client.request(Method::POST, &unknown).send().await.unwrap().status(), 202);

    let path = format!("/v2/line/hello/manifests/{digest}");
    assert_eq!(client.send(Method::DELETE, &path, &Value::Null).await.0, 202);
    assert_eq!(client.get("/v2/line/hello/manifests/v1").await.0, 404);
    assert_eq!(client.send(Method::DELETE, &blob, &Value::Null).await.0, 202);
    assert_eq!(client.get(&blob).await.0, 404);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn wrong_pushes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let wrong = format!("/v2/a/blobs/uploads/?digest={}", Digest::of(b"right"));
    let (code, errors) = read(client.request(Method::POST, &wrong).body("wrong").send().await.unwrap()).await;
    assert_eq!((code, code_of(&errors)), (400, "DIGEST_INVALID"));
    assert_eq!(client.get(&format!("/v2/a/blobs/{}", Digest::of(b"right"))).await.0, 404);
    let right = read(client.request(Method::POST, &wrong).body("right").send().await.unwrap()).await;
    assert_eq!(right.0, 201);

    let (code, errors) = push_manifest(&client, "a", "v1", &manifest(&[b"absent"])).await;
    assert_eq!((code, code_of(&errors)), (400, "MANIFEST_BLOB_UNKNOWN"));
    let (code, errors) = push_manifest(&client, "a", "v1", b"{}").await;
    assert_eq!((code, code_of(&errors)), (400, "MANIFEST_INVALID"));
    push_blob(&client, "a", CONFIG, 1000).await;
    let (code, errors) = push_manifest(&client, "a", &Digest::of(b"?").to_string(), &manifest(&[])).await;
    assert_eq!((code, code_of(&errors)), (400, "DIGEST_INVALID"));
    for (path, code) in [
        ("/v2/A/tags/list", 400),
        ("/v2/a/blobs/sha256:0", 400),
        ("/v2/a/manifests/-x", 404),
        ("/v2/none/tags/list", 404),
        ("/v2/a/blobs/uploads/none", 404),
    ] {
        assert_eq!(client.get(path).await.0, code, "{path}");
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let begun = client.request(Method::POST, "/v2/a/blobs/uploads/").send().await.unwrap();
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    client.request(Method::PATCH, &location).body("begin").send().await.unwrap();
    let failing = futures_util::stream::iter([Ok("part"), Err(std::io::Error::other("broken"))]);
    let broken =
        client.request(Method::PATCH, &location).body(reqwest::Body::wrap_stream(failing)).send().await;
    assert!(broken.is_err());
    // The server may learn a moment later that it broke.
    let at = loop {
        let at = client.request(Method::GET, &location).send().await.unwrap();
        if at.status() == 204 {
            break at.headers()["range"].to_str().unwrap().to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(at, "0-4");
    let gap = client
        .request(Method::PATCH, &location)
        .header("Content-Range", "7-8")
        .body("xx")
        .send()
        .await
        .unwrap();
    assert_eq!(gap.status(), 416);
    let path = format!("{location}?digest={}", Digest::of(b"begin, end"));
    assert_eq!(client.request(Method::PUT, &path).body(", end").send().await.unwrap().status(), 201);
    assert_eq!(client.request(Method::GET, &location).send().await.unwrap().status(), 404);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_pushed_image_is_what_a_revision_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (first, client) = hub(dir.path()).await;
    client.send(Method::POST, SERVICES, &service("a", "hub.tombolo/hello:v1")).await;
    let revisions = format!("{SERVING}/namespaces/default/revisions");
    client.until(&revisions, |list| list["items"][0]["metadata"]["name"].is_string()).await;
    // It comes after it was asked for: the hub notices by itself.
    let digest = push_image(&client, "hello", "v1", b"layer").await;
    let pinned = json!(format!("hub.tombolo/hello@{digest}"));
    let image = |list: &Value| list["items"][0]["status"]["containerStatuses"][0]["imageDigest"].clone();
    let before = client.until(&revisions, |list| image(list) == pinned).await;
    first.stop().await.unwrap();

    let (second, client) = hub(dir.path()).await;
    let (_, after) = client.get(&revisions).await;
    assert_eq!(after["items"][0]["metadata"]["uid"], before["items"][0]["metadata"]["uid"]);
    assert_eq!(image(&after), pinned);
    assert_eq!(client.get("/v2/hello/manifests/v1").await.0, 200);
    // A tag that moves changes nothing of what runs.
    push_image(&client, "hello", "v1", b"another layer").await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(image(&client.get(&revisions).await.1), pinned);
    second.stop().await.unwrap();
}

#[tokio::test]
async fn what_belongs_to_an_image_is_listed_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let digest = push_image(&client, "hello", "v1", b"layer").await;
    let referrers = format!("/v2/hello/referrers/{digest}");
    let empty =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []});
    assert_eq!(client.get(&referrers).await, (200, empty.clone()));
    assert_eq!(client.get(&format!("/v2/none/referrers/{digest}")).await, (200, empty.clone()));
    assert_eq!(client.get("/v2/hello/referrers/latest").await.0, 400);

    let mut signatures = Vec::new();
    for artifact_type in ["example/signature", ""] {
        let mut signature: Value = serde_json::from_slice(&manifest(&[])).unwrap();
        signature["subject"] = json!({"mediaType": MANIFEST_TYPE, "digest": digest.to_string(), "size": 1});
        if !artifact_type.is_empty() {
            signature["artifactType"] = json!(artifact_type);
            signature["annotations"] = json!({"by": "me"});
        }
        let content = serde_json::to_vec(&signature).unwrap();
        let pushed = Digest::of(&content);
        let put = client.request(Method::PUT, &format!("/v2/hello/manifests/{pushed}"));
        let answer = put.header("Content-Type", MANIFEST_TYPE).body(content).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["oci-subject"]),
            (201, &digest.to_string().parse().unwrap())
        );
        signatures.push(pushed);
    }
    let (_, index) = client.get(&referrers).await;
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    let filtered = client.request(Method::GET, &format!("{referrers}?artifactType=example/signature"));
    let filtered = filtered.send().await.unwrap();
    assert_eq!(filtered.headers()["oci-filters-applied"], "artifactType");
    assert_eq!(filtered.headers()["content-type"], "application/vnd.oci.image.index.v1+json");
    let (_, filtered) = read(filtered).await;
    let found = filtered["manifests"].as_array().unwrap();
    assert_eq!((found.len(), &found[0]["digest"]), (1, &json!(signatures[0].to_string())));
    assert_eq!(
        (&found[0]["artifactType"], &found[0]["annotations"]),
        (&json!("example/signature"), &json!({"by": "me"}))
    );
    // Without a type of its own it has its configuration's.
    let query = format!("{referrers}?artifactType=application/vnd.oci.image.config.v1%2Bjson");
    assert_eq!(client.get(&query).await.1["manifests"][0]["digest"], signatures[1].to_string());
    for signature in &signatures {
        let path = format!("/v2/hello/manifests/{signature}");
        assert_eq!(client.send(Method::DELETE, &path, &Value::Null).await.0, 202);
    }
    assert_eq!(client.get(&referrers).await, (200, empty));
    hub.stop().await.unwrap();
}
