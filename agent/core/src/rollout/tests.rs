//! Rollouts on a node: tables of what should happen, and what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use tombolo_api::desired::{Desired, HealthGate, RevisionObject, RolloutSpec, RouteObject, RouteTarget};
use tombolo_api::serving::RevisionSpec;
use tombolo_api::{Digest, RevisionKey};

use super::gate::Health;
use super::state::LOOK_MS;
use super::*;

mod silence;
mod undone;

const GATE: HealthGate = HealthGate { max_error_percent: 5, max_latency_percent: 200, min_requests: 20 };

/// A node with one route, `r` in namespace `n`, whose clock and counters are wound by hand.
struct Node {
    desired: Desired,
    ready: BTreeSet<String>,
    health: BTreeMap<RevisionKey, Health>,
    now: Moment,
    rollouts: Rollouts,
}

fn key(name: &str) -> RevisionKey {
    RevisionKey::new("n", name)
}

fn target(percent: u8, tag: &str, candidates: &[&str]) -> RouteTarget {
    RouteTarget {
        percent,
        candidates: candidates.iter().map(|&name| name.to_owned()).collect(),
        hosts: Vec::new(),
        tag: tag.to_owned(),
        configuration: "c".to_owned(),
    }
}

impl Node {
    /// Revision `a` is ready and served.
    fn new(duration_s: u64, gate: Option<HealthGate>) -> Self {
        let route = RouteObject {
            namespace: "n".into(),
            name: "r".into(),
            hosts: vec!["r.example".into()],
            targets: vec![target(100, "", &["a"])],
            steering: Vec::new(),
            rollout: Some(RolloutSpec { duration_s, gate }),
        };
        let mut node = Self {
            desired: Desired::default(),
            ready: BTreeSet::new(),
            health: BTreeMap::new(),
            now: Moment(1_000_000),
            rollouts: Rollouts::default(),
        };
        node.desired.routes.insert(("n".into(), "r".into()), Arc::new(route));
        node.has(&["a"]);
        node.step();
        node
    }

    fn route(&mut self) -> &mut RouteObject {
        Arc::make_mut(self.desired.routes.values_mut().next().unwrap())
    }

    fn add(&mut self, name: &str, content: &str) {
        let object = RevisionObject {
            namespace: "n".into(),
            name: name.to_owned(),
            uid: String::new(),
            service: String::new(),
            configuration: "c".into(),
            annotations: BTreeMap::new(),
            spec: RevisionSpec::default(),
            verification: None,
        };
        self.desired.revisions.insert(key(name), (Digest::of(content.as_bytes()), object.into()));
    }

    /// These revisions are on the node and ready, and candidates, the first preferred.
    fn has(&mut self, names: &[&str]) {
        self.desired.revisions.clear();
        for name in names {
            self.add(name, name);
            self.ready.insert((*name).to_owned());
        }
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        for target in &mut self.route().targets {
            target.candidates.clone_from(&names);
        }
    }

    fn step(&mut self) -> Stepped {
        let ready = self.ready.clone();
        let is_ready = |key: &RevisionKey| ready.contains(&*key.name);
        self.rollouts.step(&self.desired, is_ready, &self.health, self.now)
    }

    /// Winds the clock and steps.
    fn after(&mut self, ms: u64) -> Stepped {
        self.now = self.now.after(ms);
        self.step()
    }

    fn answers(&mut self, name: &str, answers: u64, errors: u64, mean_ms: f64) {
        let health = self.health.entry(key(name)).or_default();
        health.answers += answers;
        health.errors += errors;
        health.latency_sum_ms += answers as f64 * mean_ms;
    }

    /// Stores, stops and starts the agent: its monotonic clock and its counters begin anew.
    fn restart(&mut self) {
        self.rollouts = Rollouts::decode(&self.rollouts.encode()).unwrap();
        self.health.clear();
        self.now = Moment(5);
    }

    fn shares(&self) -> String {
        let route = self.desired.routes.values().next().unwrap();
        self.rollouts.shares(route, &route.targets[0]).map_or("none".into(), |shares| text(&shares))
    }

    fn report(&self) -> TargetReport {
        self.report_of_any().unwrap()
    }

    /// `None` without a rollout.
    fn report_of_any(&self) -> Option<TargetReport> {
        self.rollouts.report(&self.desired).first().map(|report| report.targets[0].clone())
    }

    /// Follows the wakes until there are none; what was served in between.
    fn run(&mut self) -> Vec<String> {
        let mut seen = vec![self.shares()];
        let mut wake = self.step().wake;
        while let Some(at) = wake {
            assert!(at > self.now, "a wake is in the future");
            self.now = at;
            wake = self.step().wake;
            if seen.last() != Some(&self.shares()) {
                seen.push(self.shares());
            }
            assert!(seen.len() < 200, "{seen:?}");
        }
        seen
    }
}

fn text(shares: &[Share]) -> String {
    let parts: Vec<_> = shares.iter().map(|share| format!("{} {}", share.revision, share.percent)).collect();
    parts.join(", ")
}

#[test]
fn the_first_revision_gets_all_at_once() {
    let mut node = Node::new(60, Some(GATE));
    assert_eq!(node.shares(), "a 100");
    assert_eq!(node.step(), Stepped::default());
}

#[test]
fn the_next_revision_begins_with_one_percent_and_gets_equal_steps() {
    let mut node = Node::new(5, None);
    node.has(&["b", "a"]);
    let started = node.step();
    assert_eq!((node.shares(), started.save), ("a 99, b 1".into(), true));
    assert_eq!(started.wake, Some(node.now.after(1_000)));
    let due = started.wake;
    assert_eq!(node.after(999), Stepped { wake: due, save: false });
    node.after(1);
    let seen = node.run();
    assert_eq!(seen, ["a 74, b 26", "a 49, b 51", "a 24, b 76", "b 100"]);
    assert_eq!(node.report().goal, "b");
}

#[test]
fn a_revision_that_is_not_ready_gets_nothing() {
    let mut node = Node::new(60, None);
    node.has(&["b", "a"]);
    node.ready.remove("b");
    node.step();
    assert_eq!(node.shares(), "a 100");
    node.ready.insert("b".into());
    node.step();
    assert_eq!(node.shares(), "a 99, b 1");
}

#[test]
fn nothing_is_held_back_for_a_former_revision_that_cannot_serve() {
    let mut node = Node::new(60, None);
    node.has(&["b", "a"]);
    node.ready.remove("a");
    node.step();
    assert_eq!(node.shares(), "b 100");
}

#[test]
fn without_a_rollout_all_goes_at_once() {
    let mut node = Node::new(60, None);
    node.has(&["b", "a"]);
    node.step();
    node.route().rollout = None;
    assert!(node.step().save);
    assert_eq!(node.shares(), "b 100");
    node.has(&["c", "b"]);
    node.step();
    assert_eq!(node.shares(), "c 100");
    assert_eq!(node.rollouts.report(&node.desired), []);
}

#[test]
fn a_newer_revision_drains_the_newest_of_the_others_first() {
    let mut node = Node::new(5, None);
    node.has(&["b", "a"]);
    node.step();
    node.after(1_000);
    node.has(&["c", "b", "a"]);
    node.step();
    assert_eq!(node.shares(), "a 74, b 25, c 1");
    assert_eq!(node.run(), ["a 74, b 25, c 1", "a 74, c 26", "a 49, c 51", "a 24, c 76", "c 100"]);
}

#[test]
fn a_rollout_ends_at_once_when_a_side_of_it_leaves() {
    for (rest, served) in [(vec!["b"], "b 100"), (vec!["a"], "a 100")] {
        let mut node = Node::new(60, Some(GATE));
        node.has(&["b", "a"]);
        node.step();
        node.after(3_000);
        node.has(&rest);
        assert_eq!(node.step(), Stepped { wake: None, save: true });
        assert_eq!(node.shares(), served);
    }
    let mut node = Node::new(60, None);
    node.has(&["b", "a"]);
    node.step();
    node.has(&["a", "b"]);
    node.step();
    assert_eq!(node.shares(), "a 100", "a way back takes no steps");
}

#[test]
fn one_percent_goes_at_once_and_a_tag_steps_for_itself() {
    let mut node = Node::new(60, None);
    let fixed = RouteTarget { configuration: String::new(), ..target(99, "", &["a"]) };
    node.route().targets = vec![target(1, "", &["a"]), target(0, "next", &["a"]), fixed];
    node.step();
    let fixed = node.route().targets[2].clone();
    node.has(&["b", "a"]);
    node.route().targets[2] = fixed;
    node.step();
    let route = node.route().clone();
    let shares = |at: usize| node.rollouts.shares(&route, &route.targets[at]).map(|shares| text(&shares));
    assert_eq!(shares(0), Some("b 100".into()));
    assert_eq!(shares(1), Some("a 99, b 1".into()));
    assert_eq!(shares(2), None);
    let points = |at: usize| node.rollouts.points(&route, &route.targets[at]).map(|shares| text(&shares));
    assert_eq!(points(0), Some("b 1".into()));
    assert_eq!(points(1), Some(String::new()));
}

#[test]
fn targets_of_one_configuration_share_its_rollout() {
    let mut node = Node::new(60, None);
    node.route().targets = vec![target(30, "x", &["a"]), target(70, "", &["a"])];
    node.step();
    node.has(&["b", "a"]);
    node.step();
    node.after(20_000);
    let route = node.route().clone();
    for target in &route.targets {
        let points = node.rollouts.points(&route, target).unwrap();
        assert_eq!(points.iter().map(|share| share.percent).sum::<u8>(), target.percent);
    }
    assert_eq!(node.rollouts.report(&node.desired)[0].targets.len(), 2, "the route's own and the tag's");
}

#[test]
fn many_errors_undo_a_rollout() {
    let mut node = Node::new(60, Some(GATE));
    node.answers("a", 1_000, 900, 3.0);
    node.has(&["b", "a"]);
    node.step();
    node.after(3_000);
    node.answers("a", 100, 1, 3.0);
    node.answers("b", 40, 12, 3.0);
    assert_eq!(node.after(LOOK_MS), Stepped { wake: None, save: true });
    let report = node.report();
    assert_eq!((node.shares().as_str(), report.goal.as_str()), ("a 100", "b"));
    let why = report.rolled_back.unwrap();
    assert_eq!(why.reason, "ErrorRateTooHigh");
    assert_eq!(
        why.message,
        "12 of 40 answers of b were 5xx errors or broken off (30.0 %), 1 of 100 of a (1.0 %): more than 5 percentage points above"
    );
}

#[test]
fn slow_answers_undo_a_rollout() {
    let cases = [
        // Enough of both, and slower by much.
        (20, 10.0, 20, 21.0, true),
        // Twice is allowed.
        (20, 10.0, 20, 20.0, false),
        // Four times as slow, but by less than what machine and network do.
        (20, 1.0, 20, 4.0, false),
        // Too few to compare with, too few to judge.
        (19, 10.0, 20, 100.0, false),
        (20, 10.0, 19, 100.0, false),
    ];
    for (former, former_ms, next, next_ms, undone) in cases {
        let mut node = Node::new(60, Some(GATE));
        node.has(&["b", "a"]);
        node.step();
        node.answers("a", former, 0, former_ms);
        node.answers("b", next, 0, next_ms);
        node.after(LOOK_MS);
        let why = node.report().rolled_back.map(|why| why.reason);
        assert_eq!(why, undone.then(|| "LatencyTooHigh".into()), "{former_ms} {next_ms} {next}");
    }
}

#[test]
fn a_few_errors_undo_nothing() {
    for (answers, errors, undone) in
        [(19, 19, false), (20, 1, false), (20, 3, false), (20, 8, true), (200, 11, false), (2_000, 200, true)]
    {
        let mut node = Node::new(60, Some(GATE));
        node.has(&["b", "a"]);
        node.step();
        node.answers("a", 2_000, 0, 3.0);
        node.answers("b", answers, errors, 3.0);
        node.after(LOOK_MS);
        assert_eq!(node.report().rolled_back.is_some(), undone, "{errors} of {answers}");
    }
}

/// Answers that began before the rollout and are broken off in it count as errors of it.
#[test]
fn more_errors_than_answers_undo_a_rollout_too() {
    let mut node = Node::new(60, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("a", 2_000, 0, 3.0);
    node.answers("b", 20, 30, 3.0);
    node.after(LOOK_MS);
    assert!(node.report().rolled_back.is_some());
}

#[test]
fn errors_that_the_former_revision_has_too_undo_nothing() {
    let mut node = Node::new(60, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("a", 400, 120, 3.0);
    node.answers("b", 400, 120, 3.0);
    node.after(LOOK_MS);
    assert_eq!(node.report().rolled_back, None);
}

#[test]
fn an_undone_revision_is_not_tried_again_until_it_is_another() {
    let mut node = Node::new(5, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("b", 40, 40, 3.0);
    node.after(LOOK_MS);
    node.restart();
    assert_eq!(node.after(100_000), Stepped::default());
    assert_eq!((node.shares().as_str(), node.report().rolled_back.is_some()), ("a 100", true));

    let mut changed =
        Node { rollouts: node.rollouts.clone(), desired: node.desired.clone(), ..Node::new(5, None) };
    changed.ready.insert("b".into());
    changed.add("b", "repaired");
    changed.step();
    assert_eq!((changed.shares().as_str(), changed.report().rolled_back), ("a 99, b 1", None));

    node.has(&["c", "b", "a"]);
    node.step();
    assert_eq!((node.shares().as_str(), node.report().rolled_back), ("a 99, c 1", None));
    node.answers("c", 40, 0, 3.0);
    assert_eq!(node.run().last().unwrap(), "c 100");
}

#[test]
fn what_comes_back_is_shared_as_it_was() {
    let mut node = Node::new(5, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("b", 40, 0, 3.0);
    node.after(1_000);
    node.has(&["c", "b", "a"]);
    node.step();
    node.answers("c", 40, 40, 3.0);
    node.after(500);
    assert_eq!(node.shares(), "a 75, b 25");
    node.has(&["c", "b"]);
    node.step();
    assert_eq!((node.shares().as_str(), node.report().rolled_back.is_some()), ("b 100", true));
    node.has(&["c"]);
    node.step();
    assert_eq!((node.shares().as_str(), node.report().rolled_back), ("c 100", None));
}

#[test]
fn the_last_step_waits_for_answers_but_not_for_ever() {
    let held = |node: &mut Node| {
        node.has(&["b", "a"]);
        node.step();
        for _ in 0..3 {
            node.after(1_000);
        }
        assert_eq!(node.shares(), "a 24, b 76");
        node.after(1_000);
        assert_eq!(node.shares(), "a 24, b 76", "it would be the last step");
    };
    let mut node = Node::new(5, Some(GATE));
    held(&mut node);
    assert_eq!(node.after(4_500).wake, Some(node.now.after(500)));
    node.after(500);
    assert_eq!(node.shares(), "b 100");

    let mut node = Node::new(5, Some(GATE));
    held(&mut node);
    node.answers("b", 20, 0, 3.0);
    node.after(1_000);
    assert_eq!(node.shares(), "b 100");
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut node = Node::new(5, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("a", 100, 0, 3.0);
    node.answers("b", 15, 15, 3.0);
    assert!(node.after(1_000).save);
    assert_eq!(node.shares(), "a 74, b 26");
    node.restart();
    let stepped = node.step();
    assert_eq!((node.shares().as_str(), stepped.wake), ("a 74, b 26", Some(Moment(1_005))));
    node.answers("b", 5, 5, 3.0);
    node.after(500);
    let message = node.report().rolled_back.unwrap().message;
    assert!(message.starts_with("20 of 20 answers of b"), "what was counted is kept: {message}");
}

#[test]
fn progress_is_stored_now_and_then_and_health_alone_is_not() {
    let mut node = Node::new(86_400, Some(GATE));
    node.has(&["b", "a"]);
    assert!(node.step().save);
    let saves = (0..60).filter(|_| node.after(LOOK_MS).save).count();
    assert_eq!(saves, 2, "once a minute");
}

#[test]
fn what_no_longer_exists_is_forgotten() {
    let mut node = Node::new(60, None);
    node.desired.routes.clear();
    assert!(node.step().save);
    assert_eq!(node.rollouts, Rollouts::default());
}

#[test]
fn a_configuration_that_gets_less_or_more_keeps_its_rollout() {
    let mut node = Node::new(5, None);
    node.has(&["b", "a"]);
    node.step();
    for (percent, shares) in [(50, "a 49, b 1"), (80, "a 49, b 31"), (20, "b 20")] {
        node.route().targets[0].percent = percent;
        node.step();
        let route = node.route().clone();
        assert_eq!(text(&node.rollouts.points(&route, &route.targets[0]).unwrap()), shares);
    }
}

/// One thing that happens to a node.
#[derive(Clone, Debug)]
enum Happening {
    Candidates(Vec<&'static str>),
    Ready(&'static str, bool),
    Object(&'static str, u8),
    Percent(u8),
    Rollout(Option<(u64, bool)>),
    Answers(&'static str, u64, u64),
    Wait(u64),
    Wake,
    Restart,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn happening() -> impl Strategy<Value = Happening> {
    let name = || prop::sample::select(NAMES.to_vec());
    prop_oneof![
        prop::sample::subsequence(NAMES.to_vec(), 1..=4).prop_shuffle().prop_map(Happening::Candidates),
        (name(), any::<bool>()).prop_map(|(name, ready)| Happening::Ready(name, ready)),
        (name(), 0..3u8).prop_map(|(name, content)| Happening::Object(name, content)),
        (0..=100u8).prop_map(Happening::Percent),
        prop::option::weighted(0.9, (1..120u64, any::<bool>())).prop_map(Happening::Rollout),
        (name(), 0..100u64, 0..100u64)
            .prop_map(|(name, answers, errors)| { Happening::Answers(name, answers, errors.min(answers)) }),
        (0..90_000u64).prop_map(Happening::Wait),
        Just(Happening::Wake),
        Just(Happening::Wake),
        Just(Happening::Restart),
    ]
}

impl Node {
    fn happens(&mut self, what: &Happening, wake: Option<Moment>) {
        match what {
            Happening::Candidates(names) => self.has(names),
            Happening::Ready(name, true) => drop(self.ready.insert((*name).to_owned())),
            Happening::Ready(name, false) => drop(self.ready.remove(*name)),
            Happening::Object(name, content) if self.desired.revisions.contains_key(&key(name)) => {
                self.add(name, &content.to_string());
            }
            Happening::Object(..) => {}
            Happening::Percent(percent) => self.route().targets[0].percent = *percent,
            Happening::Rollout(spec) => {
                let spec = spec.map(|(duration_s, gate)| (duration_s, gate.then_some(GATE)));
                self.route().rollout = spec.map(|(duration_s, gate)| RolloutSpec { duration_s, gate });
            }
            Happening::Answers(name, answers, errors) => self.answers(name, *answers, *errors, 3.0),
            Happening::Wait(ms) => self.now = self.now.after(*ms),
            Happening::Wake => self.now = wake.unwrap_or(self.now),
            Happening::Restart => self.restart(),
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        let route = self.desired.routes.values().next().unwrap();
        let target = &route.targets[0];
        let Some(shares) = self.rollouts.shares(route, target) else {
            assert_eq!(target.percent, 0);
            return;
        };
        let sum = |shares: &[Share]| shares.iter().map(|share| u32::from(share.percent)).sum::<u32>();
        assert_eq!(sum(&shares), 100);
        assert_eq!(sum(&self.rollouts.points(route, target).unwrap()), u32::from(target.percent));
        for share in &shares {
            assert!(self.desired.revisions.contains_key(&key(&share.revision)), "{share:?}");
        }
        let names: BTreeSet<_> = shares.iter().map(|share| &share.revision).collect();
        assert_eq!(names.len(), shares.len(), "nobody is named twice: {shares:?}");
    }
}

proptest! {
    #[test]
    fn shares_are_whole_and_of_what_is_here_and_the_end_is_reached(
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut node = Node::new(30, Some(GATE));
        let mut twin = Node::new(30, Some(GATE));
        let mut wake = None;
        for what in &happenings {
            node.happens(what, wake);
            twin.happens(what, wake);
            let before = node.rollouts.encode();
            let stepped = node.step();
            prop_assert_eq!(stepped, twin.step());
            prop_assert_eq!(node.rollouts.encode(), twin.rollouts.encode());
            prop_assert!(stepped.wake.is_none_or(|at| at > node.now));
            node.check();
            // What is not stored is time and counts alone.
            if !stepped.save {
                let shares = |bytes: &[u8]| {
                    let rollouts = Rollouts::decode(bytes).unwrap();
                    rollouts.targets.into_values().map(|track| track.shift).collect::<Vec<_>>()
                };
                prop_assert_eq!(shares(&before), shares(&node.rollouts.encode()));
            }
            // No deadline is missed: until the wake, time changes nothing.
            if let Some(at) = stepped.wake {
                let mut idle = Node {
                    desired: node.desired.clone(),
                    ready: node.ready.clone(),
                    health: node.health.clone(),
                    now: Moment(at.0 - 1),
                    rollouts: node.rollouts.clone(),
                };
                idle.step();
                prop_assert_eq!(idle.shares(), node.shares());
            }
            wake = stepped.wake;
        }
        node.ready.extend(NAMES.map(str::to_owned));
        node.run();
        if let Some(report) = node.report_of_any() {
            prop_assert!(report.rolled_back.is_some() || report.shares.len() == 1, "{report:?}");
            let newest = &node.route().targets[0].candidates[0];
            prop_assert_eq!(&report.goal, newest);
        }
    }
}
