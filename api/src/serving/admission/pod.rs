//! Knative's checks of a Revision's spec: bounds, names, reserved words, one of several. Sees a spec with its defaults
//! filled in, and the fields the decoder set aside. Paths are relative to the spec.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::field_error::FieldErrors;
use super::{probe, syntax};
use crate::serving::{
    Container, ContainerPort, EnvFromSource, EnvVar, KeyToPath, Projection, RevisionSpec, SecurityContext,
    Volume, VolumeMount,
};

const TIMEOUT_MAX_S: i64 = 600;
const CONCURRENCY_MAX: i64 = 1000;
const ID_MAX: i64 = i32::MAX as i64;
/// Ports Knative's own processes use beside the container.
const RESERVED_PORTS: [i32; 6] = [8008, 8012, 8013, 8022, 9090, 9091];
/// As above, over TLS.
const RESERVED_TLS_PORT: i32 = 8112;
const RESERVED_ENV: [&str; 4] = ["K_CONFIGURATION", "K_REVISION", "K_SERVICE", "PORT"];
const RESERVED_PATHS: [&str; 3] = ["/", "/dev", "/dev/log"];
const RESERVED_CONTAINER: &str = "queue-proxy";

/// Fields by their path below the spec, which the API knows and takes only behind a flag.
pub(super) type Refused = [(String, Value)];

pub(super) fn revision_spec(spec: &RevisionSpec, refused: &Refused) -> FieldErrors {
    let mut errors = refused_pod_fields(refused);
    let (volumes, more) = volumes(spec, refused);
    errors.add(more.via("volumes"));
    errors.add(container_ports(&spec.containers).via("containers[*]"));
    errors.add(containers(spec, &volumes));
    if !spec.service_account_name.is_empty() {
        for why in syntax::dns1123_subdomain(&spec.service_account_name) {
            errors.add(FieldErrors::invalid_because(&spec.service_account_name, "serviceAccountName", why));
        }
    }
    errors.also(timeouts(spec))
}

fn timeouts(spec: &RevisionSpec) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if let Some(timeout) = spec.timeout_seconds
        && !(0..=TIMEOUT_MAX_S).contains(&timeout)
    {
        errors.add(FieldErrors::out_of_bounds(timeout, 0, TIMEOUT_MAX_S, "timeoutSeconds"));
    }
    for (name, value) in [
        ("responseStartTimeoutSeconds", spec.response_start_timeout_seconds),
        ("idleTimeoutSeconds", spec.idle_timeout_seconds),
    ] {
        if let Some(value) = value
            && !(0..=TIMEOUT_MAX_S).contains(&value)
        {
            errors.add(FieldErrors::out_of_bounds(value, 0, TIMEOUT_MAX_S, name));
        }
    }
    if let Some(limit) = spec.container_concurrency
        && !(0..=CONCURRENCY_MAX).contains(&limit)
    {
        errors.add(FieldErrors::out_of_bounds(limit, 0, CONCURRENCY_MAX, "containerConcurrency"));
    }
    errors
}

/// Everything within a pod's security context is refused by itself too, and ids are still checked.
fn refused_pod_fields(refused: &Refused) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (path, value) in refused {
        match (path.as_str(), value) {
            ("securityContext", Value::Object(members)) => {
                for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                    errors.add(FieldErrors::disallowed(name).via("securityContext"));
                    let is_id = matches!(name.as_str(), "runAsUser" | "runAsGroup" | "fsGroup");
                    if let Some(id) = value.as_i64().filter(|id| is_id && !(0..=ID_MAX).contains(id)) {
                        errors.add(FieldErrors::out_of_bounds(id, 0, ID_MAX, name).via("securityContext"));
                    }
                }
            }
            ("initContainers", Value::Array(containers)) => {
                let count = containers.len();
                let message =
                    format!("pod spec support for init-containers is off, but found {count} init containers");
                errors.add(FieldErrors::new(message, &[]));
            }
            _ => {}
        }
    }
    errors
}

fn volumes<'a>(spec: &'a RevisionSpec, refused: &Refused) -> (BTreeMap<&'a str, &'a Volume>, FieldErrors) {
    let mounts = spec.containers.iter().flat_map(|container| &container.volume_mounts);
    let mounted: BTreeSet<&str> = mounts.map(|mount| mount.name.as_str()).collect();
    let mut seen = BTreeMap::new();
    let mut errors = FieldErrors::none();
    for (index, volume) in spec.volumes.iter().enumerate() {
        let mut here = FieldErrors::none();
        if seen.insert(volume.name.as_str(), volume).is_some() {
            here.add(FieldErrors::new(format!("duplicate volume name {:?}", volume.name), &["name"]));
        }
        if !mounted.contains(volume.name.as_str()) {
            here.add(FieldErrors::new(format!("volume with name {:?} not mounted", volume.name), &["name"]));
        }
        here.add(volume_source(volume, refused, index));
        errors.add(here.via(&format!("[{index}]")));
    }
    (seen, errors)
}

fn volume_source(volume: &Volume, refused: &Refused, index: usize) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if volume.name.is_empty() {
        errors.add(FieldErrors::missing("name"));
    } else if !syntax::dns1123_label(&volume.name).is_empty() {
        errors.add(FieldErrors::invalid(&volume.name, "name"));
    }
    let mut specified = Vec::new();
    if let Some(secret) = &volume.secret {
        specified.push("secret");
        errors.add(keys_to_paths(&secret.items));
    }
    if let Some(map) = &volume.config_map {
        specified.push("configMap");
        errors.add(keys_to_paths(&map.items));
    }
    if let Some(projected) = &volume.projected {
        specified.push("projected");
        for (index, source) in projected.sources.iter().enumerate() {
            errors.add(projection(source).via_index("projected", index));
        }
    }
    if let Some(empty) = &volume.empty_dir {
        specified.push("emptyDir");
        if !matches!(empty.medium.as_str(), "" | "Memory") {
            errors.add(FieldErrors::invalid(&empty.medium, "medium").via("emptyDir"));
        }
        if let Some(limit) = empty.size_limit.as_ref().filter(|limit| limit.is_negative()) {
            errors.add(FieldErrors::invalid(limit, "sizeLimit").via("emptyDir"));
        }
    }
    for (name, what) in
        [("persistentVolumeClaim", ""), ("hostPath", "HostPath"), ("csi", "CSI"), ("image", "Image")]
    {
        let path = format!("volumes[{index}].{name}");
        let Some((_, source)) = refused.iter().find(|(refused, _)| *refused == path) else { continue };
        specified.push(name);
        errors.add(if what.is_empty() { claim(source) } else { flagged_source(what, &volume.name) });
    }
    match specified.as_slice() {
        [] => errors.also(FieldErrors::one_of_missing(&["secret", "configMap", "projected", "emptyDir"])),
        [_] => errors,
        many => errors.also(FieldErrors::many_of(many)),
    }
}

fn flagged_source(what: &str, volume: &str) -> FieldErrors {
    FieldErrors::new(format!("{what} volume support is disabled, but found {what} volume {volume}"), &[])
}

fn claim(source: &Value) -> FieldErrors {
    let name = source.get("claimName").and_then(Value::as_str).unwrap_or_default();
    let off =
        format!("Persistent volume claim support is disabled, but found persistent volume claim {name}");
    let mut errors = FieldErrors::new(off, &[]);
    if source.get("readOnly").and_then(Value::as_bool) != Some(true) {
        let why = "Persistent volume write support is disabled, but found persistent volume claim";
        errors.add(FieldErrors::new(format!("{why} {name} that is not read-only"), &[]));
    }
    errors
}

fn projection(source: &Projection) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut specified = Vec::new();
    for (name, object) in [("secret", &source.secret), ("configMap", &source.config_map)] {
        let Some(object) = object else { continue };
        specified.push(name);
        let mut here = keys_to_paths(&object.items);
        if object.name.is_empty() {
            here.add(FieldErrors::missing("name"));
        }
        errors.add(here.via(name));
    }
    if let Some(token) = &source.service_account_token {
        specified.push("serviceAccountToken");
        if token.path.is_empty() {
            errors.add(FieldErrors::missing("path").via("serviceAccountToken"));
        }
    }
    if source.downward_api.is_some() {
        specified.push("downwardAPI");
    }
    match specified.as_slice() {
        [] => errors.also(FieldErrors::one_of_missing(&[
            "secret",
            "configMap",
            "serviceAccountToken",
            "downwardAPI",
        ])),
        [_] => errors,
        many => errors.also(FieldErrors::many_of(many)),
    }
}

fn keys_to_paths(items: &[KeyToPath]) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (index, item) in items.iter().enumerate() {
        for (name, value) in [("key", &item.key), ("path", &item.path)] {
            if value.is_empty() {
                errors.add(FieldErrors::missing(name).via_index("items", index));
            }
        }
    }
    errors
}

fn container_ports(containers: &[Container]) -> FieldErrors {
    let count: usize = containers.iter().map(|container| container.ports.len()).sum();
    match count {
        0 if containers.len() > 1 => FieldErrors::missing("ports"),
        0 | 1 => FieldErrors::none(),
        _ => FieldErrors::detailed(
            "more than one container port is set",
            &["ports"],
            "Only a single port is allowed across all containers",
        ),
    }
}

fn containers(spec: &RevisionSpec, volumes: &BTreeMap<&str, &Volume>) -> FieldErrors {
    let port = spec.containers.iter().rev().find_map(|container| container.ports.first());
    match spec.containers.as_slice() {
        [] => FieldErrors::missing("containers"),
        [only] => serving_container(only, volumes, port).via_index("containers", 0),
        many => {
            let mut errors = FieldErrors::none();
            let mut names = BTreeSet::new();
            for (index, container) in many.iter().enumerate() {
                if !names.insert(container.name.as_str()) {
                    let message = format!("duplicate container name {:?}", container.name);
                    errors.add(FieldErrors::new(message, &["name"]).via_index("containers", index));
                }
                let here = if container.ports.is_empty() {
                    fields(container, volumes, &RESERVED_ENV[..3]).also(probe::sidecar(container))
                } else {
                    serving_container(container, volumes, port)
                };
                errors.add(here.via_index("containers", index));
            }
            errors
        }
    }
}

fn serving_container(
    container: &Container,
    volumes: &BTreeMap<&str, &Volume>,
    port: Option<&ContainerPort>,
) -> FieldErrors {
    probe::serving(container, port).also(fields(container, volumes, &RESERVED_ENV))
}

fn fields(container: &Container, volumes: &BTreeMap<&str, &Volume>, reserved_env: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if container.name == RESERVED_CONTAINER {
        errors.add(FieldErrors::new(format!("{:?} is a reserved container name", container.name), &["name"]));
    }
    for (index, variable) in container.env.iter().enumerate() {
        errors.add(env(variable, reserved_env).via_index("env", index));
    }
    errors.add(env_from(&container.env_from).via("envFrom"));
    errors.add(image(&container.image));
    errors.add(ports(&container.ports).via("ports"));
    if let Some(context) = &container.security_context {
        errors.add(security_context(context).via("securityContext"));
    }
    if !matches!(container.termination_message_policy.as_str(), "" | "File" | "FallbackToLogsOnError") {
        errors.add(FieldErrors::invalid(&container.termination_message_policy, "terminationMessagePolicy"));
    }
    errors.also(volume_mounts(&container.volume_mounts, volumes).via("volumeMounts"))
}

fn env(variable: &EnvVar, reserved: &[&str]) -> FieldErrors {
    if variable.name.is_empty() {
        FieldErrors::missing("name")
    } else if reserved.contains(&variable.name.as_str()) {
        FieldErrors::new(format!("{:?} is a reserved environment variable", variable.name), &["name"])
    } else {
        FieldErrors::none()
    }
}

fn env_from(sources: &[EnvFromSource]) -> FieldErrors {
    let one_of = ["configMapRef", "secretRef"];
    sources.iter().fold(FieldErrors::none(), |errors, source| {
        match (&source.config_map_ref, &source.secret_ref) {
            (Some(_), Some(_)) => errors.also(FieldErrors::many_of(&one_of)),
            (None, None) => errors.also(FieldErrors::one_of_missing(&one_of)),
            _ => errors,
        }
    })
}

fn image(image: &str) -> FieldErrors {
    if image.is_empty() {
        FieldErrors::missing("image")
    } else if syntax::is_image_reference(image) {
        FieldErrors::none()
    } else {
        let why = format!("image: {image:?}, error: could not parse reference: {image}");
        FieldErrors::detailed("Failed to parse image reference", &["image"], why)
    }
}

fn ports(ports: &[ContainerPort]) -> FieldErrors {
    let Some(port) = ports.first() else { return FieldErrors::none() };
    let mut errors = FieldErrors::none();
    let number = port.container_port;
    if RESERVED_PORTS.contains(&number) || number == RESERVED_TLS_PORT {
        let reserved = format!("{number} is a reserved port");
        let why = format!("{reserved}, please use a different value");
        errors.add(FieldErrors::invalid_because(reserved, "containerPort", why));
    }
    if !(0..=65535).contains(&number) {
        errors.add(FieldErrors::out_of_bounds(number, 0, 65535, "containerPort"));
    }
    if !matches!(port.protocol.as_str(), "" | "TCP") {
        errors.add(FieldErrors::invalid(&port.protocol, "protocol"));
    }
    if !matches!(port.name.as_str(), "" | "h2c" | "http1") {
        let message = format!("Port name {} is not allowed", port.name);
        errors.add(FieldErrors::detailed(message, &[""], "Name must be empty, or one of: 'h2c', 'http1'"));
    }
    errors
}

fn security_context(context: &SecurityContext) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (name, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id.filter(|id| !(0..=ID_MAX).contains(id)) {
            errors.add(FieldErrors::out_of_bounds(id, 0, ID_MAX, name));
        }
    }
    errors
}

fn volume_mounts(mounts: &[VolumeMount], volumes: &BTreeMap<&str, &Volume>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let mut here = FieldErrors::none();
        let volume = volumes.get(mount.name.as_str());
        if volume.is_none() {
            here.add(FieldErrors::new("volumeMount has no matching volume", &["name"]));
        }
        let path = syntax::clean_path(&mount.mount_path);
        if mount.mount_path.is_empty() {
            here.add(FieldErrors::missing("mountPath"));
        } else if RESERVED_PATHS.contains(&path.as_str()) {
            here.add(FieldErrors::new(format!("mountPath {path:?} is a reserved path"), &["mountPath"]));
        } else if !mount.mount_path.starts_with('/') {
            here.add(FieldErrors::invalid(&mount.mount_path, "mountPath"));
        } else if seen.contains(&path) {
            here.add(FieldErrors::invalid(format!("{:?} must be unique", mount.mount_path), "mountPath"));
        }
        seen.insert(path);
        if !mount.read_only && volume.is_none_or(|volume| volume.empty_dir.is_none()) {
            here.add(FieldErrors::new(
                "volume mount should be readOnly for this type of volume",
                &["readOnly"],
            ));
        }
        errors.add(here.via(&format!("[{index}]")));
    }
    errors
}
