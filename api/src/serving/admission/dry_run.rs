//! Kubernetes' own checks of a pod, of which Knative learns by a dry run: those that concern fields we serve. Sees a
//! spec that passed Knative's checks. Paths are the pod's.

use std::collections::BTreeMap;

use super::syntax;
use super::{PIDS_RESOURCE, is_extended};
use crate::quantity::Quantity;
use crate::serving::{Container, EnvVar, Probe, RevisionSpec};

/// What Kubernetes would say of the pod, or nothing.
pub(super) fn complaint(spec: &RevisionSpec) -> Option<String> {
    let mut found = Vec::new();
    for (index, each) in spec.containers.iter().enumerate() {
        container(each, &format!("spec.containers[{index}]"), &mut found);
    }
    labels(&spec.node_selector, "spec.nodeSelector", &mut found);
    match found.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

/// Complaints about label keys and values, each `PATH: Invalid value: …`.
fn labels(labels: &BTreeMap<String, String>, path: &str, found: &mut Vec<String>) {
    for (key, value) in labels {
        found.extend(syntax::qualified_name(key).iter().map(|why| invalid(path, key, why)));
        found.extend(syntax::label_value(value).iter().map(|why| invalid(path, value, why)));
    }
}

fn container(container: &Container, path: &str, found: &mut Vec<String>) {
    found.extend(syntax::dns1123_label(&container.name).iter().map(|why| {
        let name = format!("{path}.name");
        invalid(&name, &container.name, why)
    }));
    if !matches!(container.image_pull_policy.as_str(), "" | "Always" | "IfNotPresent" | "Never") {
        let known = ["Always", "IfNotPresent", "Never"];
        found.push(unsupported(&format!("{path}.imagePullPolicy"), &container.image_pull_policy, &known));
    }
    for (index, variable) in container.env.iter().enumerate() {
        env(variable, &format!("{path}.env[{index}]"), found);
    }
    resources(container, &format!("{path}.resources"), found);
    for (name, probe) in
        [("livenessProbe", &container.liveness_probe), ("startupProbe", &container.startup_probe)]
    {
        if let Some(probe) = probe {
            only_one_success(probe, &format!("{path}.{name}"), found);
        }
    }
    let seccomp = container.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    if let Some(profile) = seccomp
        && !matches!(profile.kind.as_str(), "Localhost" | "RuntimeDefault" | "Unconfined")
    {
        let known = ["Localhost", "RuntimeDefault", "Unconfined"];
        found.push(unsupported(
            &format!("{path}.securityContext.seccompProfile.type"),
            &profile.kind,
            &known,
        ));
    }
}

fn env(variable: &EnvVar, path: &str, found: &mut Vec<String>) {
    if !variable.name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        found.push(invalid(&format!("{path}.name"), &variable.name, why));
    }
    if variable.value_from.is_some() && !variable.value.is_empty() {
        found.push(invalid(
            &format!("{path}.valueFrom"),
            "",
            "may not be specified when `value` is not empty",
        ));
    }
}

fn resources(container: &Container, path: &str, found: &mut Vec<String>) {
    let (limits, requests) = (&container.resources.limits, &container.resources.requests);
    for (kind, amounts) in [("limits", limits), ("requests", requests)] {
        for (name, amount) in amounts {
            let path = format!("{path}.{kind}[{name}]");
            amount_of(name, amount, &path, found);
        }
    }
    for (name, request) in requests {
        let wrong = |why: String| invalid(&format!("{path}.requests"), request.as_str(), &why);
        match limits.get(name) {
            Some(limit) if is_extended(name) && request != limit => {
                found.push(wrong(format!("must be equal to {name} limit of {limit}")));
            }
            Some(limit) if request > limit => {
                found.push(wrong(format!("must be less than or equal to {name} limit of {limit}")));
            }
            None if is_extended(name) => {
                let why = "Limit must be set for non overcommitable resources";
                found.push(format!("{path}.limits: Required value: {why}"));
            }
            _ => {}
        }
    }
}

fn amount_of(name: &str, amount: &Quantity, path: &str, found: &mut Vec<String>) {
    found.extend(syntax::qualified_name(name).iter().map(|why| invalid(path, name, why)));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !standard && !name.contains('/') {
        found.push(invalid(path, name, "must be a standard resource type or fully qualified"));
        found.push(invalid(path, name, "must be a standard resource for containers"));
    }
    let is_native = standard || name.contains("kubernetes.io/");
    if name.contains('/') && !is_native && name != PIDS_RESOURCE && !is_extended(name) {
        found.push(invalid(path, name, "doesn't follow extended resource name standard"));
    }
    if amount.is_negative() {
        found.push(invalid(path, amount.as_str(), "must be greater than or equal to 0"));
    } else if !standard && !amount.is_whole() {
        found.push(invalid(path, amount.as_str(), "must be an integer"));
    }
}

fn only_one_success(probe: &Probe, path: &str, found: &mut Vec<String>) {
    let threshold = probe.success_threshold;
    if !(0..=1).contains(&threshold) {
        found.push(format!("{path}.successThreshold: Invalid value: {threshold}: must be 1"));
    }
}

fn invalid(path: &str, value: &str, why: &str) -> String {
    format!("{path}: Invalid value: {value:?}: {why}")
}

fn unsupported(path: &str, value: &str, known: &[&str]) -> String {
    let known: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
    format!("{path}: Unsupported value: {value:?}: supported values: {}", known.join(", "))
}
