//! Content by its sha512, and tags that are set beside a digest: as the conformance suite asks for them too.

use super::*;

/// The sha512 of `content`, as an independent program tells it.
fn sha512(content: &[u8]) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut program = Command::new("sha512sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    program.stdin.take().unwrap().write_all(content).unwrap();
    let told = String::from_utf8(program.wait_with_output().unwrap().stdout).unwrap();
    format!("sha512:{}", told.split_whitespace().next().unwrap())
}

fn long_descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha512(content), "size": content.len()})
}

impl Suite {
    /// A blob by its sha512, in one request.
    async fn push_long(&self, content: &[u8]) -> String {
        let digest = sha512(content);
        let place = self.path(&format!("blobs/uploads/?digest={digest}"));
        let answer = self.ask(Method::POST, &place, &[], content).await;
        self.is_named(answer, &digest, content).await;
        digest
    }

    /// What was pushed is named as it was pushed, and found where the answer says.
    async fn is_named(&self, answer: Response, digest: &str, content: &[u8]) {
        assert_eq!(answer.status(), 201);
        assert_eq!(header(&answer, "docker-content-digest"), digest);
        let place = header(&answer, "location");
        assert!(place.ends_with(digest), "{place}");
        for method in [Method::HEAD, Method::GET] {
            let there = self.ask(method.clone(), &place, &[], b"").await;
            assert_eq!(
                (there.status().as_u16(), header(&there, "docker-content-digest").as_str()),
                (200, digest)
            );
            assert_eq!(header(&there, "content-length"), content.len().to_string());
            if method == Method::GET {
                assert_eq!(there.bytes().await.unwrap(), content);
            }
        }
    }

    /// An image that names everything by sha512.
    async fn long_image(&self) -> Value {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        self.push_long(config).await;
        self.push_long(b"layer").await;
        json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": long_descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [long_descriptor("application/vnd.oci.image.layer.v1.tar", b"layer")]})
    }
}

#[tokio::test]
async fn blobs_are_named_by_sha512_too() {
    suite!(hub, suite, "conformance/nine");
    let digest = suite.push_long(b"blob").await;
    suite.push_long(b"").await;
    let blob = format!("blobs/{digest}");
    // The same content, by its other name.
    let short =
        suite.ask(Method::GET, &suite.path(&format!("blobs/{}", Digest::of(b"blob"))), &[], b"").await;
    assert_eq!(header(&short, "docker-content-digest"), Digest::of(b"blob").to_string());
    let part = suite.ask(Method::GET, &suite.path(&blob), &[("Range", "bytes=1-2")], b"").await;
    assert_eq!((part.status().as_u16(), part.bytes().await.unwrap().as_ref()), (206, b"lo".as_slice()));
    // In pieces.
    let place = suite.begin().await;
    let piece = suite.ask(Method::PATCH, &place, &[("Content-Range", "0-3")], b"in p").await;
    let place = format!("{}?digest={}", header(&piece, "location"), sha512(b"in pieces"));
    let put = suite.ask(Method::PUT, &place, &[("Content-Range", "4-8")], b"ieces").await;
    suite.is_named(put, &sha512(b"in pieces"), b"in pieces").await;
    // Another content, no digest, another repository.
    let wrong = suite.path(&format!("blobs/uploads/?digest={}", sha512(b"right")));
    suite.refused(suite.ask(Method::POST, &wrong, &[], b"wrong").await, 400, "DIGEST_INVALID").await;
    suite.refused(suite.get(&format!("blobs/{}", sha512(b"right"))).await, 404, "BLOB_UNKNOWN").await;
    suite.refused(suite.get("blobs/sha512:00").await, 400, "DIGEST_INVALID").await;
    let other = Suite { client: Client::new(suite.client.base().to_owned()), name: "conformance/other" };
    suite.refused(other.get(&blob).await, 404, "BLOB_UNKNOWN").await;
    let mount = other.path(&format!("blobs/uploads/?mount={digest}&from=conformance/nine"));
    other.is_named(other.ask(Method::POST, &mount, &[], b"").await, &digest, b"blob").await;

    assert_eq!(suite.status(Method::DELETE, &blob).await, 202);
    suite.refused(suite.get(&blob).await, 404, "BLOB_UNKNOWN").await;
    suite.refused(suite.ask(Method::DELETE, &suite.path(&blob), &[], b"").await, 404, "BLOB_UNKNOWN").await;
    assert_eq!(other.status(Method::GET, &blob).await, 200, "it has it still");
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn manifests_are_named_by_sha512_and_name_by_it() {
    suite!(hub, suite, "conformance/ten");
    let image = suite.long_image().await;
    let content = serde_json::to_vec(&image).unwrap();
    let digest = sha512(&content);
    suite.is_named(suite.push(&digest, &image).await.1, &digest, &content).await;
    let absent = long_descriptor(MANIFEST, b"absent");
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [long_descriptor(MANIFEST, &content), absent]});
    let index_content = serde_json::to_vec(&index).unwrap();
    let of_index = sha512(&index_content);
    suite.is_named(suite.push(&of_index, &index).await.1, &of_index, &index_content).await;

    suite.refused(suite.push(&sha512(b"?"), &image).await.1, 400, "DIGEST_INVALID").await;
    suite.refused(suite.get(&format!("manifests/{}", sha512(b"?"))).await, 404, "MANIFEST_UNKNOWN").await;
    for part in ["config", "layers"] {
        let mut missing = image.clone();
        let never = long_descriptor("application/vnd.example", b"never pushed");
        missing[part] = if part == "layers" { json!([never]) } else { never };
        suite.refused(suite.push("v1", &missing).await.1, 400, "MANIFEST_BLOB_UNKNOWN").await;
    }
    // What a manifest names by any digest is not deleted before it.
    let layer = suite.path(&format!("blobs/{}", Digest::of(b"layer")));
    suite.refused(suite.ask(Method::DELETE, &layer, &[], b"").await, 405, "UNSUPPORTED").await;

    // Its subject is not here, and is listed as it was named.
    suite.push_blob(b"{}").await;
    let artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.v1",
        "config": descriptor(EMPTY, b"{}"), "layers": [descriptor(EMPTY, b"{}")], "subject": long_descriptor(MANIFEST, b"no")});
    let (referrer, answer) = suite.push("artifact", &artifact).await;
    assert_eq!((answer.status().as_u16(), header(&answer, "oci-subject")), (201, sha512(b"no")));
    let (_, listed) = read(suite.get(&format!("referrers/{}", sha512(b"no"))).await).await;
    assert_eq!(listed["manifests"][0]["digest"], json!(referrer.to_string()));

    let path = format!("manifests/{digest}");
    assert_eq!(suite.status(Method::DELETE, &path).await, 202);
    suite.refused(suite.get(&path).await, 404, "MANIFEST_UNKNOWN").await;
    suite
        .refused(suite.ask(Method::DELETE, &suite.path(&path), &[], b"").await, 404, "MANIFEST_UNKNOWN")
        .await;
    assert_eq!(suite.ask(Method::DELETE, &layer, &[], b"").await.status(), 202);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn tags_are_set_beside_a_digest() {
    suite!(hub, suite, "conformance/eleven");
    let image = suite.long_image().await;
    let content = serde_json::to_vec(&image).unwrap();
    for (digest, tags) in [(Digest::of(&content).to_string(), ["a", "b"]), (sha512(&content), ["b", "c"])] {
        let answer = suite.push(&format!("{digest}?tag={}&tag={}", tags[0], tags[1]), &image).await.1;
        assert_eq!(answer.status(), 201);
        let told: Vec<_> = answer.headers().get_all("oci-tag").iter().collect();
        assert_eq!(told, tags);
        for tag in tags {
            let tagged = suite.get(&format!("manifests/{tag}")).await;
            assert_eq!(header(&tagged, "docker-content-digest"), digest, "as it was named");
            assert_eq!(tagged.bytes().await.unwrap(), content);
        }
    }
    let (_, list) = read(suite.get("tags/list").await).await;
    assert_eq!(list["tags"], json!(["a", "b", "c"]));
    let digest = Digest::of(&content);
    let wrong = suite.push(&format!("{digest}?tag=d&tag=-"), &image).await.1;
    suite.refused(wrong, 400, "TAG_INVALID").await;
    let many: Vec<_> = (0..101).map(|n| format!("tag=t{n}")).collect();
    suite
        .refused(suite.push(&format!("{digest}?{}", many.join("&")), &image).await.1, 400, "TAG_INVALID")
        .await;
    let (_, list) = read(suite.get("tags/list").await).await;
    assert_eq!(list["tags"], json!(["a", "b", "c"]), "all of them or none");

    // Tags go with their manifest, by whichever name.
    assert_eq!(suite.status(Method::DELETE, &format!("manifests/{digest}")).await, 202);
    suite.refused(suite.get("manifests/c").await, 404, "MANIFEST_UNKNOWN").await;
    let (status, list) = read(suite.get("tags/list").await).await;
    assert_eq!((status, &list["tags"]), (200, &json!([])), "the repository is there still");
    hub.stop().await.unwrap();
}
