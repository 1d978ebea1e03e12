//! `create`: makes a namespace by its name, which is all there is to one. Everything else is made from a file, by `apply`,
//! or by `deploy`.

use serde_json::json;

use crate::args;
use crate::exit::WrongUse;
use crate::hub::{Hub, RequestError};
use crate::kinds::Kind;
use crate::output;

pub(crate) async fn run(hub: &Hub, args: &args::Create) -> anyhow::Result<()> {
    let (kind, name) = Kind::parse_target(&args.kind, args.name.as_deref())?;
    if kind != Kind::Namespace {
        let what = kind.name().to_lowercase();
        let why = format!(
            "a {what} is made with `tombolo deploy` or `tombolo apply -f FILE`: create makes namespaces"
        );
        return Err(WrongUse(why).into());
    }
    let name = name.ok_or_else(|| WrongUse("name the namespace to create".into()))?;
    hub.post(&kind.collection(None), &namespace(&name)).await?;
    output::print(&format!("{kind}/{name} created\n"))
}

/// Makes the namespace if it is not there. Returns whether it was made.
pub(crate) async fn ensure_namespace(hub: &Hub, name: &str) -> Result<bool, RequestError> {
    match hub.get(&Kind::Namespace.item("", name)).await {
        Ok(_) => return Ok(false),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    match hub.post(&Kind::Namespace.collection(None), &namespace(name)).await {
        Ok(_) => Ok(true),
        // Made by somebody else between the two requests.
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

fn namespace(name: &str) -> serde_json::Value {
    json!({"apiVersion": Kind::Namespace.api_version(), "kind": Kind::Namespace.name(), "metadata": {"name": name}})
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hub(state_dir: &std::path::Path) -> (tombolo_hub::Hub, Hub) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let free = "127.0.0.1:0".parse().unwrap();
        let mut config = tombolo_hub::config::Config { state_dir: state_dir.into(), ..Default::default() };
        (config.api.listen, config.nodes.listen, config.mqtt.listen) = (free, free, free);
        let running = tombolo_hub::start(config).await.unwrap();
        let client = Hub::new(&format!("http://{}", running.api_address())).unwrap();
        (running, client)
    }

    #[tokio::test]
    async fn a_namespace_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (running, hub) = hub(dir.path()).await;
        assert!(!ensure_namespace(&hub, "default").await.unwrap());
        let service = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"},
            "spec": {"template": {"spec": {"containers": [{"image": "hub.tombolo/line-3/a:1"}]}}}});
        let create = || crate::apply::upsert(&hub, Kind::Service, "line-3", "a", |_| Ok(service.clone()));
        let refused = create().await.unwrap_err().to_string();
        assert!(refused.contains("`tombolo create namespace line-3`"), "{refused}");
        assert!(ensure_namespace(&hub, "line-3").await.unwrap());
        assert!(!ensure_namespace(&hub, "line-3").await.unwrap());
        create().await.unwrap();
        let refused = ensure_namespace(&hub, "Line_3").await.unwrap_err();
        assert_eq!(refused.code(), Some(422), "{refused}");
        // What the hub shows of a namespace can be applied again.
        let shown = hub.get(&Kind::Namespace.item("", "line-3")).await.unwrap();
        let (outcome, _) =
            crate::apply::upsert(&hub, Kind::Namespace, "", "line-3", |_| Ok(shown.clone())).await.unwrap();
        assert_eq!(outcome, crate::apply::Outcome::Unchanged);
        running.stop().await.unwrap();
    }
}
