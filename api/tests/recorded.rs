//! Replays the recorded answers of Knative Serving 1.23 (`data/validation.jsonl.gz`, one exchange a line) against
//! admission: status code, defaulted object or `Status`, and warnings must be the same.
//!
//! What differs stands below by name, with the reason, and is counted. Uids, times and versions are not compared.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::{Map, Value, json};
use tombolo_api::meta::Status;
use tombolo_api::serving::admission::{self, Admission};
use tombolo_api::serving::{Configuration, GROUP, Revision, Route, Service};

/// Exchanges in the recording.
const LINES: usize = 128;

const RECORDING: &[u8] = include_bytes!("data/validation.jsonl.gz");

/// Lines that the reference accepts and Tombolo refuses, and what the refusal must name.
const NOT_SERVED_YET: [(&str, &str); 2] = [
    ("svc:ann:class=hpa", "spec.template.metadata.annotations.autoscaling.knative.dev/class"),
    ("svc:spec-pullsecrets", "spec.template.spec.imagePullSecrets"),
];

/// Lines that the reference refuses because a feature is switched off there, and that Tombolo serves.
const SERVED_HERE: [(&str, &str); 1] =
    [("svc:spec-nodeSelector", "placement on nodes by label is what nodeSelector is for")];

/// Lines answered as recorded, with a warning on top: there is no autoscaler of that class.
const NO_EFFECT: [&str; 1] = ["svc:ann:class=custom"];

/// Lines that no admission is asked about: the hub's REST edge answers them.
const OF_THE_REST_EDGE: [&str; 14] = [
    "api:GET /apis/serving.knative.dev/v1",
    "api:GET /apis/serving.knative.dev/v1/nosuch",
    "api:GET /version",
    "api:list-empty",
    "api:list-limit",
    "k8s:deployments",
    "k8s:services",
    "life:delete",
    "life:get-ready",
    "life:list-revisions",
    "life:list-routes",
    "life:list-services",
    "life:patch-status",
    "life:revs-after",
];

/// What the reference warns of and Tombolo does not: its defaults are the secure ones.
const INSECURE_DEFAULTS: &str = "Kubernetes default value is insecure";

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exchange {
    name: String,
    method: String,
    path: String,
    content_type: String,
    req: Value,
    code: u16,
    headers: BTreeMap<String, String>,
    resp: Value,
}

/// Our answer to an exchange.
enum Answer {
    Admitted { code: u16, object: Value, warnings: Vec<String> },
    Refused(Box<Status>),
    OfTheRestEdge,
}

/// What the recorded API held when a request came.
#[derive(Default)]
struct Held(BTreeMap<String, Value>);

impl Held {
    /// Takes in what a recorded answer tells of stored objects.
    fn learn(&mut self, exchange: &Exchange) {
        if exchange.code >= 300 || exchange.path.contains("dryRun") {
            return;
        }
        let of_list = exchange.resp["items"].as_array().cloned();
        for object in of_list.unwrap_or_else(|| vec![exchange.resp.clone()]) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
            let key = format!("{}s/{}", text(&object["kind"]), text(&object["metadata"]["name"]));
            match exchange.method.as_str() {
                "DELETE" => drop(self.0.remove(&key)),
                _ => drop(self.0.insert(key, object)),
            }
        }
    }
}

#[test]
fn every_recorded_exchange_is_answered_as_recorded() {
    let mut held = Held::default();
    let mut failures = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for exchange in recording() {
        let (class, result) = judge(&exchange, &answer(&exchange, &held));
        *counts.entry(class).or_default() += 1;
        if let Err(why) = result {
            failures.push(format!("{}: {why}", exchange.name));
        }
        held.learn(&exchange);
    }
    assert!(failures.is_empty(), "{} lines differ:\n{}", failures.len(), failures.join("\n"));
    let exceptions = [
        ("no effect", NO_EFFECT.len()),
        ("not served yet", NOT_SERVED_YET.len()),
        ("of the REST edge", OF_THE_REST_EDGE.len()),
        ("served here", SERVED_HERE.len()),
    ];
    let same = counts.remove("same");
    assert_eq!(counts, BTreeMap::from(exceptions));
    assert_eq!(same, Some(LINES - exceptions.iter().map(|(_, count)| count).sum::<usize>()));
}

fn recording() -> Vec<Exchange> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(RECORDING).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Which class an exchange is of, and whether our answer is right for it.
fn judge(exchange: &Exchange, answer: &Answer) -> (&'static str, Result<(), String>) {
    let name = exchange.name.as_str();
    if let Some((_, field)) = NOT_SERVED_YET.iter().find(|(line, _)| *line == name) {
        return ("not served yet", refused_by_name(answer, field));
    }
    if SERVED_HERE.iter().any(|(line, _)| *line == name) {
        let served = matches!(answer, Answer::Admitted { code: 201, .. });
        return ("served here", if served { Ok(()) } else { Err("not served".into()) });
    }
    match answer {
        Answer::OfTheRestEdge => {
            let listed = OF_THE_REST_EDGE.contains(&name);
            ("of the REST edge", if listed { Ok(()) } else { Err("not listed as the REST edge's".into()) })
        }
        Answer::Refused(status) => {
            let mut theirs = exchange.resp.clone();
            without_random_pod(&mut theirs);
            let mut ours = serde_json::to_value(status).unwrap();
            without_random_pod(&mut ours);
            ("same", same(&(exchange.code, theirs), &(status.code, ours)))
        }
        Answer::Admitted { code, object, warnings } => {
            let theirs = (exchange.code, comparable(&exchange.resp));
            let result = same(&theirs, &(*code, comparable(object)));
            let (no_effect, unknown): (Vec<String>, _) =
                warnings.iter().cloned().partition(|text| text.contains(": no effect, "));
            let result = result.and_then(|()| same(&recorded_warnings(exchange), &unknown));
            let class = if no_effect.is_empty() { "same" } else { "no effect" };
            let listed = no_effect.is_empty() != NO_EFFECT.contains(&name);
            (
                class,
                result.and_then(|()| if listed { Ok(()) } else { Err(format!("warned of {no_effect:?}")) }),
            )
        }
    }
}

/// The name of the pod in a failed dry run ends in five characters of chance.
fn without_random_pod(status: &mut Value) {
    const POD: &str = "Pod \"dry-run-validation";
    let message = status["message"].as_str().unwrap_or_default();
    if let Some(end) = message.find(POD).map(|start| start + POD.len()) {
        status["message"] = format!("{}{}", &message[..end], &message[end + 5..]).into();
    }
}

fn same<T: std::fmt::Debug + PartialEq>(theirs: &T, ours: &T) -> Result<(), String> {
    if theirs == ours { Ok(()) } else { Err(format!("\n  recorded {theirs:?}\n  ours     {ours:?}")) }
}

fn refused_by_name(answer: &Answer, field: &str) -> Result<(), String> {
    match answer {
        Answer::Refused(status) if status.code == 400 && status.message.contains(field) => Ok(()),
        Answer::Refused(status) => Err(format!("refused, but not by the name {field}: {}", status.message)),
        _ => Err(format!("{field} is not refused")),
    }
}

/// `299 - "unknown field \"spec.x\""`, one or several.
fn recorded_warnings(exchange: &Exchange) -> Vec<String> {
    let header = exchange.headers.get("Warning").map(String::as_str).unwrap_or_default();
    let texts =
        header.split("299 - ").map(|part| part.trim_end_matches(", ")).filter(|part| !part.is_empty());
    let unquoted = texts.map(|quoted| serde_json::from_str::<String>(quoted).unwrap());
    unquoted.filter(|text| !text.starts_with(INSECURE_DEFAULTS)).collect()
}

/// An object without what differs from one day to the next.
fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().unwrap();
    for each in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        metadata.remove(each);
    }
    if let Some(prefix) = metadata.get("generateName").and_then(Value::as_str).map(str::to_owned) {
        let name = metadata["name"].as_str().unwrap();
        assert!(name.starts_with(&prefix) && name.len() == prefix.len() + 5, "{name}");
        metadata["name"] = prefix.into();
    }
    object
}

fn answer(exchange: &Exchange, held: &Held) -> Answer {
    let path = exchange.path.split('?').next().unwrap();
    let Some(path) = path.strip_prefix("/apis/serving.knative.dev/v1/namespaces/") else {
        return Answer::OfTheRestEdge;
    };
    let parts: Vec<&str> = path.split('/').collect();
    let (namespace, plural, name) = match parts.as_slice() {
        [namespace, plural] => (*namespace, *plural, None),
        [namespace, plural, name] => (*namespace, *plural, Some(*name)),
        _ => return Answer::OfTheRestEdge,
    };
    let current = name.and_then(|name| held.0.get(&format!("{plural}/{name}")));
    let refused = |status| Answer::Refused(Box::new(status));
    match (exchange.method.as_str(), name, current) {
        (_, Some(name), None) => refused(Status::not_found(plural, GROUP, name)),
        _ if namespace != "default" => refused(Status::namespace_not_found(namespace)),
        ("POST", None, _) if exchange.content_type != "application/json" => {
            refused(Status::unsupported_media_type(&[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
            ]))
        }
        ("POST", None, _) => admit(plural, &exchange.req, None),
        ("PUT", Some(name), Some(current)) => {
            let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
            if version(&exchange.req) != version(current) {
                return refused(Status::conflict(plural, GROUP, name));
            }
            admit(plural, &exchange.req, Some(current))
        }
        ("PATCH", Some(_), Some(current)) => match exchange.content_type.as_str() {
            "application/merge-patch+json" => {
                let mut merged = current.clone();
                merge(&mut merged, &exchange.req);
                admit(plural, &merged, Some(current))
            }
            "application/json-patch+json" => refused(Status::unprocessable_patch()),
            _ => refused(Status::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ])),
        },
        _ => Answer::OfTheRestEdge,
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in members {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

fn admit(plural: &str, input: &Value, current: Option<&Value>) -> Answer {
    let request = Admission {
        namespace: "default",
        user: "admin",
        now: "2026-01-01T00:00:00Z",
        uid: "0a0b",
        name_suffix: "x7x7x",
    };
    fn admitted<T: serde::Serialize>(result: admission::Result<T>, code: u16) -> Answer {
        match result {
            Ok(it) => Answer::Admitted { code, object: json!(it.object), warnings: it.warnings },
            Err(status) => Answer::Refused(status),
        }
    }
    fn read<T: serde::de::DeserializeOwned>(current: Option<&Value>) -> Option<T> {
        current.map(|current| serde_json::from_value(current.clone()).unwrap())
    }
    let code = if current.is_some() { 200 } else { 201 };
    match plural {
        "services" => {
            admitted(admission::admit_service(input, read::<Service>(current).as_ref(), &request), code)
        }
        "configurations" => {
            let current = read::<Configuration>(current);
            admitted(admission::admit_configuration(input, current.as_ref(), &request), code)
        }
        "routes" => admitted(admission::admit_route(input, read::<Route>(current).as_ref(), &request), code),
        "revisions" => {
            let current = read::<Revision>(current).unwrap();
            admitted(admission::admit_revision_update(input, &current, &request), code)
        }
        other => panic!("no such kind: {other}"),
    }
}
