//! Changes of an object as clients send them, whole or as a patch. Pure.

use json_patch::PatchOperation;
use serde_json::Value;
use tombolo_api::meta::Status;

use super::body::{self, BODY_MAX, Sent};
use super::validation::Decoding;

/// Media types of patches that are read here.
pub(super) const PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// Kubernetes' own kinds take this one too. Merging is the same as long as no list is merged.
pub(super) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Operations of one JSON patch: Kubernetes' limit.
const OPERATIONS_MAX: usize = 10_000;

/// How an object is to become.
#[derive(Debug)]
pub(super) enum Edit {
    Replace(Value),
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Operations(Vec<PatchOperation>),
    /// Server-side apply: merged, and created if it is not there. Nobody's ownership of fields is kept.
    Apply(Value),
}

impl Edit {
    /// Reads a patch of the given media type. With it come the paths of fields it holds more than once.
    pub(super) fn patch(media_type: &str, bytes: &[u8]) -> Result<(Self, Vec<String>), Box<Status>> {
        match media_type {
            "application/merge-patch+json" => {
                let (patch, repeated) = object(body::json(bytes)?)?;
                Ok((Self::Merge(patch), repeated))
            }
            STRATEGIC => {
                let (patch, repeated) = object(body::json(bytes)?)?;
                match directive(&patch) {
                    None => Ok((Self::Merge(patch), repeated)),
                    Some(name) => Err(not_a_patch(&format!(
                        "the directive {name:?} is not served: send it as application/merge-patch+json"
                    ))),
                }
            }
            "application/json-patch+json" => {
                let operations: Vec<PatchOperation> =
                    serde_json::from_slice(bytes).map_err(|error| not_a_patch(&error.to_string()))?;
                if operations.len() > OPERATIONS_MAX {
                    return Err(not_a_patch(&format!("more than {OPERATIONS_MAX} operations")));
                }
                Ok((Self::Operations(operations), Vec::new()))
            }
            "application/apply-patch+yaml" => {
                let (patch, repeated) = object(body::yaml(bytes)?)?;
                Ok((Self::Apply(patch), repeated))
            }
            _ => Err(Box::new(Status::unsupported_media_type(&PATCHES))),
        }
    }

    /// What the object of `kind` that comes of it is read from.
    pub(super) fn decoding(&self, kind: &'static str) -> Decoding {
        match self {
            Self::Replace(_) => Decoding::Object(kind),
            Self::Merge(_) | Self::Operations(_) => Decoding::Patch,
            Self::Apply(_) => Decoding::Apply,
        }
    }

    /// The object `current` becomes.
    pub(super) fn apply(self, mut current: Value) -> Result<Value, Box<Status>> {
        match self {
            Self::Replace(whole) => return Ok(whole),
            Self::Merge(patch) | Self::Apply(patch) => json_patch::merge(&mut current, &patch),
            Self::Operations(operations) => {
                let mut copied = 0;
                for operation in &operations {
                    copied += size_of_copy(&current, operation);
                    // Copies of copies would double the object with every operation.
                    if copied > BODY_MAX {
                        return Err(not_a_patch(&format!("it copies more than {BODY_MAX} bytes")));
                    }
                    json_patch::patch(&mut current, std::slice::from_ref(operation))
                        .map_err(|_| Box::new(Status::unprocessable_patch()))?;
                }
            }
        }
        Ok(current)
    }
}

fn size_of_copy(document: &Value, operation: &PatchOperation) -> usize {
    let PatchOperation::Copy(copy) = operation else { return 0 };
    document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len())
}

fn object(sent: Sent) -> Result<(Value, Vec<String>), Box<Status>> {
    if sent.value.is_object() {
        Ok((sent.value, sent.repeated))
    } else {
        Err(not_a_patch("it must be an object"))
    }
}

/// A member that says how to merge instead of what.
fn directive(patch: &Value) -> Option<&str> {
    let members = patch.as_object()?;
    let own = members.keys().find(|name| name.starts_with('$')).map(String::as_str);
    own.or_else(|| members.values().find_map(directive))
}

fn not_a_patch(why: &str) -> Box<Status> {
    Box::new(Status::bad_request(format!("error decoding patch: {why}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(media_type: &str, patch: &str, current: Value) -> Result<Value, u16> {
        Edit::patch(media_type, patch.as_bytes())
            .and_then(|(edit, _)| edit.apply(current))
            .map_err(|status| status.code)
    }

    #[test]
    fn every_kind_of_patch_is_read() {
        let current = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        let merge = "application/merge-patch+json";
        assert_eq!(
            patched(merge, r#"{"a":{"b":null,"d":3},"l":[3]}"#, current.clone()),
            Ok(json!({"a": {"c": 2, "d": 3}, "l": [3]}))
        );
        let operations = "application/json-patch+json";
        assert_eq!(
            patched(
                operations,
                r#"[{"op":"add","path":"/l/-","value":3},{"op":"remove","path":"/a"}]"#,
                current.clone()
            ),
            Ok(json!({"l": [1, 2, 3]}))
        );
        assert_eq!(
            patched(STRATEGIC, r#"{"a":{"b":null}}"#, current.clone()),
            Ok(json!({"a": {"c": 2}, "l": [1, 2]}))
        );
        assert_eq!(
            patched("application/apply-patch+yaml", "a:\n  b: 5\n", current.clone()),
            Ok(json!({"a": {"b": 5, "c": 2}, "l": [1, 2]}))
        );
        for (media_type, patch, code) in [
            (operations, r#"[{"op":"replace","path":"/x/y","value":1}]"#, 422),
            (operations, r#"[{"op":"test","path":"/a/b","value":2}]"#, 422),
            (operations, "{}", 400),
            (merge, "[]", 400),
            (merge, "{", 400),
            (STRATEGIC, r#"{"a":{"$patch":"delete"}}"#, 400),
            ("application/cbor", "{}", 415),
        ] {
            assert_eq!(patched(media_type, patch, current.clone()), Err(code), "{patch}");
        }
    }

    #[test]
    fn copies_of_copies_are_bounded() {
        let doubling: Vec<Value> =
            (0..60).map(|step| json!({"op": "copy", "from": "", "path": format!("/c{step}")})).collect();
        let patch = serde_json::to_string(&doubling).unwrap();
        assert_eq!(patched("application/json-patch+json", &patch, json!({"a": "x".repeat(1000)})), Err(400));
    }
}
