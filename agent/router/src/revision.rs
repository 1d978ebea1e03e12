//! A revision as the router holds it: its counters, and the requests that wait for an instance.
//!
//! Waiting requests are served in order: a slot that becomes free is handed to the one that waits longest. What is decided
//! about a request is `tombolo_agent_core::activation`'s; here it is carried out. It must not know HTTP or connections.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tombolo_agent_core::activation::{Decision, Held, Refusal, View, decide};
use tombolo_agent_core::routes::{Backend, Unavailable};
use tombolo_api::RevisionKey;

use crate::instance::Instance;
use crate::random;

/// How often a decision is repeated because the chosen instance filled up or left meanwhile; then the request waits in line.
const RACES_MAX: u32 = 4;

/// Counters of the whole node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) start: Instant,
    pub(crate) held: AtomicUsize,
    /// Told whenever the table in force changed or a leaving instance served its last request.
    pub(crate) settled: Notify,
}

/// What a route table says of a revision, with its instances found.
pub(crate) struct Target {
    pub(crate) backend: Arc<Backend>,
    pub(crate) instances: Box<[Arc<Instance>]>,
}

/// Counters and queue of one revision, the same over all tables.
pub(crate) struct Revision {
    pub(crate) key: RevisionKey,
    pub(crate) counts: Counts,
    queue: Mutex<Queue>,
    /// Length of the queue, to be read without its lock.
    waiting: AtomicUsize,
    node: Arc<Node>,
    demand: mpsc::Sender<RevisionKey>,
}

/// What is counted of a revision.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) in_flight: AtomicUsize,
    /// Milliseconds after the node's start, plus one; 0: there was none.
    last_activity_ms: AtomicU64,
    /// By first digit of the status, from 1.
    pub(crate) answers: [AtomicU64; 5],
    /// Requests whose client left before the answer.
    pub(crate) abandoned: AtomicU64,
}

struct Queue {
    waiters: VecDeque<(u64, oneshot::Sender<Result<Slot, Refusal>>)>,
    next: u64,
    target: Arc<Target>,
    /// An instance was asked for and none has been seen since.
    asked: bool,
}

/// The right to have one request at an instance. Given back when dropped.
pub(crate) struct Slot {
    revision: Arc<Revision>,
    pub(crate) instance: Arc<Instance>,
    returned: AtomicBool,
}

/// A place in the queue. Left when dropped.
pub(crate) struct Waiter {
    revision: Arc<Revision>,
    number: u64,
    granted: oneshot::Receiver<Result<Slot, Refusal>>,
}

/// What became of the wish to be forwarded.
pub(crate) enum Admission {
    Go(Slot),
    Wait(Waiter),
    Refused(Refusal),
}

impl Revision {
    pub(crate) fn new(key: RevisionKey, node: Arc<Node>, demand: mpsc::Sender<RevisionKey>) -> Self {
        let queue = Queue { waiters: VecDeque::new(), next: 0, target: Arc::new(removed()), asked: false };
        let counts = Counts::default();
        Self { key, counts, queue: Mutex::new(queue), waiting: AtomicUsize::new(0), node, demand }
    }

    /// Requests that wait for an instance.
    pub(crate) fn held(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn last_activity(&self) -> Option<Instant> {
        let after_ms = self.counts.last_activity_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.node.start + Duration::from_millis(after_ms))
    }

    pub(crate) fn touch(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.node.start).as_millis() as u64 + 1;
        // Mostly the millisecond is known already, and the cache line need not be taken from other cores.
        if self.counts.last_activity_ms.load(Ordering::Relaxed) < elapsed {
            self.counts.last_activity_ms.fetch_max(elapsed, Ordering::Relaxed);
        }
    }

    /// A new table is in force, or the revision left it (`None`): serve or refuse those who wait.
    pub(crate) fn retarget(self: &Arc<Self>, target: Option<Arc<Target>>) {
        let mut queue = self.lock();
        let had_instances = !queue.target.instances.is_empty();
        queue.target = target.unwrap_or_else(|| Arc::new(removed()));
        self.dispatch(&mut queue);
        if !queue.target.instances.is_empty() {
            queue.asked = false;
        } else if had_instances && !queue.waiters.is_empty() {
            self.ask(&mut queue);
        }
    }

    /// Find a request an instance, or a place in the queue. `avoid`: an instance that just failed it.
    pub(crate) fn admit(self: &Arc<Self>, target: &Target, avoid: Option<&Arc<Instance>>) -> Admission {
        let in_line = target.backend.container_concurrency > 0 && self.waiting.load(Ordering::SeqCst) > 0;
        if !in_line && let Ok(slot) = self.try_enter(target, avoid, Held::default()) {
            return Admission::Go(slot);
        }
        self.enqueue()
    }

    fn enqueue(self: &Arc<Self>) -> Admission {
        let mut queue = self.lock();
        let held = Held { revision: queue.waiters.len(), node: self.node.held.load(Ordering::Relaxed) };
        let target = Arc::clone(&queue.target);
        match self.try_enter(&target, None, held) {
            // With others before it a slot is theirs; `dispatch` below hands it out.
            Ok(slot) if queue.waiters.is_empty() => return Admission::Go(slot),
            Ok(slot) => slot.cancel(),
            Err(Decision::Refuse(refusal)) => return Admission::Refused(refusal),
            Err(Decision::Hold(_) | Decision::Forward(_)) => {}
        }
        let (grant, granted) = oneshot::channel();
        let number = queue.next;
        queue.next += 1;
        queue.waiters.push_back((number, grant));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.node.held.fetch_add(1, Ordering::Relaxed);
        self.ask(&mut queue);
        // A slot that became free before this request was counted as waiting is seen here.
        self.dispatch(&mut queue);
        Admission::Wait(Waiter { revision: Arc::clone(self), number, granted })
    }

    /// Enter an instance, or learn why not. `Err(Forward)`: lost too many races.
    fn try_enter(
        self: &Arc<Self>,
        target: &Target,
        avoid: Option<&Arc<Instance>>,
        held: Held,
    ) -> Result<Slot, Decision> {
        let mut races = 0;
        loop {
            let load = |index: usize| {
                let instance = &target.instances[index];
                if avoid.is_some_and(|avoid| Arc::ptr_eq(avoid, instance)) {
                    None
                } else {
                    instance.open_load()
                }
            };
            let decision = decide(&View { backend: &target.backend, load, held, random: random::bits() });
            let Decision::Forward(index) = decision else { return Err(decision) };
            if target.instances[index].enter(target.backend.container_concurrency) {
                return Ok(Slot::new(Arc::clone(self), Arc::clone(&target.instances[index])));
            }
            races += 1;
            if races > RACES_MAX {
                return Err(decision);
            }
        }
    }

    /// Hand out what is free, longest wait first.
    fn dispatch(self: &Arc<Self>, queue: &mut Queue) {
        let target = Arc::clone(&queue.target);
        while !queue.waiters.is_empty() {
            let grant = match self.try_enter(&target, None, Held::default()) {
                Ok(slot) => Ok(slot),
                Err(Decision::Refuse(refusal)) => Err(refusal),
                Err(Decision::Hold(_)) => return,
                Err(Decision::Forward(_)) => continue,
            };
            let Some((_, waiter)) = queue.waiters.pop_front() else { return };
            self.left_queue(queue);
            if let Err(Ok(slot)) = waiter.send(grant) {
                slot.cancel();
            }
        }
    }

    fn left_queue(&self, queue: &mut Queue) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.node.held.fetch_sub(1, Ordering::Relaxed);
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

impl Slot {
    fn new(revision: Arc<Revision>, instance: Arc<Instance>) -> Self {
        revision.counts.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { revision, instance, returned: AtomicBool::new(false) }
    }

    pub(crate) fn revision(&self) -> &Arc<Revision> {
        &self.revision
    }

    /// Give back without handing on, for a caller that holds the queue and hands on itself.
    fn cancel(self) {
        self.give_back();
        self.returned.store(true, Ordering::Relaxed);
    }

    fn give_back(&self) {
        self.revision.counts.in_flight.fetch_sub(1, Ordering::Relaxed);
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
    pub(crate) async fn granted(&mut self) -> Result<Slot, Refusal> {
        // The sender lives in the queue as long as this waiter does, unless it was used.
        (&mut self.granted).await.unwrap_or_else(|_| Err(removed_refusal()))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queue = self.revision.lock();
        if let Ok(index) = queue.waiters.binary_search_by_key(&self.number, |(number, _)| *number) {
            let left = queue.waiters.remove(index);
            self.revision.left_queue(&mut queue);
            drop(left);
        }
        // A slot granted meanwhile is dropped with `granted`, after the lock, and goes to the next in line.
    }
}

/// What a revision is without a place in the table.
fn removed() -> Target {
    let unavailable = Unavailable {
        reason: "RevisionRemoved".into(),
        message: "the revision no longer belongs to this node".into(),
    };
    let backend = Backend {
        ready: Vec::new(),
        unavailable: Some(unavailable),
        h2c: false,
        container_concurrency: 0,
        timeout_ms: 0,
        response_start_timeout_ms: 0,
        idle_timeout_ms: 0,
    };
    Target { backend: Arc::new(backend), instances: Box::default() }
}

fn removed_refusal() -> Refusal {
    Refusal::Unavailable(Unavailable { reason: "RevisionRemoved".into(), message: "the router stops".into() })
}
