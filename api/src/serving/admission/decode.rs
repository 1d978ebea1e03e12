//! From the JSON a user sent to the part of it the API knows: unknown fields are cut off with a warning, values of the
//! wrong type refused, fields behind a flag that is off set aside. Knows no limits of values.

use serde_json::{Map, Value};

use super::field_error::FieldErrors;
use super::schema::{Field, Kind, Object, Rule};
use crate::meta::StatusCause;
use crate::quantity::Quantity;

/// Deepest object path a message is made for; the schema is not deeper.
const DEPTH_MAX: usize = 32;

/// What a walk over an object found besides its known fields.
#[derive(Default)]
pub(super) struct Findings {
    /// Paths of fields nobody knows.
    pub(super) unknown: Vec<String>,
    /// Fields that the API knows and refuses, by path, with what they held.
    pub(super) refused: Vec<(String, Value)>,
    /// Entries that a list may hold once only.
    pub(super) duplicates: Vec<StatusCause>,
    /// `containers` was sent, as a list of none.
    pub(super) empty_containers: bool,
}

impl Findings {
    /// The refused fields as errors of the whole object.
    pub(super) fn refusals(&self) -> FieldErrors {
        self.refused
            .iter()
            .fold(FieldErrors::none(), |all, (path, _)| all.also(FieldErrors::disallowed(path)))
    }
}

/// Why an object cannot be read: Go's wording.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DecodeError(pub(super) String);

/// Keeps what `schema` allows of `input`.
pub(super) fn walk(
    input: &Value,
    schema: &'static Object,
    path: &str,
) -> Result<(Value, Findings), DecodeError> {
    let mut walker = Walker { findings: Findings::default(), go_path: Vec::new() };
    let kept = walker.object(input, schema, path)?;
    Ok((kept, walker.findings))
}

struct Walker {
    findings: Findings,
    /// Go's names from the root to the current field, inlined structs included.
    go_path: Vec<&'static str>,
}

impl Walker {
    fn object(&mut self, input: &Value, schema: &'static Object, path: &str) -> Result<Value, DecodeError> {
        let Value::Object(members) = input else { return Ok(Value::Object(Map::new())) };
        if self.go_path.len() > DEPTH_MAX {
            return Err(DecodeError("exceeded max depth".into()));
        }
        let mut kept = Map::new();
        for (name, value) in members {
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match schema.fields.iter().find(|field| field.name == name) {
                Some(_) if value.is_null() => {}
                Some(field) => self.field(value, field, schema, &at, &mut kept)?,
                None if schema.open => return Err(DecodeError(format!("json: unknown field {name:?}"))),
                None => self.findings.unknown.push(at),
            }
        }
        Ok(Value::Object(kept))
    }

    fn field(
        &mut self,
        value: &Value,
        field: &'static Field,
        owner: &'static Object,
        path: &str,
        kept: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let depth = self.go_path.len();
        if !field.inlined.is_empty() {
            self.go_path.push(field.inlined);
        }
        self.go_path.push(field.name);
        let value = self.value(value, &field.kind, owner.go, path)?;
        self.go_path.truncate(depth);
        let refused = match field.rule {
            Rule::Allowed => false,
            Rule::Refused => !is_zero(&value),
            Rule::RefusedPointer => true,
            Rule::OnlyFalse => value != Value::Bool(false),
        };
        match (refused, field.rule) {
            (true, _) => self.findings.refused.push((path.to_owned(), value)),
            (false, Rule::Refused) => {}
            (false, _) => {
                kept.insert(field.name.to_owned(), value);
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, kind: &Kind, owner: &str, path: &str) -> Result<Value, DecodeError> {
        match (kind, value) {
            (Kind::Str, Value::String(_)) | (Kind::Bool, Value::Bool(_)) => Ok(value.clone()),
            (Kind::IntOrString, Value::String(_)) => Ok(value.clone()),
            (Kind::Int32 | Kind::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) =>
            {
                Ok(value.clone())
            }
            (Kind::Int64, Value::Number(n)) if n.is_i64() => Ok(value.clone()),
            (Kind::Int32 | Kind::Int64 | Kind::IntOrString, Value::Number(n)) => {
                Err(self.wrong(&format!("number {n}"), kind, owner))
            }
            (Kind::Quantity, Value::String(_) | Value::Number(_)) => quantity(value),
            (Kind::Strings, Value::Object(members)) => self.map(members, &Kind::Str, owner, path),
            (Kind::Quantities, Value::Object(members)) => self.map(members, &Kind::Quantity, owner, path),
            (Kind::List(item, unique), Value::Array(items)) => self.list(items, item, *unique, owner, path),
            (Kind::Object(schema), Value::Object(_)) => self.object(value, schema, path),
            (Kind::Opaque(_), Value::Object(_) | Value::String(_)) => Ok(value.clone()),
            (Kind::Quantity, _) => quantity(&Value::String(value.to_string())),
            _ => Err(self.wrong(json_type(value), kind, owner)),
        }
    }

    fn map(
        &mut self,
        members: &Map<String, Value>,
        kind: &Kind,
        owner: &str,
        path: &str,
    ) -> Result<Value, DecodeError> {
        let mut kept = Map::new();
        for (name, value) in members {
            // Go reads null into a map as the zero value.
            let value = match (kind, value) {
                (Kind::Str, Value::Null) => Value::String(String::new()),
                (_, Value::Null) => Value::String("0".into()),
                _ => self.value(value, kind, owner, path)?,
            };
            kept.insert(name.clone(), value);
        }
        Ok(Value::Object(kept))
    }

    fn list(
        &mut self,
        items: &[Value],
        kind: &Kind,
        unique: Option<&'static str>,
        owner: &str,
        path: &str,
    ) -> Result<Value, DecodeError> {
        if items.is_empty() && path.ends_with("spec.containers") {
            self.findings.empty_containers = true;
        }
        let mut kept: Vec<Value> = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let item = match (kind, item) {
                (Kind::Str, Value::Null) => Value::String(String::new()),
                (Kind::Object(_), Value::Null) => Value::Object(Map::new()),
                _ => self.value(item, kind, owner, &format!("{path}[{index}]"))?,
            };
            if let Some(key) = unique {
                let value = item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                if seen.contains(&value) {
                    let pair = Value::Object(Map::from_iter([(key.to_owned(), Value::String(value))]));
                    self.findings.duplicates.push(StatusCause {
                        reason: "FieldValueDuplicate".into(),
                        message: format!("Duplicate value: {pair}"),
                        field: format!("{path}[{index}]"),
                    });
                } else {
                    seen.push(value);
                }
            }
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn wrong(&self, what: &str, kind: &Kind, owner: &str) -> DecodeError {
        let field = self.go_path.join(".");
        let of = go_type(kind);
        DecodeError(format!(
            "json: cannot unmarshal {what} into Go struct field {owner}.{field} of type {of}"
        ))
    }
}

fn quantity(value: &Value) -> Result<Value, DecodeError> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let quantity: Quantity = text
        .trim()
        .parse()
        .map_err(|error: crate::quantity::QuantityError| DecodeError(error.to_string()))?;
    Ok(Value::String(quantity.into()))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(kind: &Kind) -> String {
    match kind {
        Kind::Str => "string".into(),
        Kind::Bool => "bool".into(),
        Kind::Int32 | Kind::IntOrString => "int32".into(),
        Kind::Int64 => "int64".into(),
        Kind::Quantity => "resource.Quantity".into(),
        Kind::Strings => "map[string]string".into(),
        Kind::Quantities => "v1.ResourceList".into(),
        Kind::List(item, _) => format!("[]{}", go_type(item)),
        Kind::Object(schema) => format!("v1.{}", schema.go),
        Kind::Opaque(go) => (*go).to_owned(),
    }
}
