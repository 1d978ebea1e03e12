//! The recorded decisions of Knative's breaker, see `recorded/README.md`. Which of several waiters starts is not compared: the
//! recording says when one did, and the breaker must have let as many go then.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "kpa/recorded.rs"]
#[allow(dead_code, reason = "shared with other replays")]
mod recorded;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use serde_json::Value;
use tombolo_agent_core::breaker::{Admission, Breaker};

/// After the last line every waiter gets room this much later, milliseconds.
const END_AFTER_MS: u64 = 600_000;

fn number(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap()
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    /// Before [`Later::Deadline`] at the same time.
    Ends,
    Deadline,
}

/// One recorded breaker, replayed line by line.
struct Replay {
    breaker: Breaker,
    max_concurrency: usize,
    now_ms: u64,
    /// Ends and deadlines to come, the earliest on top.
    later: BinaryHeap<Reverse<(u64, Later)>>,
    /// Waiters that the breaker let go and that the recording started, by time.
    let_go: BTreeMap<u64, usize>,
    started: BTreeMap<u64, usize>,
}

impl Replay {
    fn new(line: &Value) -> Self {
        let max_concurrency = number(line, "max_concurrency") as usize;
        let capacity = number(line, "initial_capacity") as usize;
        Self {
            breaker: Breaker::new(number(line, "queue_depth") as usize, max_concurrency, capacity),
            max_concurrency,
            now_ms: 0,
            later: BinaryHeap::new(),
            let_go: BTreeMap::new(),
            started: BTreeMap::new(),
        }
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
                    let started = self.breaker.finish();
                    self.let_go(at_ms, started);
                }
                Later::Deadline => self.breaker.abandon(),
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
                let free = self.breaker.reserve();
                assert_eq!(free, line["ok"].as_bool().unwrap(), "{line}");
                if free {
                    self.later.push(Reverse((at_ms + number(line, "duration_ms"), Later::Ends)));
                }
            }
            "capacity" => {
                let started = self.breaker.set_capacity(number(line, "capacity") as usize);
                self.let_go(at_ms, started);
            }
            "state" => {
                let counts = (self.breaker.in_flight(), self.breaker.executing(), self.breaker.capacity());
                let recorded = ["in_flight", "executing", "capacity"].map(|key| number(line, key) as usize);
                assert_eq!(counts, recorded.into(), "{line}");
            }
            other => panic!("unknown line {other}"),
        }
    }

    fn request(&mut self, line: &Value) {
        let admission = self.breaker.arrive();
        match text(line, "result") {
            "queue_full" => assert_eq!(admission, Admission::Full, "{line}"),
            "deadline" => {
                assert_eq!(admission, Admission::Queue, "{line}");
                let deadline_ms = self.now_ms + number(line, "timeout_ms");
                self.later.push(Reverse((deadline_ms, Later::Deadline)));
            }
            "ok" => {
                let start_ms = number(line, "start_ms");
                let at_once = start_ms == self.now_ms;
                assert_eq!(admission, if at_once { Admission::Admit } else { Admission::Queue }, "{line}");
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
        let started = self.breaker.set_capacity(self.max_concurrency.max(1));
        self.let_go(end_ms, started);
        self.advance(u64::MAX);
        assert_eq!(self.let_go, self.started);
        assert_eq!(self.breaker.in_flight(), 0);
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

#[test]
fn nobody_waits_while_there_is_room_and_nobody_is_lost() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    let steps = prop::collection::vec((0..5u8, 0..4usize), 0..200);
    TestRunner::default()
        .run(&(0..4usize, 0..4usize, steps), |(depth, concurrency, steps)| {
            let mut breaker = Breaker::new(depth, concurrency, concurrency);
            for (step, value) in steps {
                let (running, waiting) = (breaker.executing(), breaker.waiting());
                let started = match step {
                    0 => {
                        let full = running + waiting >= depth + concurrency;
                        prop_assert_eq!(breaker.arrive() == Admission::Full, full);
                        continue;
                    }
                    1 if running > 0 => breaker.finish() as isize - 1,
                    2 => breaker.set_capacity(value) as isize,
                    3 if waiting > 0 => {
                        breaker.abandon();
                        prop_assert_eq!(breaker.waiting(), waiting - 1);
                        0
                    }
                    4 => isize::from(breaker.reserve()),
                    _ => continue,
                };
                prop_assert_eq!(breaker.executing() as isize, running as isize + started);
                prop_assert!(breaker.waiting() == 0 || breaker.executing() >= breaker.capacity());
            }
            Ok(())
        })
        .unwrap();
}
