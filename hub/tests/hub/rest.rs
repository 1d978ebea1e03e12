//! Resources over REST, as Kubernetes' clients use them.

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Client, SERVICES, SERVING, condition, hub, read, service};

const IMAGE: &str = "hub.tombolo/hello:v1";

fn item(name: &str) -> String {
    format!("{SERVICES}/{name}")
}

#[tokio::test]
async fn a_service_lives_its_whole_life() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let (code, created) = client.send(Method::POST, SERVICES, &service("a", IMAGE)).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["spec"]["traffic"], json!([{"latestRevision": true, "percent": 100}]));
    let (code, again) = client.send(Method::POST, SERVICES, &service("a", IMAGE)).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));

    // The reconciler makes the children, and says what is missing.
    let configurations = format!("{SERVING}/namespaces/default/configurations/a");
    client
        .until(&configurations, |it| {
            it["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
        })
        .await;
    let revisions = format!("{SERVING}/revisions?labelSelector=serving.knative.dev/service=a");
    client.until(&revisions, |list| list["items"].as_array().is_some_and(|items| items.len() == 1)).await;
    let (code, _) = client.get(&format!("{SERVING}/namespaces/default/routes/a")).await;
    assert_eq!(code, 200);
    client
        .until(&item("a"), |it| condition(it, "Ready").0 != "True" && it["status"]["url"].is_string())
        .await;

    let (code, stale) = client.send(Method::PUT, &item("a"), &created).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")), "the status has been written since");
    let mut whole = client.get(&item("a")).await.1;
    whole["spec"]["template"]["spec"]["containerConcurrency"] = json!(7);
    let (code, replaced) = replace(&client, whole).await;
    assert_eq!((code, &replaced["metadata"]["generation"]), (200, &json!(2)), "{replaced}");
    let mut nameless = replaced.clone();
    nameless["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (code, _) = client.send(Method::PUT, &item("a"), &nameless).await;
    assert_eq!(code, 422);

    let (code, gone) = client.send(Method::DELETE, &item("a"), &Value::Null).await;
    assert_eq!((code, &gone["status"]), (200, &json!("Success")), "{gone}");
    for kind in ["services", "configurations", "revisions", "routes"] {
        let (code, list) = client.get(&format!("{SERVING}/{kind}")).await;
        assert_eq!((code, &list["items"]), (200, &json!([])), "{kind}");
    }
    let (code, absent) = client.get(&item("a")).await;
    assert_eq!((code, &absent["message"]), (404, &json!("services.serving.knative.dev \"a\" not found")));
    hub.stop().await.unwrap();
}

/// Replaces an object, again if the reconciler was quicker.
async fn replace(client: &Client, mut whole: Value) -> (u16, Value) {
    loop {
        let name = whole["metadata"]["name"].as_str().unwrap().to_owned();
        match client.send(Method::PUT, &item(&name), &whole).await {
            (409, _) => {
                let now = client.get(&item(&name)).await.1;
                whole["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"].clone();
            }
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn patches_of_all_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let yaml = serde_json::to_string(&service("a", IMAGE)).unwrap();
    let apply = "application/apply-patch+yaml";
    let (code, _) = client.patch(&format!("{}?fieldManager=t", item("a")), apply, &yaml).await;
    assert_eq!(code, 201, "apply makes what is not there");
    let (code, applied) = client.patch(&item("a"), apply, "metadata: {labels: {l: m}}").await;
    assert_eq!((code, &applied["metadata"]["labels"]), (200, &json!({"l": "m"})));
    let (code, _) = client.patch(&item("b"), apply, "metadata: {labels: {l: m}}").await;
    assert_eq!(code, 400, "without a kind nothing is made");
    let (code, merged) = client
        .patch(
            &item("a"),
            "application/merge-patch+json",
            r#"{"spec":{"template":{"spec":{"timeoutSeconds":30}}}}"#,
        )
        .await;
    assert_eq!((code, &merged["spec"]["template"]["spec"]["timeoutSeconds"]), (200, &json!(30)), "{merged}");
    let operations = r#"[{"op":"replace","path":"/spec/template/spec/timeoutSeconds","value":40}]"#;
    let (code, patched) = client.patch(&item("a"), "application/json-patch+json", operations).await;
    assert_eq!((code, &patched["spec"]["template"]["spec"]["timeoutSeconds"]), (200, &json!(40)));
    assert_eq!(patched["metadata"]["generation"], 3);
    let stale = r#"{"metadata":{"resourceVersion":"1"},"spec":{}}"#;
    let (code, _) = client.patch(&item("a"), "application/merge-patch+json", stale).await;
    assert_eq!(code, 409);
    let (code, refused) = client.patch(&item("a"), "application/strategic-merge-patch+json", "{}").await;
    assert_eq!((code, &refused["reason"]), (415, &json!("UnsupportedMediaType")));
    let (code, _) = client.patch(&item("none"), "application/merge-patch+json", "{}").await;
    assert_eq!(code, 404);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let (code, draft) =
        client.send(Method::POST, &format!("{SERVICES}?dryRun=All"), &service("a", IMAGE)).await;
    assert_eq!((code, &draft["metadata"]["resourceVersion"]), (201, &Value::Null), "{draft}");
    assert_eq!(client.get(&item("a")).await.0, 404);
    client.send(Method::POST, SERVICES, &service("a", IMAGE)).await;
    let (code, _) = client.send(Method::DELETE, &format!("{}?dryRun=All", item("a")), &Value::Null).await;
    assert_eq!((code, client.get(&item("a")).await.0), (200, 200));
    let (code, _) = client.send(Method::POST, &format!("{SERVICES}?dryRun=Some"), &service("b", IMAGE)).await;
    assert_eq!(code, 422);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn bad_requests_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let cases = [
        (SERVICES.to_owned(), service("a", "not an image"), 400, "BadRequest"),
        (SERVICES.replace("default", "nowhere"), service("a", IMAGE), 404, "NotFound"),
        (SERVICES.replace("services", "revisions"), service("a", IMAGE), 405, "MethodNotAllowed"),
        (SERVICES.to_owned(), service("UPPER", IMAGE), 422, "Invalid"),
    ];
    for (path, body, expected, reason) in cases {
        let (code, status) = client.send(Method::POST, &path, &body).await;
        assert_eq!((code, &status["reason"]), (expected, &json!(reason)), "{path}: {status}");
        assert_eq!(status["code"], expected);
    }
    let large = client
        .request(Method::POST, SERVICES)
        .header("Content-Type", "application/json")
        .body(vec![b' '; 4 << 20]);
    let (code, status) = read(large.send().await.unwrap()).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    let text = client.request(Method::POST, SERVICES).header("Content-Type", "text/plain").body("x");
    assert_eq!(read(text.send().await.unwrap()).await.0, 415);
    let yaml = client.request(Method::POST, SERVICES).header("Content-Type", "application/yaml").body("a: [");
    assert_eq!(read(yaml.send().await.unwrap()).await.0, 400);
    let (code, text) = client.get("/apis/serving.knative.dev/v1/nosuch/a/b").await;
    assert_eq!((code, text), (404, json!("404 page not found\n")));
    let (code, _) = client.get("/apis/serving.knative.dev/v1/nosuch").await;
    assert_eq!(code, 404);
    let (code, _) = client.send(Method::PUT, SERVICES, &service("a", IMAGE)).await;
    assert_eq!(code, 405);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn yaml_is_read_as_json_is() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let yaml = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: y\nspec:\n  template:\n\
        \x20   spec:\n      containers:\n        - image: hub.tombolo/hello\n      typo: 1\n";
    let request =
        client.request(Method::POST, SERVICES).header("Content-Type", "application/yaml").body(yaml);
    let response = request.send().await.unwrap();
    let warning = response.headers().get("warning").map(|value| value.to_str().unwrap().to_owned());
    let (code, made) = read(response).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(warning.as_deref(), Some("299 - \"unknown field \\\"spec.template.spec.typo\\\"\""));
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn lists_select_and_show_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    for name in ["a", "b"] {
        let mut service = service(name, IMAGE);
        service["metadata"]["labels"] = json!({"line": name});
        client.send(Method::POST, SERVICES, &service).await;
    }
    for (query, names) in [
        ("", vec!["a", "b"]),
        ("?fieldSelector=metadata.name=b", vec!["b"]),
        ("?labelSelector=line=a", vec!["a"]),
        ("?labelSelector=line!=a", vec!["b"]),
    ] {
        let (_, list) = client.get(&format!("{SERVICES}{query}")).await;
        let found: Vec<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["metadata"]["name"].as_str().unwrap())
            .collect();
        assert_eq!(found, names, "{query}");
        assert_eq!(list["kind"], "ServiceList");
    }
    assert_eq!(client.get(&format!("{SERVICES}?fieldSelector=spec.x=1")).await.0, 400);
    let table = client
        .request(Method::GET, SERVICES)
        .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let (_, table) = read(table.send().await.unwrap()).await;
    assert_eq!(table["rows"].as_array().unwrap().len(), 2);
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][1]["object"]["metadata"]["name"], "b");

    let (code, list) =
        client.send(Method::DELETE, &format!("{SERVICES}?labelSelector=line=a"), &Value::Null).await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 1));
    assert_eq!((client.get(&item("a")).await.0, client.get(&item("b")).await.0), (404, 200));
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn changes_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    client.send(Method::POST, SERVICES, &service("old", IMAGE)).await;
    let mut all = lines(&client, &format!("{SERVICES}?watch=true&fieldSelector=metadata.name=a")).await;
    client.send(Method::POST, SERVICES, &service("a", IMAGE)).await;
    let added = next(&mut all).await;
    assert_eq!((&added["type"], &added["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    let version = added["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    client.send(Method::DELETE, &item("a"), &Value::Null).await;
    let deleted = loop {
        let event = next(&mut all).await;
        if event["type"] != "MODIFIED" {
            break event;
        }
    };
    assert_eq!(deleted["type"], "DELETED");
    // Who comes later with the version of the beginning gets the same.
    let path = format!(
        "{SERVICES}?watch=true&fieldSelector=metadata.name=a&resourceVersion={version}&timeoutSeconds=1"
    );
    let mut missed = lines(&client, &path).await;
    let mut types = Vec::new();
    while let Some(event) = missed.next().await {
        types.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(types.last().map(String::as_str), Some("DELETED"), "{types:?}");

    let mut initial = lines(&client, &format!("{SERVICES}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(next(&mut initial).await["type"], "ADDED");
    let mark = next(&mut initial).await;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    hub.stop().await.unwrap();
}

type Lines = std::pin::Pin<Box<dyn futures_util::Stream<Item = Value>>>;

async fn lines(client: &Client, path: &str) -> Lines {
    let response = client.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let bytes = Box::pin(response.bytes_stream());
    Box::pin(futures_util::stream::unfold((bytes, Vec::new()), |(mut bytes, mut rest)| async move {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                return Some((serde_json::from_slice(&line).unwrap(), (bytes, rest)));
            }
            rest.extend_from_slice(&bytes.next().await?.ok()?);
        }
    }))
}

async fn next(lines: &mut Lines) -> Value {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), lines.next()).await;
    waited.expect("an event comes").expect("the stream goes on")
}

#[tokio::test]
async fn namespaces_come_and_go_with_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "line-3"}});
    let (code, made) = client.send(Method::POST, "/api/v1/namespaces", &namespace).await;
    assert_eq!((code, &made["status"]["phase"]), (201, &json!("Active")), "{made}");
    assert_eq!(client.send(Method::POST, "/api/v1/namespaces", &namespace).await.0, 409);
    let labelled = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "line-3", "labels": {"hall": "2"}, "resourceVersion": made["metadata"]["resourceVersion"]}});
    let (code, replaced) = client.send(Method::PUT, "/api/v1/namespaces/line-3", &labelled).await;
    assert_eq!((code, &replaced["metadata"]["labels"]["hall"]), (200, &json!("2")), "{replaced}");
    assert_eq!(replaced["metadata"]["uid"], made["metadata"]["uid"]);
    assert_ne!(replaced["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(
        client.send(Method::PUT, "/api/v1/namespaces/line-3", &labelled).await.0,
        409,
        "it has changed"
    );
    let (_, again) = client.send(Method::PUT, "/api/v1/namespaces/line-3", &replaced).await;
    assert_eq!(again, replaced, "nothing to change");
    assert_eq!(client.send(Method::PUT, "/api/v1/namespaces/line-4", &labelled).await.0, 400);
    let services = SERVICES.replace("default", "line-3");
    assert_eq!(client.send(Method::POST, &services, &service("a", IMAGE)).await.0, 201);
    let (_, list) = client.get("/api/v1/namespaces").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    assert_eq!(client.send(Method::DELETE, "/api/v1/namespaces/default", &Value::Null).await.0, 403);
    assert_eq!(client.send(Method::DELETE, "/api/v1/namespaces/line-3", &Value::Null).await.0, 200);
    assert_eq!(client.get(&services).await.1["items"], json!([]));
    assert_eq!(client.get("/api/v1/namespaces/line-3").await.0, 404);
    hub.stop().await.unwrap();
}

/// By every way of writing a namespace: what cannot be followed is told, and nothing is written.
#[tokio::test]
async fn a_namespace_demands_only_what_can_be_followed() {
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAsZTyV6tPwRcc4DZ2LtwaHy0ikC8UeQIQ1SCLmvS+6IU=\n-----END PUBLIC KEY-----\n";
    const POLICY: &str = "tombolo.dev/image-signatures";
    const KEYS: &str = "tombolo.dev/image-signature-keys";
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let namespace = |name: &str, annotations: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}});
    let (path, bad) = ("/api/v1/namespaces/default", json!({ POLICY: "require" }));
    let patch = json!({"metadata": {"annotations": bad}}).to_string();
    let json_patch = json!([{"op": "add", "path": "/metadata/annotations", "value": bad}]).to_string();
    let refusals = [
        client.send(Method::POST, "/api/v1/namespaces", &namespace("shop", bad.clone())).await,
        client.send(Method::PUT, path, &namespace("default", bad.clone())).await,
        client.patch(path, "application/merge-patch+json", &patch).await,
        client.patch(path, "application/strategic-merge-patch+json", &patch).await,
        client.patch(path, "application/json-patch+json", &json_patch).await,
        client
            .patch(
                &format!("{path}?fieldManager=x"),
                "application/apply-patch+yaml",
                &namespace("default", bad.clone()).to_string(),
            )
            .await,
    ];
    for (code, refused) in refusals {
        assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")), "{refused}");
        assert!(refused["message"].as_str().unwrap().contains("needs keys"), "{refused}");
        assert_eq!(refused["details"]["causes"][0]["field"], format!("metadata.annotations[{POLICY}]"));
    }
    // As two commands of `kubectl annotate` do.
    for (key, value) in [(KEYS, KEY), (POLICY, "require")] {
        let patch = json!({"metadata": {"annotations": {key: value}}}).to_string();
        let (code, written) = client.patch(path, "application/merge-patch+json", &patch).await;
        assert_eq!((code, &written["metadata"]["annotations"][key]), (200, &json!(value)), "{written}");
    }
    let without = json!({"metadata": {"annotations": {KEYS: null}}}).to_string();
    let (code, refused) = client.patch(path, "application/merge-patch+json", &without).await;
    assert_eq!(code, 422, "{refused}");
    let nothing = json!({"metadata": {"annotations": {POLICY: null, KEYS: null}}}).to_string();
    assert_eq!(client.patch(path, "application/merge-patch+json", &nothing).await.0, 200);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn clients_find_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(path).await, (200, json!("ok")));
    }
    let (_, version) = client.get("/version").await;
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1."));
    assert_eq!(version["tombolo"], env!("CARGO_PKG_VERSION"));
    let (_, groups) = client.get("/apis").await;
    for group in groups["groups"].as_array().unwrap() {
        let path = format!("/apis/{}", group["preferredVersion"]["groupVersion"].as_str().unwrap());
        let (code, list) = client.get(&path).await;
        assert_eq!((code, &list["kind"]), (200, &json!("APIResourceList")));
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            if resource["verbs"].as_array().unwrap().contains(&json!("list")) {
                assert_eq!(client.get(&format!("{path}/{name}")).await.0, 200, "{path}/{name}");
            }
        }
    }
    let (code, _) = client.get("/apis/tombolo.dev/v1/nodes/none").await;
    assert_eq!(code, 404);
    let log = "/apis/tombolo.dev/v1/namespaces/default/services/none/log";
    assert_eq!(client.get(log).await.0, 404);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn revisions_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    client.send(Method::POST, SERVICES, &service("a", IMAGE)).await;
    let revisions = format!("{SERVING}/namespaces/default/revisions");
    let list = client.until(&revisions, |list| list["items"][0]["metadata"]["name"].is_string()).await;
    let name = list["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    client
        .until(&format!("{SERVING}/namespaces/default/configurations/a"), |it| {
            it["status"]["latestCreatedRevisionName"] == name.as_str()
        })
        .await;
    let (code, status) = client.send(Method::DELETE, &format!("{revisions}/{name}"), &Value::Null).await;
    assert_eq!(code, 409, "{status}");
    let (code, _) = client
        .patch(
            &format!("{revisions}/{name}"),
            "application/merge-patch+json",
            r#"{"spec":{"timeoutSeconds":1}}"#,
        )
        .await;
    assert_eq!(code, 400, "a revision's spec never changes");
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn a_host_that_another_route_has_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let text_of = |status: &Value| status["message"].as_str().unwrap_or_default().to_owned();
    let tagged = |name: &str, tag: &str| {
        let mut service = service(name, IMAGE);
        service["spec"]["traffic"] = json!([{"latestRevision": true, "percent": 100, "tag": tag}]);
        service
    };
    assert_eq!(client.send(Method::POST, SERVICES, &tagged("b", "a")).await.0, 201);
    let (code, refused) = client.send(Method::POST, SERVICES, &service("a-b", IMAGE)).await;
    let text = text_of(&refused);
    assert!(code == 400 && text.contains("invalid value: \"a-b\": metadata.name\n"), "{refused}");
    assert!(text.contains("Service \"b\"") || text.contains("Route \"b\""), "{refused}");
    assert_eq!(client.send(Method::POST, SERVICES, &service("c-b", IMAGE)).await.0, 201);
    let merge = "application/merge-patch+json";
    let traffic = json!({"spec": tagged("b", "c")["spec"]}).to_string();
    let (code, refused) = client.patch(&item("b"), merge, &traffic).await;
    assert!(code == 400 && text_of(&refused).contains("spec.traffic[0].tag\n"), "{refused}");
    let (code, changed) = client.patch(&item("b"), merge, r#"{"metadata":{"labels":{"l":"m"}}}"#).await;
    assert_eq!(code, 200, "{changed}");
    hub.stop().await.unwrap();
}
