//! The schemas of the resources, as OpenAPI 3 documents: for `kubectl explain`, and for clients that check before they
//! send. Made from the tables that admission reads by. Pure but for its routes.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tombolo_api::serving::{GROUP, admission};
use tombolo_hub_core::Kind;

use super::discovery::KUBERNETES_VERSION;
use super::{Api, not_found};

/// How the names of schemas begin: Knative's package, turned round.
const SERVING: &str = "dev.knative.serving.v1";

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Group and kind of every schema that is published, by document.
const DOCUMENTS: [&str; 2] = ["api/v1", "apis/serving.knative.dev/v1"];

pub(super) fn router() -> Router<Api> {
    Router::new()
        .route("/openapi/v3", get(|| async { Json(index()) }))
        .route("/openapi/v3/{*document}", get(document))
}

fn index() -> Value {
    let entry =
        |name: &&str| ((*name).to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{name}")}));
    json!({"paths": DOCUMENTS.iter().map(entry).collect::<Map<String, Value>>()})
}

async fn document(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "api/v1" => Json(core()).into_response(),
        "apis/serving.knative.dev/v1" => Json(serving()).into_response(),
        _ => not_found().await,
    }
}

fn serving() -> Value {
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    for kind in [Kind::Service, Kind::Configuration, Kind::Revision, Kind::Route] {
        let name = format!("{SERVING}.{}", kind.name());
        let mut spec = admission::spec_schema(kind.name()).expect("every kind has a table");
        spec["description"] = "What is wanted.".into();
        let reference = Reference { group: GROUP, kind: kind.name(), schema: &name };
        schemas.insert(name.clone(), object(&reference, about(kind), Some(spec)));
        let plural = kind.plural();
        let base = format!("/apis/{GROUP}/v1/namespaces/{{namespace}}/{plural}");
        // Revisions are made by Configurations only.
        paths.insert(base.clone(), reference.collection(kind != Kind::Revision));
        paths.insert(format!("{base}/{{name}}"), reference.item());
    }
    whole(schemas, paths)
}

fn core() -> Value {
    let schema = "io.k8s.api.core.v1.Namespace";
    let reference = Reference { group: "", kind: "Namespace", schema };
    let description = "A room of its own for the names of resources.";
    let schemas = Map::from_iter([(schema.to_owned(), object(&reference, description, None))]);
    let paths = Map::from_iter([
        ("/api/v1/namespaces".to_owned(), reference.collection(true)),
        ("/api/v1/namespaces/{name}".to_owned(), reference.item()),
    ]);
    whole(schemas, paths)
}

fn about(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "A program that answers requests: its Configuration and its Route in one resource.",
        Kind::Configuration => "The newest wanted form of a program. Every change of it makes a Revision.",
        Kind::Revision => "One form of a program. It never changes.",
        Kind::Route => "A name under which Revisions answer, and their shares of the requests.",
    }
}

/// A kind of resource and the schema of its objects.
struct Reference<'a> {
    group: &'a str,
    kind: &'a str,
    schema: &'a str,
}

impl Reference<'_> {
    fn group_version_kind(&self) -> Value {
        json!({"group": self.group, "version": "v1", "kind": self.kind})
    }

    fn collection(&self, creates: bool) -> Value {
        let mut methods = json!({"get": self.operation("list", false)});
        if creates {
            methods["post"] = self.operation("post", true);
        }
        methods
    }

    fn item(&self) -> Value {
        json!({
            "get": self.operation("get", false),
            "put": self.operation("put", true),
            "patch": self.operation("patch", true),
            "delete": self.operation("delete", false),
        })
    }

    /// One operation. Clients look at its parameters to learn whether the hub checks fields, and whether it can try.
    fn operation(&self, action: &str, writes: bool) -> Value {
        let schema = json!({"$ref": format!("#/components/schemas/{}", self.schema)});
        let content = json!({"application/json": {"schema": schema}});
        let mut operation = json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.group_version_kind(),
            "responses": {"200": {"description": "OK", "content": content}},
        });
        if writes {
            let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
            operation["parameters"] = json!([parameter("dryRun"), parameter("fieldValidation")]);
            operation["requestBody"] = json!({"content": content, "required": true});
        }
        operation
    }
}

fn object(reference: &Reference<'_>, description: &str, spec: Option<Value>) -> Value {
    let open = |description: &str| json!({"type": "object", "description": description, "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": {"type": "string", "description": "Group and version of this schema."},
            "kind": {"type": "string", "description": "What the object is."},
            "metadata": {
                "description": "Name, labels, annotations, and what the hub says of the object as a whole.",
                "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
                "default": {},
            },
            "spec": spec.unwrap_or_else(|| open("What is wanted.")),
            "status": open("What is so. Written by the hub."),
        },
        "x-kubernetes-group-version-kind": [reference.group_version_kind()],
    })
}

fn whole(mut schemas: Map<String, Value>, paths: Map<String, Value>) -> Value {
    let mut metadata = admission::metadata_schema();
    metadata["description"] = "What every object carries, whatever its kind.".into();
    schemas.insert(OBJECT_META.into(), metadata);
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Tombolo", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        for document in [core(), serving()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
        }
    }
}
