//! Fields that Knative serves and Tombolo does not yet: refused by name, because a function that runs without what it
//! asked for fails later and elsewhere. What only tunes is taken, and its user warned. Every entry that vanishes here is
//! a feature. Sees valid objects; paths are relative to what is passed.

use std::collections::BTreeMap;

use super::annotations::{CLASS_KEY as CLASS, HPA, KPA};
use super::field_error::FieldErrors;
use super::{PIDS_RESOURCE, is_extended};
use crate::desired::INSTANCES_PER_REVISION_MAX;
use crate::meta::ObjectMeta;
use crate::serving::keys::VISIBILITY;
use crate::serving::{Container, Probe, RevisionSpec, SecurityContext, Volume};

/// Says what the refusal is, below the field's name.
const WHY: &str = "Tombolo does not serve this yet";

/// The account every pod has when it names none; here it means just that.
const DEFAULT_ACCOUNT: &str = "default";

/// Resources a container can be given beside devices: what `agent-core` makes limits of. Requests only matter where limits compete.
const LIMITS: [&str; 4] = ["cpu", "ephemeral-storage", "memory", PIDS_RESOURCE];
const REQUESTS: [&str; 2] = ["cpu", "memory"];

/// Annotations that ask for a number of instances at once, without their group: both spellings.
const SCALES: [&str; 6] =
    ["activation-scale", "activationScale", "initial-scale", "initialScale", "min-scale", "minScale"];

/// Labels of a Service or Route that change who is answered by what.
pub(super) fn metadata(metadata: &ObjectMeta) -> FieldErrors {
    let hidden = metadata.label(VISIBILITY) == Some("cluster-local");
    refuse_if(hidden, VISIBILITY).via("metadata.labels")
}

/// Annotations of a template. The horizontal pod autoscaler scales by what a cluster measures of its pods.
pub(super) fn template(annotations: &BTreeMap<String, String>) -> FieldErrors {
    let class = annotations.get(CLASS).map(String::as_str);
    refuse_if(class == Some(HPA), CLASS)
}

/// What a user should hear of a template's annotations that are kept and have less effect than they say.
pub(super) fn warnings(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let above_most = |name: &str, value: &str| {
        SCALES.contains(&name) && value.parse::<u32>().is_ok_and(|count| count > INSTANCES_PER_REVISION_MAX)
    };
    let warning = |(key, value): (&String, &String)| {
        let name = key.strip_prefix("autoscaling.knative.dev/")?;
        let what = if key == CLASS && value != KPA {
            format!("no effect, Tombolo scales as {KPA} does")
        } else if above_most(name, value) {
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
        for name in amounts.keys().filter(|name| !known.contains(&name.as_str()) && !is_extended(name)) {
            errors.add(refuse(name).via(kind).via("resources"));
        }
    }
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        errors.add(probe.as_ref().map(probed).unwrap_or_default().via(name));
    }
    if let Some(context) = &container.security_context {
        errors.add(security_context(context).via("securityContext"));
    }
    errors
        .also(refuse_if(!container.env_from.is_empty(), "envFrom"))
        .also(refuse_if(!container.termination_message_path.is_empty(), "terminationMessagePath"))
        .also(refuse_if(!container.termination_message_policy.is_empty(), "terminationMessagePolicy"))
}

/// A node asks the instance itself, in clear text.
fn probed(probe: &Probe) -> FieldErrors {
    let get = probe.http_get.as_ref();
    let secure = get.is_some_and(|get| !matches!(get.scheme.as_str(), "" | "HTTP"));
    let elsewhere = |host: Option<&String>| host.is_some_and(|host| !host.is_empty());
    refuse_if(secure, "scheme")
        .also(refuse_if(elsewhere(get.map(|get| &get.host)), "host"))
        .via("httpGet")
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
