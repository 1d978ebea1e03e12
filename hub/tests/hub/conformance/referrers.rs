//! More referrers than one answer has room for.

use super::*;

#[tokio::test]
async fn referrers_come_in_pages() {
    suite!(hub, suite, "conformance/thirteen");
    suite.push_blob(b"{}").await;
    let subject = descriptor(MANIFEST, b"no matter");
    let mut expected = Vec::new();
    for (number, artifact_type) in ["application/a+b", "application/a+b", "application/c"].iter().enumerate()
    {
        let artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type,
            "config": descriptor(EMPTY, b"{}"), "layers": [descriptor(EMPTY, b"{}")], "subject": subject,
            "annotations": {"number": number.to_string(), "large": "A".repeat(2_500_000)}});
        expected.push((suite.push("artifact", &artifact).await.0.to_string(), *artifact_type));
    }
    expected.sort();
    for wanted in [None, Some("application/a+b")] {
        let filter = wanted.map(|_| "?artifactType=application/a%2Bb").unwrap_or_default();
        let mut next = suite.path(&format!("referrers/{}{filter}", digest_of(&subject)));
        let mut found = Vec::new();
        for _ in 0..expected.len() {
            let answer = suite.ask(Method::GET, &next, &[], b"").await;
            assert_eq!(header(&answer, "oci-filters-applied").is_empty(), wanted.is_none());
            let link = header(&answer, "link");
            let (status, index) = read(answer).await;
            assert_eq!(status, 200, "{index}");
            found.extend(index["manifests"].as_array().unwrap().iter().map(digest_of));
            next = link.strip_prefix('<').map(|link| link.replace(">; rel=\"next\"", "")).unwrap_or_default();
        }
        assert_eq!(next, "", "that was the last page");
        let expected = expected.iter().filter(|(_, kind)| wanted.is_none_or(|wanted| wanted == *kind));
        assert_eq!(found, expected.map(|(digest, _)| digest.clone()).collect::<Vec<_>>());
    }
    hub.stop().await.unwrap();
}
