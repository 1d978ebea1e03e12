//! The list of repositories, which registries had before there was a specification.

use super::*;

#[tokio::test]
async fn repositories_that_have_anything_are_listed_in_pages() {
    suite!(hub, suite, "b/nested/one");
    let list = async |path: &str| {
        let answer = suite.ask(Method::GET, path, &[], b"").await;
        assert_eq!(answer.status(), 200);
        let link = header(&answer, "link");
        (read(answer).await.1, link)
    };
    assert_eq!(list("/v2/_catalog").await.0, json!({"repositories": []}));
    let of = |name| Suite { client: Client::new(suite.client.base().to_owned()), name };
    let mut digest = None;
    for repository in [&suite, &of("b"), &of("a")] {
        let image = repository.image(&[b"layer"]).await;
        digest = Some(repository.push("v1", &image).await.0);
    }
    of("blobs-only").push_blob(b"left").await;

    let (first, link) = list("/v2/_catalog?n=2").await;
    assert_eq!(first, json!({"repositories": ["a", "b"]}));
    let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
    assert_eq!(list(next).await, (json!({"repositories": ["b/nested/one"]}), String::new()));
    assert_eq!(of("b").status(Method::DELETE, &format!("manifests/{}", digest.unwrap())).await, 202);
    assert_eq!(list("/v2/_catalog").await.0, json!({"repositories": ["a", "b/nested/one"]}));
    let posted = suite.ask(Method::POST, "/v2/_catalog", &[], b"").await;
    suite.refused(posted, 405, "UNSUPPORTED").await;
    hub.stop().await.unwrap();
}
