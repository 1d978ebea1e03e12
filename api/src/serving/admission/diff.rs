//! What changed between two specs, printed as Knative prints it: by the path of Go's fields, old value and new.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// Fields of Go's pointer types: a change between two values is a change behind the pointer.
const POINTERS: [&str; 14] = [
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "containerConcurrency",
    "defaultMode",
    "enableServiceLinks",
    "idleTimeoutSeconds",
    "localhostProfile",
    "optional",
    "privileged",
    "readOnlyRootFilesystem",
    "responseStartTimeoutSeconds",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
];
const POINTERS_BY_PLACE: [&str; 1] = [".TimeoutSeconds"];
/// Fields of a Revision's spec that are Knative's own; the others are the inlined pod's.
const OWN: [&str; 4] =
    ["containerConcurrency", "idleTimeoutSeconds", "responseStartTimeoutSeconds", "timeoutSeconds"];

/// The changes of a Revision's spec; empty when there is none.
pub(super) fn of_spec(old: &impl Serialize, new: &impl Serialize) -> String {
    changes(old, new, "{v1.RevisionSpec}", true)
}

/// The changes of a template.
pub(super) fn of_template(old: &impl Serialize, new: &impl Serialize) -> String {
    changes(old, new, "{*v1.RevisionTemplateSpec}", false)
}

fn changes(old: &impl Serialize, new: &impl Serialize, root: &str, is_spec: bool) -> String {
    let [old, new] =
        [serde_json::to_value(old), serde_json::to_value(new)].map(|value| value.unwrap_or(Value::Null));
    let mut out = String::new();
    compare(Some(&old), Some(&new), root, "", is_spec, &mut out);
    out
}

/// `is_spec`: the members are those of a Revision's spec, where the pod is inlined.
fn compare(
    old: Option<&Value>,
    new: Option<&Value>,
    path: &str,
    name: &str,
    is_spec: bool,
    out: &mut String,
) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let is_map = matches!(name, "annotations" | "labels" | "nodeSelector" | "limits" | "requests");
            for name in names {
                let step =
                    if is_map { format!("[{name:?}]") } else { format!(".{}", go_name(name, is_spec)) };
                let into_spec = !is_spec && name == "spec";
                compare(old.get(name), new.get(name), &format!("{path}{step}"), name, into_spec, out);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                let step = match (index < old.len(), index < new.len()) {
                    (true, true) => format!("[{index}]"),
                    (true, false) => format!("[{index}->?]"),
                    (false, _) => format!("[?->{index}]"),
                };
                compare(old.get(index), new.get(index), &format!("{path}{step}"), "", false, out);
            }
        }
        _ => leaf(old, new, path, name, out),
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>, path: &str, name: &str, out: &mut String) {
    let of_spec = POINTERS_BY_PLACE.iter().any(|place| path.ends_with(place) && !path.contains("Probe"));
    let pointer = POINTERS.contains(&name) || of_spec;
    let star = if pointer && old.is_some() && new.is_some() { "*" } else { "" };
    out.push_str(&format!("{star}{path}:\n"));
    let text = |value: Option<&Value>| match value {
        None if pointer => "<nil>".to_owned(),
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let of_list = path.ends_with("->?]") || path.contains("[?->");
    if old.is_some() || !of_list {
        out.push_str(&format!("\t-: {:?}\n", text(old)));
    }
    if new.is_some() || !of_list {
        out.push_str(&format!("\t+: {:?}\n", text(new)));
    }
}

fn go_name(json: &str, is_spec: bool) -> String {
    let plain = |json: &str| {
        let mut chars = json.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    };
    match json {
        "metadata" => "ObjectMeta".into(),
        "httpGet" => "ProbeHandler.HTTPGet".into(),
        "tcpSocket" => "ProbeHandler.TCPSocket".into(),
        "exec" => "ProbeHandler.Exec".into(),
        "grpc" => "ProbeHandler.GRPC".into(),
        "httpHeaders" => "HTTPHeaders".into(),
        "emptyDir" | "secret" | "configMap" | "projected" => format!("VolumeSource.{}", plain(json)),
        _ if is_spec && !OWN.contains(&json) => format!("PodSpec.{}", plain(json)),
        _ => plain(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_are_told_by_gos_paths() {
        let old = json!({"spec": {"containers": [{"image": "a"}], "containerConcurrency": 0}});
        let new =
            json!({"spec": {"containers": [{"image": "b"}, {"image": "c"}], "containerConcurrency": 3}});
        let text = of_template(&old, &new);
        assert!(text.contains(
            "{*v1.RevisionTemplateSpec}.Spec.PodSpec.Containers[0].Image:\n\t-: \"a\"\n\t+: \"b\"\n"
        ));
        assert!(
            text.contains("*{*v1.RevisionTemplateSpec}.Spec.ContainerConcurrency:\n\t-: \"0\"\n\t+: \"3\"\n")
        );
        assert!(text.contains("Containers[?->1]:\n\t+: "));
        assert_eq!(of_template(&old, &old), "");
    }
}
