//! The text of `describe`. Must not know where the resources come from.

use std::collections::BTreeSet;

use serde_json::Value;
use time::OffsetDateTime;

use super::rollouts;
use crate::accelerators;
use crate::fields::{self, Condition, age, conditions, items, number, pairs, text};
use crate::kinds::Kind;
use crate::output;

/// Most events that are shown, the newest.
const EVENTS_MAX: usize = 20;

/// Width of the column of titles.
const TITLE_WIDTH: usize = 15;

/// What an event says, apart from when.
const EVENT_FIELDS: [&str; 5] = ["/type", "/reason", "/node", "/object", "/message"];

/// What is told of an object beside itself.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// Names of the revisions that belong to it.
    pub(super) revisions: BTreeSet<String>,
    pub(super) on_nodes: Vec<OnNode>,
    /// Rows of [`rollouts::HEAD`].
    pub(super) rollouts: Vec<Vec<String>>,
    /// What is demanded of signatures, and whether it is met, in lines; none where nothing is demanded.
    pub(super) signatures: Vec<String>,
    /// What runs in a namespace.
    pub(super) services: Vec<Value>,
    /// Oldest first.
    pub(super) events: Vec<Value>,
}

/// What one node says of one revision.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OnNode {
    node: String,
    /// Whether the node is connected, as its `Ready` says.
    connected: String,
    revision: String,
    phase: String,
    instances: String,
    reason: String,
    message: String,
}

pub(super) struct Page<'a> {
    pub(super) kind: Kind,
    pub(super) object: &'a Value,
    pub(super) around: &'a Surroundings,
    pub(super) now: OffsetDateTime,
}

impl Page<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = self.head();
        if self.kind == Kind::Namespace {
            return text + &self.services();
        }
        text.push_str(&match self.kind {
            Kind::Service | Kind::Route => self.traffic() + &self.rollouts(),
            Kind::Configuration | Kind::Revision | Kind::Namespace => String::new(),
            Kind::Node => self.node(),
        });
        text.push_str(&match self.kind {
            Kind::Service | Kind::Configuration => template(self.object, "/spec/template/spec"),
            Kind::Revision => template(self.object, "/spec"),
            Kind::Route | Kind::Node | Kind::Namespace => String::new(),
        });
        text.push_str(&self.conditions());
        if self.kind != Kind::Node {
            text.push_str(&self.nodes());
        }
        text.push_str(&self.events());
        text
    }

    fn head(&self) -> String {
        let object = self.object;
        let mut lines = Lines::default();
        lines.one("Name", text(object, "/metadata/name"));
        lines.one("Namespace", text(object, "/metadata/namespace"));
        lines.many("Labels", &pairs(object, "/metadata/labels"));
        lines.many("Annotations", &pairs(object, "/metadata/annotations"));
        lines.one("Age", &age(text(object, "/metadata/creationTimestamp"), self.now));
        if !matches!(self.kind, Kind::Node | Kind::Namespace)
            && let Some(generation) = number(object, "/metadata/generation")
        {
            let observed = number(object, "/status/observedGeneration").unwrap_or(0);
            let behind =
                if observed == generation { String::new() } else { format!(" (the hub is at {observed})") };
            lines.one("Generation", &format!("{generation}{behind}"));
        }
        lines.one("Status", text(object, "/status/phase"));
        lines.one("URL", text(object, "/status/url"));
        lines.one("Latest created", text(object, "/status/latestCreatedRevisionName"));
        lines.one("Latest ready", text(object, "/status/latestReadyRevisionName"));
        lines.many(
            "Revisions",
            &if matches!(self.kind, Kind::Service | Kind::Configuration) {
                self.around.revisions.iter().cloned().collect()
            } else {
                Vec::new()
            },
        );
        lines.many("Signatures", &self.around.signatures);
        lines.0
    }

    fn traffic(&self) -> String {
        let row = |target: &Value| {
            let latest = target.pointer("/latestRevision").and_then(Value::as_bool) == Some(true);
            vec![
                format!("{}%", number(target, "/percent").unwrap_or(0)),
                text(target, "/revisionName").to_owned(),
                if latest { "yes" } else { "" }.to_owned(),
                text(target, "/tag").to_owned(),
                text(target, "/url").to_owned(),
            ]
        };
        let rows: Vec<_> = items(self.object, "/status/traffic").iter().map(row).collect();
        section("Traffic", &["PERCENT", "REVISION", "LATEST", "TAG", "URL"], &rows, "none assigned yet")
    }

    /// Nothing where no node has one to tell of.
    fn rollouts(&self) -> String {
        if self.around.rollouts.is_empty() {
            return String::new();
        }
        section("Rollouts", &rollouts::HEAD, &self.around.rollouts, "none")
    }

    fn services(&self) -> String {
        let row = |service: &Value| {
            let ready = fields::condition(service, "Ready").map_or("Unknown", |ready| ready.status);
            vec![
                text(service, "/metadata/name").to_owned(),
                ready.to_owned(),
                text(service, "/status/url").to_owned(),
            ]
        };
        let rows: Vec<_> = self.around.services.iter().map(row).collect();
        section("Services", &["NAME", "READY", "URL"], &rows, "none")
    }

    fn conditions(&self) -> String {
        let mut all = conditions(self.object);
        all.sort_by_key(|condition| (condition.kind != "Ready", condition.kind));
        let row = |condition: &Condition<'_>| {
            vec![
                condition.kind.to_owned(),
                condition.status.to_owned(),
                condition.severity.to_lowercase(),
                age(condition.since, self.now),
                condition.reason.to_owned(),
                condition.message.to_owned(),
            ]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        section("Conditions", &["TYPE", "STATUS", "SEVERITY", "AGE", "REASON", "MESSAGE"], &rows, "none yet")
    }

    fn nodes(&self) -> String {
        let row = |on: &OnNode| {
            let OnNode { node, connected, revision, phase, instances, reason, message } = on;
            [node, connected, revision, phase, instances, reason, message].map(Clone::clone).to_vec()
        };
        let rows: Vec<_> = self.around.on_nodes.iter().map(row).collect();
        let head = ["NODE", "CONNECTED", "REVISION", "PHASE", "INSTANCES", "REASON", "MESSAGE"];
        section("Nodes", &head, &rows, "no node has reported a revision of it")
    }

    fn events(&self) -> String {
        let told = folded(&self.around.events);
        let newest = &told[told.len().saturating_sub(EVENTS_MAX)..];
        let row = |(event, times): &(&Value, usize)| {
            let since = number(event, "/timeMs")
                .map_or_else(|| "<unknown>".to_owned(), |time| fields::age_of_ms(time, self.now));
            let since = if *times > 1 { format!("{since} (x{times})") } else { since };
            std::iter::once(since).chain(EVENT_FIELDS.map(|field| text(event, field).to_owned())).collect()
        };
        let rows: Vec<Vec<String>> = newest.iter().map(row).collect();
        section("Events", &["AGE", "TYPE", "REASON", "NODE", "OBJECT", "MESSAGE"], &rows, "none")
    }

    fn node(&self) -> String {
        let object = self.object;
        let mut lines = Lines::default();
        lines.one("Address", text(object, "/status/info/address"));
        lines.one("Agent", text(object, "/status/info/agentVersion"));
        lines.one(
            "System",
            &joined(
                object,
                &["/status/info/osImage", "/status/info/kernelVersion", "/status/info/architecture"],
            ),
        );
        if let (Some(cpus), Some(bytes)) =
            (number(object, "/status/info/cpus"), number(object, "/status/info/memoryBytes"))
        {
            lines.one("Capacity", &format!("{cpus} processors, {} MiB of memory", bytes / (1024 * 1024)));
        }
        lines.many("Devices", &accelerators::devices(object));
        lines.one("Last seen", text(object, "/status/lastSeen"));
        lines.one("Wanted", &version(object, "/status/desired"));
        lines.one("Serving", &version(object, "/status/serving"));
        let refused = joined(object, &["/status/refused/reason", "/status/refused/message"]);
        lines.one("Refused", &refused);
        let limitations: Vec<String> = items(object, "/status/info/limitations")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        lines.many("Limitations", &limitations);
        let pull = |pull: &Value| {
            let mib = |pointer| number(pull, pointer).unwrap_or(0) / (1024 * 1024);
            let percent = fields::pulling(std::slice::from_ref(pull));
            format!("{} {percent}, {} of {} MiB", text(pull, "/image"), mib("/doneBytes"), mib("/totalBytes"))
        };
        lines.many("Pulling", &items(object, "/status/pulls").iter().map(pull).collect::<Vec<_>>());
        let (accelerators, faults) = accelerators::rows(object);
        lines.many("Faulty", &faults);
        let row = |report: &Value| {
            vec![
                format!("{}/{}", text(report, "/namespace"), text(report, "/name")),
                text(report, "/phase").to_owned(),
                instances(report),
                text(report, "/reason").to_owned(),
                text(report, "/message").to_owned(),
            ]
        };
        let rows: Vec<_> = items(object, "/status/revisions").iter().map(row).collect();
        if !accelerators.is_empty() {
            lines.0.push_str(&section("Accelerators", &accelerators::HEAD, &accelerators, "none"));
            let held = accelerators::held(object);
            lines.0.push_str(&section(
                "Accelerator memory",
                &accelerators::HELD_HEAD,
                &held,
                "held by no instance",
            ));
        }
        lines.0
            + &section("Revisions", &["REVISION", "PHASE", "INSTANCES", "REASON", "MESSAGE"], &rows, "none")
    }
}

/// What the nodes say of these revisions.
pub(super) fn on_nodes(nodes: &[Value], namespace: &str, revisions: &BTreeSet<String>) -> Vec<OnNode> {
    let mut all = Vec::new();
    for node in nodes {
        let connected = fields::condition(node, "Ready").map_or("Unknown", |ready| ready.status);
        for report in items(node, "/status/revisions") {
            if text(report, "/namespace") == namespace && revisions.contains(text(report, "/name")) {
                all.push(OnNode {
                    node: text(node, "/metadata/name").to_owned(),
                    connected: connected.to_owned(),
                    revision: text(report, "/name").to_owned(),
                    phase: text(report, "/phase").to_owned(),
                    instances: instances(report),
                    reason: text(report, "/reason").to_owned(),
                    message: text(report, "/message").to_owned(),
                });
            }
        }
    }
    all
}

/// Events that say the same one after the other, as the last of them and how many there are.
fn folded(events: &[Value]) -> Vec<(&Value, usize)> {
    let same = |a: &Value, b: &Value| EVENT_FIELDS.iter().all(|field| text(a, field) == text(b, field));
    events.chunk_by(same).filter_map(|run| Some((run.last()?, run.len()))).collect()
}

/// Events of one node.
pub(super) fn node_events(events: &Value, node: &str) -> Vec<Value> {
    items(events, "/items").iter().filter(|event| text(event, "/node") == node).cloned().collect()
}

/// Events about revisions.
pub(super) fn revision_events(events: &Value, namespace: &str, revisions: &BTreeSet<String>) -> Vec<Value> {
    let concerns = |event: &&Value| {
        let mut parts = text(event, "/object").split('/');
        parts.next() == Some("revision")
            && parts.next() == Some(namespace)
            && parts.next().is_some_and(|name| revisions.contains(name))
    };
    items(events, "/items").iter().filter(concerns).cloned().collect()
}

/// `2 running, 1 frozen (3 restarts)`
fn instances(report: &Value) -> String {
    let all = items(report, "/instances");
    let mut told = Vec::new();
    for tier in ["running", "starting", "stopping", "frozen", "suspended", "primed"] {
        let count = all.iter().filter(|instance| text(instance, "/tier") == tier).count();
        if count > 0 {
            told.push(format!("{count} {tier}"));
        }
    }
    let restarts = all.iter().filter_map(|instance| number(instance, "/restarts")).max().unwrap_or(0);
    match (told.is_empty(), restarts) {
        (true, _) => "0".to_owned(),
        (false, 0) => told.join(", "),
        (false, restarts) => format!("{} ({restarts} restarts)", told.join(", ")),
    }
}

/// What of a template a person looks for.
fn template(object: &Value, spec: &str) -> String {
    let mut lines = Lines::default();
    for container in items(object, &format!("{spec}/containers")) {
        let words = |field: &str| {
            items(container, field).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        };
        lines.one("Image", text(container, "/image"));
        lines.one("Command", &words("/command"));
        lines.one("Arguments", &words("/args"));
        if let Some(port) = number(container, "/ports/0/containerPort") {
            lines.one("Port", &port.to_string());
        }
        let env = |variable: &Value| {
            let value = variable.get("value").and_then(Value::as_str).unwrap_or("(from elsewhere)");
            format!("{}={value}", text(variable, "/name"))
        };
        lines.many("Environment", &items(container, "/env").iter().map(env).collect::<Vec<_>>());
        lines.many("Requests", &pairs(container, "/resources/requests"));
        lines.many("Limits", &pairs(container, "/resources/limits"));
    }
    let (image, pinned) = (&format!("{spec}/containers/0/image"), "/status/containerStatuses/0/imageDigest");
    if text(object, image) != text(object, pinned) {
        lines.one("Image digest", text(object, pinned).rsplit('@').next().unwrap_or_default());
    }
    lines.many("Node selector", &pairs(object, &format!("{spec}/nodeSelector")));
    format!("\n{}", lines.0)
}

/// `epoch 1, generation 4, sha256:…`
fn version(object: &Value, pointer: &str) -> String {
    let part =
        |name: &str| number(object, &format!("{pointer}/{name}")).map(|number| format!("{name} {number}"));
    let digest = text(object, &format!("{pointer}/digest"));
    let digest = (!digest.is_empty()).then(|| digest.to_owned());
    [part("epoch"), part("generation"), digest].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn joined(object: &Value, pointers: &[&str]) -> String {
    let parts = pointers.iter().map(|pointer| text(object, pointer)).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(", ")
}

/// Lines of `Title:   value`; what is empty has none.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn one(&mut self, title: &str, value: &str) {
        if !value.is_empty() {
            self.many(title, &[value.to_owned()]);
        }
    }

    fn many(&mut self, title: &str, values: &[String]) {
        let mut title = format!("{title}:");
        for value in values {
            // A key in an annotation has lines of its own.
            let value = value.trim_end().replace('\n', &format!("\n{:TITLE_WIDTH$} ", ""));
            self.0.push_str(&format!("{title:<TITLE_WIDTH$} {value}\n"));
            title.clear();
        }
    }
}

fn section(title: &str, head: &[&str], rows: &[Vec<String>], nothing: &str) -> String {
    if rows.is_empty() {
        return format!("\n{title}:\n  {nothing}\n");
    }
    let table = output::table(head, rows);
    let indented: String = table.lines().map(|line| format!("  {line}\n")).collect();
    format!("\n{title}:\n{indented}")
}

#[cfg(test)]
mod tests;
