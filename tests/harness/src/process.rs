//! Programs under test as processes. The test process is their subreaper, so whatever they leave behind becomes its child,
//! can be counted and is killed at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::net::Netns;

/// The path of a program of this project: in `TOMBOLO_BIN`, or where cargo put it beside this test.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("TOMBOLO_BIN") {
        return PathBuf::from(directory).join(name);
    }
    let test = std::env::current_exe().expect("a running program has a path");
    // target/PROFILE/deps/test-hash, and target/PROFILE/bench for the benchmark program.
    let found = test.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not built: run `cargo build --release` first, as tests/run does")
    })
}

/// A running program.
pub struct Process {
    child: Child,
    name: String,
    /// Its standard output and error.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command` in `netns` (the caller's own if none), with its output in `log`.
    pub fn start(name: &str, mut command: Command, netns: Option<&Netns>, log: &Path) -> Result<Self> {
        adopt_orphans();
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("{}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        if let Some(netns) = netns {
            enter(&mut command, netns.fd());
        }
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.into(), log: log.into() })
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("the kernel's pids are small")
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .with_context(|| format!("killing {}", self.name))?;
        Ok(())
    }

    /// SIGTERM; its exit status, or an error if it does not end in time.
    pub fn terminate(&mut self, seconds: u64) -> Result<ExitStatus> {
        self.ask_to_end()?;
        self.wait(seconds)
    }

    /// SIGTERM alone.
    pub fn ask_to_end(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGINT, as Ctrl-C sends it.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::SIGINT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Its exit status, once it has ended.
    pub fn wait(&mut self, seconds: u64) -> Result<ExitStatus> {
        let deadline = Instant::now() + crate::within(Duration::from_secs(seconds));
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {seconds} s", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, if it has: nothing else tells a failing test that somebody killed it.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The last lines of its output, for a failing test's message.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

#[allow(unsafe_code)]
fn enter(command: &mut Command, netns: RawFd) {
    // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe; the descriptor is open until then
    // because the namespace's owner outlives the spawn.
    unsafe {
        command.pre_exec(move || {
            let fd = std::os::fd::BorrowedFd::borrow_raw(netns);
            setns(fd, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
}

/// Makes this process the parent of its descendants' orphans, once.
fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        nix::sys::prctl::set_child_subreaper(true).expect("any process may become a subreaper")
    });
}

/// Every process that descends from this one, with its command line.
pub(crate) fn descendants() -> BTreeMap<i32, String> {
    let line = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    descendants_of(nix::unistd::getpid().as_raw())
        .into_iter()
        .map(|pid| (pid, String::from_utf8_lossy(&line(&pid)).replace('\0', " ").trim().to_owned()))
        .collect()
}

/// Every process that descends from `root`, zombies left out.
pub(crate) fn descendants_of(root: i32) -> Vec<i32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // pid (name) state ppid …; the name may hold anything, a closing parenthesis too.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|text| text.parse::<i32>().ok()));
        if let (Some(state), Some(parent)) = (state, parent)
            && state != "Z"
        {
            parents.insert(pid, parent);
        }
    }
    let descends = |pid: &i32| {
        let mut at = *pid;
        while let Some(parent) = parents.get(&at) {
            if *parent == root {
                return true;
            }
            at = *parent;
        }
        false
    };
    parents.keys().copied().filter(descends).collect()
}

/// The cgroup directories of a process, on every hierarchy, the root's left out.
pub(crate) fn cgroups_of(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for path in
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| path.contains("/tombolo/"))
    {
        let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let all = std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(roots);
        found.extend(all.map(|root| root.join(path.trim_start_matches('/'))).filter(|dir| dir.is_dir()));
    }
    found
}

/// SIGKILL to each, and none left when this returns; those that became this process's children are reaped.
pub(crate) fn kill_all(pids: &[i32]) {
    for pid in pids {
        thaw(*pid);
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    wait_for_end(pids);
}

/// Ends every process that descends from this one, or if `others` run in it too, of these only what names something in `dir`, and
/// its descendants. Supervisors are told to end, when nobody is left who would start others: so they remove what they were making
/// or removing, which nothing else knows of.
pub(crate) fn end_all(dir: &Path, others: bool) {
    let mut all = descendants();
    if others {
        let dir = dir.display().to_string();
        let named = all.iter().filter(|(_, line)| line.contains(&dir)).map(|(pid, _)| *pid);
        let own: BTreeSet<i32> = named.flat_map(|pid| descendants_of(pid).into_iter().chain([pid])).collect();
        all.retain(|pid, _| own.contains(pid));
    }
    let supervisors: Vec<i32> =
        all.iter().filter(|(_, line)| line.contains("tombolo-supervisor")).map(|(pid, _)| *pid).collect();
    let held: BTreeSet<i32> = supervisors.iter().copied().flat_map(descendants_of).collect();
    let cgroups: BTreeSet<PathBuf> = all.keys().flat_map(|pid| cgroups_of(*pid)).collect();
    let others = all.keys().copied().filter(|pid| !supervisors.contains(pid) && !held.contains(pid));
    kill_all(&others.collect::<Vec<_>>());
    supervisors.into_iter().for_each(terminate);
    kill_all(&all.keys().copied().collect::<Vec<_>>());
    cgroups.iter().for_each(|path| drop(fs::remove_dir(path)));
}

/// SIGTERM, and some time to follow it.
pub(crate) fn terminate(pid: i32) {
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    wait_for_end(&[pid]);
}

fn wait_for_end(pids: &[i32]) {
    let deadline = Instant::now() + crate::within(Duration::from_secs(10));
    let alive = |pid: &&i32| {
        let _ = waitpid(Pid::from_raw(**pid), Some(WaitPidFlag::WNOHANG));
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    while pids.iter().any(|pid| alive(&pid)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A frozen cgroup's processes do not die before it is thawed.
fn thaw(pid: i32) {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next(), parts.next()) {
            (Some(""), Some(path)) => drop(fs::write(format!("/sys/fs/cgroup{path}/cgroup.freeze"), "0")),
            (Some("freezer"), Some(path)) => {
                drop(fs::write(format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "THAWED"))
            }
            _ => {}
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // The test is over, one way or the other.
            let _ = self.kill();
        }
    }
}

/// Lets a descriptor's number be used in `pre_exec`.
impl Netns {
    fn fd(&self) -> RawFd {
        self.file().as_raw_fd()
    }
}
