//! Running a command inside a running container, as the container's program runs.
//!
//! ```text
//! worker (host) ─▶ reaper (in the container's namespaces) ─▶ command (in a cgroup of its own below the instance's)
//!        ◀── how it ended ──┘                                  │
//!        ◀────────────────────── output ───────────────────────┘
//! ```
//!
//! The container runtime's own way of doing this needs bundle and root file system where they were at the creation; here
//! they are gone with the mount namespace that they were made in. The reaper takes what the command leaves behind, so that
//! the container's init does not have to. A command dies with its reaper, a reaper with its worker.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::Executor as _;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, dup2, pipe2, setgroups, setsid};
use oci_spec::runtime::Process;
use serde::{Deserialize, Serialize};
use tombolo_agent_core::supervision::EXEC_OUTPUT_MAX;

use crate::causes::with_causes;
use crate::cgroup::{CgroupPath, Hierarchies};
use crate::executor::{FilteredExecutor, StartHooks};
use crate::seccomp::Filters;
use crate::sys::{self, Fork};
use crate::worker::Outcome;

/// In the instance's directory: the process of its specification as the container was made with it.
pub(crate) const PROCESS: &str = "process.json";

/// How long killing what a command left may take.
const KILL_DEADLINE: Duration = Duration::from_secs(3);

/// What a shell says of a command that cannot be executed.
const NOT_EXECUTED: i32 = 127;

/// A command to run.
#[derive(Debug)]
pub(crate) struct ExecTask {
    /// Of the container's init.
    pub(crate) init: Pid,
    pub(crate) cgroup: CgroupPath,
    /// The instance's directory.
    pub(crate) directory: PathBuf,
    pub(crate) open_files: (u64, u64),
    pub(crate) args: Vec<String>,
    pub(crate) timeout: Duration,
}

/// What the reaper says, once.
#[derive(Debug, Serialize, Deserialize)]
enum End {
    Exited(i32),
    Killed(i32),
    /// The container could not be entered.
    Failed(String),
}

/// Runs the command to its end or its deadline.
pub(crate) fn exec(task: &ExecTask, hierarchies: &Hierarchies) -> io::Result<Outcome> {
    let deadline = Instant::now() + task.timeout;
    let process = read_process(&task.directory, &task.args)?;
    let filters = Filters::compile().map_err(io::Error::other)?;
    let container = sys::pidfd_open(task.init)?;
    if let Some(score) = process.oom_score_adj() {
        // Best effort, as at the creation: the container's own score is what matters.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    let (soft, hard) = task.open_files;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    // Told from those of others at the same time.
    let name = format!("exec-{}", std::process::id());
    let cgroup = task.cgroup.child(&name);
    let output = Pipe::new()?;
    let status = Pipe::new()?;
    let joins = hierarchies.divide(&task.cgroup, &name)?;
    let namespaces = other_namespaces(task.init)?;
    // Of this process's children only.
    setns(&container, CloneFlags::CLONE_NEWPID)?;
    let reaper = match sys::fork()? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let end = enter(&container, namespaces).and_then(|()| {
                let command = Command { process, filters, joins, output: output.writer, input: null()? };
                reap(command, &status.writer)
            });
            if let Err(error) = end {
                say(&status.writer, &End::Failed(with_causes(&error)));
            }
            sys::exit_now(0);
        }
    };
    drop((output.writer, status.writer, joins));
    let mut kept = Output { pipe: Some(File::from(output.reader)), text: Vec::new() };
    let end = watch(&mut kept, File::from(status.reader), deadline);
    let removed = hierarchies.remove(&cgroup, Instant::now() + KILL_DEADLINE);
    // It has nothing left to wait for, or never will.
    let _ = kill(reaper, Signal::SIGKILL);
    let _ = waitpid(reaper, None);
    removed?;
    kept.read();
    kept.outcome(end?)
}

/// The process of the specification, running something else.
fn read_process(directory: &Path, args: &[String]) -> io::Result<Process> {
    let text = fs::read(directory.join(PROCESS)).map_err(|error| {
        io::Error::new(error.kind(), format!("the container was made by an older supervisor: no {PROCESS}"))
    })?;
    let mut process: Process = serde_json::from_slice(&text)?;
    process.set_args(Some(args.to_vec()));
    Ok(process)
}

/// What the container does not share with this process, but for its process ids.
fn other_namespaces(init: Pid) -> io::Result<CloneFlags> {
    let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    // Nobody can enter the user namespace that he is in.
    flags.set(CloneFlags::CLONE_NEWUSER, link(&init.to_string())? != link("self")?);
    Ok(flags)
}

fn null() -> io::Result<File> {
    File::open("/dev/null")
}

/// The reaper's first steps, in the container's process namespace already. Nothing of the container may look into it.
fn enter(container: &OwnedFd, namespaces: CloneFlags) -> io::Result<()> {
    set_dumpable(false)?;
    sys::become_subreaper()?;
    setns(container, namespaces)?;
    // Entering a user namespace forgets it.
    sys::die_with_parent()
}

struct Command {
    process: Process,
    filters: Filters,
    joins: Vec<File>,
    output: OwnedFd,
    input: File,
}

/// Starts the command, says how it ended, and reaps until nothing is left.
fn reap(command: Command, status: &OwnedFd) -> io::Result<()> {
    let child = match sys::fork()? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            if let Err(error) = command.run() {
                eprintln!("tombolo: the command cannot be run: {}", with_causes(&*error));
            }
            sys::exit_now(NOT_EXECUTED);
        }
    };
    drop(command);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => say(status, &End::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                say(status, &End::Killed(signal as i32))
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Ok(()),
        }
    }
}

fn say(status: &OwnedFd, end: &End) {
    // If the worker is gone, so is whoever wanted to know.
    let _ = nix::unistd::write(status, &serde_json::to_vec(end).unwrap_or_default());
}

impl Command {
    /// Becomes the command. Returns only if that fails.
    fn run(mut self) -> Result<(), Box<dyn std::error::Error>> {
        for mut file in std::mem::take(&mut self.joins) {
            file.write_all(b"0")?;
        }
        setsid()?;
        dup2(self.input.as_raw_fd(), 0)?;
        dup2(self.output.as_raw_fd(), 1)?;
        dup2(self.output.as_raw_fd(), 2)?;
        let Self { process, filters, .. } = &self;
        nix::unistd::chdir(process.cwd())?;
        set_no_new_privs()?;
        let user = process.user();
        let groups: Vec<Gid> =
            user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups)?;
        let syscall = create_syscall();
        syscall.set_id(Uid::from_raw(user.uid()), Gid::from_raw(user.gid()))?;
        reset_effective(syscall.as_ref())?;
        if let Some(capabilities) = process.capabilities() {
            drop_privileges(capabilities, syscall.as_ref())?;
        }
        // Changing the user forgets it.
        sys::die_with_parent()?;
        let executor = FilteredExecutor { filters: filters.clone(), hooks: StartHooks::default() };
        let variables = process.env().iter().flatten().filter_map(|variable| variable.split_once('='));
        executor.setup_envs(
            variables.map(|(name, value)| (name.into(), value.into())).collect::<HashMap<_, _>>(),
        )?;
        let mut spec = Spec::default();
        spec.set_process(Some(process.clone()));
        executor.exec(&spec)?;
        Ok(())
    }
}

/// The command's end, or none when its time was up first.
fn watch(output: &mut Output, mut status: File, deadline: Instant) -> io::Result<Option<End>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut waits = vec![readable(&status)];
        waits.extend(output.pipe.as_ref().map(readable));
        match poll(&mut waits, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_ended = waits[0].any().unwrap_or(false);
        output.read();
        if has_ended {
            let mut text = Vec::new();
            match status.read_to_end(&mut text) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ if text.is_empty() => return Err(io::Error::other("nobody says how the command ended")),
                _ => return Ok(Some(serde_json::from_slice(&text)?)),
            }
        }
    }
}

fn readable(file: &File) -> PollFd<'_> {
    PollFd::new(file.as_fd(), PollFlags::POLLIN)
}

struct Pipe {
    /// Does not wait.
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(reader.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { reader, writer })
    }
}

/// What the command prints: the beginning is kept, the rest read and dropped, or it would wait for room for ever.
struct Output {
    pipe: Option<File>,
    text: Vec<u8>,
}

impl Output {
    /// Takes what is there.
    fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut buffer = [0; EXEC_OUTPUT_MAX];
        // As much as a pipe holds; the deadline is looked at in between.
        for _ in 0..16 {
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    self.pipe = None;
                    return;
                }
                Ok(length) => {
                    let room = EXEC_OUTPUT_MAX - self.text.len();
                    self.text.extend_from_slice(&buffer[..length.min(room)]);
                }
                Err(_) => return,
            }
        }
    }

    fn outcome(self, end: Option<End>) -> io::Result<Outcome> {
        let (code, signal) = match end {
            Some(End::Exited(code)) => (Some(code), None),
            Some(End::Killed(signal)) => (None, Some(signal)),
            Some(End::Failed(reason)) => return Err(io::Error::other(reason)),
            None => (None, Some(Signal::SIGKILL as i32)),
        };
        let output = String::from_utf8_lossy(&self.text).into_owned();
        Ok(Outcome::Executed { code, signal, timed_out: end.is_none(), output })
    }
}
