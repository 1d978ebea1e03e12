//! `get`: lists resources, as tables for people and as they are for programs.

mod columns;
mod traffic;

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::args::{self, Output};
use crate::exit::WrongUse;
use crate::fields;
use crate::hub::Hub;
use crate::kinds::Kind;
use crate::output;

pub(crate) async fn run(hub: &Hub, args: &args::Get) -> anyhow::Result<()> {
    let (kind, name) = Kind::parse_target(&args.kind, args.name.as_deref())?;
    let scope = &args.scope;
    let namespace = (!scope.all_namespaces).then_some(scope.namespace.as_str());
    let found = match (&name, namespace) {
        (Some(name), Some(namespace)) => hub.get(&kind.item(namespace, name)).await?,
        (Some(name), None) if !kind.namespaced() => hub.get(&kind.item("", name)).await?,
        (Some(_), None) => return Err(WrongUse("a name needs its namespace: use -n, not -A".into()).into()),
        (None, namespace) => hub.get(&kind.collection(namespace)).await?,
    };
    let objects: &[Value] =
        if name.is_some() { std::slice::from_ref(&found) } else { fields::items(&found, "/items") };
    let text = match args.output {
        Output::Json => output::json(&named(kind, &found)),
        Output::Yaml => output::yaml(&named(kind, &found))?,
        Output::Name => objects
            .iter()
            .map(|object| format!("{kind}/{}\n", fields::text(object, "/metadata/name")))
            .collect(),
        Output::Table | Output::Wide if objects.is_empty() => {
            eprintln!("{}", nothing(kind, namespace));
            return Ok(());
        }
        Output::Table | Output::Wide => {
            let with_namespace = scope.all_namespaces && kind.namespaced();
            let wide = args.output == Output::Wide;
            let now = OffsetDateTime::now_utc();
            if kind == Kind::Revision {
                let routes = hub.get(&Kind::Route.collection(namespace)).await?;
                let objects = traffic::with_shares(objects, fields::items(&routes, "/items"));
                columns::table(kind, &objects, with_namespace, wide, now)
            } else {
                columns::table(kind, objects, with_namespace, wide, now)
            }
        }
    };
    output::print(&text)
}

fn nothing(kind: Kind, namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) if kind.namespaced() => format!("no {} in namespace {namespace}", kind.plural()),
        _ => format!("no {}", kind.plural()),
    }
}

/// What is printed must be fit for `apply -f`: items of a list say what they are, as kubectl makes them.
fn named(kind: Kind, found: &Value) -> Value {
    let mut found = found.clone();
    if let Some(items) = found.get_mut("items").and_then(Value::as_array_mut) {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.entry("apiVersion").or_insert_with(|| json!(kind.api_version()));
            item.entry("kind").or_insert_with(|| json!(kind.name()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_say_what_they_are() {
        let list =
            json!({"kind": "ServiceList", "items": [{"metadata": {"name": "a"}}, {"kind": "Service"}]});
        let named = named(Kind::Service, &list);
        assert_eq!(named["kind"], "ServiceList");
        for item in named["items"].as_array().unwrap() {
            assert_eq!(Kind::of(item), Some(Kind::Service));
        }
    }

    #[test]
    fn an_empty_list_names_its_namespace_only_where_there_is_one() {
        assert_eq!(nothing(Kind::Service, Some("n")), "no services in namespace n");
        assert_eq!(nothing(Kind::Node, Some("n")), "no nodes");
        assert_eq!(nothing(Kind::Route, None), "no routes");
    }
}
