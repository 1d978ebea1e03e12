//! `tombolo.dev/steering`: requests that a header sends to a tag, as users write it and as nodes get it. Knows no route.

use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;

use crate::desired::{HeaderMatch, Steer};

/// Most rules of one route: every request is held against each.
pub const RULES_MAX: usize = 32;
/// Longest value that a header is compared with, bytes: more than any browser's `User-Agent`.
pub const VALUE_MAX_BYTES: usize = 512;
/// Longest name of a header, bytes.
const HEADER_MAX_BYTES: usize = 128;
/// Most memory of one compiled expression, bytes: a node holds those of all its routes. The time of a match grows with it: the worst
/// expression of this size takes an eighth of a second on a value of 4 KiB, a list of plain words of 512 bytes fits.
const REGEX_MAX_BYTES: usize = 64 << 10;

/// What is wrong with a list of rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct SteeringError {
    /// Within the list: `[2].regex`; empty for the list itself.
    pub path: String,
    pub why: String,
}

/// One rule as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    header: String,
    tag: String,
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

/// Reads the annotation's value: a JSON list of objects with `header`, `tag`, and one of `exact`, `prefix` and `regex`.
pub fn parse(text: &str) -> Result<Vec<Steer>, SteeringError> {
    let fail = |why: String| SteeringError { path: String::new(), why };
    let rules: Vec<Value> =
        serde_json::from_str(text).map_err(|error| fail(format!("must be a JSON list of rules: {error}")))?;
    if rules.len() > RULES_MAX {
        return Err(fail(format!("has {} rules, and may have at most {RULES_MAX}", rules.len())));
    }
    rules.into_iter().enumerate().map(|(index, rule)| steer(rule, index)).collect()
}

/// Compiles the expression of a rule, within the limits of admission. Nodes use it too, so that what was admitted steers.
pub fn regex(expression: &str) -> Result<Regex, regex_lite::Error> {
    RegexBuilder::new(expression).size_limit(REGEX_MAX_BYTES).build()
}

fn steer(rule: Value, index: usize) -> Result<Steer, SteeringError> {
    let fail = |field: &str, why: String| {
        let dot = if field.is_empty() { "" } else { "." };
        SteeringError { path: format!("[{index}]{dot}{field}"), why }
    };
    let rule: Rule = serde_json::from_value(rule).map_err(|error| fail("", error.to_string()))?;
    if !is_header_name(&rule.header) {
        let why = format!("{:?} is not the name of a header", rule.header);
        return Err(fail("header", why));
    }
    if rule.tag.is_empty() {
        return Err(fail("tag", "must name a tag of the traffic".into()));
    }
    let (field, value) = match (rule.exact, rule.prefix, rule.regex) {
        (Some(text), None, None) => ("exact", HeaderMatch::Exact(text)),
        (None, Some(text), None) => ("prefix", HeaderMatch::Prefix(text)),
        (None, None, Some(text)) => ("regex", HeaderMatch::Regex(text)),
        _ => return Err(fail("", "must have exactly one of exact, prefix, regex".into())),
    };
    let (HeaderMatch::Exact(text) | HeaderMatch::Prefix(text) | HeaderMatch::Regex(text)) = &value;
    if text.len() > VALUE_MAX_BYTES {
        return Err(fail(field, format!("is {} bytes long, and may be {VALUE_MAX_BYTES}", text.len())));
    }
    if let HeaderMatch::Regex(text) = &value {
        regex(text).map_err(|error| fail(field, error.to_string()))?;
    }
    Ok(Steer { header: rule.header.to_ascii_lowercase(), value, tag: rule.tag })
}

/// A token of RFC 9110.
fn is_header_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=HEADER_MAX_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_order() {
        let text = r#"[{"header":"User-Agent","regex":"iPhone|iPad","tag":"v2"},
            {"header":"x-group","exact":"beta","tag":"next"},{"header":"Cookie","prefix":"canary=","tag":"v2"}]"#;
        let steer = |header: &str, value, tag: &str| Steer { header: header.into(), value, tag: tag.into() };
        let expected = vec![
            steer("user-agent", HeaderMatch::Regex("iPhone|iPad".into()), "v2"),
            steer("x-group", HeaderMatch::Exact("beta".into()), "next"),
            steer("cookie", HeaderMatch::Prefix("canary=".into()), "v2"),
        ];
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse("[]"), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let rule = |rest: &str| format!(r#"[{{"header":"a","exact":"b","tag":"t"}},{{{rest}}}]"#);
        let long = "a".repeat(VALUE_MAX_BYTES + 1);
        for (text, path, why) in [
            ("{}".to_owned(), "", "must be a JSON list of rules"),
            ("[".to_owned(), "", "must be a JSON list of rules"),
            (rule(r#""header":"a b","exact":"c","tag":"t""#), "[1].header", "not the name of a header"),
            (rule(r#""header":"","exact":"c","tag":"t""#), "[1].header", "not the name of a header"),
            (rule(r#""header":"a","exact":"c","tag":"""#), "[1].tag", "must name a tag"),
            (rule(r#""header":"a","exact":"c""#), "[1]", "missing field `tag`"),
            (rule(r#""header":"a","tag":"t""#), "[1]", "exactly one of"),
            (rule(r#""header":"a","exact":"b","prefix":"b","tag":"t""#), "[1]", "exactly one of"),
            (rule(r#""header":"a","contains":"b","tag":"t""#), "[1]", "unknown field `contains`"),
            (rule(r#""header":"a","regex":"(","tag":"t""#), "[1].regex", ""),
            (rule(r#""header":"a","regex":"(?=b)","tag":"t""#), "[1].regex", ""),
            (rule(r#""header":"a","regex":"((a{90}){90}){90}","tag":"t""#), "[1].regex", ""),
            (rule(&format!(r#""header":"a","prefix":"{long}","tag":"t""#)), "[1].prefix", "may be 512"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.path == path && error.why.contains(why), "{text}: {error:?}");
        }
        let many = vec![r#"{"header":"a","exact":"b","tag":"t"}"#; RULES_MAX + 1].join(",");
        assert!(parse(&format!("[{many}]")).unwrap_err().why.contains("at most 32"));
    }
}
