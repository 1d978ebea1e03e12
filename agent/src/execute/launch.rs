//! From a prepared image to a running instance: files, bundle, supervisor, network namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tombolo_agent_core::actual::InstanceClaim;
use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::bundle::{self, BundleError, HostFiles};
use tombolo_agent_core::devices::Devices;
use tombolo_agent_core::limits::Limits;
use tombolo_agent_core::plan;
use tombolo_agent_core::supervision::{Answer, CreateSpec, InstanceId, InstanceRecord, Refusal, Request};
use tombolo_agent_devices::Given;
use tombolo_api::Digest;
use tombolo_api::desired::RevisionObject;
use tombolo_router::Stage;

use super::image::Prepared;
use super::{
    InUse, Inner, LABEL_CONFIGURATION, LABEL_IMAGE, LABEL_MEMORY_BYTES, LABEL_NAME, LABEL_NAMESPACE,
    LABEL_OBJECT, LABEL_PORT, Trouble, devices, lock,
};
use crate::log_files;
use crate::supervisor::CallError;

/// Largest resolv.conf taken over from the node, bytes.
const RESOLV_CONF_MAX: usize = 64 * 1024;

/// An instance's specification in its bundle.
pub(super) const CONFIG: &str = "config.json";

/// Where an instance's files are.
pub(super) fn bundle_dir(run_dir: &Path, instance: &InstanceId) -> PathBuf {
    run_dir.join("bundles").join(&instance.0)
}

/// Creates and starts the instance; its pid. Nothing is left of one that failed.
pub(super) async fn launch(
    inner: &Inner,
    instance: &InstanceId,
    digest: Digest,
    object: &RevisionObject,
    devices: &Devices,
) -> Result<i32, Trouble> {
    let began = Instant::now();
    inner.tools.activations.begin(instance, IdleTier::Cold);
    let pid = prime(inner, instance, digest, object, devices).await?;
    inner.tools.activations.ended(instance, Stage::Create, began.elapsed());
    start(inner, instance).await.map(|()| pid)
}

/// Starts an instance that was created to wait. Nothing is left of one that failed.
pub(super) async fn start_primed(inner: &Inner, instance: &InstanceId) -> Result<(), Trouble> {
    inner.tools.activations.begin(instance, IdleTier::Primed);
    start(inner, instance).await
}

/// Lets a frozen instance go on.
pub(super) async fn thaw(inner: &Inner, instance: &InstanceId) -> Result<(), CallError> {
    let (began, activations) = (Instant::now(), &inner.tools.activations);
    activations.begin(instance, IdleTier::Frozen);
    inner.tools.supervisor.call(Request::Thaw { id: instance.clone() }).await?;
    activations.ended(instance, Stage::Thaw, began.elapsed());
    Ok(())
}

/// Creates the instance; its pid. Nothing is left of one that failed.
pub(super) async fn prime(
    inner: &Inner,
    instance: &InstanceId,
    digest: Digest,
    object: &RevisionObject,
    devices: &Devices,
) -> Result<i32, Trouble> {
    let prepared = lock(&inner.prepared).get(&digest).cloned();
    let prepared = prepared.ok_or_else(|| Trouble::new("ImageMissing", "the image was removed meanwhile"))?;
    let in_use = InUse { revision: object.key(), image: Some(prepared.image) };
    lock(&inner.in_use).insert(instance.clone(), in_use);
    let given = devices::allocate(inner.tools.devices.as_ref(), devices).await?;
    let spec = create_spec(inner, instance, digest, (object, devices, &given), &prepared)?;
    let created = create(inner, instance, spec).await;
    if created.is_err() {
        remove(inner, instance).await;
    } else if !devices.is_empty() {
        inner.watch_nodes(instance);
    }
    created
}

/// Starts the program of a created instance. Nothing is left of one that failed.
async fn start(inner: &Inner, instance: &InstanceId) -> Result<(), Trouble> {
    let (began, activations) = (Instant::now(), &inner.tools.activations);
    match inner.tools.supervisor.call(Request::Start { id: instance.clone() }).await {
        Ok(_) => {
            let now = Instant::now();
            activations.ended(instance, Stage::Start, now - began);
            activations.started(instance, now);
            Ok(())
        }
        Err(error) => {
            remove(inner, instance).await;
            Err(failed("ContainerStartFailed", &error, &inner.tools.run_dir))
        }
    }
}

/// Also after a lost connection: the supervisor may have made it all the same.
async fn remove(inner: &Inner, instance: &InstanceId) {
    // What cannot be removed is found and removed by the next agent.
    let _ = inner.tools.supervisor.call(Request::Delete { id: instance.clone() }).await;
}

async fn create(inner: &Inner, instance: &InstanceId, spec: CreateSpec) -> Result<i32, Trouble> {
    let request = Request::Create { id: instance.clone(), spec: Box::new(spec) };
    let created = inner.tools.supervisor.call(request).await;
    let pid = match created.map_err(|error| failed("ContainerCreateFailed", &error, &inner.tools.run_dir))? {
        Answer::Created { pid } => pid,
        _ => return Err(Trouble::new("ContainerCreateFailed", CallError::Unexpected.to_string())),
    };
    inner.enter(instance, pid).map_err(|error| {
        Trouble::new(
            "ContainerCreateFailed",
            format!("cannot open the instance's network namespace: {error}"),
        )
    })?;
    Ok(pid)
}

fn create_spec(
    inner: &Inner,
    instance: &InstanceId,
    digest: Digest,
    (object, devices, given): (&RevisionObject, &Devices, &Given),
    prepared: &Arc<Prepared>,
) -> Result<CreateSpec, Trouble> {
    let tools = &inner.tools;
    let limits = Limits::of(object);
    let dir = bundle_dir(&tools.run_dir, instance);
    let files = HostFiles { resolv_conf: dir.join("resolv.conf"), hosts: dir.join("hosts") };
    let mut config = config(instance, object, prepared, &limits, &files)?;
    devices::give(given, &mut config)?;
    let config =
        write_bundle(&dir, instance, &config).map_err(|error| Trouble::of_io("write", &dir, &error))?;
    if !devices.is_empty() {
        devices::Kept::write(&dir, given).map_err(|error| Trouble::of_io("write", &dir, &error))?;
    }
    let log = log_files::prepare(&tools.state_dir, &object.key(), instance)
        .map_err(|error| Trouble::of_io("create", &tools.state_dir.join("logs"), &error))?;
    let labels = [
        (LABEL_NAMESPACE, object.namespace.clone()),
        (LABEL_NAME, object.name.clone()),
        (LABEL_OBJECT, digest.to_string()),
        (LABEL_PORT, object.spec.port().to_string()),
        (LABEL_IMAGE, prepared.image.to_string()),
    ];
    let labels = labels.into_iter().chain(claim_labels(plan::claim_of(object)));
    Ok(CreateSpec {
        config,
        layers: prepared.layers.clone(),
        upper_bytes: if is_read_only(object) { 0 } else { limits.upper_bytes },
        // Root in a user namespace of its own may not open a device that is not everybody's.
        user_namespace: devices.is_empty(),
        log,
        labels: labels
            .chain(devices::label(devices))
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<BTreeMap<_, _>>(),
    })
}

/// The labels of an instance that keeps this of its object.
fn claim_labels(claim: InstanceClaim) -> impl Iterator<Item = (&'static str, String)> {
    let memory = claim.memory_bytes.map(|bytes| (LABEL_MEMORY_BYTES, bytes.to_string()));
    [(LABEL_CONFIGURATION, claim.configuration)].into_iter().chain(memory)
}

/// What an instance that was found keeps of its object.
pub(crate) fn claim_of(record: &InstanceRecord) -> InstanceClaim {
    let label = |name: &str| record.labels.get(name);
    InstanceClaim {
        configuration: label(LABEL_CONFIGURATION).cloned().unwrap_or_default(),
        memory_bytes: label(LABEL_MEMORY_BYTES).and_then(|text| text.parse().ok()),
    }
}

fn is_read_only(object: &RevisionObject) -> bool {
    let security = object.spec.serving_container().and_then(|container| container.security_context.as_ref());
    security.and_then(|security| security.read_only_root_filesystem).unwrap_or(false)
}

fn config(
    instance: &InstanceId,
    object: &RevisionObject,
    prepared: &Prepared,
    limits: &Limits,
    files: &HostFiles,
) -> Result<Value, Trouble> {
    let security = object.spec.serving_container().and_then(|container| container.security_context.as_ref());
    let chosen = security.is_some_and(|security| security.run_as_user.is_some());
    let made = match &prepared.unknown_user {
        Some(user) if !chosen => Err(BundleError::UnknownUser(user.clone())),
        _ => bundle::config(instance, object, &prepared.defaults, limits, files),
    };
    made.map_err(|error| Trouble::new(error.reason(), error.to_string()))
}

/// Writes what the supervisor and the instance read; the path of `config.json`.
fn write_bundle(dir: &Path, instance: &InstanceId, config: &Value) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("hosts"), format!("127.0.0.1\tlocalhost {instance}\n::1\tlocalhost ip6-localhost\n"))?;
    let mut resolv_conf = fs::read("/etc/resolv.conf").unwrap_or_default();
    resolv_conf.truncate(RESOLV_CONF_MAX);
    fs::write(dir.join("resolv.conf"), resolv_conf)?;
    let path = dir.join(CONFIG);
    fs::write(&path, serde_json::to_vec(config)?)?;
    Ok(path)
}

fn failed(reason: &str, error: &CallError, run_dir: &Path) -> Trouble {
    match error {
        CallError::Refused(Refusal::Runtime(text)) if text.contains("No space left on device") => {
            Trouble::disk_full(run_dir)
        }
        CallError::Refused(Refusal::TooMany) => Trouble::new(
            "TooManyInstances",
            format!("{error}: lower min-scale of other functions, or use more nodes"),
        ),
        error => Trouble::new(reason, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent_core::bundle::ImageDefaults;
    use tombolo_api::serving::{Container, RevisionSpec, SecurityContext};

    use super::*;

    fn object(security: SecurityContext) -> RevisionObject {
        let container = Container { security_context: Some(security), ..Container::default() };
        RevisionObject {
            namespace: "default".into(),
            name: "hello-00001".into(),
            uid: "u".into(),
            service: "hello".into(),
            configuration: "hello".into(),
            annotations: BTreeMap::new(),
            spec: RevisionSpec { containers: vec![container], ..RevisionSpec::default() },
            verification: None,
        }
    }

    fn prepared(unknown_user: Option<&str>) -> Prepared {
        Prepared {
            image: Digest::of(b"image"),
            layers: vec![],
            defaults: ImageDefaults { entrypoint: vec!["/app".into()], ..ImageDefaults::default() },
            unknown_user: unknown_user.map(str::to_owned),
        }
    }

    fn made(object: &RevisionObject, prepared: &Prepared, dir: &Path) -> Result<Value, Trouble> {
        let files = HostFiles { resolv_conf: dir.join("resolv.conf"), hosts: dir.join("hosts") };
        config(&InstanceId("hello-1".into()), object, prepared, &Limits::of(object), &files)
    }

    #[test]
    fn a_bundle_holds_what_its_configuration_names() {
        let run = tempfile::tempdir().unwrap();
        let instance = InstanceId("hello-1".into());
        let dir = bundle_dir(run.path(), &instance);
        let config = made(&object(SecurityContext::default()), &prepared(None), &dir).unwrap();
        let path = write_bundle(&dir, &instance, &config).unwrap();
        let read: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(read, config);
        let sources: Vec<_> = read["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|mount| mount["type"] == "bind")
            .map(|mount| PathBuf::from(mount["source"].as_str().unwrap()))
            .collect();
        assert_eq!(sources.len(), 2);
        for source in sources {
            assert!(source.is_file(), "{}", source.display());
        }
        assert!(fs::read_to_string(dir.join("hosts")).unwrap().contains("hello-1"));
    }

    #[test]
    fn a_restarted_agent_reads_in_the_labels_what_an_instance_keeps_of_its_object() {
        use tombolo_agent_core::supervision::{InstancePhase, LogSpec};
        let record = |labels: BTreeMap<String, String>| InstanceRecord {
            id: InstanceId("i".into()),
            phase: InstancePhase::Running,
            pid: 1,
            exit: None,
            log: LogSpec { path: "/log".into(), max_bytes: 1, max_files: 1 },
            labels,
            moved_bytes: 0,
        };
        let claim = plan::claim_of(&object(SecurityContext::default()));
        assert_eq!(claim.configuration, "hello");
        let labels = claim_labels(claim.clone()).map(|(name, text)| (name.to_owned(), text)).collect();
        assert_eq!(claim_of(&record(labels)), claim);
        assert_eq!(claim_of(&record(BTreeMap::new())), InstanceClaim::default());
    }

    #[test]
    fn a_user_nobody_knows_is_refused_unless_the_revision_chooses_one() {
        let dir = Path::new("/run/x");
        let refused = made(&object(SecurityContext::default()), &prepared(Some("web")), dir).unwrap_err();
        assert_eq!(refused.reason, "ContainerUserInvalid");
        let chosen = SecurityContext { run_as_user: Some(1000), ..SecurityContext::default() };
        assert!(made(&object(chosen), &prepared(Some("web")), dir).is_ok());
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let run_dir = Path::new("/run/tombolo");
        let full =
            CallError::Refused(Refusal::Runtime("mkdir: No space left on device (os error 28)".into()));
        assert_eq!(failed("ContainerCreateFailed", &full, run_dir).reason, "DiskFull");
        let other = CallError::Refused(Refusal::Runtime("no such executable".into()));
        assert_eq!(failed("ContainerStartFailed", &other, run_dir).reason, "ContainerStartFailed");
        assert_eq!(failed("x", &CallError::Refused(Refusal::TooMany), run_dir).reason, "TooManyInstances");
    }
}
