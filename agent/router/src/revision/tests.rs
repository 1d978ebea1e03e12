//! A revision's admission against the recorded decisions of Knative's breaker (`agent/core/tests/recorded/README.md`), and
//! against what must always hold.
//!
//! The recording knows one place with a capacity: here it is one instance that takes as many requests at a time, or none that
//! is ready. Which of several waiters starts is not compared: the recording says when one did, and as many must have been let go.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../../core/tests/kpa/recorded.rs"]
#[allow(dead_code, reason = "shared with other replays")]
mod recorded;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use tombolo_agent_core::activation::{HELD_BYTES_PER_NODE_MAX, HELD_PER_NODE_MAX};
use tombolo_agent_core::routes::Endpoint;
use tombolo_agent_core::supervision::InstanceId;

use super::*;
use crate::answer::Answer;
use crate::meter::Meter;

/// After the last line every waiter gets room this much later, milliseconds.
const END_AFTER_MS: u64 = 600_000;

fn number(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap()
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap()
}

fn instance(number: usize) -> Arc<Instance> {
    let instance = InstanceId(format!("i{number}"));
    Arc::new(Instance::new(Endpoint { instance, port: 8080 }))
}

/// A revision without a route table, and what its requests have got.
struct Admitting {
    revision: Arc<Revision>,
    /// Its demand for instances goes nowhere.
    _demand: mpsc::Receiver<RevisionKey>,
    target: Arc<Target>,
    /// Of the recording; `None`: the product's.
    admitted_max: Option<usize>,
    running: Vec<Slot>,
    waiting: VecDeque<Waiter>,
}

impl Admitting {
    fn new(admitted_max: Option<usize>) -> Self {
        let (demand, receiver) = mpsc::channel(1);
        let node = Arc::clone(&Meter::new().node);
        let revision = Arc::new(Revision::new(RevisionKey::new("default", "a"), node, demand));
        let target = Arc::new(removed());
        let (running, waiting) = (Vec::new(), VecDeque::new());
        Self { revision, _demand: receiver, target, admitted_max, running, waiting }
    }

    /// From now on these are ready; how many waiters start.
    fn put(&mut self, instances: &[Arc<Instance>], container_concurrency: usize) -> usize {
        let backend = Backend {
            ready: instances.iter().map(|instance| instance.endpoint.clone()).collect(),
            container_concurrency: container_concurrency as u32,
            ..(*removed().backend).clone()
        };
        let mut target = Target::new(Arc::new(backend), instances.into());
        target.admitted_max = self.admitted_max.unwrap_or(target.admitted_max);
        self.target = Arc::new(target);
        self.revision.retarget(Some(Arc::clone(&self.target)));
        self.started()
    }

    fn arrive(&mut self) -> &'static str {
        match self.revision.admit(&self.target, None, || 0) {
            Admission::Go(slot) => self.running.push(slot),
            Admission::Wait(waiter) => {
                self.waiting.push_back(waiter);
                return "waits";
            }
            Admission::Denied(Denial::Refused(Refusal::RevisionQueueFull)) => return "queue_full",
            Admission::Denied(denial) => panic!("{denial:?}"),
        }
        "runs"
    }

    /// A request that does not want to wait; whether it runs.
    fn reserve(&mut self) -> bool {
        let slot = self.revision.reserve(&self.target, None);
        let runs = slot.is_some();
        self.running.extend(slot);
        runs
    }

    /// Some running request ends; how many waiters start.
    fn finish(&mut self, which: usize) -> usize {
        drop(self.running.swap_remove(which));
        self.started()
    }

    /// Some waiting request gives up.
    fn abandon(&mut self, which: usize) {
        drop(self.waiting.remove(which).unwrap());
    }

    /// Waiters that were let go since the last look. They run now.
    fn started(&mut self) -> usize {
        let before = self.running.len();
        while let Some(first) = self.waiting.front_mut()
            && let Ok(granted) = first.granted.try_recv()
        {
            self.running.push(granted.unwrap());
            self.waiting.pop_front();
        }
        assert_eq!(self.waiting.len(), self.revision.held(), "whoever waits longest is let go first");
        self.running.len() - before
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// Before [`Later::Deadline`] at the same time.
    Ends,
    Deadline,
}

/// One recorded breaker, replayed line by line.
struct Replay {
    admitting: Admitting,
    instance: Arc<Instance>,
    capacity: usize,
    max_concurrency: usize,
    now_ms: u64,
    /// Ends and deadlines to come, the earliest on top.
    later: BinaryHeap<Reverse<(u64, Later)>>,
    /// Waiters that were let go and that the recording started, by time.
    let_go: BTreeMap<u64, usize>,
    started: BTreeMap<u64, usize>,
}

impl Replay {
    fn new(line: &Value) -> Self {
        let max_concurrency = number(line, "max_concurrency") as usize;
        let mut replay = Self {
            admitting: Admitting::new(Some(number(line, "queue_depth") as usize + max_concurrency)),
            instance: instance(0),
            capacity: 0,
            max_concurrency,
            now_ms: 0,
            later: BinaryHeap::new(),
            let_go: BTreeMap::new(),
            started: BTreeMap::new(),
        };
        replay.set_capacity(0, number(line, "initial_capacity") as usize);
        replay
    }

    fn set_capacity(&mut self, at_ms: u64, capacity: usize) {
        self.capacity = capacity;
        let ready = if capacity == 0 { &[][..] } else { std::slice::from_ref(&self.instance) };
        // An instance that takes none at a time is one that is not ready: 0 stands for no limit.
        let started = self.admitting.put(ready, capacity.max(1));
        self.let_go(at_ms, started);
    }

    fn let_go(&mut self, at_ms: u64, count: usize) {
        if count > 0 {
            *self.let_go.entry(at_ms).or_default() += count;
        }
    }

    fn advance(&mut self, to_ms: u64) {
        while let Some(&Reverse((at_ms, what))) = self.later.peek()
            && at_ms <= to_ms
        {
            self.later.pop();
            match what {
                Later::Ends => {
                    let started = self.admitting.finish(0);
                    self.let_go(at_ms, started);
                }
                Later::Deadline => self.admitting.abandon(self.admitting.waiting.len() - 1),
            }
        }
        self.now_ms = to_ms;
    }

    fn line(&mut self, line: &Value) {
        let at_ms = line.get("arrive_ms").or_else(|| line.get("at_ms")).and_then(Value::as_u64).unwrap();
        self.advance(at_ms);
        match text(line, "k") {
            "req" => self.request(line),
            "reserve" => {
                let runs = self.admitting.reserve();
                assert_eq!(runs, line["ok"].as_bool().unwrap(), "{line}");
                if runs {
                    self.later.push(Reverse((at_ms + number(line, "duration_ms"), Later::Ends)));
                }
            }
            "capacity" => self.set_capacity(at_ms, number(line, "capacity") as usize),
            "state" => {
                let executing = self.instance.load() as usize;
                let counts = [executing + self.admitting.revision.held(), executing, self.capacity];
                let recorded = ["in_flight", "executing", "capacity"].map(|key| number(line, key) as usize);
                assert_eq!(counts, recorded, "{line}");
            }
            other => panic!("unknown line {other}"),
        }
    }

    fn request(&mut self, line: &Value) {
        let ours = self.admitting.arrive();
        match text(line, "result") {
            "queue_full" => assert_eq!(ours, "queue_full", "{line}"),
            "deadline" => {
                assert_eq!(ours, "waits", "{line}");
                let deadline_ms = self.now_ms + number(line, "timeout_ms");
                self.later.push(Reverse((deadline_ms, Later::Deadline)));
            }
            "ok" => {
                let start_ms = number(line, "start_ms");
                let at_once = start_ms == self.now_ms;
                assert_eq!(ours, if at_once { "runs" } else { "waits" }, "{line}");
                if !at_once {
                    *self.started.entry(start_ms).or_default() += 1;
                }
                self.later.push(Reverse((number(line, "end_ms"), Later::Ends)));
            }
            other => panic!("unknown result {other}"),
        }
    }

    fn end(mut self) {
        let end_ms = self.now_ms + END_AFTER_MS;
        self.advance(end_ms - 1);
        self.set_capacity(end_ms, self.max_concurrency.max(1));
        self.advance(u64::MAX);
        assert_eq!(self.let_go, self.started);
        assert_eq!((self.instance.load(), self.admitting.revision.held()), (0, 0));
    }
}

#[test]
fn replays_the_recorded_breaker() {
    let mut replay: Option<Replay> = None;
    let (mut scenarios, mut counted) = (0, 0);
    for line in recorded::lines("breaker") {
        if text(&line, "k") == "scenario" {
            replay.replace(Replay::new(&line)).into_iter().for_each(Replay::end);
            scenarios += 1;
        } else {
            replay.as_mut().unwrap().line(&line);
            counted += 1;
        }
    }
    replay.unwrap().end();
    recorded::assert_replayed([scenarios, counted], [46, 5172]);
}

/// Counts who was woken.
#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(&self, _: &InstanceId) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        true
    }
}

#[test]
fn of_those_who_enter_a_frozen_instance_at_once_exactly_one_wakes_it() {
    const ROUNDS: usize = 20_000;
    let (meter, alarm) = (Meter::new(), Arc::new(Alarm::default()));
    assert!(meter.node.wake.set(alarm.clone()).is_ok());
    let (demand, _receiver) = mpsc::channel(1);
    let revision = Arc::new(Revision::new(RevisionKey::new("default", "a"), Arc::clone(&meter.node), demand));
    let frozen = instance(0);
    let backend =
        Backend { standby: vec![frozen.endpoint.clone()], unavailable: None, ..(*removed().backend).clone() };
    let target = Target::new(Arc::new(backend), [Arc::clone(&frozen)].into());
    // Both come to a round together.
    let arrived = AtomicUsize::new(0);
    let meet = |times: usize| {
        arrived.fetch_add(1, Ordering::SeqCst);
        for turn in 0_u32.. {
            match arrived.load(Ordering::SeqCst) < 2 * times {
                false => break,
                // At the very same time only if neither sleeps, and a busy machine has no core for both.
                true if turn < 2_000 => std::hint::spin_loop(),
                true => std::thread::yield_now(),
            }
        }
    };
    let come = || {
        for round in 0..ROUNDS {
            meet(2 * round + 1);
            let slot = revision.enter(&target, None);
            meet(2 * round + 2);
            assert_eq!(alarm.0.load(Ordering::SeqCst), round + 1, "nobody, or both, woke it");
            drop(slot);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(come);
        scope.spawn(come);
    });
}

/// With any number of instances that come, go and come back.
#[test]
fn nobody_waits_while_there_is_room_and_nobody_is_lost() {
    let steps = prop::collection::vec((0..5u8, 0..16usize), 0..200);
    TestRunner::default()
        .run(&(0..8usize, 1..4usize, steps), |(admitted_max, concurrency, steps)| {
            let all: Vec<_> = (0..4).map(instance).collect();
            let mut ready: Vec<_> = all[..2].to_vec();
            let mut admitting = Admitting::new(Some(admitted_max));
            admitting.put(&ready, concurrency);
            for (step, value) in steps {
                let (running, waiting) = (admitting.running.len(), admitting.waiting.len());
                let (mut ended, mut left, mut came) = (0, 0, 0);
                match step {
                    0 => {
                        let free = ready.iter().any(|instance| (instance.load() as usize) < concurrency);
                        let full = running + waiting >= admitted_max;
                        let expected = match (free, full) {
                            (true, _) => "runs",
                            (false, true) => "queue_full",
                            (false, false) => "waits",
                        };
                        prop_assert_eq!(admitting.arrive(), expected);
                        came = usize::from(expected != "queue_full");
                    }
                    1 if running > 0 => {
                        admitting.finish(value % running);
                        ended = 1;
                    }
                    2 => {
                        ready =
                            (0..4).filter(|bit| value >> bit & 1 == 1).map(|i| Arc::clone(&all[i])).collect();
                        admitting.put(&ready, concurrency);
                    }
                    3 if waiting > 0 => {
                        admitting.abandon(value % waiting);
                        left = 1;
                    }
                    4 => came = usize::from(admitting.reserve()),
                    _ => continue,
                }
                let there = admitting.running.len() + admitting.waiting.len();
                prop_assert_eq!(there, running + waiting + came - ended - left);
                let load = |instance: &Arc<Instance>| instance.load() as usize;
                prop_assert_eq!(all.iter().map(load).sum::<usize>(), admitting.running.len());
                prop_assert!(all.iter().all(|instance| load(instance) <= concurrency));
                let busy = ready.iter().all(|instance| load(instance) == concurrency);
                prop_assert!(admitting.waiting.is_empty() || busy);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn whoever_was_drawn_before_a_revision_left_is_told_that_it_did() {
    let mut admitting = Admitting::new(None);
    admitting.put(&[], 1);
    assert_eq!(admitting.arrive(), "waits");
    admitting.revision.retarget(None);
    let held = admitting.waiting[0].granted.try_recv().unwrap();
    assert!(matches!(held, Err(Denial::Removed)));
    // By the table that was in force until now.
    let late = admitting.revision.admit(&admitting.target, None, || 0);
    assert!(matches!(late, Admission::Denied(Denial::Removed)));
    assert_eq!(admitting.revision.tally.refused[Refused::Unavailable as usize].load(Ordering::Relaxed), 0);
    admitting.waiting.clear();
    admitting.put(&[instance(1)], 1);
    assert_eq!(admitting.arrive(), "runs", "it came back");
}

/// Two revisions fill what the node holds, by number or by bytes; a third one, with all its own room left, is told why.
#[test]
fn a_full_node_refuses_whoever_comes_next() {
    const MIB: usize = 1 << 20;
    let backend = Backend { unavailable: None, ..(*removed().backend).clone() };
    let target = Arc::new(Target::new(Arc::new(backend), Box::default()));
    for (count, bytes, why) in [
        (HELD_PER_NODE_MAX / 2, 0, Refused::NodeQueueFull),
        (HELD_BYTES_PER_NODE_MAX / 2 / MIB, MIB, Refused::NodeBytesFull),
    ] {
        let meter = Meter::new();
        let (demand, _demand) = mpsc::channel(1);
        let admit = |name: &str| {
            let revision = meter.find_revision(&RevisionKey::new("default", name), &demand);
            revision.retarget(Some(Arc::clone(&target)));
            revision.admit(&target, None, || bytes)
        };
        let held: Vec<_> = ["a", "b"].into_iter().flat_map(|name| vec![name; count]).map(admit).collect();
        assert!(held.iter().all(|admission| matches!(admission, Admission::Wait(_))), "{why:?}");
        assert_eq!((meter.held(), meter.held_bytes()), (2 * count, 2 * count * bytes));
        let Admission::Denied(Denial::Refused(refusal)) = admit("c") else {
            panic!("{why:?}: the node is full")
        };
        assert_eq!(refused(&refusal), why);
        let told = Answer::refused(&RevisionKey::new("default", "c"), refusal).into_response();
        assert_eq!(told.status(), 503);
        assert_eq!(told.headers()["x-tombolo-reason"], why.word());
        let shown = crate::render_metrics(&meter.snapshot());
        let labels = format!("namespace=\"default\",revision=\"c\",reason=\"{}\"", why.word());
        let line = format!("tombolo_requests_refused_total{{{labels}}} 1");
        assert!(shown.lines().any(|seen| seen == line), "{line}\n{shown}");
        drop(held);
        assert_eq!((meter.held(), meter.held_bytes()), (0, 0));
        assert!(matches!(admit("c"), Admission::Wait(_)), "there is room again");
    }
}
