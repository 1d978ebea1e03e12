//! Waiting until a service is what was asked for: its newest revision ready, the nodes up to date, a router answering.
//!
//! Asks the hub again and again: deploying is rare, and a poll needs no state at either end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde_json::Value;

use crate::exit::TimedOut;
use crate::fields::{Condition, condition, conditions, items, number, text};
use crate::hub::{Hub, RequestError};
use crate::kinds::Kind;
use crate::probe::{self, Answering, ProbeError};
use crate::steps::Steps;

/// Between two looks. Shorter than a person notices, and nothing for a hub.
const INTERVAL: Duration = Duration::from_millis(100);

/// A service that says it failed is believed when it still says so after this: a new revision may be under way.
const FAILURE_GRACE: Duration = Duration::from_secs(2);

/// How long routers that cannot be reached are tried: they may be in a network this machine is not in.
const REACH_GRACE: Duration = Duration::from_secs(3);

/// One request to a router. It holds a request while the first instance starts.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is waited for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    namespace: String,
    name: String,
    generation: i64,
    timeout: Duration,
}

impl Wanted {
    /// The service as the hub has just stored it.
    pub(crate) fn new(stored: &Value, timeout: Duration) -> Self {
        Self {
            namespace: text(stored, "/metadata/namespace").to_owned(),
            name: text(stored, "/metadata/name").to_owned(),
            generation: number(stored, "/metadata/generation").unwrap_or(0),
            timeout,
        }
    }
}

/// Waits until the service answers, and says what it waits for whenever that changes.
pub(crate) async fn wait(hub: &Hub, steps: Steps, wanted: &Wanted) -> anyhow::Result<Answering> {
    let deadline = Instant::now() + wanted.timeout;
    let service = ready(hub, steps, wanted, deadline).await?;
    let revision = text(&service, "/status/latestReadyRevisionName");
    steps.say(&format!("revision {revision} is ready"));
    if !items(&service, "/status/traffic").iter().any(|target| text(target, "/revisionName") == revision) {
        steps
            .say(&format!("no traffic goes to {revision}: the service's spec.traffic names other revisions"));
    }
    answering(hub, steps, wanted, &service, deadline).await
}

/// Waits until the service is `Ready` at the wanted generation.
async fn ready(hub: &Hub, steps: Steps, wanted: &Wanted, deadline: Instant) -> anyhow::Result<Value> {
    let item = Kind::Service.item(&wanted.namespace, &wanted.name);
    let mut said = String::new();
    let mut failing_since = None;
    loop {
        let service = hub.get(&item).await?;
        match standing(&service, wanted.generation) {
            Standing::Ready => return Ok(service),
            Standing::Failed => {
                let since = *failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= FAILURE_GRACE {
                    return Err(anyhow!(
                        "service {}/{} failed:{}",
                        wanted.namespace,
                        wanted.name,
                        complaints(&service)
                    ));
                }
            }
            Standing::Underway => failing_since = None,
        }
        let ready = condition(&service, "Ready").filter(|_| !is_behind(&service, wanted.generation));
        let why = ready.map(|ready| ready.cause()).unwrap_or_default();
        if why != said && !why.is_empty() {
            steps.say(&format!("waiting: {why}"));
            said = why;
        }
        if Instant::now() >= deadline {
            let seconds = wanted.timeout.as_secs();
            let (namespace, name, complaints) = (&wanted.namespace, &wanted.name, complaints(&service));
            return Err(TimedOut(format!(
                "service {namespace}/{name} is not ready after {seconds} s:{complaints}"
            ))
            .into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// How far a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    Failed,
    Underway,
}

fn standing(service: &Value, generation: i64) -> Standing {
    match condition(service, "Ready").map(|ready| ready.status) {
        _ if is_behind(service, generation) => Standing::Underway,
        Some("True") => Standing::Ready,
        Some("False") => Standing::Failed,
        _ => Standing::Underway,
    }
}

/// Whether the status is of an older generation, and says nothing of the wanted one.
fn is_behind(service: &Value, generation: i64) -> bool {
    number(service, "/status/observedGeneration").unwrap_or(0) < generation
}

/// What stands in the way, a line each. The summary says nothing its parts do not.
fn complaints(service: &Value) -> String {
    let open = |condition: &Condition<'_>| condition.status != "True" && !condition.is_informative();
    let all: Vec<_> = conditions(service).into_iter().filter(open).collect();
    let parts: Vec<_> = all.iter().filter(|condition| condition.kind != "Ready").collect();
    let shown = if parts.is_empty() { all.iter().collect() } else { parts };
    let lines = shown.iter().map(|condition| format!("\n  {}", condition.sentence())).collect::<String>();
    if lines.is_empty() { "\n  the hub has not looked at it yet".to_owned() } else { lines }
}

/// Waits until a router answers for the service with what the hub wants now.
async fn answering(
    hub: &Hub,
    steps: Steps,
    wanted: &Wanted,
    service: &Value,
    deadline: Instant,
) -> anyhow::Result<Answering> {
    let url = text(service, "/status/url").to_owned();
    let begin = Instant::now();
    loop {
        let nodes = nodes(hub).await?;
        let serving = serving(items(&nodes, "/items"), wanted, service);
        let mut last =
            if serving.is_empty() { "no connected node serves it yet".to_owned() } else { String::new() };
        let mut reached = serving.is_empty();
        for router in serving.iter().filter_map(|address| reachable(address, hub.is_here())) {
            match probe::ask(
                router,
                &url,
                PROBE_TIMEOUT.min(deadline.saturating_duration_since(Instant::now())),
            )
            .await
            {
                Ok(answer) if answer.refused.is_none() => {
                    steps.say(&format!(
                        "the router at {router} answers: {} {}",
                        answer.status,
                        answer.excerpt()
                    ));
                    return Ok(Answering { url, router: Some(router) });
                }
                Ok(answer) => (reached, last) = (true, answer.excerpt()),
                Err(error @ ProbeError::Connect { .. }) => last = error.to_string(),
                Err(error) => (reached, last) = (true, error.to_string()),
            }
        }
        if !reached && begin.elapsed() >= REACH_GRACE {
            steps.say(&format!(
                "ready, but not tried: {}",
                if last.is_empty() { "no node tells an address for callers" } else { &last }
            ));
            return Ok(Answering { url, router: None });
        }
        if Instant::now() >= deadline {
            let seconds = wanted.timeout.as_secs();
            return Err(TimedOut(format!("{url} does not answer after {seconds} s: {last}")).into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

pub(crate) async fn nodes(hub: &Hub) -> Result<Value, RequestError> {
    hub.get(&Kind::Node.collection(None)).await
}

/// Addresses of the connected nodes that have a revision of the service's traffic and all the hub wants of them.
fn serving(nodes: &[Value], wanted: &Wanted, service: &Value) -> Vec<String> {
    let routed: Vec<&str> =
        items(service, "/status/traffic").iter().map(|target| text(target, "/revisionName")).collect();
    let has_it = |node: &&Value| {
        items(node, "/status/revisions").iter().any(|report| {
            text(report, "/namespace") == wanted.namespace && routed.contains(&text(report, "/name"))
        })
    };
    let up_to_date = |node: &&Value| {
        let (desired, serving) = (text(node, "/status/desired/digest"), text(node, "/status/serving/digest"));
        desired.is_empty() || desired == serving
    };
    let connected = |node: &&Value| condition(node, "Ready").is_some_and(|ready| ready.status == "True");
    let address = |node: &Value| text(node, "/status/info/address").to_owned();
    nodes.iter().filter(connected).filter(up_to_date).filter(has_it).map(address).collect()
}

/// A node's address as seen from here. "Every address" means this machine's if the hub is here too.
fn reachable(address: &str, hub_is_here: bool) -> Option<SocketAddr> {
    let mut address: SocketAddr = address.parse().ok()?;
    if address.ip().is_unspecified() {
        if !hub_is_here {
            return None;
        }
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Some(address)
}

#[cfg(test)]
mod tests;
