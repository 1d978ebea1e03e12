//! What becomes of fields that nobody knows, and of fields sent more than once: a request's `fieldValidation`. Pure.

use serde_json::Value;
use tombolo_api::meta::{Status, StatusCause};

/// How warnings of fields that nobody knows begin, here and in admissions.
const UNKNOWN: &str = "unknown field ";

/// What a client wants to hear of its mistakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// What an object was read from, which decides how its fields are refused: as Kubernetes' API server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoding {
    /// A body that is a whole object of this kind.
    Object(&'static str),
    /// The stored object and a patch.
    Patch,
    Apply,
}

impl FieldValidation {
    pub(super) fn parse(text: &str) -> Result<Self, Box<Status>> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => Err(Box::new(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            )))),
        }
    }

    /// Refuses `object`, which has `repeated` or `unknown` fields, if the client wants that.
    pub(super) fn check(
        self,
        decoding: Decoding,
        object: &Value,
        repeated: &[String],
        unknown: &[String],
    ) -> Result<(), Box<Status>> {
        if self != Self::Strict || (repeated.is_empty() && unknown.is_empty()) {
            return Ok(());
        }
        let unknown = unknown.iter().map(|path| format!("{UNKNOWN}{path:?}"));
        let all: Vec<String> = repeated_fields(repeated).chain(unknown).collect();
        Err(decoding.refusal(object, &format!("strict decoding error: {}", all.join(", "))))
    }

    /// What the client should hear of an object that was taken: of what an admission found, and of repetitions.
    pub(super) fn warnings(self, repeated: &[String], admission: Vec<String>) -> Vec<String> {
        match self {
            Self::Ignore => admission.into_iter().filter(|text| !text.starts_with(UNKNOWN)).collect(),
            Self::Warn | Self::Strict => repeated_fields(repeated).chain(admission).collect(),
        }
    }
}

impl Decoding {
    fn refusal(self, object: &Value, why: &str) -> Box<Status> {
        Box::new(match self {
            Self::Object(kind) => {
                Status::bad_request(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {why}"))
            }
            Self::Apply => Status::bad_request(why),
            Self::Patch => {
                let message = format!("Invalid value: {:?}: {why}", object.to_string());
                let cause =
                    StatusCause { reason: "FieldValueInvalid".into(), message, field: "patch".into() };
                Status::invalid("", "", "", vec![cause])
            }
        })
    }
}

fn repeated_fields(paths: &[String]) -> impl Iterator<Item = String> + '_ {
    paths.iter().map(|path| format!("duplicate field {path:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn clients_hear_what_they_want_to_hear() {
        let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        let (repeated, unknown) = (paths(&["a.b"]), paths(&["spec.foo", "spec.bar"]));
        let found = || paths(&["unknown field \"spec.foo\"", "something else"]);
        for (text, refusal, heard) in [
            ("Ignore", None, vec!["something else"]),
            ("", None, vec!["duplicate field \"a.b\"", "unknown field \"spec.foo\"", "something else"]),
            (
                "Strict",
                Some(
                    "strict decoding error: duplicate field \"a.b\", unknown field \"spec.foo\", \
                     unknown field \"spec.bar\"",
                ),
                vec!["duplicate field \"a.b\"", "unknown field \"spec.foo\"", "something else"],
            ),
        ] {
            let validation = FieldValidation::parse(text).unwrap();
            let refused = validation.check(Decoding::Apply, &json!({}), &repeated, &unknown).err();
            assert_eq!(refused.as_ref().map(|status| status.message.as_str()), refusal, "{text}");
            assert!(validation.check(Decoding::Patch, &json!({}), &[], &[]).is_ok());
            assert_eq!(validation.warnings(&repeated, found()), heard, "{text}");
        }
        for (decoding, code, message) in [
            (
                Decoding::Object("Service"),
                400,
                "Service in version \"v1\" cannot be handled as a Service: strict decoding error: duplicate field \"b\"",
            ),
            (Decoding::Apply, 400, "strict decoding error: duplicate field \"b\""),
            (
                Decoding::Patch,
                422,
                " \"\" is invalid: patch: Invalid value: \"{\\\"b\\\":1}\": strict decoding error: duplicate field \"b\"",
            ),
        ] {
            let refused =
                FieldValidation::Strict.check(decoding, &json!({"b": 1}), &paths(&["b"]), &[]).unwrap_err();
            assert_eq!((refused.code, refused.message.as_str()), (code, message));
        }
        let refused = FieldValidation::parse("strict").unwrap_err();
        assert_eq!(refused.code, 400);
        assert!(["Ignore", "Strict", "Warn"].iter().all(|word| refused.message.contains(word)));
    }
}
