//! A revision as the router holds it: the requests that wait for an instance.
//!
//! Waiting requests are served in order: a slot that becomes free is handed to the one that waits longest. What is decided
//! about a request is `tombolo_agent_core::activation`'s; here it is carried out. It must not know HTTP or connections.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tombolo_agent_core::activation::{self, Held, Hold, Line, Refusal};
use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::routes::{Backend, Unavailable};
use tombolo_api::RevisionKey;

use crate::activations::{Activations, Stage};
use crate::instance::Instance;
use crate::random;
use crate::sample::Refused;
use crate::tally::Tally;
use crate::wake::Wake;

/// How often an instance is chosen again because the chosen one filled up or left meanwhile; then the request waits in line.
const RACES_MAX: u32 = 4;

/// Of [`Revision::calm`].
const NEVER: u32 = u32::MAX;

/// Counters of the whole node.
pub(crate) struct Node {
    pub(crate) start: Instant,
    pub(crate) held: AtomicUsize,
    pub(crate) held_bytes: AtomicUsize,
    /// How long a tunnel may stay at an instance that leaves.
    pub(crate) tunnel_grace: Duration,
    /// Without it, frozen instances are left to whoever hears of demand.
    pub(crate) wake: OnceLock<Arc<dyn Wake>>,
    /// Told whenever the table in force changed or a leaving instance served its last request.
    pub(crate) settled: Notify,
    pub(crate) activations: Arc<Activations>,
    /// Told when a request comes to more than its revision's [`Revision::set_calm`]; many are told as one.
    pub(crate) crowded: Notify,
}

/// What a route table says of a revision, with its instances found.
pub(crate) struct Target {
    pub(crate) backend: Arc<Backend>,
    /// Of the backend's takers.
    pub(crate) instances: Box<[Arc<Instance>]>,
    /// Most requests that run and wait together.
    admitted_max: usize,
    /// The table in force lacks the revision.
    is_removed: bool,
}

/// Counters and queue of one revision, the same over all tables.
pub(crate) struct Revision {
    pub(crate) key: RevisionKey,
    pub(crate) born: Instant,
    pub(crate) tally: Tally,
    queue: Mutex<Queue>,
    /// Length of the queue, to be read without its lock.
    waiting: AtomicUsize,
    /// Requests that may be here without anybody being told; [`NEVER`]: however many.
    calm: AtomicU32,
    node: Arc<Node>,
    demand: mpsc::Sender<RevisionKey>,
}

struct Queue {
    waiters: VecDeque<Waiting>,
    /// Of all waiters.
    bytes: usize,
    next: u64,
    target: Arc<Target>,
    /// Instances that left the target with requests.
    leaving: Vec<Arc<Instance>>,
    /// An instance was asked for and none has been seen since.
    asked: bool,
}

/// One in the queue.
struct Waiting {
    number: u64,
    bytes: usize,
    grant: oneshot::Sender<Result<Slot, Denial>>,
}

/// The right to have one request at an instance. Given back when dropped.
pub(crate) struct Slot {
    revision: Arc<Revision>,
    pub(crate) instance: Arc<Instance>,
    /// The instance was frozen, and is let go on for this request.
    woken: bool,
    returned: AtomicBool,
}

/// The end of the wait for a first instance, or a request that itself wakes one.
pub(crate) struct Release {
    at: Instant,
    /// What the instance was brought from.
    tier: IdleTier,
}

/// A place in the queue. Left when dropped.
pub(crate) struct Waiter {
    revision: Arc<Revision>,
    number: u64,
    granted: oneshot::Receiver<Result<Slot, Denial>>,
    /// When it began, if no instance was ready then.
    cold_since: Option<Instant>,
}

/// What became of the wish to be forwarded.
pub(crate) enum Admission {
    Go(Slot),
    Wait(Waiter),
    Denied(Denial),
}

/// Why a request gets no place here.
#[derive(Debug)]
pub(crate) enum Denial {
    Refused(Refusal),
    /// The revision left the table. Its requests belong to whatever took its place there.
    Removed,
}

impl Target {
    pub(crate) fn new(backend: Arc<Backend>, instances: Box<[Arc<Instance>]>) -> Self {
        let admitted_max = activation::admitted_max(&backend);
        Self { backend, instances, admitted_max, is_removed: false }
    }
}

impl Revision {
    pub(crate) fn new(key: RevisionKey, node: Arc<Node>, demand: mpsc::Sender<RevisionKey>) -> Self {
        let target = Arc::new(removed());
        let (waiters, leaving) = (VecDeque::new(), Vec::new());
        let queue = Queue { waiters, bytes: 0, next: 0, target, leaving, asked: false };
        let tally = Tally::new(node.start);
        let (queue, waiting, born) = (Mutex::new(queue), AtomicUsize::new(0), Instant::now());
        let calm = AtomicU32::new(NEVER);
        Self { key, born, tally, queue, waiting, calm, node, demand }
    }

    /// Tell of every request with which more than so many are here; `None`: of none.
    pub(crate) fn set_calm(&self, calm: Option<u32>) {
        // One that comes at this very moment may go by untold; the next one is told, or it is seen at the next tick.
        self.calm.store(calm.unwrap_or(NEVER), Ordering::Relaxed);
    }

    /// Requests that wait for an instance.
    pub(crate) fn held(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Bytes of the requests that wait.
    pub(crate) fn held_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Requests that came and are neither held nor ended.
    pub(crate) fn in_flight(&self) -> usize {
        // Read first: whoever stops waiting meanwhile is then not counted at all rather than twice.
        let present = self.tally.presence.count() as usize;
        present.saturating_sub(self.held())
    }

    /// What the revision became when a table last said exactly this of it.
    pub(crate) fn target_of(&self, backend: &Arc<Backend>) -> Option<Arc<Target>> {
        let queue = self.lock();
        let is_it = !queue.target.is_removed && queue.target.backend == *backend;
        is_it.then(|| Arc::clone(&queue.target))
    }

    /// What its requests wait for, beside an instance.
    pub(crate) fn awaits(&self) -> Option<Unavailable> {
        self.lock().target.backend.awaits.clone()
    }

    /// A new table says something else of it, or the revision left it (`None`): serve or turn away those who wait.
    pub(crate) fn retarget(self: &Arc<Self>, target: Option<Arc<Target>>) {
        let mut queue = self.lock();
        let had_instances = !queue.target.instances.is_empty();
        let target = target.unwrap_or_else(|| Arc::new(removed()));
        let before = std::mem::replace(&mut queue.target, Arc::clone(&target));
        queue.leaving.extend(before.instances.iter().cloned());
        let leaves = |left: &Arc<Instance>| !target.instances.iter().any(|here| Arc::ptr_eq(left, here));
        queue.leaving.retain(|left| left.load() > 0 && leaves(left));
        self.dispatch(&mut queue);
        if !queue.target.instances.is_empty() {
            queue.asked = false;
        } else if had_instances && !queue.waiters.is_empty() {
            self.ask(&mut queue);
        }
    }

    /// Find a request an instance, or a place in the queue. `avoid`: an instance that just failed it. `bytes`: what it holds of
    /// memory, asked for only if it has to wait.
    pub(crate) fn admit(
        self: &Arc<Self>,
        target: &Target,
        avoid: Option<&Arc<Instance>>,
        bytes: impl FnOnce() -> usize,
    ) -> Admission {
        self.tell_of_crowd();
        match self.reserve(target, avoid) {
            Some(slot) => Admission::Go(slot),
            None => self.enqueue(bytes()),
        }
    }

    /// A place that is free now, unless others wait for it.
    fn reserve(self: &Arc<Self>, target: &Target, avoid: Option<&Arc<Instance>>) -> Option<Slot> {
        let in_line = target.backend.container_concurrency > 0 && self.waiting.load(Ordering::SeqCst) > 0;
        if in_line { None } else { self.enter(target, avoid) }
    }

    /// The request that asks is counted already.
    fn tell_of_crowd(&self) {
        let calm = self.calm.load(Ordering::Relaxed);
        if calm != NEVER && self.tally.presence.count() > u64::from(calm) {
            self.node.crowded.notify_one();
        }
    }

    fn enqueue(self: &Arc<Self>, bytes: usize) -> Admission {
        let mut queue = self.lock();
        // A free place is theirs who wait.
        self.dispatch(&mut queue);
        let target = Arc::clone(&queue.target);
        if target.is_removed {
            return Admission::Denied(Denial::Removed);
        }
        if queue.waiters.is_empty()
            && let Some(slot) = self.enter(&target, None)
        {
            return Admission::Go(slot);
        }
        let (requests, node_bytes) = (&self.node.held, &self.node.held_bytes);
        let line = Line {
            backend: &target.backend,
            admitted_max: target.admitted_max,
            running: queue.running(),
            held: Held { requests: queue.waiters.len(), bytes: queue.bytes },
            held_on_node: Held {
                requests: requests.load(Ordering::Relaxed),
                bytes: node_bytes.load(Ordering::Relaxed),
            },
            bytes,
        };
        let hold = match activation::hold(&line) {
            Ok(hold) => hold,
            Err(refusal) => {
                self.tally.refused(refused(&refusal));
                return Admission::Denied(Denial::Refused(refusal));
            }
        };
        let cold_since = (hold == Hold::NoneReady).then(Instant::now);
        let (grant, granted) = oneshot::channel();
        let number = queue.next;
        queue.next += 1;
        queue.waiters.push_back(Waiting { number, bytes, grant });
        queue.bytes += bytes;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        requests.fetch_add(1, Ordering::Relaxed);
        node_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.ask(&mut queue);
        // A slot that became free before this request was counted as waiting is seen here.
        self.dispatch(&mut queue);
        Admission::Wait(Waiter { revision: Arc::clone(self), number, granted, cold_since })
    }

    /// Enter an instance that has a place. `None`: there is none, or too many races for it were lost.
    fn enter(self: &Arc<Self>, target: &Target, avoid: Option<&Arc<Instance>>) -> Option<Slot> {
        for _ in 0..=RACES_MAX {
            let load = |index: usize| {
                let instance = &target.instances[index];
                let is_avoided = avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, instance));
                if is_avoided { None } else { instance.open_load() }
            };
            let index = activation::choose(&target.backend, load, random::bits())?;
            if let Some(before) = target.instances[index].enter(target.backend.container_concurrency) {
                let woken = target.backend.ready.is_empty();
                let slot = Slot::new(Arc::clone(self), Arc::clone(&target.instances[index]), woken);
                // Whoever entered before has woken it; if in vain, the reconciler does, for it sees requests there.
                if woken && before == 0 && !self.wake(&slot.instance) {
                    slot.cancel();
                    return None;
                }
                return Some(slot);
            }
        }
        None
    }

    /// Let a frozen instance go on for a request that has entered it, and tell of it; whether it will.
    fn wake(&self, instance: &Instance) -> bool {
        let woken = self.node.wake.get().is_some_and(|wake| wake.wake(&instance.endpoint.instance));
        if woken {
            // A full channel is no loss, see `ask`.
            drop(self.demand.try_send(self.key.clone()));
        }
        woken
    }

    /// Hand out what is free, longest wait first. Whoever takes a place at the same time hands it out when giving it back.
    fn dispatch(self: &Arc<Self>, queue: &mut Queue) {
        let target = Arc::clone(&queue.target);
        while !queue.waiters.is_empty() {
            let grant = match (self.enter(&target, None), activation::in_vain(&target.backend)) {
                (Some(slot), _) => Ok(slot),
                (None, _) if target.is_removed => Err(Denial::Removed),
                (None, Some(unavailable)) => {
                    let refusal = Refusal::Unavailable(unavailable.clone());
                    self.tally.refused(refused(&refusal));
                    Err(Denial::Refused(refusal))
                }
                (None, None) => return,
            };
            let Some(first) = queue.waiters.pop_front() else { return };
            self.left_queue(queue, first.bytes);
            if let Err(Ok(slot)) = first.grant.send(grant) {
                slot.cancel();
            }
        }
    }

    /// The head of the answer to a request has come that waited for a first instance.
    pub(crate) fn answered(&self, release: &Release) {
        self.node.activations.add(release.tier, Stage::Forward, release.at.elapsed());
    }

    fn left_queue(&self, queue: &mut Queue, bytes: usize) {
        queue.bytes -= bytes;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.node.held.fetch_sub(1, Ordering::Relaxed);
        self.node.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if queue.waiters.is_empty() {
            queue.asked = false;
        }
    }

    /// Ask for an instance, or for more of them, once. A full channel is no loss: its reader also sees the number held, and the
    /// next request asks again.
    fn ask(&self, queue: &mut Queue) {
        if !queue.asked {
            queue.asked = self.demand.try_send(self.key.clone()).is_ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic under this lock")
    }
}

impl Queue {
    /// Requests at instances.
    fn running(&self) -> usize {
        self.target.instances.iter().chain(&self.leaving).map(|instance| instance.load() as usize).sum()
    }
}

impl Slot {
    fn new(revision: Arc<Revision>, instance: Arc<Instance>, woken: bool) -> Self {
        Self { revision, instance, woken, returned: AtomicBool::new(false) }
    }

    /// What a request that did not wait was released from, if that is known to have rested.
    pub(crate) fn release(&self) -> Option<Release> {
        self.woken.then(|| Release { at: Instant::now(), tier: IdleTier::Frozen })
    }

    /// The instance has brought an answer to its end that was none of failure.
    pub(crate) fn served(&self) {
        if self.instance.serve() {
            // Growth may wait for it. A full channel is no loss, see `ask`.
            drop(self.revision.demand.try_send(self.revision.key.clone()));
        }
    }

    /// Wait until whatever stays at the instance as long as it likes has to go.
    pub(crate) async fn overstayed(&self) {
        self.instance.leaving_for(self.revision.node.tunnel_grace).await;
    }

    /// Give back without handing on, for a caller that holds the queue and hands on itself.
    fn cancel(self) {
        self.give_back();
        self.returned.store(true, Ordering::Relaxed);
    }

    fn give_back(&self) {
        if self.instance.leave() {
            self.revision.node.settled.notify_waiters();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if *self.returned.get_mut() {
            return;
        }
        self.give_back();
        if self.revision.waiting.load(Ordering::SeqCst) > 0 {
            let mut queue = self.revision.lock();
            self.revision.dispatch(&mut queue);
        }
    }
}

impl Waiter {
    /// Wait for the turn. Must be bounded by the caller.
    pub(crate) async fn granted(&mut self) -> Result<(Slot, Option<Release>), Denial> {
        // The sender lives in the queue as long as this waiter does, unless it was used.
        let slot = (&mut self.granted).await.unwrap_or(Err(Denial::Removed))?;
        let release = self.cold_since.and_then(|since| {
            let (at, activations) = (Instant::now(), &self.revision.node.activations);
            self.revision.tally.cold_starts.add(at - since);
            let tier = activations.tier(&slot.instance.endpoint.instance)?;
            activations.add(tier, Stage::Hold, at - since);
            Some(Release { at, tier })
        });
        Ok((slot, release))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queue = self.revision.lock();
        if let Ok(index) = queue.waiters.binary_search_by_key(&self.number, |waiting| waiting.number)
            && let Some(left) = queue.waiters.remove(index)
        {
            self.revision.left_queue(&mut queue, left.bytes);
        }
        // A slot granted meanwhile is dropped with `granted`, after the lock, and goes to the next in line.
    }
}

/// What a revision is without a place in the table.
fn removed() -> Target {
    let backend = Backend {
        ready: Vec::new(),
        standby: Vec::new(),
        unavailable: None,
        awaits: None,
        h2c: false,
        container_concurrency: 0,
        timeout_ms: 0,
        response_start_timeout_ms: 0,
        idle_timeout_ms: 0,
    };
    Target { is_removed: true, ..Target::new(Arc::new(backend), Box::default()) }
}

fn refused(refusal: &Refusal) -> Refused {
    match refusal {
        Refusal::RevisionQueueFull => Refused::RevisionQueueFull,
        Refusal::RevisionBytesFull => Refused::RevisionBytesFull,
        Refusal::NodeQueueFull => Refused::NodeQueueFull,
        Refusal::NodeBytesFull => Refused::NodeBytesFull,
        Refusal::Unavailable(_) => Refused::Unavailable,
    }
}

#[cfg(test)]
mod tests;
