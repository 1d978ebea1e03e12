//! The agent's own API, for people and probes on the node: `/healthz`, `/readyz`, `/status` (JSON), `/metrics` (Prometheus
//! text). Reads what others publish; changes nothing.

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
use tombolo_agent_core::routes::RouteTable;
use tombolo_api::NodeId;
use tombolo_api::report::Report;
use tombolo_router::Meter;

use crate::accepted::Accepted;
use crate::enrol::now_s;
use crate::identity::Identity;
use crate::keep::Refusals;
use crate::link::{LinkState, Traffic};
use crate::outbox::Outbox;

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
    pub(crate) refusals: watch::Receiver<Refusals>,
    pub(crate) outbox: Outbox,
    pub(crate) meter: Arc<Meter>,
}

/// The listening API.
pub(crate) struct Admin {
    listener: TcpListener,
    routes: Router,
}

impl Admin {
    pub(crate) async fn bind(listen: SocketAddr, shown: Shown) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let routes = Router::new()
            .route("/healthz", get(async || "ok"))
            .route("/readyz", get(readyz))
            .route("/status", get(async |State(shown): State<Arc<Shown>>| Json(status(&shown))))
            .route("/metrics", get(async |State(shown): State<Arc<Shown>>| metrics(&shown)))
            .with_state(Arc::new(shown));
        Ok(Self { listener, routes })
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
    let report = shown.report.borrow().clone();
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
        "clock": { "nowS": now, "hubTimeS": hub_time, "behind": hub_time.is_some_and(|hub_time| now < hub_time) },
        "certificate": certificate,
        "router": report.info.address,
        "bootId": report.info.boot_id,
        "limitations": report.info.limitations,
        "revisions": report.revisions,
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
        ("tombolo_agent_requests_held", "gauge", shown.meter.held() as u64),
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
    text.push_str("# TYPE tombolo_agent_requests_total counter\n");
    for (revision, meter) in shown.meter.snapshot() {
        let (namespace, name) = (&revision.namespace, &revision.name);
        for (digit, count) in meter.answers.iter().enumerate().filter(|(_, count)| **count > 0) {
            let class = digit + 1;
            let _ = writeln!(
                text,
                "tombolo_agent_requests_total{{namespace=\"{namespace}\",revision=\"{name}\",class=\"{class}xx\"}} {count}"
            );
        }
    }
    text
}
