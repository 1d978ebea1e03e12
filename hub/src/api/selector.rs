//! Label and field selectors: which objects of a collection a client means. Kubernetes' grammar. Pure.

use std::collections::BTreeSet;

use tombolo_api::meta::{ObjectMeta, Status};
use tombolo_api::names::is_dns1123_label;

/// Longest name of a label and longest value: Kubernetes' limits.
const LABEL_MAX: usize = 63;

/// Which objects of a collection are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    fields: Vec<FieldRule>,
    labels: Vec<LabelRule>,
    /// Only objects of this namespace.
    within: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRule {
    field: Field,
    value: String,
    equal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelRule {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Present(String),
    Absent(String),
}

impl Selector {
    pub(super) fn parse(fields: &str, labels: &str) -> Result<Self, Box<Status>> {
        let wrong = |parameter: &str, text: &str, why: Wrong| {
            let Wrong { at, why } = why;
            let place = format!("unable to parse {parameter} {text:?} at character {at}");
            Box::new(Status::bad_request(format!("{place}: {why}")))
        };
        Ok(Self {
            fields: parse_fields(fields).map_err(|why| wrong("fieldSelector", fields, why))?,
            labels: Labels::new(labels).parse().map_err(|why| wrong("labelSelector", labels, why))?,
            within: None,
        })
    }

    /// Whether everything is meant.
    pub(super) fn is_all(&self) -> bool {
        self.fields.is_empty() && self.labels.is_empty()
    }

    pub(super) fn matches(&self, metadata: &ObjectMeta) -> bool {
        self.within.as_ref().is_none_or(|namespace| *namespace == metadata.namespace)
            && self.fields.iter().all(|rule| rule.matches(metadata))
            && self.labels.iter().all(|rule| rule.matches(metadata))
    }

    /// The same within one namespace only.
    pub(super) fn within(self, namespace: Option<&str>) -> Self {
        Self { within: namespace.map(str::to_owned), ..self }
    }
}

impl FieldRule {
    fn matches(&self, metadata: &ObjectMeta) -> bool {
        let found = match self.field {
            Field::Name => &metadata.name,
            Field::Namespace => &metadata.namespace,
        };
        (*found == self.value) == self.equal
    }
}

impl LabelRule {
    fn matches(&self, metadata: &ObjectMeta) -> bool {
        match self {
            Self::In(key, values) => metadata.label(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => metadata.label(key).is_none_or(|value| !values.contains(value)),
            Self::Present(key) => metadata.label(key).is_some(),
            Self::Absent(key) => metadata.label(key).is_none(),
        }
    }
}

/// What is wrong with a selector, and at which of its characters, the first being 1.
struct Wrong {
    at: usize,
    why: String,
}

fn parse_fields(text: &str) -> Result<Vec<FieldRule>, Wrong> {
    let mut rules = Vec::new();
    let mut at = 1;
    for term in text.split(',') {
        let begin = at;
        at += term.chars().count() + 1;
        if term.is_empty() {
            continue;
        }
        let wrong = |why: String| Wrong { at: begin, why };
        let both = [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(operator, equal)| term.split_once(operator).map(|(key, value)| (key, value, equal)));
        let (key, value, equal) =
            both.ok_or_else(|| wrong(format!("{term:?} has no operator: use FIELD=VALUE or FIELD!=VALUE")))?;
        let field = match key.trim() {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            other => {
                let known = "use metadata.name or metadata.namespace";
                return Err(wrong(format!("field label not supported: {other}: {known}")));
            }
        };
        rules.push(FieldRule { field, value: value.trim().to_owned(), equal });
    }
    Ok(rules)
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
}

/// A reader of label selectors, and the tokens it has still to read, the next one last.
struct Labels {
    tokens: Vec<(usize, Token)>,
    end: usize,
}

impl Labels {
    fn new(text: &str) -> Self {
        let characters: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(c) = characters.get(at) {
            let symbols = ["==", "!=", "=", "!", "(", ")", ",", "<", ">"];
            let is = |symbol: &&&str| symbol.chars().eq(characters[at..].iter().copied().take(symbol.len()));
            if let Some(symbol) = symbols.iter().find(is) {
                tokens.push((at + 1, Token::Symbol(symbol)));
                at += symbol.len();
            } else if c.is_whitespace() {
                at += 1;
            } else {
                let of_word = |c: &&char| !c.is_whitespace() && !"=!(),<>".contains(**c);
                let word: String = characters[at..].iter().take_while(of_word).collect();
                let begin = at + 1;
                at += word.chars().count();
                tokens.push((begin, Token::Word(word)));
            }
        }
        tokens.reverse();
        Self { tokens, end: characters.len() + 1 }
    }

    fn parse(mut self) -> Result<Vec<LabelRule>, Wrong> {
        let mut rules = Vec::new();
        if self.tokens.is_empty() {
            return Ok(rules);
        }
        loop {
            rules.push(self.rule()?);
            if self.tokens.is_empty() {
                return Ok(rules);
            }
            self.symbol(",", "\",\" or the end")?;
        }
    }

    fn rule(&mut self) -> Result<LabelRule, Wrong> {
        if self.take("!") {
            return Ok(LabelRule::Absent(self.key()?));
        }
        let key = self.key()?;
        let (at, token) = match self.tokens.last().cloned() {
            None | Some((_, Token::Symbol(","))) => return Ok(LabelRule::Present(key)),
            Some(next) => next,
        };
        self.tokens.pop();
        let one = |value: String| BTreeSet::from([value]);
        match token {
            Token::Symbol("=" | "==") => Ok(LabelRule::In(key, one(self.value()?))),
            Token::Symbol("!=") => Ok(LabelRule::NotIn(key, one(self.value()?))),
            Token::Word(word) if word == "in" => Ok(LabelRule::In(key, self.values()?)),
            Token::Word(word) if word == "notin" => Ok(LabelRule::NotIn(key, self.values()?)),
            other => Err(unexpected(at, Some(&other), "one of =, ==, !=, in, notin")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Wrong> {
        self.symbol("(", "\"(\"")?;
        if let Some((at, Token::Symbol(")"))) = self.tokens.last() {
            return Err(Wrong { at: *at, why: "the set of values cannot be empty".into() });
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            if self.take(")") {
                return Ok(values);
            }
            self.symbol(",", "\",\" or \")\"")?;
        }
    }

    fn key(&mut self) -> Result<String, Wrong> {
        match self.tokens.pop() {
            Some((_, Token::Word(word))) if is_key(&word) => Ok(word),
            Some((at, Token::Word(word))) => {
                let rule =
                    "letters, digits, '-', '_' and '.', 63 at most, after an optional DNS name and '/'";
                Err(Wrong { at, why: format!("{word:?} is no label key: use {rule}") })
            }
            other => Err(self.unexpected_or_end(other, "a label key")),
        }
    }

    /// A value; where none stands, the empty one is meant.
    fn value(&mut self) -> Result<String, Wrong> {
        match self.tokens.last().cloned() {
            None | Some((_, Token::Symbol("," | ")"))) => Ok(String::new()),
            Some((_, Token::Word(word))) if is_name(&word) => {
                self.tokens.pop();
                Ok(word)
            }
            Some((at, Token::Word(word))) => {
                let rule = "letters, digits, '-', '_' and '.', 63 at most";
                Err(Wrong { at, why: format!("{word:?} is no label value: use {rule}") })
            }
            other => Err(self.unexpected_or_end(other, "a label value")),
        }
    }

    fn symbol(&mut self, wanted: &'static str, expected: &str) -> Result<(), Wrong> {
        if self.take(wanted) {
            return Ok(());
        }
        let found = self.tokens.last().cloned();
        Err(self.unexpected_or_end(found, expected))
    }

    fn take(&mut self, wanted: &'static str) -> bool {
        let is_next = matches!(self.tokens.last(), Some((_, Token::Symbol(symbol))) if *symbol == wanted);
        if is_next {
            self.tokens.pop();
        }
        is_next
    }

    fn unexpected_or_end(&self, found: Option<(usize, Token)>, expected: &str) -> Wrong {
        match found {
            Some((at, token)) => unexpected(at, Some(&token), expected),
            None => unexpected(self.end, None, expected),
        }
    }
}

fn unexpected(at: usize, found: Option<&Token>, expected: &str) -> Wrong {
    let found = match found {
        Some(Token::Word(word)) => format!("{word:?}"),
        Some(Token::Symbol(symbol)) => format!("{symbol:?}"),
        None => "the end".to_owned(),
    };
    Wrong { at, why: format!("found {found}, expected {expected}") }
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => prefix.split('.').all(is_dns1123_label) && is_name(name),
        None => is_name(key),
    }
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(|b| inner(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select() {
        let mut metadata = ObjectMeta { name: "a".into(), namespace: "n".into(), ..ObjectMeta::default() };
        metadata.labels.insert("x.dev/k".into(), "v".into());
        metadata.labels.insert("in".into(), "".into());
        for (fields, labels, matches) in [
            ("", "", true),
            ("metadata.name=a", "x.dev/k=v", true),
            ("metadata.name==b", "", false),
            ("metadata.name!=b,metadata.namespace=n", "", true),
            ("metadata.name!=a", "", false),
            ("metadata.name=a,metadata.namespace=m", "", false),
            ("", "x.dev/k==w", false),
            ("", "x.dev/k!=w, other!=v", true),
            ("", "x.dev/k", true),
            ("", "!x.dev/k", false),
            ("", " ! other ", true),
            ("", "x.dev/k in (u, v)", true),
            ("", "x.dev/k in(u,w),x.dev/k", false),
            ("", "x.dev/k notin (u,w)", true),
            ("", "x.dev/k notin (v)", false),
            ("", "other notin (v)", true),
            ("", "other in (v)", false),
            ("", "in in (,x),in=", true),
            ("", "in==,x.dev/k!=", true),
        ] {
            let selector = Selector::parse(fields, labels).unwrap_or_else(|status| panic!("{status}"));
            assert_eq!(selector.matches(&metadata), matches, "{fields} {labels}");
        }
        let all = Selector::default();
        assert!(all.is_all() && all.clone().within(Some("n")).matches(&metadata));
        assert!(!all.within(Some("m")).matches(&metadata));
    }

    #[test]
    fn wrong_selectors_are_refused_with_their_place() {
        for (fields, labels, at, why) in [
            ("spec.x=1", "", 1, "field label not supported: spec.x"),
            ("metadata.name=a,metadata.name", "", 17, "has no operator"),
            ("", "k in a,b", 6, "found \"a\", expected \"(\""),
            ("", "k in (a", 8, "found the end, expected \",\" or \")\""),
            ("", "k in ()", 7, "cannot be empty"),
            ("", "k=v,", 5, "found the end, expected a label key"),
            ("", "k=v w", 5, "expected \",\" or the end"),
            ("", "k like v", 3, "expected one of =, ==, !=, in, notin"),
            ("", "k>1", 2, "expected one of"),
            ("", "a=b,-k=v", 5, "is no label key"),
            ("", "é=v", 1, "is no label key"),
            ("", "k=-v", 3, "is no label value"),
            ("", "a,,b", 3, "expected a label key"),
        ] {
            let status = Selector::parse(fields, labels).unwrap_err();
            assert_eq!(status.code, 400);
            assert!(status.message.contains(&format!("at character {at}:")), "{status}");
            assert!(status.message.contains(why), "{status}");
        }
    }
}
