//! A Route: which Revisions its traffic is on, and under which URLs.

use std::sync::Arc;

use tombolo_api::meta::ConditionStatus;
use tombolo_api::serving::{Address, Route, RouteStatus, TrafficTarget};

use super::{Inputs, Write, Writes};
use crate::conditions::{Conditions, Verdict};
use crate::hosts::Hosts;
use crate::rollout;
use crate::snapshot::Object;
use crate::targets::{self, Target};

/// Reason of a Route whose host another one has.
pub(super) const HOST_CONFLICT: &str = "HostConflict";

pub(super) fn reconcile(route: &Arc<Route>, hosts: &Hosts, inputs: &Inputs<'_>, writes: &mut Writes) {
    let status = status(route, hosts, inputs);
    if status != route.status {
        let mut changed = Route::clone(route);
        changed.status = status;
        writes.push(Write::Update(Object::Route(Arc::new(changed))));
    }
}

fn status(route: &Route, hosts: &Hosts, inputs: &Inputs<'_>) -> RouteStatus {
    let resolved = targets::resolve(route, inputs.snapshot);
    let before = &route.status;
    let (name, namespace) = (&route.metadata.name, &route.metadata.namespace);
    let url = inputs.settings.url("", name, namespace);
    let traffic = if resolved.assigned.is_good() {
        let assigned = |target: &Target| TrafficTarget {
            latest_revision: target.latest,
            percent: Some(target.percent),
            revision_name: target.assigned.clone().unwrap_or_default(),
            tag: target.tag.clone(),
            url: if target.tag.is_empty() {
                String::new()
            } else {
                inputs.settings.url(&target.tag, name, namespace)
            },
            ..TrafficTarget::default()
        };
        resolved.targets.iter().map(assigned).collect()
    } else {
        // What was assigned before goes on being served.
        before.traffic.clone()
    };
    let ingress = if resolved.assigned.is_good() {
        let progress = rollout::progress(route, &resolved.targets, inputs.snapshot, inputs.fleet);
        Verdict::all(&[&own_hosts(route, &resolved.targets, hosts, inputs), &progress])
    } else {
        Verdict::unknown("IngressNotConfigured", "Traffic is not assigned yet.")
    };
    let certificate = Verdict {
        status: ConditionStatus::True,
        reason: "TLSNotEnabled".into(),
        message: "external-domain-tls is not enabled".into(),
    };
    let conditions = Conditions::new(&before.conditions, inputs.now)
        .set("AllTrafficAssigned", &resolved.assigned)
        .set("CertificateProvisioned", &certificate)
        .set("IngressReady", &ingress)
        .set("Ready", &Verdict::all(&[&resolved.assigned, &ingress]))
        .build();
    RouteStatus {
        address: Some(Address { url: url.clone() }),
        conditions,
        observed_generation: route.metadata.generation,
        traffic,
        url,
    }
}

/// Whether no other route has a host of this one.
fn own_hosts(route: &Route, targets: &[Target], hosts: &Hosts, inputs: &Inputs<'_>) -> Verdict {
    let (name, namespace) = (&route.metadata.name, &route.metadata.namespace);
    let tags = targets.iter().map(|target| target.tag.as_str()).filter(|tag| !tag.is_empty());
    for tag in std::iter::once("").chain(tags) {
        let Some(holder) = hosts.holder(tag, &route.metadata) else { continue };
        let host = inputs.settings.host(tag, name, namespace);
        let what = if tag.is_empty() { "this one another name" } else { "the tag another name" };
        let message = format!("Route {holder:?}, which is older, has the host {host}: give {what}.");
        return Verdict::bad(HOST_CONFLICT, message);
    }
    Verdict::good()
}
