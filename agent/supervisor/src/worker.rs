//! A worker: a forked child that does one blocking thing for one instance, says how it went in one message, and ends.
//!
//! Nothing that the container runtime does to its process (working directory, dumpable flag, score for the
//! out-of-memory killer) outlives it, and one that hangs is killed.

pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod hooks;
pub(crate) mod refit;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, dup2, getppid, setpgid};
use serde::{Deserialize, Serialize};

use crate::causes::with_causes;
use crate::cgroup::{CgroupPath, Hierarchies};
use crate::diagnostics;
use crate::record::{Process, Stat};
use crate::sys::{self, Fork};
use crate::worker::create::CreateTask;
use crate::worker::exec::ExecTask;
use crate::worker::hooks::HooksTask;
use crate::worker::refit::RefitTask;

/// Longest time of each task. An agent waits 60 s for its answer, which may take a removal after a failed creation.
const CREATE_DEADLINE: Duration = Duration::from_secs(20);
const FREEZE_DEADLINE: Duration = Duration::from_secs(3);
const REFIT_DEADLINE: Duration = Duration::from_secs(5);
/// For all hooks of one moment; each has an end of its own.
const HOOKS_DEADLINE: Duration = Duration::from_secs(20);
/// Beyond the command's own: to start it, and to kill what it leaves.
const EXEC_SPARE: Duration = Duration::from_secs(5);
const REMOVE_DEADLINE: Duration = Duration::from_secs(15);

/// How long the memory of a frozen instance is taken back, after the answer that it is frozen.
const RECLAIM_TIME: Duration = Duration::from_secs(5);

/// What a worker keeps open besides standard input, output and error: its end of the result socket.
const RESULT_FD: i32 = 3;

/// In the instance's directory while it is created: which process does that.
const WORKER: &str = "worker.json";

/// How the container runtime names the processes it forks.
const RUNTIME_PROCESS: &str = "youki:[";

/// Longest message about a result, bytes. A byte of a command's output may take six.
const RESULT_MAX: usize = 32 * 1024;

/// What a worker is to do.
#[derive(Debug)]
pub(crate) enum Task {
    Create(Box<CreateTask>),
    Exec(Box<ExecTask>),
    Freeze(CgroupPath),
    /// As freeze, and its memory is not taken back.
    Suspend(CgroupPath),
    Refit(Box<RefitTask>),
    Hooks(HooksTask),
    /// Kill what is left and remove the cgroup.
    Remove(CgroupPath),
}

impl Task {
    pub(crate) fn deadline(&self) -> Duration {
        match self {
            Self::Create(_) => CREATE_DEADLINE,
            Self::Exec(task) => task.timeout + EXEC_SPARE,
            Self::Freeze(_) | Self::Suspend(_) => FREEZE_DEADLINE,
            Self::Refit(_) => REFIT_DEADLINE,
            Self::Hooks(_) => HOOKS_DEADLINE,
            Self::Remove(_) => REMOVE_DEADLINE,
        }
    }
}

/// How a task went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Created {
        pid: i32,
        /// Something that this machine cannot do and that was gone without.
        limitation: Option<String>,
    },
    Executed {
        code: Option<i32>,
        signal: Option<i32>,
        timed_out: bool,
        output: String,
    },
    Done,
    Failed(String),
}

/// What came from a worker.
#[derive(Debug)]
pub(crate) enum Report {
    /// Nothing yet.
    None,
    Outcome(Outcome),
    /// Nothing, and nothing will.
    Lost,
}

/// A worker under way.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) result: OwnedFd,
    pub(crate) deadline: Instant,
    /// The whole of the time it has.
    pub(crate) allowed: Duration,
}

impl Worker {
    /// Forks a worker for `task`.
    pub(crate) fn start(task: Task, hierarchies: &Hierarchies) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (result, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let allowed = task.deadline();
        let deadline = Instant::now() + allowed;
        let parent = nix::unistd::getpid();
        match sys::fork()? {
            Fork::Parent(pid) => Ok(Self { pid, result, deadline, allowed }),
            Fork::Child => {
                let frozen = match &task {
                    Task::Freeze(cgroup) => Some(cgroup.clone()),
                    _ => None,
                };
                let outcome = match become_worker(&theirs, parent) {
                    Ok(()) => run(task, hierarchies, deadline),
                    Err(error) => Outcome::Failed(format!("cannot start: {error}")),
                };
                report(&outcome);
                if let (Some(cgroup), Outcome::Done) = (frozen, outcome) {
                    hierarchies.reclaim(&cgroup, Instant::now() + RECLAIM_TIME);
                }
                sys::exit_now(0);
            }
        }
    }

    /// What the worker has said so far.
    pub(crate) fn report(&self) -> Report {
        let mut buffer = vec![0; RESULT_MAX];
        match recv(self.result.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if length > 0 => {
                serde_json::from_slice(&buffer[..length]).map_or(Report::Lost, Report::Outcome)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Report::None,
            _ => Report::Lost,
        }
    }

    /// Ends the worker and what it has forked so far: they share a process group until they are in the instance's cgroup.
    pub(crate) fn kill(&self) {
        // Already ended is fine.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// Kills what a creation in `directory` had forked when its worker died with its supervisor. The container runtime's
/// intermediate process would wait for an answer for ever, or go on to make the cgroup anew.
pub(crate) fn kill_strays(directory: &Path) {
    let worker: Option<Process> =
        fs::read(directory.join(WORKER)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let here = Process::of(std::process::id().cast_signed()).ok();
    let Some(worker) = worker.filter(|worker| here.is_some_and(|here| here.boot == worker.boot)) else {
        return;
    };
    let is_stray = |stat: &Stat| {
        stat.group == worker.pid
            && stat.start_time >= worker.start_time
            && stat.name.starts_with(RUNTIME_PROCESS)
    };
    // Again until there is none: one of them may have forked another meanwhile.
    loop {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if Stat::of(pid).is_ok_and(|stat| is_stray(&stat) && !stat.has_ended()) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                found = true;
            }
        }
        if !found {
            return;
        }
    }
}

/// From a copy of the supervisor to a worker: silent, in a process group of its own, ending with the supervisor, and
/// holding none of its descriptors. A container's init keeps what it inherits until it starts: with the agent's connection
/// among it, the agent would never see the supervisor die.
fn become_worker(result: &OwnedFd, parent: Pid) -> io::Result<()> {
    diagnostics::silence();
    sys::die_with_parent()?;
    if getppid() != parent {
        return Err(io::Error::other("the supervisor has ended"));
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    umask(Mode::from_bits_truncate(0o022));
    if result.as_raw_fd() != RESULT_FD {
        dup2(result.as_raw_fd(), RESULT_FD)?;
    }
    sys::close_from(RESULT_FD + 1)?;
    nix::fcntl::fcntl(RESULT_FD, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(())
}

fn run(task: Task, hierarchies: &Hierarchies, deadline: Instant) -> Outcome {
    let work = std::panic::AssertUnwindSafe(|| match task {
        Task::Create(task) => match name_worker(&task.directory) {
            Ok(()) => create::create(&task, hierarchies)
                .unwrap_or_else(|error| Outcome::Failed(with_causes(&error))),
            Err(error) => Outcome::Failed(error.to_string()),
        },
        Task::Exec(task) => {
            exec::exec(&task, hierarchies).unwrap_or_else(|error| Outcome::Failed(with_causes(&error)))
        }
        Task::Freeze(cgroup) | Task::Suspend(cgroup) => done(hierarchies.freeze(&cgroup, deadline)),
        Task::Refit(task) => match refit::refit(&task, hierarchies) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(with_causes(&error)),
        },
        Task::Hooks(task) => match hooks::run(&task) {
            Ok(failed) if failed.is_empty() => Outcome::Done,
            Ok(failed) => Outcome::Failed(failed.join("; ")),
            Err(error) => Outcome::Failed(error.to_string()),
        },
        Task::Remove(cgroup) => done(hierarchies.remove(&cgroup, deadline)),
    });
    std::panic::catch_unwind(work)
        .unwrap_or_else(|_| Outcome::Failed("the container runtime panicked".into()))
}

fn name_worker(directory: &Path) -> io::Result<()> {
    let worker = Process::of(std::process::id().cast_signed())?;
    fs::write(directory.join(WORKER), serde_json::to_vec(&worker)?)
}

fn done(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn report(outcome: &Outcome) {
    let mut bytes = serde_json::to_vec(outcome).unwrap_or_default();
    if bytes.len() > RESULT_MAX {
        bytes = serde_json::to_vec(&Outcome::Failed("with a very long message".into())).unwrap_or_default();
    }
    // If the supervisor is gone, so is whoever wanted to know.
    let _ = send(RESULT_FD, &bytes, MsgFlags::MSG_NOSIGNAL);
}
