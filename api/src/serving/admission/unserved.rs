//! Fields that Knative serves and Tombolo does not yet: refused by name, because a function that runs without what it
//! asked for fails later and elsewhere. What only tunes is taken, and its user warned. Every entry that vanishes here is
//! a feature. Sees valid objects; paths are relative to what is passed.

use std::collections::BTreeMap;

use super::annotations::KPA;
use super::field_error::FieldErrors;
use super::syntax::duration;
use crate::desired::INSTANCES_PER_REVISION_MAX;
use crate::meta::ObjectMeta;
use crate::serving::keys::{ROLLOUT_DURATION, VISIBILITY};
use crate::serving::{Container, Probe, RevisionSpec, SecurityContext, Volume};

/// Says what the refusal is, below the field's name.
const WHY: &str = "Tombolo does not serve this yet";

/// The account every pod has when it names none; here it means just that.
const DEFAULT_ACCOUNT: &str = "default";

/// Resources a container can be given: what `agent-core` makes limits of. Requests only matter where limits compete.
const LIMITS: [&str; 4] = ["cpu", "ephemeral-storage", "memory", "tombolo.dev/pids"];
const REQUESTS: [&str; 2] = ["cpu", "memory"];

/// Annotations that tune scaling and that nodes do not read yet, without their group: both spellings. The burst capacity
/// is not among them: a node's router is in the path of every request, which is what it asks for.
const TUNING: [&str; 16] = [
    "activation-scale",
    "activationScale",
    "metric-aggregation-algorithm",
    "metricAggregationAlgorithm",
    "panic-threshold-percentage",
    "panic-window-percentage",
    "panicThresholdPercentage",
    "panicWindowPercentage",
    "scale-down-delay",
    "scale-to-zero-pod-retention-period",
    "scaleDownDelay",
    "scaleToZeroPodRetentionPeriod",
    "target",
    "target-utilization-percentage",
    "targetUtilizationPercentage",
    "window",
];

/// Labels and annotations of a Service or Route that change who is answered by what.
pub(super) fn metadata(metadata: &ObjectMeta) -> FieldErrors {
    let hidden = metadata.label(VISIBILITY) == Some("cluster-local");
    let gradual = metadata.annotation(ROLLOUT_DURATION).and_then(duration).is_some_and(|nanos| nanos > 0);
    refuse_if(hidden, VISIBILITY)
        .via("labels")
        .also(refuse_if(gradual, ROLLOUT_DURATION).via("annotations"))
        .via("metadata")
}

/// What a user should hear of a template's annotations that are kept and have no effect yet, or less than they say.
pub(super) fn warnings(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let idle = |name: &str, value: &str| match name {
        "class" => value != KPA,
        "metric" => value != "concurrency",
        "initial-scale" | "initialScale" => value.parse() != Ok(1),
        name => TUNING.contains(&name),
    };
    let capped = |name: &str, value: &str| {
        matches!(name, "min-scale" | "minScale")
            && value.parse::<u32>().is_ok_and(|count| count > INSTANCES_PER_REVISION_MAX)
    };
    let warning = |(key, value): (&String, &String)| {
        let name = key.strip_prefix("autoscaling.knative.dev/")?;
        let what = if idle(name, value) {
            format!("no effect, {WHY}")
        } else if capped(name, value) {
            format!("{value} is served as {INSTANCES_PER_REVISION_MAX}, the most instances on one node")
        } else {
            return None;
        };
        Some(format!("spec.template.metadata.annotations.{key}: {what}"))
    };
    annotations.iter().filter_map(warning).collect()
}

pub(super) fn revision_spec(spec: &RevisionSpec) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (index, each) in spec.containers.iter().enumerate() {
        errors.add(container(each).via_index("containers", index));
        if index > 0 {
            errors.add(refuse("").via_index("containers", index));
        }
    }
    for (index, each) in spec.volumes.iter().enumerate() {
        errors.add(volume(each).via_index("volumes", index));
    }
    errors
        .also(refuse_if(
            !matches!(spec.service_account_name.as_str(), "" | DEFAULT_ACCOUNT),
            "serviceAccountName",
        ))
        .also(refuse_if(!spec.image_pull_secrets.is_empty(), "imagePullSecrets"))
        .also(refuse_if(spec.enable_service_links == Some(true), "enableServiceLinks"))
}

fn container(container: &Container) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (index, variable) in container.env.iter().enumerate() {
        errors.add(refuse_if(variable.value_from.is_some(), "valueFrom").via_index("env", index));
    }
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        errors.add(refuse_if(!mount.sub_path.is_empty(), "subPath").via_index("volumeMounts", index));
        // Every mount is a space of its own, so one volume at two places would be two.
        let again = container.volume_mounts[..index].iter().any(|earlier| earlier.name == mount.name);
        errors.add(refuse_if(again, "name").via_index("volumeMounts", index));
    }
    let resources = &container.resources;
    for (kind, amounts, known) in
        [("limits", &resources.limits, &LIMITS[..]), ("requests", &resources.requests, &REQUESTS[..])]
    {
        for name in amounts.keys().filter(|name| !known.contains(&name.as_str())) {
            errors.add(refuse(name).via(kind).via("resources"));
        }
    }
    if let Some(probe) = &container.readiness_probe {
        errors.add(readiness(probe).via("readinessProbe"));
    }
    if let Some(context) = &container.security_context {
        errors.add(security_context(context).via("securityContext"));
    }
    errors
        .also(refuse_if(!container.env_from.is_empty(), "envFrom"))
        .also(refuse_if(container.liveness_probe.is_some(), "livenessProbe"))
        .also(refuse_if(container.startup_probe.is_some(), "startupProbe"))
        .also(refuse_if(!container.termination_message_path.is_empty(), "terminationMessagePath"))
        .also(refuse_if(!container.termination_message_policy.is_empty(), "terminationMessagePolicy"))
}

fn readiness(probe: &Probe) -> FieldErrors {
    let get = probe.http_get.as_ref();
    let secure = get.is_some_and(|get| !matches!(get.scheme.as_str(), "" | "HTTP"));
    let elsewhere = |host: Option<&String>| host.is_some_and(|host| !host.is_empty());
    refuse_if(probe.exec.is_some(), "exec")
        .also(refuse_if(probe.grpc.is_some(), "grpc"))
        .also(refuse_if(secure, "scheme").via("httpGet"))
        .also(refuse_if(elsewhere(get.map(|get| &get.host)), "host").via("httpGet"))
        .also(refuse_if(elsewhere(probe.tcp_socket.as_ref().map(|tcp| &tcp.host)), "host").via("tcpSocket"))
}

fn security_context(context: &SecurityContext) -> FieldErrors {
    let seccomp = context.seccomp_profile.as_ref();
    let other_filter = seccomp.is_some_and(|profile| profile.kind != "RuntimeDefault");
    refuse_if(context.allow_privilege_escalation == Some(true), "allowPrivilegeEscalation")
        .also(refuse_if(other_filter, "type").via("seccompProfile"))
}

fn volume(volume: &Volume) -> FieldErrors {
    refuse_if(volume.secret.is_some(), "secret")
        .also(refuse_if(volume.config_map.is_some(), "configMap"))
        .also(refuse_if(volume.projected.is_some(), "projected"))
}

fn refuse_if(set: bool, path: &str) -> FieldErrors {
    if set { refuse(path) } else { FieldErrors::none() }
}

fn refuse(path: &str) -> FieldErrors {
    FieldErrors::detailed("must not set the field(s)", &[path], WHY)
}
