//! From one supervisor to the next: the lock that keeps them apart, and what is passed over `execve`.
//!
//! Descriptors stay open over `execve`; their numbers are passed in an anonymous file, whose own number is in the
//! environment. Everything else the next program reads from the records.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::memfd::{MemFdCreateFlag, memfd_create};
use nix::unistd::execve;
use serde::{Deserialize, Serialize};
use tombolo_agent_core::supervision::InstanceId;

use crate::instance::Instance;
use crate::sys;

/// Names the descriptor of the list of descriptors.
const VARIABLE: &str = "TOMBOLO_SUPERVISOR_HANDOVER";

/// Below the run directory.
const LOCK: &str = "supervisor.lock";

/// How long the lock is waited for, and between two tries.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Held by the supervisor that serves a run directory.
#[derive(Debug)]
pub(crate) struct RunLock(OwnedFd);

impl RunLock {
    /// None: another holds it. What a supervisor that was killed had just forked holds it for a moment more.
    pub(crate) fn acquire(run_dir: &Path) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            // Each time: one that ends removes the file.
            let file = File::options().create(true).truncate(false).write(true).open(run_dir.join(LOCK))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Kept by the descriptor; unlocking on drop would unlock for a program executed in place, too.
                Ok(lock) => {
                    let kept = lock.as_fd().try_clone_to_owned()?;
                    std::mem::forget(lock);
                    return Ok(Some(Self(kept)));
                }
                Err((_, nix::errno::Errno::EAGAIN)) if Instant::now() >= deadline => return Ok(None),
                Err((_, nix::errno::Errno::EAGAIN)) => sleep(LOCK_PAUSE),
                Err((_, error)) => return Err(error.into()),
            }
        }
    }

    /// Removes the file; the supervisor ends.
    pub(crate) fn remove(&self, run_dir: &Path) {
        // Without it the next one makes another.
        let _ = fs::remove_file(run_dir.join(LOCK));
    }
}

impl AsFd for RunLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a predecessor handed over. Empty: there was none.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    pub(crate) listener: Option<OwnedFd>,
    pub(crate) lock: Option<RunLock>,
    /// The agent's connection, and the number of its call to upgrade.
    pub(crate) agent: Option<(OwnedFd, u64)>,
    pub(crate) open_files: Option<(u64, u64)>,
    pub(crate) sockets: BTreeMap<String, OwnedFd>,
    pub(crate) instances: BTreeMap<InstanceId, Descriptors>,
}

/// An instance's open descriptors.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) output: Option<File>,
    pub(crate) error: Option<File>,
}

/// The same to be passed on.
pub(crate) struct Passed<'a> {
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) lock: BorrowedFd<'a>,
    pub(crate) agent: Option<(BorrowedFd<'a>, u64)>,
    pub(crate) open_files: (u64, u64),
    pub(crate) sockets: &'a BTreeMap<String, OwnedFd>,
    pub(crate) instances: Vec<(InstanceId, [Option<BorrowedFd<'a>>; 3])>,
}

pub(crate) fn descriptors_of(instance: &Instance) -> (InstanceId, [Option<BorrowedFd<'_>>; 3]) {
    let pidfd = instance.pidfd.as_ref().map(AsFd::as_fd);
    let output = instance.output.as_ref().map(AsFd::as_fd);
    let error = instance.error.as_ref().map(AsFd::as_fd);
    (instance.record.id.clone(), [pidfd, output, error])
}

/// The anonymous file's contents.
#[derive(Debug, Serialize, Deserialize)]
struct Numbers {
    listener: RawFd,
    lock: RawFd,
    agent: Option<(RawFd, u64)>,
    open_files: (u64, u64),
    #[serde(default)]
    sockets: BTreeMap<String, RawFd>,
    instances: BTreeMap<InstanceId, [Option<RawFd>; 3]>,
}

/// Takes what a predecessor handed over, if this program was executed by one.
pub(crate) fn take() -> Option<Handover> {
    let number = env::var(VARIABLE).ok()?.parse().ok()?;
    let mut file = File::from(sys::inherited_fd(number)?);
    let mut text = Vec::new();
    let numbers: Numbers = match file.rewind().and_then(|()| file.read_to_end(&mut text)) {
        Ok(_) => serde_json::from_slice(&text).ok()?,
        Err(_) => return None,
    };
    let instances = numbers.instances.into_iter().map(|(id, [pidfd, output, error])| {
        let descriptors = Descriptors {
            pidfd: pidfd.and_then(own),
            output: output.and_then(own).map(File::from),
            error: error.and_then(own).map(File::from),
        };
        (id, descriptors)
    });
    let sockets = numbers.sockets.into_iter().filter_map(|(name, fd)| Some((name, own(fd)?)));
    Some(Handover {
        listener: own(numbers.listener),
        lock: own(numbers.lock).map(RunLock),
        agent: numbers.agent.and_then(|(fd, seq)| Some((own(fd)?, seq))),
        open_files: Some(numbers.open_files),
        sockets: sockets.collect(),
        instances: instances.collect(),
    })
}

fn own(fd: RawFd) -> Option<OwnedFd> {
    let fd = sys::inherited_fd(fd)?;
    set_inherited(fd.as_fd(), false).ok()?;
    Some(fd)
}

fn set_inherited(fd: BorrowedFd<'_>, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Executes `binary` with this program's arguments and `passed`. Returns only the reason why that failed.
pub(crate) fn execute(binary: &Path, passed: &Passed<'_>) -> io::Error {
    let descriptors = || {
        let agent = passed.agent.map(|(fd, _)| fd);
        let instances = passed.instances.iter().flat_map(|(_, fds)| fds.iter().flatten().copied());
        let sockets = passed.sockets.values().map(AsFd::as_fd);
        [passed.listener, passed.lock].into_iter().chain(agent).chain(sockets).chain(instances)
    };
    let outcome = (|| -> io::Result<()> {
        for fd in descriptors() {
            set_inherited(fd, true)?;
        }
        let list = write_numbers(passed)?;
        set_inherited(list.as_fd(), true)?;
        let program = CString::new(binary.as_os_str().as_bytes())?;
        let mut arguments = vec![program.clone()];
        for argument in env::args_os().skip(1) {
            arguments.push(CString::new(argument.into_vec())?);
        }
        let mut environment = vec![CString::new(format!("{VARIABLE}={}", list.as_raw_fd()))?];
        for (name, value) in env::vars_os().filter(|(name, _)| name != VARIABLE) {
            environment.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
        match execve(&program, &arguments, &environment)? {}
    })();
    for fd in descriptors() {
        // They are ours alone again.
        let _ = set_inherited(fd, false);
    }
    outcome.err().unwrap_or_else(|| io::Error::other("it did not start"))
}

fn write_numbers(passed: &Passed<'_>) -> io::Result<File> {
    let number = |fd: &Option<BorrowedFd<'_>>| fd.map(|fd| fd.as_raw_fd());
    let numbers = Numbers {
        listener: passed.listener.as_raw_fd(),
        lock: passed.lock.as_raw_fd(),
        agent: passed.agent.map(|(fd, seq)| (fd.as_raw_fd(), seq)),
        open_files: passed.open_files,
        sockets: passed.sockets.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect(),
        instances: passed
            .instances
            .iter()
            .map(|(id, fds)| (id.clone(), fds.each_ref().map(number)))
            .collect(),
    };
    let mut file = File::from(memfd_create(c"tombolo-handover", MemFdCreateFlag::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&numbers)?)?;
    Ok(file)
}
