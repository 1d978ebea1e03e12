//! What Kubernetes' clients rely on besides the resources themselves: field validation, selectors, pages, schemas.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Client, SERVICES, hub, read, service};

const IMAGE: &str = "hub.tombolo/hello:v1";

/// Sends a body as it is; the status code, the answer and the warnings.
async fn send_text(client: &Client, method: Method, path: &str, text: &str) -> (u16, Value, Vec<String>) {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let sent = client.request(method, path).header("Content-Type", kind).body(text.to_owned());
    let response = sent.send().await.unwrap();
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|warning| warning.to_str().unwrap().to_owned()).collect();
    let (code, answer) = read(response).await;
    (code, answer, warnings)
}

#[tokio::test]
async fn mistyped_fields_are_treated_as_the_client_wants() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let mut mistyped = service("a", IMAGE);
    mistyped["spec"]["template"]["foo"] = json!(1);
    // What a mistyped field leaves out is not what the client should hear of first.
    mistyped["spec"]["template"]["spec"] = json!({"containrs": [{"image": IMAGE}]});
    let strict = |path: &str| format!("{path}?fieldValidation=Strict");
    let unknown = "unknown field \"spec.template.foo\", unknown field \"spec.template.spec.containrs\"";
    let (code, status, _) = send_text(&client, Method::POST, &strict(SERVICES), &mistyped.to_string()).await;
    let message =
        format!("Service in version \"v1\" cannot be handled as a Service: strict decoding error: {unknown}");
    assert_eq!((code, &status["message"]), (400, &json!(message)));

    let mut loose = service("a", IMAGE);
    loose["spec"]["foo"] = json!(1);
    let repeated = loose.to_string().replacen("\"metadata\":", "\"kind\":\"Service\",\"metadata\":", 1);
    let (code, status, _) = send_text(&client, Method::POST, &strict(SERVICES), &repeated).await;
    let found = "strict decoding error: duplicate field \"kind\", unknown field \"spec.foo\"";
    assert!(code == 400 && status["message"].as_str().unwrap().ends_with(found), "{status}");
    let ignore = format!("{SERVICES}?fieldValidation=Ignore&dryRun=All");
    let (code, _, warnings) = send_text(&client, Method::POST, &ignore, &repeated).await;
    assert_eq!((code, warnings), (201, vec![]));
    let (code, made, warnings) = send_text(&client, Method::POST, SERVICES, &repeated).await;
    let heard = [r#"299 - "duplicate field \"kind\"""#, r#"299 - "unknown field \"spec.foo\"""#];
    assert_eq!((code, warnings), (201, heard.map(str::to_owned).to_vec()), "{made}");

    let item = format!("{SERVICES}/a");
    let patch = r#"{"spec":{"template":{"foo":1}}}"#;
    let (code, status, _) = send_text(&client, Method::PATCH, &strict(&item), patch).await;
    let message = status["message"].as_str().unwrap();
    let begins = message.starts_with(" \"\" is invalid: patch: Invalid value: \"{");
    let ends = message.ends_with("}\": strict decoding error: unknown field \"spec.template.foo\"");
    assert_eq!((code, &status["reason"], begins, ends), (422, &json!("Invalid"), true, true), "{message}");
    let (code, status, _) = send_text(&client, Method::PUT, &strict(&item), &mistyped.to_string()).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "no version: {status}");
    let (_, mut live) = client.get(&item).await;
    // The hub itself may change it meanwhile.
    live["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let (code, _, warnings) = send_text(&client, Method::PATCH, &strict(&item), &live.to_string()).await;
    assert_eq!((code, warnings), (200, vec![]), "what the hub shows it takes");
    let twice = r#"{"status":{"url":"a","url":"b"}}"#;
    let status = format!("{item}/status");
    assert_eq!(send_text(&client, Method::PATCH, &strict(&status), twice).await.0, 422);

    let other = format!("{SERVICES}?fieldValidation=strict");
    let (code, status, _) = send_text(&client, Method::POST, &other, &repeated).await;
    let message = status["message"].as_str().unwrap();
    assert!(
        code == 400 && ["Ignore", "Strict", "Warn"].iter().all(|word| message.contains(word)),
        "{status}"
    );
    hub.stop().await.unwrap();
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn long_lists_come_in_pages_of_one_version() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    for name in ["a", "b", "c", "d", "e"] {
        let mut service = service(name, IMAGE);
        service["metadata"]["labels"] = json!({"odd": if "ace".contains(name) { "yes" } else { "no" }});
        client.send(Method::POST, SERVICES, &service).await;
    }
    let (_, first) = client.get(&format!("{SERVICES}?limit=2")).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    // What happens between two pages shows in neither.
    client.send(Method::DELETE, &format!("{SERVICES}/d"), &Value::Null).await;
    client.send(Method::POST, SERVICES, &service("bb", IMAGE)).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = client.get(&format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let next = second["metadata"]["continue"].as_str().unwrap();
    let (_, third) = client.get(&format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["e"], &json!("")));
    assert_eq!(third["metadata"].get("remainingItemCount"), None);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, then) =
        client.get(&format!("{SERVICES}?resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!(names(&then), ["a", "b", "c", "d", "e"]);

    let (_, odd) = client.get(&format!("{SERVICES}?limit=1&labelSelector=odd%20in%20(yes)")).await;
    assert_eq!((names(&odd), odd["metadata"].get("remainingItemCount")), (vec!["a"], None));
    let next = odd["metadata"]["continue"].as_str().unwrap();
    let (_, odd) = client.get(&format!("{SERVICES}?labelSelector=odd%20in%20(yes)&continue={next}")).await;
    assert_eq!(names(&odd), ["c", "e"]);
    let table = as_table(&client, &format!("{SERVICES}?limit=1")).await;
    let (_, table) = read(table).await;
    assert_eq!(
        (table["rows"].as_array().unwrap().len(), &table["metadata"]["remainingItemCount"]),
        (1, &json!(4))
    );
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn versions_that_cannot_be_shown_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (first, client) = hub(dir.path()).await;
    for name in ["a", "b"] {
        client.send(Method::POST, SERVICES, &service(name, IMAGE)).await;
    }
    let (_, page) = client.get(&format!("{SERVICES}?limit=1")).await;
    let next = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let old = page["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    client.send(Method::DELETE, &format!("{SERVICES}/b"), &Value::Null).await;
    first.stop().await.unwrap();
    // A hub that starts remembers no changes from before.
    let (second, client) = hub(dir.path()).await;
    client.send(Method::POST, SERVICES, &service("c", IMAGE)).await;
    for (query, code, reason, words) in [
        (format!("continue={next}"), 410, "Expired", "The provided continue parameter is too old"),
        (format!("watch=true&resourceVersion={old}"), 410, "Expired", "too old resource version"),
        (format!("resourceVersion={old}&resourceVersionMatch=Exact"), 410, "Expired", "too old"),
        ("watch=true&resourceVersion=99999".into(), 504, "Timeout", "Too large resource version: 99999"),
        ("resourceVersion=99999".into(), 504, "Timeout", "Too large resource version: 99999"),
        ("continue=rubbish".into(), 400, "BadRequest", "continue key is not valid"),
        ("labelSelector=a%20in%20b".into(), 400, "BadRequest", "at character 6"),
        ("fieldSelector=spec.x=1".into(), 400, "BadRequest", "field label not supported: spec.x"),
    ] {
        let (found, status) = client.get(&format!("{SERVICES}?{query}")).await;
        assert_eq!((found, &status["reason"]), (code, &json!(reason)), "{query}: {status}");
        assert!(status["message"].as_str().unwrap().contains(words), "{query}: {status}");
    }
    second.stop().await.unwrap();
}

#[tokio::test]
async fn namespaces_are_made_and_labelled_as_kubectl_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    // `kubectl create namespace foo`, byte by byte.
    let sent: &[u8] = b"k8s\0\n\x0f\n\x02v1\x12\tNamespace\x12\x1b\n\x13\n\x03foo\x12\0\x1a\0\"\0*\x002\08\0B\0\x12\0\x1a\x02\n\0\x1a\0\"\0";
    let create = |body: &'static [u8]| {
        let request = client.request(Method::POST, "/api/v1/namespaces");
        request.header("Content-Type", "application/vnd.kubernetes.protobuf").body(body).send()
    };
    let (code, made) = read(create(sent).await.unwrap()).await;
    assert_eq!((code, &made["metadata"]["name"]), (201, &json!("foo")), "{made}");
    assert_eq!(read(create(sent).await.unwrap()).await.0, 409);
    assert_eq!(read(create(&sent[..20]).await.unwrap()).await.0, 400);

    let foo = "/api/v1/namespaces/foo";
    let merge = "application/merge-patch+json";
    let (code, labelled) = client.patch(foo, merge, r#"{"metadata":{"labels":{"hall":"2"}}}"#).await;
    assert_eq!((code, &labelled["metadata"]["labels"]["hall"]), (200, &json!("2")), "{labelled}");
    let operations = r#"[{"op":"add","path":"/metadata/annotations","value":{"a":"b"}}]"#;
    let (code, annotated) = client.patch(foo, "application/json-patch+json", operations).await;
    assert_eq!((code, &annotated["metadata"]["annotations"]), (200, &json!({"a": "b"})));
    let strategic = "application/strategic-merge-patch+json";
    let (_, unlabelled) = client.patch(foo, strategic, r#"{"metadata":{"labels":{"hall":null}}}"#).await;
    assert_eq!(unlabelled["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "foo"}));
    assert_eq!(unlabelled["metadata"]["uid"], made["metadata"]["uid"]);
    for (path, patch, code) in [
        (foo, r#"{"metadata":{"name":"bar"}}"#, 400),
        (foo, r#"{"metadata":{"resourceVersion":"1"}}"#, 409),
        ("/api/v1/namespaces/bar", "{}", 404),
    ] {
        assert_eq!(client.patch(path, merge, patch).await.0, code, "{patch}");
    }
    let apply = "apiVersion: v1\nkind: Namespace\nmetadata: {name: bar, labels: {a: b}}\n";
    let (code, applied) = client.patch("/api/v1/namespaces/bar", "application/apply-patch+yaml", apply).await;
    assert_eq!((code, &applied["metadata"]["labels"]["a"]), (201, &json!("b")), "{applied}");
    let (_, table) = read(as_table(&client, "/api/v1/namespaces").await).await;
    let cells: Vec<&Value> = table["rows"].as_array().unwrap().iter().map(|row| &row["cells"][0]).collect();
    assert_eq!(cells, ["bar", "default", "foo"]);
    hub.stop().await.unwrap();
}

#[tokio::test]
async fn labels_of_nodes_are_set_at_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let patch = r#"{"metadata":{"labels":{"line":"3"}}}"#;
    let (code, status) =
        client.patch("/apis/tombolo.dev/v1/nodes/press-7", "application/merge-patch+json", patch).await;
    assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")));
    assert!(status["message"].as_str().unwrap().contains("[labels] in the agent's configuration file"));
    for path in ["/apis/tombolo.dev/v1/nodes", "/apis/tombolo.dev/v1/namespaces/default/events"] {
        let (code, table) = read(as_table(&client, path).await).await;
        assert_eq!((code, &table["kind"], &table["rows"]), (200, &json!("Table"), &json!([])), "{path}");
    }
    assert_eq!(client.get("/apis/tombolo.dev/v1/namespaces/default/events/none").await.0, 404);
    hub.stop().await.unwrap();
}

async fn as_table(client: &Client, path: &str) -> reqwest::Response {
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    client.request(Method::GET, path).header("Accept", accept).send().await.unwrap()
}

#[tokio::test]
async fn schemas_say_what_may_be_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, client) = hub(dir.path()).await;
    let (_, index) = client.get("/openapi/v3").await;
    for (document, kinds) in [
        ("apis/serving.knative.dev/v1", vec!["Configuration", "Revision", "Route", "Service"]),
        ("api/v1", vec!["Namespace"]),
    ] {
        let path = index["paths"][document]["serverRelativeURL"].as_str().unwrap();
        let (code, found) = client.get(path).await;
        assert_eq!(code, 200, "{path}");
        let schemas = found["components"]["schemas"].as_object().unwrap().values();
        let named = schemas.filter_map(|schema| {
            schema["x-kubernetes-group-version-kind"][0]["kind"].as_str().map(str::to_owned)
        });
        assert_eq!(named.collect::<Vec<_>>(), kinds);
    }
    let (_, found) = client.get("/openapi/v3/apis/serving.knative.dev/v1").await;
    let service = &found["components"]["schemas"]["dev.knative.serving.v1.Service"];
    let container =
        "/properties/spec/properties/template/properties/spec/properties/containers/items/properties/image";
    assert_eq!(service.pointer(container), Some(&json!({"type": "string"})));
    // By this clients know that the hub checks fields itself.
    let patch =
        &found["paths"]["/apis/serving.knative.dev/v1/namespaces/{namespace}/services/{name}"]["patch"];
    assert!(patch["parameters"].as_array().unwrap().iter().any(|it| it["name"] == "fieldValidation"));
    assert_eq!(client.get("/openapi/v3/apis/other").await.0, 404);
    hub.stop().await.unwrap();
}
