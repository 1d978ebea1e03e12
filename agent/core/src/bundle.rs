//! The OCI runtime specification (`config.json`, runtime-spec 1.0.2) of an instance, from its revision and its image.
//!
//! Implements Knative's runtime contract: `PORT` and `K_*` variables, standard input at its end, writable `/tmp` and
//! `/var/log`, `/etc/resolv.conf`; what every container runtime sets: `PATH`, `HOME`,
//! `HOSTNAME`; and the node's own defaults: no capabilities beyond a few, no new privileges, masked paths, default devices
//! only. Root file system, missing working directory, cgroup, its limits to be seen in
//! `/sys/fs/cgroup`, and user-namespace mappings are the supervisor's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tombolo_api::desired::RevisionObject;
use tombolo_api::quantity::Quantity;
use tombolo_api::serving::{Container, RevisionSpec, SecurityContext};

use crate::limits::Limits;
use crate::supervision::InstanceId;

mod variables;

use variables::Variables;

/// Bounds of the writable directories that the runtime contract asks for, bytes.
const TMP_BYTES: u64 = 64 << 20;
const VAR_LOG_BYTES: u64 = 16 << 20;

/// An `emptyDir` volume without a size limit, bytes.
const EMPTY_DIR_BYTES: u64 = 64 << 20;

/// What of root's powers a program keeps by default: what files of its own and changing to another user need.
const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];

/// Files of `/proc` and `/sys` that tell or change things of the host; the list that Docker and containerd use.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the image says about running it (OCI image-spec, config).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: String,
    /// Resolved to numbers by whoever can read the image's `/etc/passwd`.
    pub user: User,
    /// What the image's `/etc/passwd` says, by user.
    pub accounts: BTreeMap<u32, Account>,
}

/// A user the image knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// Numeric user, as the process gets it inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// Files of the host that every instance sees, read only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFiles {
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
}

/// Why no specification can be made: the revision and the image do not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the revision has no container that takes requests")]
    NoContainer,
    #[error("the image names no program and the revision has no command: set `command` in the container")]
    NoProgram,
    #[error(
        "the image runs as root and the revision asks for runAsNonRoot: set runAsUser, or build the image with another user"
    )]
    RunsAsRoot,
    #[error("the image's user {0:?} is neither a number nor in its /etc/passwd: set runAsUser")]
    UnknownUser(String),
}

impl BundleError {
    /// One CamelCase word for the status.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoContainer | Self::NoProgram => "ContainerCommandMissing",
            Self::RunsAsRoot | Self::UnknownUser(_) => "ContainerUserInvalid",
        }
    }
}

/// Makes the specification of instance `id` of `object`.
pub fn config(
    id: &InstanceId,
    object: &RevisionObject,
    image: &ImageDefaults,
    limits: &Limits,
    files: &HostFiles,
) -> Result<Value, BundleError> {
    let container = object.spec.serving_container().ok_or(BundleError::NoContainer)?;
    let security = container.security_context.clone().unwrap_or_default();
    let user = user(&security, image)?;
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": id.0,
        "root": { "path": "rootfs", "readonly": security.read_only_root_filesystem.unwrap_or(false) },
        "process": process(id, object, image, &security, user)?,
        "mounts": mounts(files, &object.spec, container),
        "linux": {
            "namespaces": (["mount", "pid", "ipc", "uts", "network", "cgroup"].map(|kind| json!({ "type": kind }))),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources(limits),
        },
        "annotations": {
            "dev.tombolo.namespace": object.namespace,
            "dev.tombolo.revision": object.name,
        },
    }))
}

fn process(
    id: &InstanceId,
    object: &RevisionObject,
    image: &ImageDefaults,
    security: &SecurityContext,
    user: User,
) -> Result<Value, BundleError> {
    let container = object.spec.serving_container().ok_or(BundleError::NoContainer)?;
    let variables = variables::of_container(object, container);
    let keeps = capabilities(security, user);
    let working_dir =
        if container.working_dir.is_empty() { &image.working_dir } else { &container.working_dir };
    Ok(json!({
        "terminal": false,
        "user": { "uid": user.uid, "gid": user.gid },
        "args": arguments(container, image, &variables)?,
        "env": environment(id, variables, image, user),
        "cwd": Path::new("/").join(working_dir),
        "noNewPrivileges": true,
        "capabilities": { "bounding": keeps, "effective": keeps, "permitted": keeps },
        "oomScoreAdj": 500,
    }))
}

/// Kubernetes' rule: `command` replaces the entry point and drops the image's arguments, `args` replaces the arguments.
/// References are read in the revision's words only, never in the image's.
fn arguments(
    container: &Container,
    image: &ImageDefaults,
    variables: &Variables,
) -> Result<Vec<String>, BundleError> {
    let expanded = |words: &[String]| words.iter().map(|word| variables::expand(word, variables)).collect();
    let mut all: Vec<String> = match container.command.as_slice() {
        [] => image.entrypoint.clone(),
        command => expanded(command),
    };
    match container.args.as_slice() {
        [] if container.command.is_empty() => all.extend_from_slice(&image.cmd),
        args => all.extend::<Vec<_>>(expanded(args)),
    }
    if all.first().is_none_or(String::is_empty) { Err(BundleError::NoProgram) } else { Ok(all) }
}

/// What every runtime sets, the image's variables, then the revision's with those of the runtime contract; a later one
/// replaces an earlier.
fn environment(id: &InstanceId, variables: Variables, image: &ImageDefaults, user: User) -> Vec<String> {
    let mut env = Variables::new();
    env.insert("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    env.insert("HOSTNAME".to_owned(), id.0.clone());
    for pair in &image.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        env.insert(name.to_owned(), value.to_owned());
    }
    env.extend(variables);
    let home = env.entry("HOME".to_owned()).or_default();
    if home.is_empty() {
        // Never left to the container runtime: it would load the image's name service libraries to find out.
        let known = image.accounts.get(&user.uid).map(|account| account.home.as_str());
        known.filter(|home| !home.is_empty()).unwrap_or("/").clone_into(home);
    }
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn user(security: &SecurityContext, image: &ImageDefaults) -> Result<User, BundleError> {
    let number = |id: i64| u32::try_from(id).ok();
    let mut user = image.user;
    if let Some(uid) = security.run_as_user.and_then(number) {
        // With another user than the image's, its group does not apply.
        user = User { uid, gid: image.accounts.get(&uid).map_or(0, |account| account.gid) };
    }
    if let Some(gid) = security.run_as_group.and_then(number) {
        user.gid = gid;
    }
    if security.run_as_non_root == Some(true) && user.uid == 0 {
        return Err(BundleError::RunsAsRoot);
    }
    Ok(user)
}

/// A program that does not run as root gets none; `capabilities.drop` takes away from the rest.
fn capabilities(security: &SecurityContext, user: User) -> Vec<String> {
    let dropped: Vec<String> = security
        .capabilities
        .iter()
        .flat_map(|capabilities| &capabilities.drop)
        .map(|name| name.to_uppercase())
        .collect();
    if user.uid != 0 || dropped.iter().any(|name| name == "ALL") {
        return Vec::new();
    }
    let is_dropped =
        |name: &str| dropped.iter().any(|drop| drop.trim_start_matches("CAP_") == &name["CAP_".len()..]);
    CAPABILITIES.iter().filter(|name| !is_dropped(name)).map(|name| (*name).to_owned()).collect()
}

fn mounts(files: &HostFiles, spec: &RevisionSpec, container: &Container) -> Value {
    let tmpfs = |path: &str, options: &[&str], bytes: u64| {
        let mut all = vec!["nosuid".to_owned(), "nodev".to_owned()];
        all.extend(options.iter().map(|option| (*option).to_owned()));
        all.push(format!("size={bytes}"));
        json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": all })
    };
    let file = |path: &str, source: &Path| json!({ "destination": path, "type": "bind", "source": source, "options": ["bind", "ro", "nosuid", "nodev", "noexec"] });
    let mut mounts = vec![
        tmpfs("/tmp", &["mode=1777"], TMP_BYTES),
        tmpfs("/var/log", &["mode=1777"], VAR_LOG_BYTES),
        file("/etc/resolv.conf", &files.resolv_conf),
        file("/etc/hosts", &files.hosts),
    ];
    for mount in &container.volume_mounts {
        let volume = spec.volumes.iter().find(|volume| volume.name == mount.name);
        if let Some(empty) = volume.and_then(|volume| volume.empty_dir.as_ref()) {
            let bytes = empty.size_limit.as_ref().map_or(EMPTY_DIR_BYTES, Quantity::bytes);
            let options: &[&str] = if mount.read_only { &["mode=777", "ro"] } else { &["mode=777"] };
            mounts.push(tmpfs(&mount.mount_path, options, bytes));
        }
    }
    let mut all = system_mounts();
    // A mount below another's destination must come after it.
    mounts.sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| path.matches('/').count()));
    all.extend(mounts);
    all.into()
}

/// What every Linux program expects to find.
fn system_mounts() -> Vec<Value> {
    let mounts = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
    ]);
    mounts.as_array().cloned().unwrap_or_default()
}

fn resources(limits: &Limits) -> Value {
    let mut resources = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
        "pids": { "limit": limits.pids },
    });
    if let Some(bytes) = limits.memory_bytes {
        // Memory and swap together: no swap beyond the limit.
        resources["memory"] = json!({ "limit": bytes, "swap": bytes });
    }
    let mut cpu = serde_json::Map::new();
    cpu.insert("shares".into(), limits.cpu_shares().into());
    if let Some(quota) = limits.cpu_quota_us() {
        cpu.insert("quota".into(), quota.into());
        cpu.insert("period".into(), crate::limits::CPU_PERIOD_US.into());
    }
    resources["cpu"] = cpu.into();
    resources
}

#[cfg(test)]
mod tests;
