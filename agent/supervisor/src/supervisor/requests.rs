//! What each call does. Calls about one instance keep their order: while a worker is at it, they wait with it.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tombolo_agent_core::supervision::{
    Answer, CreateSpec, EXEC_TIMEOUT_MS_MAX, INSTANCES_MAX, InstanceId, InstancePhase, MESSAGE_MAX, Refusal,
    Request, VERSION,
};

use super::jobs::Purpose;
use super::{Ending, Supervisor, Token};
use crate::instance::{Caller, Instance};
use crate::output::{LOG_BYTES_MIN, Log, Stream};
use crate::record::Record;
use crate::user_namespace::UserRange;
use crate::worker::Task;
use crate::worker::create::{CreateTask, RUNTIME_DIRECTORY};
use crate::worker::exec::ExecTask;
use crate::worker::hooks::Moment;
use crate::worker::refit::RefitTask;

/// Calls that wait for one instance. An agent has one or two under way.
const WAITING_MAX: usize = 32;

/// Largest `config.json`, bytes.
const CONFIG_MAX: u64 = 1 << 20;

/// What an exit and a process id can add to an instance in a list.
const LIST_SPARE: usize = 160;

impl Supervisor {
    pub(super) fn call(&mut self, caller: Caller, request: Request, descriptor: Option<OwnedFd>) {
        let is_greeted =
            self.connections.get(&caller.connection).is_some_and(|connection| connection.is_greeted);
        match request {
            Request::Hello { version } => self.greet(caller, version),
            _ if !is_greeted => {
                self.reply(caller, Err(Refusal::Malformed("the first message is not hello".into())))
            }
            _ if self.ending.is_some() => {
                self.reply(caller, Err(Refusal::Runtime("the supervisor is ending".into())))
            }
            Request::List => {
                let list = self.instances.values().map(|instance| instance.record.public()).collect();
                self.reply(caller, Ok(Answer::Instances(list)));
            }
            Request::Exec { id, args, timeout_ms } => self.exec(caller, id, args, timeout_ms),
            Request::Keep { name } => {
                let result = self.keep_socket(name, descriptor);
                self.reply(caller, result);
            }
            Request::Take { name } => self.give_socket(caller, &name),
            Request::Release { name } => {
                drop(self.sockets.remove(&name));
                self.reply(caller, Ok(Answer::Done));
            }
            Request::Shutdown => self.shut_down(Some(caller)),
            Request::Upgrade { binary } => self.upgrade(caller, binary),
            request => self.about_instance(caller, request),
        }
    }

    fn greet(&mut self, caller: Caller, version: u32) {
        if version != VERSION {
            return self.reply(caller, Err(Refusal::Version { supervisor: VERSION, agent: version }));
        }
        if let Some(older) = self.agent.filter(|older| *older != caller.connection) {
            self.disconnect(older);
        }
        if let Some(connection) = self.connections.get_mut(&caller.connection) {
            connection.is_greeted = true;
            self.agent = Some(caller.connection);
        }
        let hello = self.hello();
        self.reply(caller, Ok(hello));
    }

    /// Kills and removes everything, then ends.
    pub(super) fn shut_down(&mut self, caller: Option<Caller>) {
        // No agent will come: from now on who connects is refused.
        self.sockets.clear();
        let waiting: Vec<_> =
            self.instances.values_mut().flat_map(|instance| instance.waiting.drain(..)).collect();
        let interrupted = match self.ending.replace(Ending::Shutdown { caller, failures: Vec::new() }) {
            Some(Ending::Upgrade { caller, .. }) => Some(caller),
            _ => None,
        };
        for caller in waiting.into_iter().map(|(caller, _)| caller).chain(interrupted) {
            self.reply(caller, Err(Refusal::Runtime("the supervisor is ending".into())));
        }
        let idle = |(id, instance): (&InstanceId, &Instance)| (!instance.is_busy).then(|| id.clone());
        let ids: Vec<InstanceId> = self.instances.iter().filter_map(idle).collect();
        for id in ids {
            self.delete(None, &id);
        }
    }

    fn upgrade(&mut self, caller: Caller, binary: PathBuf) {
        let is_program = fs::metadata(&binary).is_ok_and(|metadata| metadata.is_file());
        if !binary.is_absolute() || !is_program {
            let reason = format!("{} is not the absolute path of a program", binary.display());
            return self.reply(caller, Err(Refusal::Malformed(reason)));
        }
        tracing::info!(binary = %binary.display(), "to be replaced");
        self.ending = Some(Ending::Upgrade { caller, binary });
        self.update_interest(caller.connection);
    }

    /// A call about one instance: now, or when its turn comes.
    pub(super) fn about_instance(&mut self, caller: Caller, request: Request) {
        let Some(id) = instance_of(&request) else { return };
        let Some(instance) = self.instances.get_mut(id) else {
            return match request {
                Request::Create { id, spec } => self.create(caller, id, *spec),
                Request::Delete { .. } => self.reply(caller, Ok(Answer::Done)),
                _ => {
                    let refusal = Refusal::NotFound(id.clone());
                    self.reply(caller, Err(refusal));
                }
            };
        };
        if instance.is_busy || !instance.waiting.is_empty() {
            if instance.waiting.len() >= WAITING_MAX {
                let refusal = Refusal::Runtime(format!("{WAITING_MAX} calls about {id} wait already"));
                return self.reply(caller, Err(refusal));
            }
            return instance.waiting.push_back((caller, request));
        }
        self.perform(caller, request);
    }

    /// The instance exists and nothing is under way about it.
    pub(super) fn perform(&mut self, caller: Caller, request: Request) {
        let id = instance_of(&request).cloned();
        let starts = matches!(request, Request::Start { .. });
        let result = match request {
            Request::Create { id, .. } => Err(Refusal::Exists(id)),
            Request::Start { id } => self.start_program(&id),
            Request::Signal { id, signal } => self.signal(&id, signal),
            Request::Thaw { id } => self.thaw(&id),
            Request::Freeze { id } => match self.instances[&id].phase() {
                InstancePhase::Running => {
                    let task = Task::Freeze(self.instances[&id].record.cgroup.clone());
                    return self.plan(&id, task, Purpose::Freeze { caller });
                }
                InstancePhase::Frozen => Ok(Answer::Done),
                phase => Err(Refusal::WrongPhase { id, phase }),
            },
            Request::Suspend { id } => match self.instances[&id].phase() {
                InstancePhase::Moving => {
                    let task = Task::Suspend(self.instances[&id].record.cgroup.clone());
                    return self.plan(&id, task, Purpose::Suspend { caller });
                }
                InstancePhase::Suspended => Ok(Answer::Done),
                phase => Err(Refusal::WrongPhase { id, phase }),
            },
            Request::BeginMove { id, moved_bytes, memory_bytes } => {
                self.begin_move(&id, moved_bytes, memory_bytes)
            }
            Request::EndMove { id, memory_bytes } => self.end_move(&id, memory_bytes),
            Request::Refit { id, config } => match self.refitting(&id, config) {
                Ok(task) => return self.plan(&id, Task::Refit(Box::new(task)), Purpose::Refit { caller }),
                Err(refusal) => Err(refusal),
            },
            Request::Delete { id } => return self.delete(Some(caller), &id),
            // These are not about an instance, or wait for nothing.
            Request::Hello { .. }
            | Request::List
            | Request::Shutdown
            | Request::Upgrade { .. }
            | Request::Keep { .. }
            | Request::Take { .. }
            | Request::Release { .. }
            | Request::Exec { .. } => return,
        };
        let started = id.clone().filter(|_| starts && result.is_ok());
        self.reply(caller, result);
        let instance = id.and_then(|id| self.instances.get_mut(&id));
        if let Some(instance) = instance.filter(|instance| instance.is_behind) {
            instance.keep();
        }
        if let Some(id) = started
            && let Some(task) = self.hooks(&id, Moment::Started)
        {
            self.plan(&id, task, Purpose::Started);
        }
    }

    fn refitting(&self, id: &InstanceId, config: PathBuf) -> Result<RefitTask, Refusal> {
        let instance = self.instances.get(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        check_config(&config)?;
        let is_there = matches!(
            instance.phase(),
            InstancePhase::Created | InstancePhase::Running | InstancePhase::Frozen
        );
        let init = instance.record.process.as_ref().filter(|_| is_there && instance.pidfd.is_some());
        let wrong_phase = || Refusal::WrongPhase { id: id.clone(), phase: instance.phase() };
        Ok(RefitTask {
            config,
            init: init.ok_or_else(wrong_phase)?.id(),
            cgroup: instance.record.cgroup.clone(),
            directory: instance.directory.clone(),
        })
    }

    /// Runs a command beside whatever else happens to the instance.
    fn exec(&mut self, caller: Caller, id: InstanceId, args: Vec<String>, timeout_ms: u64) {
        let task = match self.command(&id, args, timeout_ms) {
            Ok(task) => task,
            Err(refusal) => return self.reply(caller, Err(refusal)),
        };
        self.plan(&id, Task::Exec(Box::new(task)), Purpose::Exec { caller });
    }

    fn command(&self, id: &InstanceId, args: Vec<String>, timeout_ms: u64) -> Result<ExecTask, Refusal> {
        let instance = self.instances.get(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        let wrong_phase = || Refusal::WrongPhase { id: id.clone(), phase: instance.phase() };
        let init = instance.record.process.as_ref().filter(|_| instance.pidfd.is_some());
        let init = init.filter(|_| instance.phase() == InstancePhase::Running).ok_or_else(wrong_phase)?.id();
        if args.is_empty() || args[0].is_empty() {
            return Err(Refusal::Malformed("there is no command".into()));
        }
        if !(1..=EXEC_TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(Refusal::Malformed(format!(
                "the timeout is not within 1 and {EXEC_TIMEOUT_MS_MAX} ms"
            )));
        }
        Ok(ExecTask {
            init,
            cgroup: instance.record.cgroup.clone(),
            directory: instance.directory.clone(),
            open_files: self.abilities.open_files,
            args,
            timeout: Duration::from_millis(timeout_ms),
        })
    }

    fn create(&mut self, caller: Caller, id: InstanceId, spec: CreateSpec) {
        match self.new_instance(&id, &spec) {
            Ok((instance, task)) => {
                self.slots.insert(instance.record.slot, id.clone());
                self.instances.insert(id.clone(), instance);
                self.watch_output(&id);
                self.plan(&id, Task::Create(Box::new(task)), Purpose::Create { caller });
            }
            Err(refusal) => self.reply(caller, Err(refusal)),
        }
    }

    /// Checks the call and makes the instance's directory with record, FIFOs and log; nothing is left if that fails.
    fn new_instance(&self, id: &InstanceId, spec: &CreateSpec) -> Result<(Instance, CreateTask), Refusal> {
        if !is_label(&id.0) {
            return Err(Refusal::Malformed(format!("{id:?} is not a DNS label")));
        }
        check(spec)?;
        let cgroup = self.cgroup.child(&id.0);
        let slot =
            (0..).find(|slot| !self.slots.contains_key(slot)).expect("there are more slots than instances");
        let record = Record::new(id.clone(), slot, spec.log.clone(), spec.labels.clone(), cgroup.clone());
        let size = |record: &Record| {
            serde_json::to_vec(&record.public()).map_or(MESSAGE_MAX, |bytes| bytes.len() + LIST_SPARE)
        };
        let listed: usize = self.instances.values().map(|instance| size(&instance.record)).sum();
        if self.instances.len() >= INSTANCES_MAX || listed + size(&record) > MESSAGE_MAX {
            return Err(Refusal::TooMany);
        }
        let directory = self.directories.of(id);
        let instance = self.set_up(record, &directory).map_err(|error| {
            // What is there of it is of no use to anybody.
            let _ = fs::remove_dir_all(&directory);
            Refusal::Runtime(format!("cannot set {} or the log up: {error}", directory.display()))
        })?;
        let users = (spec.user_namespace && self.abilities.user_namespaces).then(|| UserRange::of_slot(slot));
        let task = CreateTask {
            id: id.0.clone(),
            config: spec.config.clone(),
            layers: spec.layers.clone(),
            upper_bytes: spec.upper_bytes,
            cgroup,
            users,
            directory,
            open_files: self.abilities.open_files,
        };
        Ok((instance, task))
    }

    fn set_up(&self, record: Record, directory: &Path) -> io::Result<Instance> {
        fs::DirBuilder::new().mode(0o700).create(directory)?;
        record.write(directory)?;
        for stream in Stream::BOTH {
            mkfifo(&directory.join(stream.name()), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let log = Log::open(record.log.clone())?;
        let mut instance = Instance::new(record, directory.to_owned(), log);
        instance.open_output()?;
        Ok(instance)
    }

    /// What the container runtime's own start does, without changing the working directory: init waits for a connection
    /// to its socket and executes the program when that closes.
    fn start_program(&mut self, id: &InstanceId) -> Result<Answer, Refusal> {
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        if instance.phase() != InstancePhase::Created {
            return Err(Refusal::WrongPhase { id: id.clone(), phase: instance.phase() });
        }
        match notify(&instance.directory.join(RUNTIME_DIRECTORY).join(&id.0)) {
            Ok(()) => {}
            // Nobody listens, yet its init lives: an earlier supervisor started it and had no time to write that down.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && instance.pidfd.is_some() => {}
            Err(error) => {
                return Err(Refusal::Runtime(format!("cannot reach the container's init: {error}")));
            }
        }
        instance.enter_at_once(InstancePhase::Running);
        Ok(Answer::Done)
    }

    fn signal(&mut self, id: &InstanceId, signal: i32) -> Result<Answer, Refusal> {
        if !(1..=libc::SIGRTMAX()).contains(&signal) {
            return Err(Refusal::Malformed(format!("there is no signal {signal}")));
        }
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        if signal == libc::SIGKILL {
            instance.oom_kills_before = self.hierarchies.oom_kills(&instance.record.cgroup);
        }
        instance
            .signal(signal)
            .map_err(|error| Refusal::Runtime(format!("cannot send the signal: {error}")))?;
        if signal == libc::SIGKILL && instance.phase().is_stopped() {
            // On cgroup v1 a frozen process does not even die.
            return self.thaw(id);
        }
        Ok(Answer::Done)
    }

    pub(super) fn thaw(&mut self, id: &InstanceId) -> Result<Answer, Refusal> {
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        match instance.phase() {
            InstancePhase::Running | InstancePhase::Moving => Ok(Answer::Done),
            phase @ (InstancePhase::Frozen | InstancePhase::Suspended) => {
                instance.stop_reclaiming();
                let thawed = self.hierarchies.thaw(&instance.record.cgroup);
                thawed.map_err(|error| Refusal::Runtime(format!("cannot thaw: {error}")))?;
                instance.enter_at_once(match phase {
                    InstancePhase::Suspended => InstancePhase::Moving,
                    _ => InstancePhase::Running,
                });
                Ok(Answer::Done)
            }
            phase => Err(Refusal::WrongPhase { id: id.clone(), phase }),
        }
    }

    fn begin_move(
        &mut self,
        id: &InstanceId,
        moved_bytes: u64,
        memory_bytes: Option<u64>,
    ) -> Result<Answer, Refusal> {
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        if !matches!(instance.phase(), InstancePhase::Running | InstancePhase::Moving) {
            return Err(Refusal::WrongPhase { id: id.clone(), phase: instance.phase() });
        }
        // Kept before anything moves: a successor has to know that something may have.
        instance.record.moved_bytes = moved_bytes;
        instance.enter(InstancePhase::Moving);
        self.limit_memory(id, memory_bytes)
    }

    fn end_move(&mut self, id: &InstanceId, memory_bytes: Option<u64>) -> Result<Answer, Refusal> {
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        if !matches!(instance.phase(), InstancePhase::Running | InstancePhase::Moving) {
            return Err(Refusal::WrongPhase { id: id.clone(), phase: instance.phase() });
        }
        instance.record.moved_bytes = 0;
        instance.enter(InstancePhase::Running);
        self.limit_memory(id, memory_bytes)
    }

    fn limit_memory(&self, id: &InstanceId, bytes: Option<u64>) -> Result<Answer, Refusal> {
        let Some((bytes, instance)) = bytes.zip(self.instances.get(id)) else { return Ok(Answer::Done) };
        let limited = self.hierarchies.limit_memory(&instance.record.cgroup, bytes);
        limited.map_err(|error| Refusal::Runtime(format!("cannot limit its memory: {error}")))?;
        Ok(Answer::Done)
    }

    pub(super) fn delete(&mut self, caller: Option<Caller>, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.stop_reclaiming();
        // What the worker does too; the sooner it dies, the sooner the cgroup is empty.
        let _ = instance.signal(libc::SIGKILL);
        let task = Task::Remove(instance.record.cgroup.clone());
        self.plan(id, task, Purpose::Delete { caller });
    }

    pub(super) fn watch_output(&self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        for stream in Stream::BOTH {
            if let Some(source) = instance.source(stream)
                && let Err(error) = self.watch(source, Token::Output(instance.record.slot, stream))
            {
                tracing::error!(instance = %id, %error, "cannot watch its output");
            }
        }
    }
}

fn instance_of(request: &Request) -> Option<&InstanceId> {
    match request {
        Request::Create { id, .. }
        | Request::Start { id }
        | Request::Signal { id, .. }
        | Request::Freeze { id }
        | Request::Thaw { id }
        | Request::Suspend { id }
        | Request::BeginMove { id, .. }
        | Request::EndMove { id, .. }
        | Request::Refit { id, .. }
        | Request::Delete { id } => Some(id),
        Request::Hello { .. }
        | Request::List
        | Request::Shutdown
        | Request::Upgrade { .. }
        | Request::Keep { .. }
        | Request::Take { .. }
        | Request::Release { .. }
        | Request::Exec { .. } => None,
    }
}

/// The id names a directory, a cgroup and a host.
pub(super) fn is_label(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn check(spec: &CreateSpec) -> Result<(), Refusal> {
    check_config(&spec.config)?;
    absolute("log", &spec.log.path)?;
    if spec.layers.is_empty() {
        return Err(Refusal::Malformed("it has no layers".into()));
    }
    for layer in &spec.layers {
        absolute("layer", layer)?;
    }
    if spec.log.max_files == 0 || spec.log.max_bytes < LOG_BYTES_MIN {
        return Err(Refusal::Malformed(format!(
            "a log has at least one file of at least {LOG_BYTES_MIN} bytes"
        )));
    }
    Ok(())
}

fn check_config(path: &Path) -> Result<(), Refusal> {
    absolute("config", path)?;
    let config = |why: &dyn std::fmt::Display| Refusal::Malformed(format!("{}: {why}", path.display()));
    let metadata = fs::metadata(path).map_err(|error| config(&error))?;
    if !metadata.is_file() || metadata.len() > CONFIG_MAX {
        return Err(config(&format!("it is not a file of at most {CONFIG_MAX} bytes")));
    }
    Ok(())
}

fn absolute(what: &str, path: &Path) -> Result<(), Refusal> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(Refusal::Malformed(format!("the {what} {path:?} is not an absolute path")))
    }
}

/// Connects to init's socket in `directory`, whose path may be longer than a socket's may be.
fn notify(directory: &Path) -> io::Result<()> {
    let directory =
        fs::File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory)?;
    let path =
        format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), libcontainer::notify_socket::NOTIFY_FILE);
    UnixStream::connect(path)?.write_all(b"start container")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "hello-00001-x7k2p", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "..", "a/b", "ä", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
