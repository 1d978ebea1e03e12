//! Making a container: the specification completed for this machine, the root file system, then the container runtime.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use oci_spec::runtime::{
    Hook, LinuxCapabilities, LinuxDeviceCgroup, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType, Mount, MountBuilder, RootBuilder, Spec,
};

use crate::cgroup::{CgroupPath, Hierarchies, Shown};
use crate::devices::Fitted;
use crate::diagnostics::Witness;
use crate::executor::{FilteredExecutor, StartHooks};
use crate::rootfs::{self, HostSource, Users};
use crate::seccomp::Filters;
use crate::user_namespace::{self, UserRange};
use crate::worker::Outcome;
use crate::worker::exec::PROCESS;
use crate::worker::hooks::{self, Before, HookError};
use crate::worker::refit::{self, RefitError};
use crate::{devices, sys};

/// Where the container runtime keeps its state of an instance, below the instance's directory.
pub(crate) const RUNTIME_DIRECTORY: &str = "runtime";

/// A container to make.
#[derive(Debug)]
pub(crate) struct CreateTask {
    pub(crate) id: String,
    pub(crate) config: PathBuf,
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) upper_bytes: u64,
    pub(crate) cgroup: CgroupPath,
    /// Host users for the container's; none: no user namespace.
    pub(crate) users: Option<UserRange>,
    /// The instance's directory below the run directory, with its two FIFOs.
    pub(crate) directory: PathBuf,
    /// What a program may expect as its limit of open files; the supervisor's own is higher.
    pub(crate) open_files: (u64, u64),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("cannot read the specification {path}")]
    Specification { path: PathBuf, source: oci_spec::OciSpecError },
    #[error("the specification has no `{0}`")]
    Lacks(&'static str),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("a hook failed, one of {}: {said}", hooks.join(", "))]
    Hooks { hooks: Vec<String>, said: String },
    #[error("cannot hear what its hooks come to")]
    Witness(#[source] io::Error),
    #[error("cannot build the specification")]
    Complete(#[from] oci_spec::OciSpecError),
    #[error("cannot limit which devices it may open")]
    Devices(#[source] io::Error),
    #[error(transparent)]
    Nodes(#[from] RefitError),
    #[error("cannot keep what its specification says")]
    Keep(#[source] io::Error),
    #[error("cannot make a user namespace")]
    Users(#[source] io::Error),
    #[error("cannot make the cgroup")]
    Cgroup(#[source] io::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    #[error("cannot open the program's standard {stream}")]
    Stdio { stream: &'static str, source: io::Error },
    #[error("cannot limit the number of open files")]
    OpenFiles(#[source] io::Error),
    #[error("cannot compile the seccomp filter")]
    Seccomp(#[from] seccompiler::BackendError),
    #[error("the container runtime failed")]
    Runtime(#[from] libcontainer::error::LibcontainerError),
    #[error("the container has no process")]
    NoProcess,
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
}

/// Makes the container; its init waits for the start.
pub(crate) fn create(task: &CreateTask, hierarchies: &Hierarchies) -> Result<Outcome, CreateError> {
    let specification = |source| CreateError::Specification { path: task.config.clone(), source };
    let mut spec = Spec::load(&task.config).map_err(specification)?;
    let hooks = hooks::prepare(&mut spec, &task.directory)?;
    let mut limitation = None;
    let users = users(task, &mut limitation)?;
    complete_process(&mut spec, &mut limitation)?;
    keep_process(&spec, &task.directory)?;
    hierarchies.prepare(&task.cgroup).map_err(CreateError::Cgroup)?;
    complete_linux(&mut spec, users.as_ref(), hierarchies, &task.cgroup)?;
    let fitted = Fitted::of(&spec, users.as_ref().map(|users| users.range.first));
    let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
    let first = users.as_ref().map_or(0, |users| users.range.first);
    let stdio = Stdio::open(&task.directory, first + user)?;
    let directory = fs::File::open(&task.directory).map_err(CreateError::Keep)?;
    raise_rootfs(&mut spec, task, users.as_ref(), hierarchies)?;
    let (soft, hard) = task.open_files;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(|error| CreateError::OpenFiles(error.into()))?;
    let pid = match hooks.names.is_empty() {
        true => build(&task.id, stdio, hooks.start)?,
        false => build_with_hooks(&task.id, stdio, hooks)?,
    };
    fitted.write(directory.as_fd()).map_err(CreateError::Keep)?;
    restrict_devices(&fitted, hierarchies, &task.cgroup, &mut limitation)?;
    let network = fs::File::open(format!("/proc/{pid}/ns/net")).map_err(CreateError::Loopback)?;
    setns(network, CloneFlags::CLONE_NEWNET).map_err(|error| CreateError::Loopback(error.into()))?;
    sys::loopback_up().map_err(CreateError::Loopback)?;
    Ok(Outcome::Created { pid, limitation })
}

/// The instance's users, or none where its layers are on a file system that cannot be seen through a mapping.
fn users(task: &CreateTask, limitation: &mut Option<String>) -> Result<Option<Users>, CreateError> {
    let Some(range) = task.users else { return Ok(None) };
    let namespace = user_namespace::make(range).map_err(CreateError::Users)?;
    for layer in &task.layers {
        if let Err(error) = user_namespace::can_map(layer, namespace.as_fd()) {
            *limitation = Some(format!(
                "containers run without a user namespace: the file system of {} cannot be id-mapped ({error})",
                layer.display()
            ));
            return Ok(None);
        }
    }
    Ok(Some(Users { range, namespace }))
}

fn complete_process(spec: &mut Spec, limitation: &mut Option<String>) -> Result<(), CreateError> {
    let process = spec.process_mut().as_mut().ok_or(CreateError::Lacks("process"))?;
    process.set_terminal(Some(false));
    process.set_no_new_privileges(Some(true));
    let mut capabilities = process.capabilities().clone().unwrap_or_else(no_capabilities);
    // Capabilities that survive an exec would survive a change of user, too.
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    process.set_capabilities(Some(capabilities));
    if let Some(score) = process.oom_score_adj()
        && let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        process.set_oom_score_adj(None);
        *limitation = Some(format!("oom_score_adj cannot be set to {score}: {error}"));
    }
    Ok(())
}

/// For commands that are to run as the program does.
fn keep_process(spec: &Spec, directory: &Path) -> Result<(), CreateError> {
    let text = serde_json::to_vec(spec.process()).map_err(io::Error::from).map_err(CreateError::Keep)?;
    fs::write(directory.join(PROCESS), text).map_err(CreateError::Keep)
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(Default::default()));
    none.set_effective(Some(Default::default()));
    none.set_permitted(Some(Default::default()));
    none
}

fn complete_linux(
    spec: &mut Spec,
    users: Option<&Users>,
    hierarchies: &Hierarchies,
    cgroup: &CgroupPath,
) -> Result<(), CreateError> {
    let linux = spec.linux_mut().as_mut().ok_or(CreateError::Lacks("linux"))?;
    linux.set_cgroups_path(Some(cgroup.absolute()));
    if let Some(users) = users {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::User);
        namespaces.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User).build()?);
        linux.set_namespaces(Some(namespaces));
        linux.set_uid_mappings(Some(vec![mapping(users.range)?]));
        linux.set_gid_mappings(Some(vec![mapping(users.range)?]));
    }
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut devices = vec![nothing()];
    devices.extend(resources.devices().clone().unwrap_or_default());
    resources.set_devices(Some(devices));
    // A limit whose controller is absent would make every creation fail; the supervisor reports what is absent.
    if !hierarchies.has("memory") {
        resources.set_memory(None);
    } else if let Some(memory) = resources.memory_mut()
        && !hierarchies.limits_swap(cgroup)
    {
        memory.set_swap(None);
    }
    if !hierarchies.has("cpu") {
        resources.set_cpu(None);
    }
    if !hierarchies.has("pids") {
        resources.set_pids(None);
    }
    linux.set_resources(Some(resources));
    Ok(())
}

fn mapping(range: UserRange) -> Result<LinuxIdMapping, CreateError> {
    let mapping =
        LinuxIdMappingBuilder::default().container_id(0_u32).host_id(range.first).size(user_namespace::USERS);
    Ok(mapping.build()?)
}

/// The rule that a container may use no device, before those that it may.
fn nothing() -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(false);
    rule.set_access(Some("rwm".into()));
    rule
}

/// The container runtime writes rules on cgroup v1 only, and more of them than it was told.
fn restrict_devices(
    fitted: &Fitted,
    hierarchies: &Hierarchies,
    cgroup: &CgroupPath,
    limitation: &mut Option<String>,
) -> Result<(), CreateError> {
    if !hierarchies.is_unified() {
        return devices::withdraw_defaults(fitted, hierarchies, cgroup).map_err(CreateError::Devices);
    }
    if let Err(error) = devices::restrict(&Fitted::default(), fitted, hierarchies, cgroup) {
        if fitted.has_devices() {
            return Err(CreateError::Devices(error));
        }
        *limitation = Some(format!(
            "containers that ask for devices are refused, which ones they open cannot be limited: {error}"
        ));
    }
    Ok(())
}

/// Builds scaffold and overlay, and writes the specification with its paths into the bundle.
fn raise_rootfs(
    spec: &mut Spec,
    task: &CreateTask,
    users: Option<&Users>,
    hierarchies: &Hierarchies,
) -> Result<(), CreateError> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let (mut bound, mut sources) = (Vec::new(), Vec::new());
    for (index, mount) in mounts.iter().enumerate() {
        if let Some(source) = host_source(mount) {
            bound.push(index);
            sources.push(source);
        }
    }
    let paths = rootfs::raise_scaffold(&task.directory, &sources, &task.layers, users)?;
    for (index, path) in bound.into_iter().zip(paths) {
        mounts[index].set_source(Some(path));
    }
    show_cgroups(&mut mounts, &hierarchies.shown(&task.cgroup))?;
    if let Some(users) = users {
        mounts.extend(mount_nodes(spec, users)?);
    }
    spec.set_mounts(Some(mounts));
    rootfs::mount_overlay(task.layers.len(), task.upper_bytes, users)?;
    if let Some(process) = spec.process() {
        rootfs::complete_directory(process.cwd(), users)?;
    }
    let read_only =
        task.upper_bytes == 0 || spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    spec.set_root(Some(RootBuilder::default().path(rootfs::ROOTFS).readonly(read_only).build()?));
    spec.save(Path::new(rootfs::BUNDLE).join("config.json"))?;
    Ok(())
}

/// Where a container looks for its limits.
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// Whoever has a sysfs sees the instance's own cgroups in it, and cannot write there; so does what is mounted as `cgroup`, of which
/// the container runtime would mount every hierarchy of v1 writable, and all of the host's v2 if its first attempt fails.
fn show_cgroups(mounts: &mut Vec<Mount>, shown: &[Shown]) -> Result<(), CreateError> {
    let is_cgroup = |mount: &Mount| matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"));
    if !mounts.iter().any(is_cgroup) {
        let is_sysfs = |mount: &Mount| {
            mount.typ().as_deref() == Some("sysfs") && mount.destination() == Path::new("/sys")
        };
        let Some(at) = mounts.iter().position(is_sysfs) else { return Ok(()) };
        mounts.insert(at + 1, MountBuilder::default().typ("cgroup").destination(CGROUP_MOUNT).build()?);
    }
    rootfs::place_cgroups(shown)?;
    for mount in mounts.iter_mut().filter(|mount| is_cgroup(mount)) {
        let options = ["rbind", "rro", "rnosuid", "rnodev", "rnoexec"].map(str::to_owned).to_vec();
        mount.set_typ(Some("bind".into()));
        mount.set_source(Some(rootfs::CGROUPS.into()));
        mount.set_options(Some(options));
    }
    Ok(())
}

/// The specification's devices as mounts of nodes of our own. In a user namespace the container runtime would mount the host's
/// node of the same path, whatever device the specification says, owned by somebody who does not exist inside.
fn mount_nodes(spec: &mut Spec, users: &Users) -> Result<Vec<Mount>, CreateError> {
    let nodes = spec.linux_mut().as_mut().and_then(|linux| linux.devices().clone()).unwrap_or_default();
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let place = rootfs::place_nodes()?;
    let mut mounts = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let name = index.to_string();
        refit::make(node, place.as_fd(), &name, users.range.first)?;
        let options = ["bind", "nosuid", "noexec"].map(str::to_owned).to_vec();
        let mount = MountBuilder::default()
            .typ("bind")
            .source(Path::new(rootfs::NODES).join(name))
            .destination(node.path())
            .options(options)
            .build()?;
        mounts.push(mount);
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(None);
    }
    Ok(mounts)
}

fn host_source(mount: &Mount) -> Option<HostSource> {
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    if mount.typ().as_deref() != Some("bind") && !has("bind") && !has("rbind") {
        return None;
    }
    Some(HostSource { path: mount.source().clone()?, recursive: has("rbind") })
}

/// The program's standard input, output and error.
struct Stdio {
    input: fs::File,
    output: fs::File,
    error: fs::File,
}

impl Stdio {
    /// The FIFOs are opened for reading, too: then writing to them works while no supervisor reads.
    fn open(directory: &Path, owner: u32) -> Result<Self, CreateError> {
        let fifo = |stream| {
            let path = directory.join(stream);
            let open = || {
                // Programs open /dev/stdout by its name.
                chown(&path, Some(owner), None)?;
                fs::File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path)
            };
            open().map_err(|source| CreateError::Stdio { stream, source })
        };
        let input =
            fs::File::open("/dev/null").map_err(|source| CreateError::Stdio { stream: "input", source })?;
        Ok(Self { input, output: fifo("stdout")?, error: fifo("stderr")? })
    }
}

/// The container runtime's errors do not say what became of a hook.
fn build_with_hooks(id: &str, stdio: Stdio, hooks: Before) -> Result<i32, CreateError> {
    let witness = Witness::begin().map_err(CreateError::Witness)?;
    let Before { names: hooks, start } = hooks;
    build(id, stdio, start).map_err(|error| {
        let mut said = std::iter::from_fn(|| witness.next());
        match said.find(|said| said.contains("hooks")) {
            Some(said) => CreateError::Hooks { hooks, said },
            None => error,
        }
    })
}

fn build(id: &str, stdio: Stdio, start_hooks: Vec<Hook>) -> Result<i32, CreateError> {
    let hooks = StartHooks { id: id.to_owned(), bundle: rootfs::BUNDLE.into(), hooks: start_hooks };
    let container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(FilteredExecutor { filters: Filters::compile()?, hooks })
        .with_root_path(Path::new(rootfs::INSTANCE).join(RUNTIME_DIRECTORY))?
        .with_stdin(stdio.input)
        .with_stdout(stdio.output)
        .with_stderr(stdio.error)
        .validate_id()?
        .as_init(rootfs::BUNDLE)
        .with_systemd(false)
        .as_sibling(true)
        .build()?;
    Ok(container.pid().ok_or(CreateError::NoProcess)?.as_raw())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn where_devices_cannot_be_limited_nobody_is_given_any() {
        let nowhere = tempfile::tempdir().unwrap();
        let unified = Hierarchies::unified_at(nowhere.path());
        let cgroup = CgroupPath::try_from(PathBuf::from("a")).unwrap();
        let mut fitted = Fitted { rules: vec![nothing()], ..Fitted::default() };
        let mut limitation = None;
        restrict_devices(&fitted, &unified, &cgroup, &mut limitation).unwrap();
        assert!(limitation.unwrap().contains("No such file"));
        let mut camera = nothing();
        camera.set_allow(true);
        fitted.rules.push(camera);
        let refused = restrict_devices(&fitted, &unified, &cgroup, &mut None).unwrap_err();
        assert_eq!(refused.to_string(), "cannot limit which devices it may open");
        assert!(refused.source().is_some());
        // One whose node has no access by the rules of its cgroup.
        fitted.rules.pop();
        fitted.nodes.push(oci_spec::runtime::LinuxDevice::default());
        assert!(restrict_devices(&fitted, &unified, &cgroup, &mut None).is_err());
    }
}
