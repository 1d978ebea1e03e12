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
fn bad_files_are_told_with_their_place_and_what_to_do() {
    for (text, told) in [
        ("a: 1\nb: [\n", "f:2:4: b: '[' is never closed: add ']'"),
        (
            "apiVersion: v1\nkind: A\nkind: B\n",
            "f:3:1: kind: this field stands here for the second time, the first is in line 2: remove one",
        ),
        (
            "apiVersion: v1\nkind: A\nspec:\n  l:\n    - {a: 1, a: 2}\n",
            "f:5:14: spec.l[0].a: this field stands here for the second time, the first is in line 5: remove one",
        ),
        ("kind: A\n", "f:1: this is not a resource: a mapping with apiVersion, kind and metadata is needed"),
        ("- 1\n", "f:1: this is not a resource: a mapping with apiVersion, kind and metadata is needed"),
        ("a: b\n\tc: d\n", "f:1:4: a: a tab stands where YAML wants spaces: indent with spaces"),
        (
            "a:\n  b: 1\n c: 2\n",
            "f:3:2: a.c: the indentation fits no line above: begin the line where the fields it belongs with begin",
        ),
        ("a:\n  b: \"x\n", "f:2:6: a.b: the quote is never closed: add the closing one"),
        (
            "a: b: c\n",
            "f:1:5: a: there is a second ': ' in one line: put the text in quotes, or the field on a line of its own",
        ),
        ("a: @b\n", "f:1:4: a: a text cannot begin with this character: put it in quotes"),
        ("", "f holds no resource"),
        ("---\n---\n", "f holds no resource"),
    ] {
        assert_eq!(parse("f", text).unwrap_err().to_string(), told, "{text:?}");
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
