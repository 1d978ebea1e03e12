//! Knative's checks of a container's probes, the container's defaults filled in.

use super::field_error::FieldErrors;
use crate::quantity::IntOrString;
use crate::serving::{Container, ContainerPort, Probe};

/// Name of a serving port that has none.
const PORT_NAME: &str = "http";

pub(super) fn serving(container: &Container, port: Option<&ContainerPort>) -> FieldErrors {
    let port_name = port.map(|port| port.name.as_str()).filter(|name| !name.is_empty()).unwrap_or(PORT_NAME);
    let check = |probe: &Option<Probe>| probe.as_ref().map(|probe| any(probe, port_name)).unwrap_or_default();
    let ready = container.readiness_probe.as_ref().map(|probe| any(probe, port_name).also(readiness(probe)));
    check(&container.liveness_probe)
        .via("livenessProbe")
        .also(ready.unwrap_or_default().via("readinessProbe"))
        .also(check(&container.startup_probe).via("startupProbe"))
}

/// A container that takes no requests may still say whether it is well.
pub(super) fn sidecar(container: &Container) -> FieldErrors {
    let check = |probe: &Option<Probe>| probe.as_ref().map(|probe| any(probe, PORT_NAME)).unwrap_or_default();
    check(&container.liveness_probe)
        .via("livenessProbe")
        .also(check(&container.readiness_probe).via("readinessProbe"))
        .also(check(&container.startup_probe).via("startupProbe"))
}

fn any(probe: &Probe, port_name: &str) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut handlers = Vec::new();
    let named_otherwise = |port: &IntOrString| match port {
        IntOrString::String(name) => !name.is_empty() && name != port_name,
        IntOrString::Int(_) => false,
    };
    let wrong_port = |port: &IntOrString, path| {
        FieldErrors::invalid_because(port, path, "Probe port must match container port")
    };
    // The reference prefixes all errors so far with each way of probing it comes to; so do we.
    if let Some(get) = &probe.http_get {
        handlers.push("httpGet");
        errors = errors.via("httpGet");
        if named_otherwise(&get.port) {
            errors.add(wrong_port(&get.port, "httpGet.port"));
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        handlers.push("tcpSocket");
        errors = errors.via("tcpSocket");
        if named_otherwise(&tcp.port) {
            errors.add(wrong_port(&tcp.port, "tcpSocket.port"));
        }
    }
    if probe.exec.is_some() {
        handlers.push("exec");
        errors = errors.via("exec");
    }
    if probe.grpc.is_some() {
        handlers.push("gRPC");
        errors = errors.via("grpc");
    }
    match handlers.as_slice() {
        [] => errors.also(FieldErrors::one_of_missing(&["httpGet", "tcpSocket", "exec", "grpc"])),
        [_] => errors,
        many => errors.also(FieldErrors::many_of(many)),
    }
}

fn readiness(probe: &Probe) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut at_least = |low: i32, value: i32, name: &str| {
        if value < low {
            errors.add(FieldErrors::out_of_bounds(value, low, i32::MAX, name));
        }
    };
    at_least(0, probe.period_seconds, "periodSeconds");
    at_least(0, probe.initial_delay_seconds, "initialDelaySeconds");
    at_least(1, probe.success_threshold, "successThreshold");
    if probe.period_seconds != 0 {
        at_least(1, probe.timeout_seconds, "timeoutSeconds");
        at_least(1, probe.failure_threshold, "failureThreshold");
        return errors;
    }
    for (name, value) in
        [("failureThreshold", probe.failure_threshold), ("timeoutSeconds", probe.timeout_seconds)]
    {
        if value != 0 {
            errors.add(FieldErrors::new(format!("{name} is disallowed when periodSeconds is zero"), &[name]));
        }
    }
    errors
}
