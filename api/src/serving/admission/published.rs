//! The schema tables as others need them: which fields of an object nobody knows, and the tables as OpenAPI schemas.
//! Knows no limits of values and no HTTP.

use serde_json::{Map, Value, json};

use super::decode;
use super::schema::{self, Kind, Object, Rule};

/// The paths of an object's fields that no version of the API has, in the order they are sent. Empty for an object whose
/// known fields are of wrong types: admission refuses it for those.
pub fn unknown_fields(kind: &str, input: &Value) -> Vec<String> {
    let Some(schema) = of_kind(kind) else { return Vec::new() };
    let part =
        |name: &str| Value::Object(Map::from_iter(input.get(name).map(|it| (name.into(), it.clone()))));
    let none = Value::Object(Map::new());
    let metadata = input.get("metadata").unwrap_or(&none);
    let mut unknown = Vec::new();
    for walked in
        [decode::walk(metadata, &schema::METADATA, "metadata"), decode::walk(&part("spec"), schema, "")]
    {
        let Ok((_, findings)) = walked else { return Vec::new() };
        unknown.extend(findings.unknown);
    }
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let others = input.as_object().into_iter().flatten().map(|(name, _)| name);
    unknown.extend(others.filter(|name| !known.contains(&name.as_str())).cloned());
    unknown
}

/// The OpenAPI v3 schema of a kind's `spec`, whole, without references. `None` for a kind that is not served.
pub fn spec_schema(kind: &str) -> Option<Value> {
    let spec = of_kind(kind)?.fields.iter().find(|field| field.name == "spec")?;
    Some(of_type(&spec.kind))
}

/// The OpenAPI v3 schema of every object's `metadata`.
pub fn metadata_schema() -> Value {
    of_object(&schema::METADATA)
}

fn of_kind(kind: &str) -> Option<&'static Object> {
    match kind {
        "Service" => Some(&schema::SERVICE),
        "Configuration" => Some(&schema::CONFIGURATION),
        "Route" => Some(&schema::ROUTE),
        "Revision" => Some(&schema::REVISION),
        _ => None,
    }
}

fn of_type(kind: &Kind) -> Value {
    match kind {
        Kind::Str => json!({"type": "string"}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 => json!({"type": "integer", "format": "int64"}),
        Kind::IntOrString => {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
        }
        Kind::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}],
            "description": "An amount: a number, or one with a suffix, such as 128Mi or 500m."}),
        Kind::Strings => map_of(&Kind::Str),
        Kind::Quantities => map_of(&Kind::Quantity),
        Kind::List(item, _) => json!({"type": "array", "items": of_type(item)}),
        Kind::Object(object) => of_object(object),
        Kind::Opaque("v1.Time") => json!({"type": "string", "format": "date-time"}),
        Kind::Opaque(_) => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    }
}

fn map_of(kind: &Kind) -> Value {
    json!({"type": "object", "additionalProperties": of_type(kind)})
}

/// What is refused in any case stands there too, and says so: leaving it out would call it unknown.
fn of_object(object: &Object) -> Value {
    let mut properties = Map::new();
    for field in object.fields {
        let mut schema = of_type(&field.kind);
        match field.rule {
            Rule::Allowed => {}
            Rule::Refused | Rule::RefusedPointer => {
                schema["description"] = "Not served: refused when set.".into();
            }
            Rule::OnlyFalse => schema["description"] = "May only be false.".into(),
        }
        properties.insert(field.name.into(), schema);
    }
    json!({"type": "object", "properties": properties})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_named_wherever_they_stand() {
        let service = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "top": 1,
            "metadata": {"name": "a", "label": {}},
            "spec": {"templat": {}, "template": {"spec": {"containers": [{"image": "i", "imag": "j"}]}}},
        });
        assert_eq!(
            unknown_fields("Service", &service),
            ["metadata.label", "spec.templat", "spec.template.spec.containers[0].imag", "top"]
        );
        assert_eq!(unknown_fields("Service", &json!({"spec": {"x": 1, "template": 5}})), [""; 0]);
        assert_eq!(unknown_fields("Service", &json!([])), [""; 0]);
    }

    #[test]
    fn schemas_hold_what_admission_reads() {
        let service = spec_schema("Service").unwrap();
        let container = &service["properties"]["template"]["properties"]["spec"]["properties"]["containers"];
        let properties = &container["items"]["properties"];
        assert_eq!(properties["image"], json!({"type": "string"}));
        assert_eq!(
            properties["readinessProbe"]["properties"]["grpc"]["properties"]["port"]["format"],
            "int32"
        );
        assert_eq!(properties["resources"]["properties"]["limits"]["type"], "object");
        assert!(spec_schema("Revision").unwrap()["properties"]["hostNetwork"]["description"].is_string());
        assert_eq!(spec_schema("Pod"), None);
    }
}
