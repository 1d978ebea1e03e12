//! JSON and YAML as they were sent: the value, and the fields sent more than once, of which the last counts. Pure.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Repeated fields that are named: Kubernetes' limit.
const REPEATED_MAX: usize = 100;

/// What a body holds.
#[derive(Debug, Default, PartialEq)]
pub(in crate::api) struct Sent {
    pub(in crate::api) value: Value,
    /// Paths of fields sent more than once.
    pub(in crate::api) repeated: Vec<String>,
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut reading = Reading::default();
        let value = Place(&mut reading).deserialize(deserializer)?;
        Ok(Self { value, repeated: reading.repeated })
    }
}

#[derive(Default)]
struct Reading {
    /// Where the reader is.
    path: String,
    repeated: Vec<String>,
}

impl Reading {
    /// Reads with `step` added to the path.
    fn below<T>(&mut self, step: &fmt::Arguments<'_>, read: impl FnOnce(Place<'_>) -> T) -> T {
        use fmt::Write as _;
        let len = self.path.len();
        self.path.write_fmt(*step).expect("a string takes everything");
        let read = read(Place(self));
        self.path.truncate(len);
        read
    }
}

struct Place<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) =
            self.0.below(&format_args!("[{}]", list.len()), |place| items.next_element_seed(place))?
        {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let dot = if self.0.path.is_empty() { "" } else { "." };
            let value = self.0.below(&format_args!("{dot}{name}"), |place| {
                if map.contains_key(&name) && place.0.repeated.len() < REPEATED_MAX {
                    place.0.repeated.push(place.0.path.clone());
                }
                members.next_value_seed(place)
            })?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_counts_and_the_repetition_is_named() {
        let text = r#"{"a":{"b":1,"b":2},"l":[{"x":null},{"x":true,"x":-1.5}],"a":"é"}"#;
        let sent: Sent = serde_json::from_str(text).unwrap();
        assert_eq!(sent.value, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(sent.repeated, ["a.b", "l[1].x", "a"]);
    }

    #[test]
    fn yaml_is_read_as_json_is() {
        let sent = crate::api::body::yaml(b"a: {b: 1, b: 2}\nl: [{x: ~}, {x: true, x: y}]\na: e\n").unwrap();
        assert_eq!(sent.value, json!({"a": "e", "l": [{"x": null}, {"x": "y"}]}));
        assert_eq!(sent.repeated, ["a.b", "l[1].x", "a"]);
    }

    #[test]
    fn nothing_else_differs_from_plain_reading() {
        let value =
            json!({"a": [1, -2, 2.5, "", null, true, {}, []], "z": u64::MAX, "": {"b c": {"d.e": 1}}});
        let sent: Sent = serde_json::from_str(&value.to_string()).unwrap();
        assert_eq!(sent, Sent { value, repeated: vec![] });
        let many = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(REPEATED_MAX * 2));
        assert_eq!(serde_json::from_str::<Sent>(&many).unwrap().repeated.len(), REPEATED_MAX);
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(serde_json::from_str::<Sent>(&deep).is_err());
    }
}
