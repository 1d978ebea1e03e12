//! The agent's own API, for people and probes on the node: `/healthz`, `/readyz`, `/status` (JSON), `/metrics` (Prometheus
//! text). Reads what others publish; changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tombolo_agent_core::accelerators;
use tombolo_agent_core::autoscale::scaler::Decision;
use tombolo_agent_core::routes::RouteTable;
use tombolo_api::report::{Report, RevisionReport, Tier};
use tombolo_api::{NodeId, RevisionKey};
use tombolo_router::Meter;

use crate::accepted::Accepted;
use crate::enrol::now_s;
use crate::identity::Identity;
use crate::import;
use crate::keep::Refusals;
use crate::link::{LinkState, Traffic};
use crate::outbox::Outbox;
use crate::usage::Usage;

/// What is shown.
pub(crate) struct Shown {
    pub(crate) node: NodeId,
    pub(crate) session: String,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) table: watch::Receiver<Arc<RouteTable>>,
    pub(crate) identity: watch::Receiver<Option<Arc<Identity>>>,
    /// What keeps the node from its identity.
    pub(crate) trouble: watch::Receiver<String>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(crate) report: watch::Receiver<Report>,
    /// What the autoscaler decided last.
    pub(crate) decisions: watch::Receiver<BTreeMap<RevisionKey, Decision>>,
    pub(crate) usage: Usage,
    /// What is wrong with the specifications of devices.
    pub(crate) specifications: watch::Receiver<Arc<Vec<String>>>,
    pub(crate) images: tombolo_oci::Store,
    pub(crate) refusals: watch::Receiver<Refusals>,
    /// The last bundle.
    pub(crate) import: watch::Receiver<Option<import::Report>>,
    pub(crate) outbox: Outbox,
    pub(crate) meter: Arc<Meter>,
}

/// The listening API.
pub(crate) struct Admin {
    listener: TcpListener,
    routes: Router,
}

impl Admin {
    /// On a socket that listens already: who asks before all is known waits.
    pub(crate) fn on(listener: TcpListener, shown: Shown) -> Self {
        let routes = Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/readyz", get(readyz))
            .route("/status", get(async |State(shown): State<Arc<Shown>>| Json(status(&shown))))
            .route("/metrics", get(async |State(shown): State<Arc<Shown>>| metrics(&shown)))
            .with_state(Arc::new(shown));
        Self { listener, routes }
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(crate) async fn run(self, stop: CancellationToken) {
        let served =
            axum::serve(self.listener, self.routes).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin API ended");
        }
    }
}

async fn readyz(State(shown): State<Arc<Shown>>) -> (StatusCode, &'static str) {
    let table = shown.table.borrow().clone();
    if !*shown.ready.borrow() {
        (StatusCode::SERVICE_UNAVAILABLE, "the instances of this node are not known yet")
    } else if !shown.meter.is_in_force(&table) {
        (StatusCode::SERVICE_UNAVAILABLE, "the routes are not in force yet")
    } else {
        (StatusCode::OK, "ok")
    }
}

fn status(shown: &Shown) -> Value {
    let mut report = shown.report.borrow().clone();
    report.info.limitations.extend(shown.specifications.borrow().iter().cloned());
    let refusals = shown.refusals.borrow().clone();
    let accepted = shown.accepted.borrow().clone();
    let (now, hub_time) = (now_s(), accepted.as_ref().map(|accepted| accepted.hub_time_s));
    let certificate = shown.identity.borrow().as_ref().map(|identity| {
        let (from, to) = identity.validity_s();
        json!({ "notBeforeS": from, "notAfterS": to, "expired": now > to })
    });
    json!({
        "node": shown.node,
        "session": shown.session,
        "hub": hub(shown),
        "serving": accepted.as_ref().map(|accepted| accepted.serving),
        "refused": refusals.last,
        "import": *shown.import.borrow(),
        "clock": { "nowS": now, "hubTimeS": hub_time, "behind": hub_time.is_some_and(|hub_time| now < hub_time) },
        "certificate": certificate,
        "router": report.info.address,
        "bootId": report.info.boot_id,
        "limitations": report.info.limitations,
        "capacity": report.info.capacity,
        "allocatable": report.info.allocatable,
        "accelerators": accelerators::reports(&shown.usage.accelerators.borrow(), &report.revisions),
        "revisions": report.revisions,
        "routes": report.routes,
        "counters": {
            "refusedManifests": refusals.count,
            "eventsWaiting": shown.outbox.len(),
            "eventsDropped": shown.outbox.dropped(),
            "requestsHeld": shown.meter.held(),
        },
    })
}

fn hub(shown: &Shown) -> Value {
    let trouble = shown.trouble.borrow().clone();
    match &*shown.link.borrow() {
        LinkState::Waiting => json!({ "state": "notEnrolled", "message": trouble }),
        LinkState::Down { reason, failures } => {
            let message = if trouble.is_empty() { reason.clone() } else { format!("{reason}; {trouble}") };
            json!({ "state": "disconnected", "message": message, "failures": failures })
        }
        LinkState::Up { connection, .. } => {
            json!({ "state": "connected", "message": trouble, "connections": connection })
        }
    }
}

fn metrics(shown: &Shown) -> String {
    let connected = matches!(*shown.link.borrow(), LinkState::Up { .. });
    let generation =
        shown.accepted.borrow().as_ref().map_or(0, |accepted| accepted.serving.version.generation);
    let mut text = String::new();
    for (name, kind, value) in [
        ("tombolo_agent_hub_connected", "gauge", u64::from(connected)),
        ("tombolo_agent_serving_generation", "gauge", generation),
        ("tombolo_agent_refused_manifests_total", "counter", shown.refusals.borrow().count),
        ("tombolo_agent_events_waiting", "gauge", shown.outbox.len() as u64),
        ("tombolo_agent_events_dropped_total", "counter", shown.outbox.dropped()),
        ("tombolo_agent_image_bytes_received_total", "counter", shown.images.received()),
        ("tombolo_agent_requests_held", "gauge", shown.meter.held() as u64),
        ("tombolo_agent_connections_refused_total", "counter", shown.meter.connections_refused()),
        ("tombolo_agent_connections_displaced_total", "counter", shown.meter.connections_displaced()),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    let traffic = &shown.traffic;
    for (direction, (messages, bytes)) in
        [("sent", traffic.sent.total()), ("received", traffic.received.total())]
    {
        for (name, value) in [("messages", messages), ("message_bytes", bytes)] {
            let _ = writeln!(text, "tombolo_agent_hub_{name}_total{{direction=\"{direction}\"}} {value}");
        }
    }
    instances(&shown.report.borrow(), &mut text);
    devices(&shown.report.borrow(), &mut text);
    shown.usage.render(&shown.report.borrow(), &mut text);
    decisions(&shown.decisions.borrow(), &mut text);
    text.push_str(&tombolo_router::render_metrics(&shown.meter.snapshot()));
    text.push_str(&tombolo_router::render_activations(shown.meter.activations()));
    text
}

/// How many instances the node and each revision have in each tier, and how many should run.
fn instances(report: &Report, text: &mut String) {
    let mut node = BTreeMap::<_, u32>::new();
    let mut lines = String::new();
    for revision in &report.revisions {
        let mut tiers = BTreeMap::<_, u32>::new();
        for instance in &revision.instances {
            *tiers.entry(instance.tier).or_default() += 1;
            *node.entry(instance.tier).or_default() += 1;
        }
        for (tier, count) in tiers {
            let (tier, labels) = (tier_word(tier), labels(revision));
            // Writing to a String cannot fail.
            let _ = writeln!(lines, "tombolo_revision_instances{{{labels},tier=\"{tier}\"}} {count}");
        }
    }
    head(text, "tombolo_instances", "Instances on this node, by tier");
    for (tier, count) in node {
        let _ = writeln!(text, "tombolo_instances{{tier=\"{}\"}} {count}", tier_word(tier));
    }
    head(text, "tombolo_revision_instances", "Instances of a revision, by tier");
    text.push_str(&lines);
    head(text, "tombolo_desired_instances", "Instances of a revision that should run");
    for revision in &report.revisions {
        let _ = writeln!(text, "tombolo_desired_instances{{{}}} {}", labels(revision), revision.desired);
    }
}

/// Devices that there are and that instances may have, held ones included.
fn devices(report: &Report, text: &mut String) {
    let info = &report.info;
    for (name, help, counts) in [
        ("tombolo_device_capacity", "Devices of a resource, healthy or not", &info.capacity),
        ("tombolo_device_allocatable", "Devices of a resource that instances may have", &info.allocatable),
    ] {
        if !counts.is_empty() {
            head(text, name, help);
        }
        for (resource, count) in counts {
            let _ = writeln!(text, "{name}{{resource=\"{resource}\"}} {count}");
        }
    }
}

/// What the autoscaler decided last, of revisions that are not at rest.
fn decisions(decisions: &BTreeMap<RevisionKey, Decision>, text: &mut String) {
    let labels = |key: &RevisionKey| format!("namespace=\"{}\",revision=\"{}\"", key.namespace, key.name);
    let name = "tombolo_autoscaler_excess_burst_capacity";
    head(text, name, "Of the metric, what the ready instances take beyond target-burst-capacity");
    for (key, decision) in decisions {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}{{{}}} {}", labels(key), decision.excess_burst_capacity);
    }
    let name = "tombolo_autoscaler_mode";
    head(
        text,
        name,
        "Serve: the ready instances take the burst that is asked; Proxy: it would wait. Always 1",
    );
    for (key, decision) in decisions {
        let _ = writeln!(text, "{name}{{{},mode=\"{}\"}} 1", labels(key), decision.mode().word());
    }
    let name = "tombolo_autoscaler_panic";
    head(text, name, "Whether the revision scales in panic mode");
    for (key, decision) in decisions {
        let _ = writeln!(text, "{name}{{{}}} {}", labels(key), u8::from(decision.panicking));
    }
}

fn head(text: &mut String, name: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
}

fn labels(revision: &RevisionReport) -> String {
    format!("namespace=\"{}\",revision=\"{}\"", revision.namespace, revision.name)
}

fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::Starting => "starting",
        Tier::Running => "running",
        Tier::Stopping => "stopping",
        Tier::Primed => "primed",
        Tier::Frozen => "frozen",
        Tier::Suspended => "suspended",
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent_core::actual::Moment;
    use tombolo_agent_core::autoscale::zero::Activity;

    use super::*;
    use crate::testing::report_of;

    #[test]
    fn devices_are_counted_by_resource() {
        let mut report = Report::default();
        let mut text = String::new();
        devices(&report, &mut text);
        assert_eq!(text, "");
        report.info.capacity.insert("a.example/x".into(), 2);
        report.info.allocatable.insert("a.example/x".into(), 1);
        devices(&report, &mut text);
        for line in [
            "tombolo_device_capacity{resource=\"a.example/x\"} 2",
            "tombolo_device_allocatable{resource=\"a.example/x\"} 1",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn decisions_are_shown_in_knatives_words() {
        let activity = Activity::Active { since: Moment(0) };
        let decision = |want, excess_burst_capacity| Decision {
            want,
            excess_burst_capacity,
            panicking: excess_burst_capacity < 0,
            activity,
        };
        let key = |name| RevisionKey::new("default", name);
        let all =
            [(key("calm"), decision(2, 7)), (key("short"), decision(2, -3)), (key("none"), decision(0, 0))];
        let mut text = String::new();
        decisions(&all.into(), &mut text);
        let labels = |name| format!("namespace=\"default\",revision=\"{name}\"");
        for line in [
            format!("tombolo_autoscaler_excess_burst_capacity{{{}}} -3", labels("short")),
            format!("tombolo_autoscaler_mode{{{},mode=\"Serve\"}} 1", labels("calm")),
            format!("tombolo_autoscaler_mode{{{},mode=\"Proxy\"}} 1", labels("short")),
            format!("tombolo_autoscaler_mode{{{},mode=\"Proxy\"}} 1", labels("none")),
            format!("tombolo_autoscaler_panic{{{}}} 0", labels("calm")),
            format!("tombolo_autoscaler_panic{{{}}} 1", labels("short")),
        ] {
            assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn instances_are_counted_by_tier() {
        let report = report_of(&[("a", Tier::Running), ("b", Tier::Primed), ("c", Tier::Running)]);
        let mut text = String::new();
        instances(&report, &mut text);
        let labels = "namespace=\"default\",revision=\"s-00001\"";
        for line in [
            "tombolo_instances{tier=\"running\"} 2".to_owned(),
            format!("tombolo_revision_instances{{{labels},tier=\"running\"}} 2"),
            format!("tombolo_revision_instances{{{labels},tier=\"primed\"}} 1"),
            format!("tombolo_desired_instances{{{labels}}} 3"),
        ] {
            assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
        }
    }
}
