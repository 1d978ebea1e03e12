//! Rules by which a request's headers choose a tag.
//!
//! Compiled once and kept over tables as long as they are the same. It must not know where a tag leads.

use http::header::{HeaderMap, HeaderName};
use regex_lite::Regex;
use tombolo_api::desired::{HeaderMatch, Steer};
use tombolo_api::serving::steering;

/// Asks for a tag by name.
pub(crate) const TAG_HEADER: HeaderName = HeaderName::from_static("knative-serving-tag");

/// Longest value an expression is tried on: the time of a match grows with it. Longer ones match no expression; browsers' headers
/// other than cookies are shorter.
const REGEX_VALUE_BYTES_MAX: usize = 4 * 1024;

/// A host's rules.
pub(crate) struct Rules {
    source: Vec<Steer>,
    /// Without those that can never hold.
    compiled: Box<[Rule]>,
}

struct Rule {
    header: HeaderName,
    value: Value,
    tag: String,
}

enum Value {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

impl Rules {
    pub(crate) fn compile(source: &[Steer]) -> Self {
        Self { source: source.to_vec(), compiled: source.iter().filter_map(Rule::compile).collect() }
    }

    /// Whether these rules were compiled from `source`.
    pub(crate) fn are_of(&self, source: &[Steer]) -> bool {
        self.source == source
    }

    /// The tag of the first rule that holds. A header that comes several times needs one value that matches.
    pub(crate) fn tag(&self, headers: &HeaderMap) -> Option<&str> {
        let holds =
            |rule: &&Rule| headers.get_all(&rule.header).iter().any(|value| rule.value.is(value.as_bytes()));
        self.compiled.iter().find(holds).map(|rule| rule.tag.as_str())
    }
}

impl Rule {
    /// The hub admits no rule that does not compile; one that came all the same steers nothing.
    fn compile(steer: &Steer) -> Option<Self> {
        let header = HeaderName::try_from(steer.header.as_str());
        let header = header
            .inspect_err(
                |error| tracing::warn!(header = steer.header, %error, "a rule of a route is ignored"),
            )
            .ok()?;
        let value = match &steer.value {
            HeaderMatch::Exact(text) => Value::Exact(text.clone()),
            HeaderMatch::Prefix(text) => Value::Prefix(text.clone()),
            HeaderMatch::Regex(text) => {
                let compiled = steering::regex(text).inspect_err(
                    |error| tracing::warn!(regex = text, %error, "a rule of a route is ignored"),
                );
                Value::Regex(compiled.ok()?)
            }
        };
        Some(Self { header, value, tag: steer.tag.clone() })
    }
}

impl Value {
    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Regex(regex) => {
                value.len() <= REGEX_VALUE_BYTES_MAX
                    && std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steer(header: &str, value: HeaderMatch, tag: &str) -> Steer {
        Steer { header: header.into(), value, tag: tag.into() }
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| (name.parse().unwrap(), value.parse().unwrap());
        let mut map = HeaderMap::new();
        lines.iter().map(line).for_each(|(name, value): (HeaderName, http::HeaderValue)| {
            map.append(name, value);
        });
        map
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let rules = Rules::compile(&[
            steer("user-agent", HeaderMatch::Regex("iPhone|iPad".into()), "mobile"),
            steer("x-group", HeaderMatch::Exact("beta".into()), "beta"),
            steer("x-group", HeaderMatch::Prefix("be".into()), "close"),
            steer("x-group", HeaderMatch::Regex("^z+$".into()), "zs"),
        ]);
        let long = "z".repeat(REGEX_VALUE_BYTES_MAX + 1);
        for (lines, tag) in [
            (&[("user-agent", "Mozilla/5.0 (iPhone; CPU)"), ("x-group", "beta")][..], Some("mobile")),
            (&[("user-agent", "Mozilla/5.0 (iphone)")], None),
            (&[("X-Group", "beta")], Some("beta")),
            (&[("x-group", "Beta")], None),
            (&[("x-group", "best")], Some("close")),
            (&[("x-group", "none"), ("x-group", "beta")], Some("beta")),
            (&[("x-group", "zzz")], Some("zs")),
            (&[("x-group", "zzz, a")], None),
            (&[("x-group", &long)], None),
            (&[], None),
        ] {
            assert_eq!(rules.tag(&headers(lines)), tag, "{lines:?}");
        }
    }

    #[test]
    fn whatever_the_hub_admits_steers() {
        // More than 16 KiB when compiled, by their length and by what they repeat.
        let names = (0..60).map(|number| format!("Agent{number}")).collect::<Vec<_>>().join("|");
        for (regex, value) in [(names.as_str(), "x Agent59/1"), ("^(?:ab?){400}$", &"a".repeat(400))] {
            let written = serde_json::json!([{"header": "User-Agent", "regex": regex, "tag": "x"}]);
            let admitted = steering::parse(&written.to_string()).unwrap();
            let rules = Rules::compile(&admitted);
            assert_eq!(rules.tag(&headers(&[("user-agent", value)])), Some("x"), "{regex}");
            assert_eq!(rules.tag(&headers(&[("user-agent", "curl")])), None);
        }
    }

    #[test]
    fn a_rule_that_does_not_compile_steers_nothing() {
        let big = format!("(?:{}){{1000}}", "abc".repeat(100));
        for bad in ["(", "a{", &big, r"(a)\1"] {
            let rules = Rules::compile(&[
                steer("a", HeaderMatch::Regex(bad.into()), "x"),
                steer("a b", HeaderMatch::Exact("1".into()), "y"),
                steer("a", HeaderMatch::Exact("1".into()), "z"),
            ]);
            assert_eq!(rules.compiled.len(), 1, "{bad:.20}");
            assert_eq!(rules.tag(&headers(&[("a", "1")])), Some("z"));
        }
    }

    #[test]
    fn the_worst_expression_on_the_longest_value_ends_at_once() {
        let rules = Rules::compile(&[steer("a", HeaderMatch::Regex("(a?){240}a{240}b".into()), "x")]);
        assert_eq!(rules.compiled.len(), 1);
        let value = "a".repeat(REGEX_VALUE_BYTES_MAX);
        assert_eq!(rules.tag(&headers(&[("a", &value)])), None);
    }
}
