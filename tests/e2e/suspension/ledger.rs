//! An accelerator of tests: it moves nothing, and remembers what it was asked to. A driver that can is not everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tombolo_device_sdk::{Abilities, Accelerator, Held, MoveError, Pid, Suspended, UsageError};

/// What one process holds on the device if a test says nothing else, bytes.
const HELD: u64 = 64 << 20;

/// Where processes' states are, and what was wrong.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<(Mutex<Books>, Condvar)>);

#[derive(Default)]
struct Books {
    away: BTreeSet<Pid>,
    here: BTreeSet<Pid>,
    /// What some hold that is not [`HELD`].
    sizes: BTreeMap<Pid, u64>,
    /// Of the device; `None`: all fits.
    capacity: Option<u64>,
    moves: u32,
    /// How often each was moved out.
    outs: BTreeMap<Pid, u32>,
    no_rooms: u32,
    tells: Tells,
    /// A process of the namespace in which each move out begins another one.
    bears: Option<Pid>,
    /// Moves stop half-way until it is no more.
    is_held_up: bool,
    held_up: u32,
    /// How often those that were held up have died instead of going on.
    cuts: u32,
    wrong: Vec<String>,
}

/// What is told of the memory that processes hold.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Tells {
    #[default]
    All,
    /// Who holds something, and not how much.
    NoAmounts,
    /// The driver does not answer.
    NotNow,
}

impl Books {
    fn size(&self, pid: Pid) -> u64 {
        self.sizes.get(&pid).copied().unwrap_or(HELD)
    }
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.0.lock().expect("no panic")
    }

    pub(super) fn moves(&self) -> u32 {
        self.books().moves
    }

    /// How often the process was moved out.
    pub(super) fn outs(&self, pid: i64) -> u32 {
        let pid = named(pid);
        self.books().outs.get(&pid).copied().unwrap_or(0)
    }

    /// How often something did not fit.
    pub(super) fn no_rooms(&self) -> u32 {
        self.books().no_rooms
    }

    /// From now on the process holds this much.
    pub(super) fn holds(&self, pid: i64, bytes: u64) {
        let pid = named(pid);
        let mut books = self.books();
        books.here.insert(pid);
        books.sizes.insert(pid, bytes);
    }

    pub(super) fn tells(&self, tells: Tells) {
        self.books().tells = tells;
    }

    /// From now on a process is begun beside `pid` while it is moved out; none any more without.
    pub(super) fn bears(&self, pid: Option<i64>) {
        self.books().bears = pid.map(named);
    }

    /// Whose states are not on the device.
    pub(super) fn away(&self) -> BTreeSet<Pid> {
        self.books().away.clone()
    }

    /// From now on no more fits.
    pub(super) fn has_room_for(&self, bytes: u64) {
        self.books().capacity = Some(bytes);
    }

    pub(super) fn hold_up(&self) {
        self.books().is_held_up = true;
    }

    /// How many moves have been held up.
    pub(super) fn held_up(&self) -> u32 {
        self.books().held_up
    }

    pub(super) fn go_on(&self) {
        self.books().is_held_up = false;
        self.0.1.notify_all();
    }

    /// As if the plugin had been killed: what is held up never comes to its end.
    pub(super) fn cut_off(&self) {
        self.books().cuts += 1;
        self.go_on();
    }

    pub(super) fn assert_right(&self) {
        assert_eq!(self.books().wrong, [""; 0]);
    }

    /// Half-way through a move.
    fn half_way(&self) -> Result<(), MoveError> {
        let mut books = self.books();
        books.held_up += u32::from(books.is_held_up);
        let cuts = books.cuts;
        let books = self.0.1.wait_while(books, |books| books.is_held_up).expect("no panic");
        if books.cuts > cuts { Err(MoveError::Refused("nobody hears this".into())) } else { Ok(()) }
    }
}

fn named(pid: i64) -> Pid {
    Pid::try_from(u32::try_from(pid).expect("a pid")).expect("a pid")
}

/// Begins a process in the pid namespace of `pid`, which ends with it.
fn bear(pid: Pid) {
    let mut command = Command::new("nsenter");
    let script = "echo begun; exec sleep 3600";
    command.args(["--target", &pid.to_string(), "--pid", "sh", "-c", script]).stdout(Stdio::piped());
    let mut begun = command.spawn().expect("util-linux is there");
    let told = BufReader::new(begun.stdout.take().expect("it was asked for")).lines().next();
    assert!(matches!(told, Some(Ok(line)) if line == "begun"));
    // It is waited for by nobody: it ends with the test at the latest.
    drop(begun);
}

/// The driver moves from inside the process.
fn is_frozen(pid: Pid) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return false };
        let (file, frozen) = match controllers {
            "" => (format!("/sys/fs/cgroup{path}/cgroup.events"), "frozen 1"),
            "freezer" => (format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "FROZEN"),
            _ => return false,
        };
        fs::read_to_string(file).is_ok_and(|state| state.contains(frozen))
    })
}

impl Accelerator for Ledger {
    fn describe(&self) -> Abilities {
        Abilities { suspend: Ok(()), tells_memory: true }
    }

    fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
        self.half_way()?;
        let mut books = self.books();
        books.bears.into_iter().for_each(bear);
        let mut freed = 0;
        for pid in processes {
            if is_frozen(*pid) {
                books.wrong.push(format!("{pid} was frozen before it was moved"));
            }
            books.here.remove(pid);
            if books.away.insert(*pid) {
                freed += books.size(*pid);
                *books.outs.entry(*pid).or_default() += 1;
            }
        }
        books.moves += 1;
        Ok(Suspended { moved: processes.clone(), freed_bytes: Some(freed) })
    }

    fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
        self.half_way()?;
        let mut books = self.books();
        let back: BTreeSet<Pid> = processes.intersection(&books.away).copied().collect();
        let needed: u64 = back.iter().chain(&books.here).map(|pid| books.size(*pid)).sum();
        if let Some(capacity) = books.capacity.filter(|capacity| needed > *capacity) {
            books.no_rooms += 1;
            return Err(MoveError::OutOfMemory(format!("{needed} bytes into {capacity}").into()));
        }
        for pid in &back {
            if is_frozen(*pid) {
                books.wrong.push(format!("{pid} was still frozen when it was to come back"));
            }
            books.away.remove(pid);
            books.here.insert(*pid);
        }
        Ok(processes.clone())
    }

    fn usage(&self) -> Result<Vec<Held>, UsageError> {
        let books = self.books();
        if books.tells == Tells::NotNow {
            return Err(UsageError::NotNow("the driver does not answer".into()));
        }
        let held = |pid: &Pid| Held {
            process: *pid,
            device: "eye".parse().expect("an id"),
            bytes: (books.tells == Tells::All).then(|| books.size(*pid)),
        };
        Ok(books.here.iter().map(held).collect())
    }
}
