//! Tests of reading resources from files.

use super::*;

const TWO: &str = r#"# a comment
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: hello
spec:
  template:
    spec:
      containers:
        - image: "a/b:1"
          env:
            - name: TARGET
              value: "7"
            - {name: X, value: yes}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: second}
"#;

#[test]
fn documents_keep_types_and_lines() {
    let documents = parse("hello.yaml", TWO).unwrap();
    assert_eq!(documents.len(), 2);
    let first = &documents[0];
    assert_eq!(first.object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "7");
    assert_eq!(first.lines["spec.template.spec.containers[0].image"], 10);
    assert_eq!(first.lines["spec.template.spec.containers[0].env[0].value"], 13);
    assert_eq!(first.lines["spec.template.spec.containers[0].env[1].name"], 14);
    assert_eq!(first.object["spec"]["template"]["spec"]["containers"][0]["env"][1]["value"], "yes");
    assert_eq!(documents[1].place(), "hello.yaml:16");
    assert_eq!(documents[1].lines["metadata.name"], 18);
}

#[test]
fn messages_find_their_line() {
    let documents = parse("hello.yaml", TWO).unwrap();
    let first = &documents[0];
    for (message, place) in [
        (
            "validation failed: must not set the field(s): spec.template.spec.containers[0].env[0].value",
            "hello.yaml:13: spec.template.spec.containers[0].env[0].value",
        ),
        (
            "missing field(s): spec.template.spec.containers[0].name",
            "hello.yaml:10: spec.template.spec.containers[0]",
        ),
        ("json: unknown field \"env\"", "hello.yaml:11: spec.template.spec.containers[0].env"),
        ("something is wrong", "hello.yaml:2"),
    ] {
        assert_eq!(first.locate(&[], message), place, "{message}");
    }
    assert_eq!(first.locate(&["metadata.name"], "Invalid value"), "hello.yaml:5: metadata.name");
}

#[test]
fn lists_and_json_are_taken() {
    let text = "{\"apiVersion\": \"v1\", \"kind\": \"List\",\n\t\"items\": [\n\t{\"apiVersion\": \"a/v1\", \"kind\": \"B\", \"metadata\": {\"name\": \"x\"}}]}";
    let documents = parse("x.json", text).unwrap();
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0].object["kind"], "B");
    assert_eq!(documents[0].place(), "x.json:3");
}

#[test]
fn bad_files_are_told_with_their_line() {
    for (text, line) in [
        ("a: 1\nb: [\n", ":"),
        ("apiVersion: v1\nkind: A\nkind: B\n", "f:3:"),
        ("kind: A\n", "f:1:"),
        ("- 1\n", "f:1:"),
        ("a: b\n\tc: d\n", "f:1:"),
        ("", "f holds no resource"),
        ("---\n---\n", "f holds no resource"),
    ] {
        let error = parse("f", text).unwrap_err().to_string();
        assert!(error.contains(line), "{text:?}: {error}");
    }
}

#[test]
fn deep_nesting_is_refused_not_overflowed() {
    let text = format!("apiVersion: v1\nkind: A\nx: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse("f", &text).is_err());
    let nested =
        |depth: usize| format!("apiVersion: v1\nkind: A\nx: {}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse("f", &nested(DEPTH_MAX - 2)).is_ok());
    assert!(parse("f", &nested(DEPTH_MAX + 1)).is_err());
}
