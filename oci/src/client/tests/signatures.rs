//! Signatures in registries that have no API for referrers, and say so in their own way.

use serde_json::Value;

use super::*;

/// What cosign wrote into a registry without that API; see the tests of signatures.
fn vector() -> Value {
    let all: Vec<Value> = serde_json::from_str(include_str!("../../signature/tests/cosign.json")).unwrap();
    all.into_iter().find(|vector| vector["name"] == "bundle-without-referrers-api").unwrap()
}

fn image() -> Digest {
    "sha256:c55627f850fe7c4c19d08e3bf87045fe0b8cb3eed0822dda0c64d035dfa5683a".parse().unwrap()
}

/// A registry that answers with `page` when it is asked for referrers, and has `index` under the tag instead.
async fn found(page: Option<&str>, index: &str) -> usize {
    let vector = vector();
    let text = |value: &Value| value.as_str().unwrap().as_bytes().to_vec();
    let (registry, client) = serve(Registry::default()).await;
    {
        let mut content = registry.content.lock().unwrap();
        for document in [&vector["manifest"], &vector["blobs"][0]] {
            content.insert(Digest::of(&text(document)).to_string(), text(document));
        }
        content.insert(format!("sha256-{}", image().hex()), index.into());
        content.extend(page.map(|page| (image().to_string(), page.as_bytes().to_vec())));
    }
    let found = client.signatures(&"a".parse().unwrap(), &image()).await.unwrap();
    assert!(found.passed_over.is_empty(), "{found:?}");
    found.found.len()
}

#[tokio::test]
async fn referrers_are_found_by_their_tag_where_there_is_no_api() {
    let vector = vector();
    let index = vector["index"].as_str().unwrap();
    assert_eq!(found(None, index).await, 1);
    // After a redirect to a page where people sign in.
    assert_eq!(found(Some("<html></html>"), index).await, 1);
}

#[tokio::test]
async fn an_image_that_its_tag_leads_to_refers_to_nothing() {
    let vector = vector();
    let referrer = Digest::of(vector["manifest"].as_str().unwrap().as_bytes());
    let subject = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{referrer}","size":1}}]}}"#
    );
    let (registry, client) = serve(Registry::default()).await;
    let image = Digest::of(subject.as_bytes());
    registry.content.lock().unwrap().insert(format!("sha256-{}", image.hex()), subject.into_bytes());
    let found = client.signatures(&"a".parse().unwrap(), &image).await.unwrap();
    assert!(found.found.is_empty(), "{found:?}");
    let asked = registry.asked.lock().unwrap().clone();
    assert!(!asked.iter().any(|path| path.contains(&referrer.to_string())), "{asked:?}");
}
