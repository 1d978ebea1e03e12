//! The OCI distribution specification 1.1, request by request, as its conformance suite asks: pull, push, content
//! discovery, content management.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tombolo_api::Digest;

use crate::support::{Client, hub, read};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A repository, and what the suite does to it.
struct Suite {
    client: Client,
    name: &'static str,
}

impl Suite {
    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.name)
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let mut request = self.client.request(method, path).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, rest: &str) -> Response {
        self.ask(Method::GET, &self.path(rest), &[], b"").await
    }

    async fn status(&self, method: Method, rest: &str) -> u16 {
        self.ask(method, &self.path(rest), &[], b"").await.status().as_u16()
    }

    /// Begins an upload; its place.
    async fn begin(&self) -> String {
        let begun =
            self.ask(Method::POST, &self.path("blobs/uploads/"), &[("Content-Length", "0")], b"").await;
        assert_eq!(begun.status(), 202);
        header(&begun, "location")
    }

    async fn push_blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        let place = with_digest(&self.begin().await, &digest);
        let put =
            self.ask(Method::PUT, &place, &[("Content-Type", "application/octet-stream")], content).await;
        self.is_stored(put, &digest, content).await;
        digest
    }

    /// The answer to a push names the digest and a place where the content is.
    async fn is_stored(&self, answer: Response, digest: &Digest, content: &[u8]) {
        assert_eq!(answer.status(), 201);
        assert_eq!(header(&answer, "docker-content-digest"), digest.to_string());
        let there = self.ask(Method::GET, &header(&answer, "location"), &[], b"").await;
        assert_eq!(there.status(), 200);
        assert_eq!(there.bytes().await.unwrap(), content);
    }

    async fn push(&self, target: &str, document: &Value) -> (Digest, Response) {
        let content = serde_json::to_vec(document).unwrap();
        let media_type = document["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        let path = self.path(&format!("manifests/{target}"));
        let answer = self.ask(Method::PUT, &path, &[("Content-Type", &media_type)], &content).await;
        (Digest::of(&content), answer)
    }

    /// Pushes under its digest; what a descriptor says of it.
    async fn push_manifest(&self, document: &Value) -> Value {
        let content = serde_json::to_vec(document).unwrap();
        let digest = Digest::of(&content);
        let (_, answer) = self.push(&digest.to_string(), document).await;
        self.is_stored(answer, &digest, &content).await;
        descriptor(document["mediaType"].as_str().unwrap(), &content)
    }

    /// An image whose blobs are pushed.
    async fn image(&self, layers: &[&[u8]]) -> Value {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        self.push_blob(config).await;
        let mut named = Vec::new();
        for layer in layers {
            self.push_blob(layer).await;
            named.push(descriptor("application/vnd.oci.image.layer.v1.tar", layer));
        }
        json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": named})
    }

    async fn refused(&self, answer: Response, status: u16, code: &str) {
        let (found, body) = read(answer).await;
        assert_eq!((found, body["errors"][0]["code"].as_str()), (status, Some(code)), "{body}");
        assert!(body["errors"][0]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    }
}

fn header(answer: &Response, name: &str) -> String {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

fn with_digest(place: &str, digest: &Digest) -> String {
    format!("{place}?digest={digest}")
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

fn digest_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}

/// A running hub and a suite for its repository `name`.
macro_rules! suite {
    ($hub:ident, $suite:ident, $name:literal) => {
        let dir = tempfile::tempdir().unwrap();
        let ($hub, client) = hub(dir.path()).await;
        let $suite = Suite { client, name: $name };
    };
}

mod catalog;
mod connections;
mod other_names;
mod referrers;

#[tokio::test]
async fn blobs_are_pushed_in_every_way() {
    suite!(hub, suite, "conformance/one");
    let content: Vec<u8> = (0..700_u32).flat_map(u32::to_le_bytes).collect();
    let blob = |n: u8| [&[n], content.as_slice()].concat();
    let octets = ("Content-Type", "application/octet-stream");
    assert_eq!(suite.status(Method::GET, &format!("blobs/{}", Digest::of(b"?"))).await, 404);

    // In one request.
    let (one, two, three) = (blob(1), blob(2), blob(3));
    let place = with_digest(&suite.path("blobs/uploads/"), &Digest::of(&one));
    let posted = suite.ask(Method::POST, &place, &[octets], &one).await;
    suite.is_stored(posted, &Digest::of(&one), &one).await;
    // In two, and streamed.
    suite.push_blob(&two).await;
    let place = suite.begin().await;
    let streamed = suite.ask(Method::PATCH, &place, &[octets], &three).await;
    assert_eq!(streamed.status(), 202);
    let place = with_digest(&header(&streamed, "location"), &Digest::of(&three));
    suite.is_stored(suite.ask(Method::PUT, &place, &[octets], b"").await, &Digest::of(&three), &three).await;
    // In pieces, the last one with PUT; a piece out of order is refused, and says where the upload is.
    for last_is_put in [false, true] {
        let content = blob(4 + u8::from(last_is_put));
        let digest = Digest::of(&content);
        let mut place = suite.begin().await;
        let pieces: Vec<_> = content.chunks(1000).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let start = index * 1000;
            let range = format!("{start}-{}", start + piece.len() - 1);
            let wrong = format!("{}-{}", start + 1000, start + 999 + piece.len());
            let refused = suite.ask(Method::PATCH, &place, &[("Content-Range", &wrong)], piece).await;
            assert_eq!(
                (refused.status(), header(&refused, "location").is_empty()),
                (416.try_into().unwrap(), false)
            );
            let at = suite.ask(Method::GET, &place, &[], b"").await;
            assert_eq!(
                (at.status().as_u16(), header(&at, "range")),
                (204, format!("0-{}", start.saturating_sub(1)))
            );
            place = header(&at, "location");
            let headers = [octets, ("Content-Range", range.as_str())];
            if last_is_put && index + 1 == pieces.len() {
                let answer = suite.ask(Method::PUT, &with_digest(&place, &digest), &headers, piece).await;
                suite.is_stored(answer, &digest, &content).await;
            } else {
                let answer = suite.ask(Method::PATCH, &place, &headers, piece).await;
                assert_eq!(answer.status(), 202);
                place = header(&answer, "location");
            }
        }
        if !last_is_put {
            let answer =
                suite.ask(Method::PUT, &with_digest(&place, &digest), &[("Content-Length", "0")], b"").await;
            suite.is_stored(answer, &digest, &content).await;
        }
    }
    // The empty blob, and the empty object of artifacts.
    for content in [b"".as_slice(), b"{}"] {
        let digest = suite.push_blob(content).await;
        let head = suite.ask(Method::HEAD, &suite.path(&format!("blobs/{digest}")), &[], b"").await;
        assert_eq!(
            (head.status().as_u16(), header(&head, "content-length")),
            (200, content.len().to_string())
        );
        assert_eq!(header(&head, "docker-content-digest"), digest.to_string());
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn wrong_uploads_are_refused_and_cancelled_ones_are_gone() {
    suite!(hub, suite, "conformance/two");
    let digest = Digest::of(b"right");
    let place = with_digest(&suite.path("blobs/uploads/"), &digest);
    suite.refused(suite.ask(Method::POST, &place, &[], b"wrong").await, 400, "DIGEST_INVALID").await;
    let place = suite.begin().await;
    suite.ask(Method::PATCH, &place, &[], b"wro").await;
    let put = suite.ask(Method::PUT, &with_digest(&place, &digest), &[], b"ng").await;
    suite.refused(put, 400, "DIGEST_INVALID").await;
    assert_eq!(suite.status(Method::HEAD, &format!("blobs/{digest}")).await, 404);

    let place = suite.begin().await;
    suite.refused(suite.ask(Method::PUT, &place, &[], b"right").await, 400, "DIGEST_INVALID").await;
    let unheard = suite.ask(Method::PUT, &format!("{place}?digest=md5:00"), &[], b"").await;
    suite.refused(unheard, 400, "DIGEST_INVALID").await;
    // A piece that is not as long as its range says.
    let short = suite.ask(Method::PATCH, &place, &[("Content-Range", "0-9")], b"right").await;
    suite.refused(short, 400, "SIZE_INVALID").await;
    // Another repository has no such upload.
    let id = place.rsplit('/').next().unwrap();
    let elsewhere = format!("/v2/conformance/other/blobs/uploads/{id}");
    suite.refused(suite.ask(Method::GET, &elsewhere, &[], b"").await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    suite.refused(suite.ask(Method::DELETE, &elsewhere, &[], b"").await, 404, "BLOB_UPLOAD_UNKNOWN").await;
    assert_eq!(suite.ask(Method::DELETE, &place, &[], b"").await.status(), 204);
    for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
        let answer = suite.ask(method, &with_digest(&place, &digest), &[], b"right").await;
        suite.refused(answer, 404, "BLOB_UPLOAD_UNKNOWN").await;
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn blobs_are_mounted_from_where_they_are() {
    suite!(hub, suite, "conformance/three");
    let other = Suite { client: Client::new(suite.client.base().to_owned()), name: "conformance/other" };
    let digest = other.push_blob(b"shared").await;
    assert_eq!(suite.status(Method::HEAD, &format!("blobs/{digest}")).await, 404, "another repository's");

    let mount = |query: String| suite.path(&format!("blobs/uploads/?mount={digest}{query}"));
    let from_nowhere = suite.ask(Method::POST, &mount("&from=conformance/none".into()), &[], b"").await;
    assert_eq!(from_nowhere.status(), 202);
    // It goes on as an upload.
    let place = with_digest(&header(&from_nowhere, "location"), &digest);
    suite.is_stored(suite.ask(Method::PUT, &place, &[], b"shared").await, &digest, b"shared").await;
    assert_eq!(suite.status(Method::DELETE, &format!("blobs/{digest}")).await, 202);
    assert_eq!(suite.status(Method::HEAD, &format!("blobs/{digest}")).await, 404);
    for query in ["&from=conformance/other", ""] {
        let mounted = suite.ask(Method::POST, &mount(query.into()), &[], b"").await;
        suite.is_stored(mounted, &digest, b"shared").await;
        assert_eq!(suite.status(Method::DELETE, &format!("blobs/{digest}")).await, 202);
    }
    // What one repository gives up, the other keeps.
    assert_eq!(other.status(Method::GET, &format!("blobs/{digest}")).await, 200);
    let unknown = suite.path(&format!("blobs/uploads/?mount={}&from=conformance/other", Digest::of(b"?")));
    assert_eq!(suite.ask(Method::POST, &unknown, &[], b"").await.status(), 202);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn parts_of_blobs_are_read() {
    suite!(hub, suite, "conformance/four");
    let content: Vec<u8> = (0..512_u32).flat_map(u32::to_le_bytes).collect();
    let path = suite.path(&format!("blobs/{}", suite.push_blob(&content).await));
    for (range, expected) in [
        ("bytes=500-1499", Some((500, 1500))),
        ("bytes=500-", Some((500, 2048))),
        ("bytes=-500", Some((1548, 2048))),
        ("bytes=2000-5000", Some((2000, 2048))),
        ("bytes=500-0", None),
        ("bytes=5000-10000", None),
    ] {
        let answer = suite.ask(Method::GET, &path, &[("Range", range)], b"").await;
        let Some((start, end)) = expected else {
            assert_eq!(answer.status(), 416, "{range}");
            continue;
        };
        assert_eq!(
            (answer.status().as_u16(), header(&answer, "content-length")),
            (206, (end - start).to_string())
        );
        assert_eq!(header(&answer, "content-range"), format!("bytes {start}-{}/2048", end - 1));
        assert_eq!(answer.bytes().await.unwrap(), content[start..end]);
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn manifests_of_every_kind_are_pushed_read_and_deleted() {
    suite!(hub, suite, "conformance/five");
    let image = suite.image(&[b"one", b"two"]).await;
    let (mut platforms, mut documents) =
        (Vec::new(), vec![("image", image.clone()), ("no-layers", suite.image(&[]).await)]);
    for architecture in ["amd64", "arm64"] {
        let mut of = suite.image(&[architecture.as_bytes()]).await;
        of["org.example.unknown"] = json!(architecture);
        let mut entry = suite.push_manifest(&of).await;
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        platforms.push(entry);
    }
    let index = |manifests: &[Value]| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    documents.push(("index", index(&platforms)));
    let nested = suite.push_manifest(&index(&platforms[..1])).await;
    documents.push(("nested-index", index(&[nested])));
    documents.push(("empty-index", index(&[])));
    let absent = json!({"mediaType": MANIFEST, "digest": Digest::of(b"absent").to_string(), "size": 6, "platform": {"os": "linux", "architecture": "s390x"}});
    documents.push(("sparse-index", index(&[platforms[0].clone(), absent])));
    suite.push_blob(b"{}").await;
    suite.push_blob(b"payload").await;
    let mut artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.v1",
        "config": descriptor(EMPTY, b"{}"), "layers": [descriptor("application/vnd.example.v1", b"payload")]});
    documents.push(("artifact", artifact.clone()));
    artifact["layers"] = json!([descriptor(EMPTY, b"{}")]);
    documents.push(("artifact-without-layers", artifact));
    let mut elsewhere = image.clone();
    elsewhere["layers"][0] = json!({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": Digest::of(b"elsewhere").to_string(), "size": 9, "urls": ["https://store.example/blob"]});
    documents.push(("non-distributable", elsewhere));
    let mut large = image.clone();
    let annotations = (0..390).map(|i| (format!("large-{i}"), json!("A".repeat(10_000))));
    large["annotations"] = Value::Object(annotations.collect());
    documents.push(("large-manifest", large));
    let mut data = image.clone();
    data["layers"][0]["data"] = json!("b25l");
    documents.push(("data-field", data));

    let mut pushed = Vec::new();
    for (tag, document) in &documents {
        let (digest, answer) = suite.push(tag, document).await;
        let content = serde_json::to_vec(document).unwrap();
        suite.is_stored(answer, &digest, &content).await;
        for target in [(*tag).to_owned(), digest.to_string()] {
            let path = suite.path(&format!("manifests/{target}"));
            let head = suite.ask(Method::HEAD, &path, &[("Accept", INDEX), ("Accept", MANIFEST)], b"").await;
            let got = suite.ask(Method::GET, &path, &[("Accept", INDEX), ("Accept", MANIFEST)], b"").await;
            for answer in [&head, &got] {
                assert_eq!(
                    (answer.status().as_u16(), header(answer, "content-length")),
                    (200, content.len().to_string())
                );
                assert_eq!(header(answer, "docker-content-digest"), digest.to_string());
                assert_eq!(header(answer, "content-type"), document["mediaType"].as_str().unwrap());
            }
            assert_eq!(got.bytes().await.unwrap(), content, "{tag}");
        }
        pushed.push((*tag, digest));
    }
    for (tag, digest) in pushed.iter().rev() {
        assert_eq!(suite.status(Method::DELETE, &format!("manifests/{tag}")).await, 202);
        assert_eq!(suite.status(Method::HEAD, &format!("manifests/{tag}")).await, 404);
        assert_eq!(
            suite.status(Method::GET, &format!("manifests/{digest}")).await,
            200,
            "a tag is only a name"
        );
        assert_eq!(suite.status(Method::DELETE, &format!("manifests/{digest}")).await, 202);
        suite.refused(suite.get(&format!("manifests/{digest}")).await, 404, "MANIFEST_UNKNOWN").await;
        suite
            .refused(
                suite.ask(Method::DELETE, &suite.path(&format!("manifests/{digest}")), &[], b"").await,
                404,
                "MANIFEST_UNKNOWN",
            )
            .await;
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn wrong_manifests_are_refused() {
    suite!(hub, suite, "conformance/six");
    let image = suite.image(&[b"layer"]).await;
    let (_, answer) = suite.push(&Digest::of(b"?").to_string(), &image).await;
    suite.refused(answer, 400, "DIGEST_INVALID").await;
    for target in ["sha256:baddigeststring", "sha512:baddigeststring", "md5:d41d8cd98f00b204e9800998ecf8427e"]
    {
        suite.refused(suite.push(target, &image).await.1, 400, "DIGEST_INVALID").await;
        suite.refused(suite.get(&format!("manifests/{target}")).await, 400, "DIGEST_INVALID").await;
    }
    suite.refused(suite.get("manifests/missing").await, 404, "MANIFEST_UNKNOWN").await;
    suite.refused(suite.get(&format!("manifests/{}", Digest::of(b"?"))).await, 404, "MANIFEST_UNKNOWN").await;
    let mut missing = image.clone();
    missing["layers"][0] = descriptor("application/vnd.oci.image.layer.v1.tar", b"never pushed");
    suite.refused(suite.push("v1", &missing).await.1, 400, "MANIFEST_BLOB_UNKNOWN").await;
    // Here, but another repository's.
    let other = Suite { client: Client::new(suite.client.base().to_owned()), name: "conformance/other" };
    suite.refused(other.push("v1", &image).await.1, 400, "MANIFEST_BLOB_UNKNOWN").await;
    let mut other_digests = image.clone();
    other_digests["layers"][0]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e");
    suite.refused(suite.push("v1", &other_digests).await.1, 400, "MANIFEST_INVALID").await;
    for content in [json!({}), json!([]), json!({"schemaVersion": 1, "fsLayers": []})] {
        suite.refused(suite.push("v1", &content).await.1, 400, "MANIFEST_INVALID").await;
    }
    let path = suite.path("manifests/v1");
    let huge = vec![b' '; (4 << 20) + 1];
    suite
        .refused(
            suite.ask(Method::PUT, &path, &[("Content-Type", MANIFEST)], &huge).await,
            413,
            "SIZE_INVALID",
        )
        .await;
    for (method, path, status, code) in [
        (Method::GET, "/v2/Upper/tags/list", 400, "NAME_INVALID"),
        (Method::PUT, "/v2/a/manifests/-x", 400, "TAG_INVALID"),
        // No tag is called so, so there is no such manifest.
        (Method::GET, "/v2/a/manifests/.INVALID_NAME", 404, "MANIFEST_UNKNOWN"),
        (Method::DELETE, "/v2/a/manifests/.INVALID_NAME", 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/none/tags/list", 404, "NAME_UNKNOWN"),
        (Method::POST, "/v2/a/tags/list", 405, "UNSUPPORTED"),
        (Method::GET, "/v2/a/unheard/of", 404, "UNSUPPORTED"),
    ] {
        suite.refused(suite.ask(method, path, &[], b"").await, status, code).await;
    }
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    suite!(hub, suite, "conformance/seven");
    let image = suite.image(&[b"layer"]).await;
    let mut digest = None;
    for tag in ["test0", "Test1", "TEST2", "test3"] {
        let (pushed, answer) = suite.push(tag, &image).await;
        assert_eq!(answer.status(), 201);
        digest = Some(pushed);
    }
    let list = async |query: &str| {
        let answer = suite.get(&format!("tags/list{query}")).await;
        assert_eq!(answer.status(), 200);
        let link = header(&answer, "link");
        (read(answer).await.1["tags"].clone(), link)
    };
    assert_eq!(list("").await, (json!(["test0", "Test1", "TEST2", "test3"]), String::new()));
    assert_eq!(list("?n=0").await, (json!([]), String::new()));
    let (first, link) = list("?n=2").await;
    assert_eq!(first, json!(["test0", "Test1"]));
    let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
    let second = suite.ask(Method::GET, next, &[], b"").await;
    assert_eq!(header(&second, "link"), "");
    assert_eq!(read(second).await.1, json!({"name": "conformance/seven", "tags": ["TEST2", "test3"]}));
    assert_eq!(list("?last=test3").await.0, json!([]));
    suite.refused(suite.get("tags/list?n=many").await, 400, "PAGINATION_NUMBER_INVALID").await;
    // A blob that a manifest names stays until the manifest goes; the tags go with it.
    let layer = format!("blobs/{}", Digest::of(b"layer"));
    suite.refused(suite.ask(Method::DELETE, &suite.path(&layer), &[], b"").await, 405, "UNSUPPORTED").await;
    assert_eq!(suite.status(Method::DELETE, &format!("manifests/{}", digest.unwrap())).await, 202);
    assert_eq!(suite.status(Method::DELETE, &layer).await, 202);
    suite.refused(suite.get(&layer).await, 404, "BLOB_UNKNOWN").await;
    suite.refused(suite.ask(Method::DELETE, &suite.path(&layer), &[], b"").await, 404, "BLOB_UNKNOWN").await;
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn referrers_are_listed_before_and_after_their_subject() {
    suite!(hub, suite, "conformance/eight");
    let image = suite.image(&[b"layer"]).await;
    let content = serde_json::to_vec(&image).unwrap();
    let subject = descriptor(MANIFEST, &content);
    suite.push_blob(b"{}").await;
    let path = format!("referrers/{}", digest_of(&subject));
    let list = async |query: &str| {
        let answer = suite.get(&format!("{path}{query}")).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "content-type").as_str()), (200, INDEX));
        let filters = header(&answer, "oci-filters-applied");
        let (_, index) = read(answer).await;
        assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(INDEX)));
        (index["manifests"].as_array().unwrap().clone(), filters)
    };
    assert_eq!(list("").await.0, Vec::<Value>::new());

    // The subject is not there yet.
    let mut expected = Vec::new();
    for artifact_type in ["application/vnd.example.a", "application/vnd.example.b", ""] {
        let annotations = json!({"org.example": artifact_type});
        let mut artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(EMPTY, b"{}"),
            "layers": [descriptor(EMPTY, b"{}")], "subject": subject, "annotations": annotations});
        if !artifact_type.is_empty() {
            artifact["artifactType"] = json!(artifact_type);
        }
        let (digest, answer) = suite.push("artifact", &artifact).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "oci-subject")), (201, digest_of(&subject)));
        let size = serde_json::to_vec(&artifact).unwrap().len();
        let artifact_type = if artifact_type.is_empty() { EMPTY } else { artifact_type };
        expected.push(json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": size,
            "artifactType": artifact_type, "annotations": annotations}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject});
    let (digest, answer) = suite.push("index", &index).await;
    assert_eq!(header(&answer, "oci-subject"), digest_of(&subject));
    // An index without a type of its own has none.
    let size = serde_json::to_vec(&index).unwrap().len();
    expected.push(json!({"mediaType": INDEX, "digest": digest.to_string(), "size": size}));
    assert_eq!(suite.push("v1", &image).await.1.status(), 201);
    let by_digest = |list: &mut Vec<Value>| list.sort_by_key(digest_of);
    let (mut found, filters) = list("").await;
    by_digest(&mut found);
    by_digest(&mut expected);
    assert_eq!((found, filters.as_str()), (expected.clone(), ""));
    let (found, filters) = list("?artifactType=application/vnd.example.b").await;
    assert_eq!(filters, "artifactType");
    assert_eq!((found.len(), &found[0]["artifactType"]), (1, &json!("application/vnd.example.b")));
    suite.refused(suite.get("referrers/latest").await, 400, "DIGEST_INVALID").await;
    hub.stop().await.unwrap();
}
