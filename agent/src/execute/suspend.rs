//! An instance's state leaves its devices and comes back: their plugins move it, the supervisor stops the processes and lets them
//! go on.
//!
//! The order is the driver's: a thread of its own inside the process does the moving, so the processes run meanwhile. It must not
//! know when an instance is suspended, or whose turn it is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::devices::{Devices, ResourceName};
use tombolo_agent_core::supervision::{InstanceId, Request};
use tombolo_agent_devices::{Accelerator, AcceleratorError, Held, Pid};
use tombolo_router::Stage;

use super::{Executor, Inner, Outcome, lock};
use crate::probe;
use crate::supervisor::CallError;

/// Memory of the node that must stay free beside what is moved into it, bytes: what the kernel and the agent need under way.
const MEMORY_SPARE: u64 = 256 << 20;

/// What an instance may have beside its limit and what is moved, bytes: the driver keeps books of what it moves.
const LIMIT_SPARE: u64 = 64 << 20;

/// How long a move is asked for that a plugin has not ended in time: the same call again waits for its end.
const MOVE_MAX: Duration = Duration::from_secs(300);

/// How long a plugin may be away that goes in the middle of a move: one that is replaced is soon back.
const ABSENCE_MAX: Duration = Duration::from_secs(30);

/// Pause before a plugin is asked again.
const MOVE_PAUSE: Duration = Duration::from_millis(200);

/// Looks for processes that were begun while others were moved.
const LOOKS_MAX: usize = 3;

/// What an instance needs to leave its devices and to come back.
#[derive(Clone, Debug)]
pub(crate) struct Occupant {
    pub(crate) instance: InstanceId,
    /// Of its init.
    pub(crate) pid: i32,
    pub(crate) devices: Devices,
    /// Of its revision, if it has one.
    pub(crate) memory_limit: Option<u64>,
}

/// Why what an instance has on its devices stays there.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SuspendError {
    /// It will not be otherwise.
    #[error("{0}")]
    Cannot(String),
    /// It runs as before, and may be suspended later.
    #[error("{0}")]
    NotNow(String),
    #[error("{0}")]
    Failed(String),
}

/// Why a suspended instance does not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error(transparent)]
    Supervisor(#[from] CallError),
    /// It is suspended as before, and may come back later; `crowded`: once others have made room on its devices.
    #[error("{why}")]
    NotNow { why: String, crowded: bool },
    #[error("its state does not come back to its devices: {0}")]
    Lost(String),
}

impl Executor {
    /// Moves what an instance has on its devices to the node's memory, of which there are `room_bytes` for all that is moved, and
    /// stops its processes.
    pub(crate) fn suspend(&self, occupant: Occupant, room_bytes: u64) {
        let inner = self.inner.clone();
        self.inner.probing(&occupant.instance, probe::Guard::pause);
        self.inner.spawn(async move {
            let result = suspend(&inner, &occupant, room_bytes).await;
            if result.is_err() {
                inner.probing(&occupant.instance, probe::Guard::resume);
            }
            inner.tell(Outcome::Suspended { instance: occupant.instance, result }).await;
        });
    }

    /// Lets a suspended instance go on with what it had on its devices.
    pub(crate) fn restore(&self, occupant: Occupant) {
        let inner = self.inner.clone();
        self.inner.spawn(async move {
            let result = restore(&inner, &occupant).await;
            if result.is_ok() {
                inner.probing(&occupant.instance, probe::Guard::resume);
            }
            inner.tell(Outcome::Restored { instance: occupant.instance, result }).await;
        });
    }

    /// An instance was found that has `bytes` in the node's memory.
    pub(crate) fn note_moved(&self, instance: &InstanceId, bytes: u64) {
        lock(&self.inner.moved).insert(instance.clone(), bytes);
    }
}

/// Moves the instance's state to the node's memory, and stops its processes; how many bytes were moved.
async fn suspend(inner: &Inner, occupant: &Occupant, room_bytes: u64) -> Result<u64, SuspendError> {
    let Occupant { instance, pid, devices, memory_limit } = occupant;
    let movers = movers(inner, occupant).await?;
    let all = processes(*pid).map_err(|error| SuspendError::Failed(error.to_string()))?;
    let held = held_bytes(&movers, &all).await?;
    reserve(inner, instance, held, room_bytes)?;
    let memory_bytes = memory_limit.map(|limit| limit.saturating_add(held).saturating_add(LIMIT_SPARE));
    let begin = Request::BeginMove { id: instance.clone(), moved_bytes: held, memory_bytes };
    let supervisor = &inner.tools.supervisor;
    supervisor.call(begin).await?;
    let mut looks = Looks::default();
    let result = match move_out(inner, occupant, &mut looks).await {
        Ok(()) => supervisor.call(Request::Suspend { id: instance.clone() }).await.map_err(Into::into),
        Err(error) => Err(error),
    };
    let Err(error) = result else { return Ok(held) };
    for resource in devices.keys() {
        // Those that were not moved have nothing to be given back.
        if let Err(undoing) = carry(inner, resource, Way::Back, &looks.asked, ABSENCE_MAX).await {
            return Err(SuspendError::Failed(format!("{error}; and that cannot be undone: {undoing}")));
        }
    }
    end_move(inner, occupant).await;
    Err(error)
}

impl From<CallError> for SuspendError {
    fn from(error: CallError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Sets memory of the node aside for what is moved, until the instance is back or gone.
fn reserve(inner: &Inner, instance: &InstanceId, held: u64, room_bytes: u64) -> Result<(), SuspendError> {
    let mut moved = lock(&inner.moved);
    let others = moved.iter().filter(|(other, _)| *other != instance).map(|(_, bytes)| *bytes).sum();
    let of_budget = room_bytes.saturating_sub(others);
    let available = available_memory().unwrap_or(u64::MAX).saturating_sub(MEMORY_SPARE);
    let free = of_budget.min(available);
    if held > free {
        return Err(SuspendError::Failed(format!(
            "what it has on its devices, {} MiB, does not fit into the node's memory, of which {} MiB are free for that",
            held >> 20,
            free >> 20
        )));
    }
    moved.insert(instance.clone(), held);
    Ok(())
}

/// Lets the instance go on, with its state on its devices again.
async fn restore(inner: &Inner, occupant: &Occupant) -> Result<(), RestoreError> {
    let Occupant { instance, pid, devices, .. } = occupant;
    let (began, activations) = (Instant::now(), &inner.tools.activations);
    activations.begin(instance, IdleTier::Suspended);
    inner.tools.supervisor.call(Request::Thaw { id: instance.clone() }).await?;
    activations.ended(instance, Stage::Thaw, began.elapsed());
    let lost = |error: &dyn std::fmt::Display| RestoreError::Lost(error.to_string());
    let processes = processes(*pid).map_err(|error| lost(&error))?;
    let mut back = Vec::new();
    for resource in devices.keys() {
        let error = match carry(inner, resource, Way::Back, &processes, Duration::ZERO).await {
            Ok(_) => {
                back.push(resource);
                continue;
            }
            Err(error) => error,
        };
        let (why, crowded) = (format!("{resource}: {error}"), matches!(error, AcceleratorError::NoRoom(_)));
        if matches!(error, AcceleratorError::Cannot(_) | AcceleratorError::Refused(_)) {
            return Err(RestoreError::Lost(why));
        }
        // Others may have the devices meanwhile.
        for resource in back {
            let undone = carry(inner, resource, Way::Out, &processes, ABSENCE_MAX).await;
            undone.map_err(|error| lost(&error))?;
        }
        inner.tools.supervisor.call(Request::Suspend { id: instance.clone() }).await?;
        return Err(RestoreError::NotNow { why, crowded });
    }
    end_move(inner, occupant).await;
    activations.ended(instance, Stage::Restore, began.elapsed());
    Ok(())
}

/// The plugins of all the instance's devices; each must be able to move processes, or others could not have its devices.
async fn movers<'a>(
    inner: &Inner,
    occupant: &'a Occupant,
) -> Result<Vec<(&'a ResourceName, Accelerator)>, SuspendError> {
    let none = || SuspendError::Cannot("this node has no device plugins".into());
    let allocator = inner.tools.devices.as_ref().ok_or_else(none)?;
    let mut movers = Vec::new();
    for resource in occupant.devices.keys() {
        let described = match allocator.accelerator(resource).await {
            Ok(mover) => mover.describe().await.map(|abilities| (mover, abilities)),
            Err(error) => Err(error),
        };
        match described {
            Ok((mover, abilities)) => match abilities.suspend {
                Ok(()) => movers.push((resource, mover)),
                Err(why) => return Err(SuspendError::Cannot(format!("{resource}: {why}"))),
            },
            Err(AcceleratorError::Cannot(why)) => {
                return Err(SuspendError::Cannot(format!("{resource}: {why}")));
            }
            Err(error) => return Err(SuspendError::NotNow(format!("{resource}: {error}"))),
        }
    }
    Ok(movers)
}

/// Also moves the processes that were begun meanwhile. `looks` has all that may have been moved, also where that fails.
async fn move_out(inner: &Inner, occupant: &Occupant, looks: &mut Looks) -> Result<(), SuspendError> {
    loop {
        let all = processes(occupant.pid).map_err(|error| SuspendError::Failed(error.to_string()))?;
        if !looks.found(&all)? {
            return Ok(());
        }
        let mut moved = BTreeSet::new();
        for resource in occupant.devices.keys() {
            let now = carry(inner, resource, Way::Out, &all, ABSENCE_MAX).await;
            moved.extend(now.map_err(|error| not_moved(resource, &error))?);
        }
        if !looks.moved(&moved) {
            return Ok(());
        }
    }
}

/// Looks for processes that are to be moved, until one finds none that may have something yet.
#[derive(Debug, Default)]
struct Looks {
    made: usize,
    /// All processes that a plugin was asked to move, and those before the last look.
    asked: BTreeSet<Pid>,
    before: BTreeSet<Pid>,
}

impl Looks {
    /// Whether what a look found is to be moved.
    fn found(&mut self, all: &BTreeSet<Pid>) -> Result<bool, SuspendError> {
        if all.is_subset(&self.asked) {
            return Ok(false);
        }
        if self.made == LOOKS_MAX {
            return Err(SuspendError::NotNow("it begins new processes faster than they are moved".into()));
        }
        self.made += 1;
        self.before.clone_from(&self.asked);
        self.asked.extend(all);
        Ok(true)
    }

    /// These had something: whether there is to be another look. A shell that begins programs all the time has new ones at each,
    /// which have nothing.
    fn moved(&self, moved: &BTreeSet<Pid>) -> bool {
        self.made == 1 || !moved.is_subset(&self.before)
    }
}

fn not_moved(resource: &ResourceName, error: &AcceleratorError) -> SuspendError {
    let why = format!("{resource}: {error}");
    match error {
        AcceleratorError::Cannot(_) => SuspendError::Cannot(why),
        AcceleratorError::Absent(_) => SuspendError::NotNow(why),
        _ => SuspendError::Failed(why),
    }
}

/// Where what processes have goes.
#[derive(Clone, Copy)]
enum Way {
    Out,
    Back,
}

/// Has a resource's plugin move what the processes have, and gives those that have something. One that is not there is waited for,
/// for as long as `absence`.
async fn carry(
    inner: &Inner,
    resource: &ResourceName,
    way: Way,
    processes: &BTreeSet<Pid>,
    absence: Duration,
) -> Result<BTreeSet<Pid>, AcceleratorError> {
    let began = Instant::now();
    let none = || AcceleratorError::Cannot("this node has no device plugins".into());
    let allocator = inner.tools.devices.as_ref().ok_or_else(none)?;
    loop {
        let moved = match (allocator.accelerator(resource).await, way) {
            (Ok(mover), Way::Out) => mover.suspend(processes).await.map(|suspended| suspended.moved),
            (Ok(mover), Way::Back) => mover.resume(processes).await,
            (Err(error), _) => Err(error),
        };
        match moved {
            Err(AcceleratorError::Late(_)) if began.elapsed() < MOVE_MAX => {}
            Err(AcceleratorError::Absent(_)) if began.elapsed() < absence => {}
            moved => return moved,
        }
        tokio::time::sleep(MOVE_PAUSE).await;
    }
}

/// What the processes hold on devices. Who does not know how much that is has no room to promise.
async fn held_bytes(
    movers: &[(&ResourceName, Accelerator)],
    processes: &BTreeSet<Pid>,
) -> Result<u64, SuspendError> {
    let mut most = 0;
    for (resource, mover) in movers {
        let told = match mover.usage().await {
            Ok(mut usage) => usage.next().await,
            Err(error) => Err(error),
        };
        let told = told.map_err(|error| {
            let why = format!("{resource}: how much memory its processes hold is not told: {error}");
            match error {
                AcceleratorError::Cannot(_) => SuspendError::Cannot(why),
                _ => SuspendError::NotNow(why),
            }
        })?;
        // Plugins of several resources each tell of all processes.
        most = most.max(bytes_of(&told, processes).map_err(|Pid(pid)| {
            let why = format!("{resource}: how much memory process {pid} holds is not told");
            SuspendError::Cannot(why)
        })?);
    }
    Ok(most)
}

/// What the processes hold of all that is told, or the one of which that is not told.
fn bytes_of(told: &[Held], processes: &BTreeSet<Pid>) -> Result<u64, Pid> {
    let own = told.iter().filter(|held| processes.contains(&held.process));
    own.map(|held| held.bytes.ok_or(held.process)).sum()
}

/// Nothing of the instance is in the node's memory any more: it has the limit of its revision again.
async fn end_move(inner: &Inner, occupant: &Occupant) {
    let id = occupant.instance.clone();
    lock(&inner.moved).remove(&id);
    let end = Request::EndMove { id, memory_bytes: occupant.memory_limit };
    if let Err(error) = inner.tools.supervisor.call(end).await {
        tracing::warn!(instance = %occupant.instance, %error, "it may have more memory than its limit until it is moved again");
    }
}

/// All processes in the pid namespace of an instance's init.
fn processes(init: i32) -> io::Result<BTreeSet<Pid>> {
    let space = |process: &Path| fs::metadata(process.join("ns/pid")).map(|space| (space.dev(), space.ino()));
    let of_init = space(&Path::new("/proc").join(init.to_string()))?;
    let mut processes = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is in none.
        if space(&entry.path()).is_ok_and(|space| space == of_init) {
            processes.insert(Pid(pid));
        }
    }
    Ok(processes)
}

/// Bytes of memory that can be had without swapping.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_namespace_are_found() {
        let me = std::process::id();
        let found = processes(me.cast_signed()).unwrap();
        assert!(found.contains(&Pid(me)));
        assert!(processes(i32::MAX).is_err());
    }

    #[test]
    fn what_is_not_told_of_one_process_is_not_taken_for_nothing() {
        let held = |pid, bytes| Held { process: Pid(pid), device: "0".into(), bytes };
        let told = [held(1, Some(5)), held(1, Some(7)), held(2, Some(1)), held(3, None)];
        assert_eq!(bytes_of(&told, &[Pid(1), Pid(2), Pid(4)].into()), Ok(13));
        assert_eq!(bytes_of(&told, &[Pid(1), Pid(3)].into()), Err(Pid(3)));
    }

    /// Looks find these one after the other, the last again and again; of all, these have something. Whether it ends well.
    fn moves(found: &[&[u32]], having: &[u32]) -> (Result<(), SuspendError>, Looks) {
        let set = |pids: &[u32]| pids.iter().copied().map(Pid).collect::<BTreeSet<_>>();
        let mut looks = Looks::default();
        loop {
            let all = set(found[looks.made.min(found.len() - 1)]);
            match looks.found(&all) {
                Ok(true) if looks.moved(&all.intersection(&set(having)).copied().collect()) => {}
                Ok(_) => return (Ok(()), looks),
                Err(error) => return (Err(error), looks),
            }
        }
    }

    #[test]
    fn processes_that_are_begun_under_way_are_moved_and_brought_back_as_well() {
        for (found, looks_made) in [(&[&[1_u32, 3][..], &[1, 2]][..], 2), (&[&[1, 2, 3]], 1)] {
            let (result, looks) = moves(found, &[1, 2]);
            assert!(result.is_ok());
            assert_eq!((looks.asked, looks.made), ([1, 2, 3].map(Pid).into(), looks_made));
        }
    }

    #[test]
    fn a_function_whose_every_look_finds_something_new_is_not_taken_for_moved() {
        let all: Vec<u32> = (1..100).collect();
        let found: Vec<&[u32]> = (1..100).map(|count| &all[..count]).collect();
        let (result, looks) = moves(&found, &all);
        assert!(matches!(result, Err(SuspendError::NotNow(_))), "{result:?}");
        assert_eq!(looks.asked.len(), LOOKS_MAX, "all that was asked for comes back");
        // One that begins programs without anything on the device is moved when its own are.
        let (result, looks) = moves(&found, &[1]);
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(looks.made, 2);
    }

    #[test]
    fn the_node_says_how_much_memory_there_is() {
        assert!(available_memory().unwrap() > 0);
    }
}
