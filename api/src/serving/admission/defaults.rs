//! What Knative's API fills in where a user said nothing. Applying it twice changes nothing more.

use crate::serving::{Container, Probe, RevisionSpec, RevisionTemplateSpec, TcpSocketAction, TrafficTarget};

/// Whole-request timeout of a Revision that names none, seconds.
pub(super) const TIMEOUT_S: i64 = 300;
/// Name of the only container when it has none.
pub(super) const CONTAINER_NAME: &str = "user-container";

/// Kubernetes' values for a probe that has a period but not these.
const FAILURE_THRESHOLD: i32 = 3;
const PROBE_TIMEOUT_S: i32 = 1;

pub(super) fn template(template: &mut RevisionTemplateSpec) {
    revision_spec(&mut template.spec);
}

pub(super) fn revision_spec(spec: &mut RevisionSpec) {
    if spec.timeout_seconds.unwrap_or(0) == 0 {
        spec.timeout_seconds = Some(TIMEOUT_S);
    }
    spec.container_concurrency.get_or_insert(0);
    spec.enable_service_links.get_or_insert(false);
    name_containers(&mut spec.containers);
    let only_one = spec.containers.len() == 1;
    for container in &mut spec.containers {
        let serves = only_one || !container.ports.is_empty();
        readiness(container, serves);
        ports(container);
    }
    read_only_mounts(spec);
}

/// `in_service`: a Service's traffic is its own Configuration's unless it says otherwise.
pub(super) fn traffic(traffic: &mut Vec<TrafficTarget>, in_service: bool) {
    if traffic.is_empty() && in_service {
        let all =
            TrafficTarget { latest_revision: Some(true), percent: Some(100), ..TrafficTarget::default() };
        traffic.push(all);
    }
    for target in traffic {
        if target.latest_revision.is_none() {
            target.latest_revision = Some(target.revision_name.is_empty());
        }
    }
}

fn name_containers(containers: &mut [Container]) {
    let taken: Vec<String> = containers.iter().map(|container| container.name.clone()).collect();
    let only_one = containers.len() == 1;
    let mut suffix = 0;
    for container in containers.iter_mut().filter(|container| container.name.is_empty()) {
        container.name = CONTAINER_NAME.to_owned();
        while !only_one || taken.contains(&container.name) {
            container.name = format!("{CONTAINER_NAME}-{suffix}");
            suffix += 1;
            if !taken.contains(&container.name) {
                break;
            }
        }
    }
}

fn readiness(container: &mut Container, serves: bool) {
    if container.readiness_probe.is_none() && serves {
        container.readiness_probe = Some(Probe::default());
    }
    let Some(probe) = &mut container.readiness_probe else { return };
    let how = probe.tcp_socket.is_some()
        || probe.http_get.is_some()
        || probe.exec.is_some()
        || probe.grpc.is_some();
    if serves && !how {
        probe.tcp_socket = Some(TcpSocketAction::default());
    }
    if probe.success_threshold == 0 {
        probe.success_threshold = 1;
    }
    if probe.period_seconds != 0 {
        if probe.failure_threshold == 0 {
            probe.failure_threshold = FAILURE_THRESHOLD;
        }
        if probe.timeout_seconds == 0 {
            probe.timeout_seconds = PROBE_TIMEOUT_S;
        }
    }
}

fn ports(container: &mut Container) {
    for port in container.ports.iter_mut().filter(|port| port.protocol.is_empty()) {
        port.protocol = "TCP".to_owned();
    }
}

/// Only space of the instance's own may be written to.
fn read_only_mounts(spec: &mut RevisionSpec) {
    let writable: Vec<&str> = spec
        .volumes
        .iter()
        .filter(|volume| volume.empty_dir.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    for mount in spec.containers.iter_mut().flat_map(|container| &mut container.volume_mounts) {
        if !writable.contains(&mount.name.as_str()) {
            mount.read_only = true;
        }
    }
}
