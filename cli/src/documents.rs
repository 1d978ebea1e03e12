//! Resources written in a file: YAML of several documents or JSON, with the place in the file of every field.
//!
//! Must not know which fields a resource has; that is the hub's to judge. What the hub says of a field path is told
//! here as file and line.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::{Location, Spanned};

mod mistakes;

/// Largest file that is read, bytes. The hub's own bound for one object is far below.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Deepest nesting of a document: these resources have 12 levels, and each level takes 40 KiB of stack in a debug build.
const DEPTH_MAX: usize = 32;

/// One resource, and where its fields stand.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// As the file was named, `<stdin>` for standard input.
    file: String,
    pub(crate) object: Value,
    /// Field path, as Knative writes it (`spec.template.spec.containers[0].image`), to line, from 1.
    lines: BTreeMap<String, u64>,
}

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{file} cannot be read: {cause}")]
    Read { file: String, cause: std::io::Error },
    #[error("{file} is longer than {} MiB", FILE_BYTES_MAX / 1024 / 1024)]
    TooLong { file: String },
    #[error("{file}{place}: {message}")]
    Syntax { file: String, place: String, message: String },
    #[error(
        "{file}:{line}:{column}: {path}: this field stands here for the second time, the first is in line {first}: remove one"
    )]
    Repeated { file: String, line: u64, column: u64, path: String, first: u64 },
    #[error("{file}:{line}: this is not a resource: a mapping with apiVersion, kind and metadata is needed")]
    NotAResource { file: String, line: u64 },
    #[error("{file} holds no resource")]
    Empty { file: String },
}

/// Reads every resource of a file, or of standard input if it is `-`. A `List` is taken apart.
pub(crate) fn read(path: &Path) -> Result<Vec<Document>, DocumentError> {
    let from_stdin = path == Path::new("-");
    let file = if from_stdin { "<stdin>".to_owned() } else { path.display().to_string() };
    let mut text = String::new();
    let read = if from_stdin {
        std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    match read {
        Err(cause) => Err(DocumentError::Read { file, cause }),
        Ok(length) if length as u64 > FILE_BYTES_MAX => Err(DocumentError::TooLong { file }),
        Ok(_) => parse(&file, &text),
    }
}

/// The resources of a text; `file` is only told in errors.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Document>, DocumentError> {
    // As the hub reads YAML: `y` and `yes` are texts, not truths.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        // Told here, with the path and both lines.
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        budget: serde_saphyr::budget! { max_depth: DEPTH_MAX },
    };
    let nodes: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| syntax(file, text, &error))?;
    let mut documents = Vec::new();
    for node in &nodes {
        collect(file, node, &mut documents)?;
    }
    if documents.is_empty() { Err(DocumentError::Empty { file: file.to_owned() }) } else { Ok(documents) }
}

fn syntax(file: &str, text: &str, error: &serde_saphyr::Error) -> DocumentError {
    let message = mistakes::told(&error.to_string());
    let place = error.location().map_or_else(String::new, |at| {
        let field = mistakes::field_around(text, at.line());
        let field = if field.is_empty() { field } else { format!(": {field}") };
        format!(":{}:{}{field}", at.line(), at.column())
    });
    DocumentError::Syntax { file: file.to_owned(), place, message }
}

/// Adds the resources of one document: itself, or its items if it is a list.
fn collect(file: &str, node: &Spanned<Node>, documents: &mut Vec<Document>) -> Result<(), DocumentError> {
    let line = node.referenced.line();
    let not_a_resource = || DocumentError::NotAResource { file: file.to_owned(), line };
    let Node::Map(fields) = &node.value else { return Err(not_a_resource()) };
    let mut places = Places::default();
    let object = node.value.to_value("", &mut places);
    let Places { mut lines, repeated } = places;
    if let Some((path, at, first)) = repeated {
        let (line, column) = (at.line(), at.column());
        return Err(DocumentError::Repeated { file: file.to_owned(), line, column, path, first });
    }
    let (Some(_), Some(kind)) = (object["apiVersion"].as_str(), object["kind"].as_str()) else {
        return Err(not_a_resource());
    };
    if kind == "List" || kind.ends_with("List") {
        let items = fields.iter().find(|(key, _)| key.value == "items").map(|(_, value)| &value.value);
        if let Some(Node::Seq(items)) = items {
            return items.iter().try_for_each(|item| collect(file, item, documents));
        }
    }
    lines.insert(String::new(), line);
    documents.push(Document { file: file.to_owned(), object, lines });
    Ok(())
}

impl Document {
    /// `file:line` of the document itself.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file, self.lines.get("").copied().unwrap_or(1))
    }

    /// Where a message about this document points: `file:line: path`, or only the document's own place.
    ///
    /// `named` are field paths the hub gave apart from its message; the message itself is searched after them.
    pub(crate) fn locate(&self, named: &[&str], message: &str) -> String {
        let words = message.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/[]".contains(c)));
        let best = named
            .iter()
            .copied()
            .chain(words)
            .filter_map(|word| self.known(word))
            .max_by_key(|path| path.len());
        match best.or_else(|| self.unknown_field(message)) {
            Some(path) => format!("{}:{}: {path}", self.file, self.lines[path]),
            None => self.place(),
        }
    }

    /// The longest beginning of a path that stands in the file.
    fn known(&self, word: &str) -> Option<&str> {
        let mut rest = word.trim_end_matches('.');
        while !rest.is_empty() {
            if let Some((path, _)) = self.lines.get_key_value(rest) {
                return Some(path);
            }
            rest = rest.rfind(['.', '[']).map_or("", |end| &rest[..end]);
        }
        None
    }

    /// `unknown field "x"` tells no path: found if only one field of the document has that name.
    fn unknown_field(&self, message: &str) -> Option<&str> {
        let (_, after) = message.split_once("unknown field \"")?;
        let (name, _) = after.split_once('"')?;
        let mut same = self.lines.keys().filter(|path| path.rsplit('.').next() == Some(name));
        match (same.next(), same.next()) {
            (Some(path), None) => Some(path),
            _ => None,
        }
    }
}

/// A YAML value that knows where its parts stand.
#[derive(Debug)]
enum Node {
    Scalar(Value),
    Seq(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

/// What is found out about a document while its value is made.
#[derive(Default)]
struct Places {
    lines: BTreeMap<String, u64>,
    /// The first field that stands in one mapping for the second time, where, and the line of the first time.
    repeated: Option<(String, Location, u64)>,
}

impl Places {
    fn note(&mut self, path: &str, location: Location) {
        if let Some(first) = self.lines.insert(path.to_owned(), location.line()) {
            self.repeated.get_or_insert_with(|| (path.to_owned(), location, first));
        }
    }
}

impl Node {
    fn to_value(&self, path: &str, places: &mut Places) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::Seq(items) => {
                let value_of = |(index, item): (usize, &Spanned<Self>)| {
                    let path = format!("{path}[{index}]");
                    places.note(&path, item.referenced);
                    item.value.to_value(&path, places)
                };
                Value::Array(items.iter().enumerate().map(value_of).collect())
            }
            Self::Map(fields) => {
                let mut map = Map::new();
                for (key, value) in fields {
                    let path =
                        if path.is_empty() { key.value.clone() } else { format!("{path}.{}", key.value) };
                    places.note(&path, key.referenced);
                    map.insert(key.value.clone(), value.value.to_value(&path, places));
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a sequence or a scalar")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut seq = Vec::new();
        while let Some(item) = items.next_element()? {
            seq.push(item);
        }
        Ok(Node::Seq(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests;
