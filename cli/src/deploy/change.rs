//! What `deploy` wants of a Service, and how it is worked into one that is there: everything else a person set stays.
//!
//! Must not know the network.

use serde_json::{Map, Value, json};

use crate::exit::WrongUse;
use crate::kinds::Kind;
use crate::traffic::Split;

const MIN_SCALE: &str = "autoscaling.knative.dev/min-scale";
const MAX_SCALE: &str = "autoscaling.knative.dev/max-scale";
const ROLLOUT_DURATION: &str = "serving.knative.dev/rollout-duration";

/// What `deploy` sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) image: String,
    /// The image brings its own command; what the service says of it is from an image before.
    pub(crate) image_has_command: bool,
    /// Instead of the image's own; empty: not asked for.
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<KeyChange>,
    /// What it gets of the node's resources at most; of devices, how many.
    pub(crate) limits: Vec<KeyChange>,
    /// Of its revisions.
    pub(crate) annotations: Vec<KeyChange>,
    pub(crate) port: Option<u16>,
    /// Requests at once in one instance.
    pub(crate) concurrency: Option<u32>,
    pub(crate) min_scale: Option<u32>,
    pub(crate) max_scale: Option<u32>,
    pub(crate) rollout_duration: Option<String>,
    /// Who gets the requests; empty: as it was.
    pub(crate) split: Split,
}

/// A value by name, set or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyChange {
    Set { name: String, value: String },
    Remove { name: String },
}

impl KeyChange {
    /// `K=V`, or `K-`, as `option` was given it.
    pub(crate) fn parse(option: &str, text: &str) -> Result<Self, WrongUse> {
        let change = match (text.split_once('='), text.strip_suffix('-')) {
            (Some((name, value)), _) => Self::Set { name: name.to_owned(), value: value.to_owned() },
            (None, Some(name)) => Self::Remove { name: name.to_owned() },
            (None, None) => {
                return Err(WrongUse(format!("{option} {text}: use K=V to set K, or K- to take it away")));
            }
        };
        if change.name().is_empty() {
            return Err(WrongUse(format!("{option} {text}: there is no name")));
        }
        Ok(change)
    }

    fn name(&self) -> &str {
        match self {
            Self::Set { name, .. } | Self::Remove { name } => name,
        }
    }
}

impl Change {
    /// The Service to send: a new one, or the live one changed.
    pub(crate) fn onto(&self, namespace: &str, name: &str, live: Option<&Value>) -> anyhow::Result<Value> {
        let mut service = live.cloned().unwrap_or_else(|| {
            json!({
                "apiVersion": Kind::Service.api_version(),
                "kind": Kind::Service.name(),
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"template": {"spec": {"containers": [{}]}}},
            })
        });
        object(&mut service).remove("status");
        let template = &mut service["spec"]["template"];
        let before = template.clone();
        let containers = &mut template["spec"]["containers"];
        if containers.as_array().is_none_or(Vec::is_empty) {
            *containers = json!([{}]);
        }
        let all = containers.as_array_mut().expect("made an array where it was none");
        let serving = all
            .iter()
            .position(|container| container["ports"].as_array().is_some_and(|ports| !ports.is_empty()));
        self.onto_container(object(&mut all[serving.unwrap_or(0)]));
        self.onto_template(template);
        // A name given to a revision by hand is for one template only; the hub finds names for those without.
        let newer = *template != before;
        if newer && let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("name");
        }
        if let Some(duration) = &self.rollout_duration {
            service["metadata"]["annotations"][ROLLOUT_DURATION] = json!(duration);
        }
        if !self.split.is_empty() {
            service["spec"]["traffic"] = self.split.onto(live, newer)?;
        }
        Ok(service)
    }

    fn onto_template(&self, template: &mut Value) {
        if let Some(concurrency) = self.concurrency {
            template["spec"]["containerConcurrency"] = json!(concurrency);
        }
        for (key, scale) in [(MIN_SCALE, self.min_scale), (MAX_SCALE, self.max_scale)] {
            if let Some(scale) = scale {
                template["metadata"]["annotations"][key] = json!(scale.to_string());
            }
        }
        for change in &self.annotations {
            match change {
                KeyChange::Set { name, value } => template["metadata"]["annotations"][name] = json!(value),
                KeyChange::Remove { name } => {
                    let annotations = template.pointer_mut("/metadata/annotations");
                    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
                        annotations.remove(name);
                    }
                }
            }
        }
    }

    /// Of several containers, the one that takes requests.
    fn onto_container(&self, container: &mut Map<String, Value>) {
        container.insert("image".into(), json!(self.image));
        if self.image_has_command || !self.command.is_empty() {
            container.remove("command");
            container.remove("args");
        }
        if !self.command.is_empty() {
            container.insert("command".into(), json!(self.command));
        }
        if let Some(port) = self.port {
            let ports = container.entry("ports").or_insert_with(|| json!([{}]));
            if ports.as_array().is_none_or(Vec::is_empty) {
                *ports = json!([{}]);
            }
            ports[0]["containerPort"] = json!(port);
        }
        self.onto_limits(container);
        self.onto_env(container);
    }

    fn onto_limits(&self, container: &mut Map<String, Value>) {
        if self.limits.is_empty() {
            return;
        }
        let resources = object(container.entry("resources").or_insert_with(|| json!({})));
        let limits = object(resources.entry("limits").or_insert_with(|| json!({})));
        for change in &self.limits {
            match change {
                KeyChange::Set { name, value } => limits.insert(name.clone(), json!(value)),
                KeyChange::Remove { name } => limits.remove(name),
            };
        }
        if limits.is_empty() {
            resources.remove("limits");
        }
        if resources.is_empty() {
            container.remove("resources");
        }
    }

    fn onto_env(&self, container: &mut Map<String, Value>) {
        if self.env.is_empty() {
            return;
        }
        let mut variables = container.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
        for change in &self.env {
            let found = variables.iter().position(|variable| variable["name"] == change.name());
            match (change, found) {
                (KeyChange::Set { name, value }, Some(at)) => {
                    variables[at] = json!({"name": name, "value": value})
                }
                (KeyChange::Set { name, value }, None) => {
                    variables.push(json!({"name": name, "value": value}))
                }
                (KeyChange::Remove { .. }, Some(at)) => drop(variables.remove(at)),
                (KeyChange::Remove { .. }, None) => {}
            }
        }
        if variables.is_empty() {
            container.remove("env");
        } else {
            container.insert("env".into(), Value::Array(variables));
        }
    }
}

/// A value as an object, made one where it is none.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made an object where it was none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(env: &[&str]) -> Change {
        let env = env.iter().map(|text| KeyChange::parse("--env", text).unwrap()).collect();
        Change { image: "h/new@sha256:2".into(), env, ..Change::default() }
    }

    fn container(service: &Value) -> &Value {
        &service["spec"]["template"]["spec"]["containers"][0]
    }

    #[test]
    fn env_changes_are_read() {
        let set = |name: &str, value: &str| KeyChange::Set { name: name.into(), value: value.into() };
        for (text, expected) in [
            ("A=B", set("A", "B")),
            ("A=", set("A", "")),
            ("A=b=c-", set("A", "b=c-")),
            ("A-", KeyChange::Remove { name: "A".into() }),
        ] {
            assert_eq!(KeyChange::parse("--env", text).unwrap(), expected, "{text}");
        }
        for bad in ["", "A", "=B", "-"] {
            assert!(KeyChange::parse("--env", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_new_service_has_what_was_asked_and_nothing_more() {
        let change = Change {
            port: Some(9000),
            command: vec!["/a".into(), "-x".into()],
            ..change(&["A=1", "B=2", "A=3", "C-"])
        };
        assert_eq!(
            change.onto("ns", "a", None).unwrap(),
            json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Service",
                "metadata": {"name": "a", "namespace": "ns"},
                "spec": {"template": {"spec": {"containers": [{
                    "image": "h/new@sha256:2", "command": ["/a", "-x"], "ports": [{"containerPort": 9000}],
                    "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}],
                }]}}},
            })
        );
    }

    fn live() -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "ns", "resourceVersion": "7", "labels": {"l": "m"}},
            "spec": {
                "template": {
                    "metadata": {"name": "a-first", "annotations": {"autoscaling.knative.dev/min-scale": "1"}},
                    "spec": {
                        "containerConcurrency": 4, "nodeSelector": {"line": "3"},
                        "containers": [{
                            "name": "user-container", "image": "h/old@sha256:1", "command": ["/old"], "args": ["-v"],
                            "env": [{"name": "A", "value": "1"}, {"name": "S", "valueFrom": {"secretKeyRef": {}}}],
                            "ports": [{"containerPort": 8080, "name": "h2c", "protocol": "TCP"}],
                            "resources": {"limits": {"memory": "64Mi"}},
                        }],
                    },
                },
                "traffic": [{"latestRevision": true, "percent": 100}],
            },
            "status": {"url": "u"},
        })
    }

    #[test]
    fn what_a_person_set_stays() {
        let mut expected = live();
        expected.as_object_mut().unwrap().remove("status");
        expected["spec"]["template"]["metadata"].as_object_mut().unwrap().remove("name");
        expected["spec"]["template"]["spec"]["containers"][0]["image"] = json!("h/new@sha256:2");
        assert_eq!(change(&[]).onto("ns", "a", Some(&live())).unwrap(), expected);
    }

    #[test]
    fn nothing_new_changes_nothing() {
        let same = Change { image: "h/old@sha256:1".into(), ..change(&["A=1", "X-"]) };
        let mut expected = live();
        expected.as_object_mut().unwrap().remove("status");
        assert_eq!(same.onto("ns", "a", Some(&live())).unwrap(), expected);
    }

    #[test]
    fn env_is_added_replaced_and_taken_away() {
        let changed = change(&["A-", "S=plain", "N=1"]).onto("ns", "a", Some(&live())).unwrap();
        assert_eq!(
            container(&changed)["env"],
            json!([{"name": "S", "value": "plain"}, {"name": "N", "value": "1"}])
        );
        let none = change(&["A-", "S-"]).onto("ns", "a", Some(&live())).unwrap();
        assert_eq!(container(&none).get("env"), None);
    }

    #[test]
    fn limits_are_set_beside_others_and_taken_away() {
        let limits = |texts: &[&str]| {
            let limits = texts.iter().map(|text| KeyChange::parse("--limit", text).unwrap()).collect();
            let changed = Change { limits, ..change(&[]) }.onto("ns", "a", Some(&live())).unwrap();
            container(&changed)["resources"].clone()
        };
        assert_eq!(
            limits(&["nvidia.com/gpu=1", "cpu-"]),
            json!({"limits": {"memory": "64Mi", "nvidia.com/gpu": "1"}})
        );
        assert_eq!(limits(&["memory=1Gi"]), json!({"limits": {"memory": "1Gi"}}));
        assert_eq!(limits(&["memory-"]), Value::Null);
    }

    #[test]
    fn a_port_keeps_its_protocol() {
        let changed = Change { port: Some(9), ..change(&[]) }.onto("ns", "a", Some(&live())).unwrap();
        assert_eq!(
            container(&changed)["ports"],
            json!([{"containerPort": 9, "name": "h2c", "protocol": "TCP"}])
        );
    }

    #[test]
    fn a_command_of_an_image_before_goes_only_with_a_new_one() {
        let own = Change { image_has_command: true, ..change(&[]) }.onto("ns", "a", Some(&live())).unwrap();
        assert_eq!((container(&own).get("command"), container(&own).get("args")), (None, None));
        let other =
            Change { command: vec!["/n".into()], ..change(&[]) }.onto("ns", "a", Some(&live())).unwrap();
        assert_eq!((&container(&other)["command"], container(&other).get("args")), (&json!(["/n"]), None));
    }

    #[test]
    fn of_several_containers_the_serving_one_is_changed() {
        let mut live = live();
        let containers = live["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers.insert(0, json!({"name": "helper", "image": "h/helper"}));
        let changed = change(&[]).onto("ns", "a", Some(&live)).unwrap();
        let images = &changed["spec"]["template"]["spec"]["containers"];
        assert_eq!(
            (&images[0]["image"], &images[1]["image"]),
            (&json!("h/helper"), &json!("h/new@sha256:2"))
        );
    }

    #[test]
    fn a_canary_gets_its_share_and_the_rest_stays() {
        let mut before = live();
        before["status"]["latestReadyRevisionName"] = json!("a-first");
        let split = Split {
            shares: vec!["@latest=10".parse().unwrap()],
            tags: vec!["@latest=canary".parse().unwrap()],
            untag: vec![],
        };
        let wanted = Change {
            split,
            concurrency: Some(10),
            min_scale: Some(0),
            max_scale: Some(5),
            rollout_duration: Some("30s".into()),
            ..change(&[])
        };
        let changed = wanted.onto("ns", "a", Some(&before)).unwrap();
        assert_eq!(
            changed["spec"]["traffic"],
            json!([{"latestRevision": false, "revisionName": "a-first", "percent": 90},
                {"latestRevision": true, "percent": 10, "tag": "canary"}])
        );
        let template = &changed["spec"]["template"];
        assert_eq!(template["spec"]["containerConcurrency"], 10);
        let annotations =
            json!({"autoscaling.knative.dev/min-scale": "0", "autoscaling.knative.dev/max-scale": "5"});
        assert_eq!(template["metadata"]["annotations"], annotations);
        assert_eq!(
            changed["metadata"]["annotations"],
            json!({"serving.knative.dev/rollout-duration": "30s"})
        );
        let set = |text: &str| KeyChange::parse("--annotation", text).unwrap();
        let annotated = Change {
            annotations: vec![set("tombolo.dev/idle-tier=frozen"), set("autoscaling.knative.dev/min-scale-")],
            ..change(&[])
        };
        let changed = annotated.onto("ns", "a", Some(&changed)).unwrap();
        assert_eq!(
            changed["spec"]["template"]["metadata"]["annotations"],
            json!({"autoscaling.knative.dev/max-scale": "5", "tombolo.dev/idle-tier": "frozen"})
        );
        // Of a new service nobody else can have the rest.
        assert!(wanted.onto("ns", "new", None).is_err());
    }
}
