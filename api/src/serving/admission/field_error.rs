//! Knative's field errors: what is wrong, with which fields, merged and ordered as its webhook prints them. Knows no
//! resource.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One complaint about some fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldError {
    message: String,
    paths: Vec<String>,
    details: String,
}

/// All complaints about one object. Prints like Knative's; empty means there is nothing to complain about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// `paths` are relative to the object in whose check the error arises; an empty one is that object itself.
    pub(super) fn new(message: impl Into<String>, paths: &[&str]) -> Self {
        Self::detailed(message, paths, "")
    }

    pub(super) fn detailed(message: impl Into<String>, paths: &[&str], details: impl Into<String>) -> Self {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Self(vec![FieldError { message: message.into(), paths, details: details.into() }])
    }

    pub(super) fn missing(path: &str) -> Self {
        Self::new("missing field(s)", &[path])
    }

    pub(super) fn disallowed(path: &str) -> Self {
        Self::new("must not set the field(s)", &[path])
    }

    pub(super) fn invalid(value: impl fmt::Display, path: &str) -> Self {
        Self::new(format!("invalid value: {value}"), &[path])
    }

    pub(super) fn invalid_because(value: impl fmt::Display, path: &str, details: impl Into<String>) -> Self {
        Self::detailed(format!("invalid value: {value}"), &[path], details)
    }

    pub(super) fn out_of_bounds(
        value: impl fmt::Display,
        low: impl fmt::Display,
        high: impl fmt::Display,
        path: &str,
    ) -> Self {
        Self::new(format!("expected {low} <= {value} <= {high}"), &[path])
    }

    pub(super) fn invalid_key(key: &str, path: &str, details: &str) -> Self {
        Self::detailed(format!("invalid key name {key:?}"), &[path], details)
    }

    pub(super) fn one_of_missing(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got neither", paths)
    }

    pub(super) fn many_of(paths: &[&str]) -> Self {
        Self::new("expected exactly one, got both", paths)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn also(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The same errors seen from the object that holds this one under `field`.
    pub(super) fn via(mut self, field: &str) -> Self {
        for path in self.0.iter_mut().flat_map(|error| &mut error.paths) {
            *path = joined(field, path);
        }
        self
    }

    pub(super) fn via_index(self, field: &str, index: usize) -> Self {
        self.via(&format!("[{index}]")).via(field)
    }

    /// By a key that is not a field name.
    pub(super) fn via_key(self, key: &str) -> Self {
        self.via(&format!("[{key}]"))
    }
}

/// Joins two paths: indices stick to what they index, empty parts vanish.
fn joined(prefix: &str, path: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in prefix.split('.').chain(path.split('.')).filter(|part| !part.is_empty()) {
        match parts.last_mut() {
            Some(last) if part.starts_with('[') && part.ends_with(']') => last.push_str(part),
            _ => parts.push(part.to_owned()),
        }
    }
    parts.join(".")
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut merged: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for error in &self.0 {
            let paths = merged.entry((&error.message, &error.details)).or_default();
            paths.extend(error.paths.iter().map(String::as_str));
        }
        for (index, ((message, details), paths)) in merged.into_iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let paths: Vec<&str> = paths.into_iter().collect();
            write!(f, "{message}: {}", paths.join(", "))?;
            if !details.is_empty() {
                write!(f, "\n{details}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_messages_share_a_line_and_lines_are_sorted() {
        let errors = FieldErrors::missing("image")
            .via_index("containers", 1)
            .also(FieldErrors::invalid_because("x", "", "why"))
            .also(FieldErrors::missing("image").via_index("containers", 0))
            .via("spec");
        let text = "invalid value: x: spec\nwhy\nmissing field(s): spec.containers[0].image, spec.containers[1].image";
        assert_eq!(errors.to_string(), text);
    }

    #[test]
    fn keys_with_dots_are_not_indices() {
        assert_eq!(joined("a.b", "[c.d/e]"), "a.b.[c.d/e]");
        assert_eq!(joined("a", "[0]"), "a[0]");
    }
}
