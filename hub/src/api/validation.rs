//! What becomes of fields that nobody knows, and of fields sent more than once: a request's `fieldValidation`. Pure.

use tombolo_api::meta::Status;

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

    /// Refuses an object that has `repeated` or `unknown` fields, if the client wants that. `decoding` is how a refusal
    /// begins: what was to be read as what.
    pub(super) fn check(
        self,
        decoding: &str,
        repeated: &[String],
        unknown: &[String],
    ) -> Result<(), Box<Status>> {
        if self != Self::Strict || (repeated.is_empty() && unknown.is_empty()) {
            return Ok(());
        }
        let unknown = unknown.iter().map(|path| format!("{UNKNOWN}{path:?}"));
        let all: Vec<String> = repeated_fields(repeated).chain(unknown).collect();
        Err(Box::new(Status::bad_request(format!("{decoding}strict decoding error: {}", all.join(", ")))))
    }

    /// What the client should hear of an object that was taken: of what an admission found, and of repetitions.
    pub(super) fn warnings(self, repeated: &[String], admission: Vec<String>) -> Vec<String> {
        match self {
            Self::Ignore => admission.into_iter().filter(|text| !text.starts_with(UNKNOWN)).collect(),
            Self::Warn | Self::Strict => repeated_fields(repeated).chain(admission).collect(),
        }
    }
}

fn repeated_fields(paths: &[String]) -> impl Iterator<Item = String> + '_ {
    paths.iter().map(|path| format!("duplicate field {path:?}"))
}

#[cfg(test)]
mod tests {
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
                    "as a Service: strict decoding error: duplicate field \"a.b\", unknown field \"spec.foo\", \
                     unknown field \"spec.bar\"",
                ),
                vec!["duplicate field \"a.b\"", "unknown field \"spec.foo\"", "something else"],
            ),
        ] {
            let validation = FieldValidation::parse(text).unwrap();
            let refused = validation.check("as a Service: ", &repeated, &unknown).err();
            assert_eq!(refused.as_ref().map(|status| status.message.as_str()), refusal, "{text}");
            assert!(validation.check("", &[], &[]).is_ok());
            assert_eq!(validation.warnings(&repeated, found()), heard, "{text}");
        }
        let refused = FieldValidation::parse("strict").unwrap_err();
        assert_eq!(refused.code, 400);
        assert!(["Ignore", "Strict", "Warn"].iter().all(|word| refused.message.contains(word)));
    }
}
