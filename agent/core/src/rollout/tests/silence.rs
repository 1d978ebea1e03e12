//! Revisions that do not answer at all.

use super::*;
use crate::waits::{STEP_MS, Waits};

impl Node {
    /// So many wait at `name`, sent so many milliseconds ago.
    fn waiting(&mut self, name: &str, sent: &[(u32, u64)]) {
        let mut waits = Waits::default();
        for (count, ago_ms) in sent {
            let mut steps = vec![0; usize::try_from(ago_ms / STEP_MS).unwrap()];
            steps.push(*count);
            waits.add(&Waits::new(steps));
        }
        self.health.entry(key(name)).or_default().waiting = waits;
    }

    fn abandoned(&mut self, name: &str, requests: u64) {
        self.health.entry(key(name)).or_default().abandoned += requests;
    }

    fn percent_of(&self, name: &str) -> u8 {
        self.report().shares.iter().find(|share| share.revision == name).map_or(0, |share| share.percent)
    }

    fn why(&self) -> Option<String> {
        self.report().rolled_back.map(|why| why.reason)
    }
}

fn rolling(duration_s: u64, gate: HealthGate) -> Node {
    let mut node = Node::new(duration_s, Some(gate));
    node.has(&["b", "a"]);
    node.step();
    node
}

/// The second revision takes its requests and says nothing; nobody gives up, and its limit of 300 s is far.
#[test]
fn a_revision_that_hangs_is_rolled_back_while_it_has_little() {
    let mut node = rolling(60, GATE);
    let mut sent = Vec::new();
    let mut most = 0;
    let mut passed_ms = 0;
    while node.why().is_none() {
        passed_ms += 1_000;
        assert!(passed_ms <= 30_000, "{}", node.shares());
        node.answers("a", 50, 0, 3.0);
        sent.push(passed_ms);
        let waiting: Vec<_> = sent.iter().map(|at| (1, passed_ms - at)).collect();
        node.waiting("b", &waiting);
        node.after(1_000);
        most = most.max(node.percent_of("b"));
    }
    assert!(most <= 12, "no step is made once requests wait for seconds: {most} %");
    assert_eq!(node.shares(), "a 100");
    let why = node.report().rolled_back.unwrap();
    assert_eq!(why.reason, "NoAnswers");
    assert_eq!(
        why.message,
        "4 of 4 requests to b got no answer: 0 given up by their clients, 4 waiting for more than 10 s; 0 of 800 to a"
    );
}

#[test]
fn clients_that_give_up_are_answers_that_lack() {
    let mut node = rolling(60, GATE);
    for _ in 0..3 {
        assert_eq!(node.why(), None);
        node.answers("a", 400, 0, 3.0);
        node.abandoned("b", 1);
        node.after(LOOK_MS);
    }
    assert_eq!(node.why().as_deref(), Some("NoAnswers"));
}

#[test]
fn what_gets_no_answer_is_compared_with_the_former_revision() {
    // Answered, given up, and waiting for 20 s: of the former, of the next.
    let cases = [
        ((400, 0, 0), (40, 0, 20), true),
        ((400, 0, 0), (40, 20, 0), true),
        ((400, 0, 0), (40, 10, 10), true),
        // A few.
        ((400, 0, 0), (40, 1, 1), false),
        // Too few requests for a revision that has answered.
        ((400, 0, 0), (1, 9, 9), false),
        // As many as at the former.
        ((400, 0, 200), (40, 0, 20), false),
        ((400, 200, 0), (40, 20, 0), false),
        // Rather more, as its requests are newer.
        ((400, 0, 100), (40, 0, 20), false),
        // There is too little to compare with.
        ((2, 0, 0), (0, 0, 3), false),
    ];
    for (former, next, undone) in cases {
        let mut node = rolling(300, GATE);
        node.now = node.now.after(30_000);
        for (name, (answers, given_up, waiting)) in [("a", former), ("b", next)] {
            node.answers(name, answers, 0, 3.0);
            node.abandoned(name, given_up);
            node.waiting(name, &[(waiting, 20_000)]);
        }
        node.step();
        assert_eq!(node.why(), undone.then(|| "NoAnswers".into()), "{former:?} {next:?}");
    }
}

#[test]
fn slow_programs_are_given_the_time_they_need() {
    for (former_ms, undone) in [(2_000.0, true), (10_000.0, false)] {
        let mut node = rolling(300, GATE);
        node.now = node.now.after(60_000);
        node.answers("a", 400, 0, former_ms);
        node.waiting("b", &[(5, 30_000)]);
        node.step();
        assert_eq!(node.why().is_some(), undone, "five times {former_ms} ms");
    }
}

#[test]
fn who_waits_since_before_the_rollout_says_nothing_of_it() {
    let mut node = rolling(300, GATE);
    node.now = node.now.after(20_000);
    node.answers("a", 400, 0, 3.0);
    node.waiting("b", &[(50, 40_000)]);
    node.step();
    assert_eq!(node.why(), None);
    node.waiting("b", &[(50, 15_000)]);
    node.step();
    assert_eq!(node.why().as_deref(), Some("NoAnswers"));

    // Nor of an object that is new in the middle of it.
    let mut node = rolling(300, GATE);
    node.now = node.now.after(20_000);
    node.answers("a", 400, 0, 3.0);
    node.waiting("b", &[(50, 15_000)]);
    node.add("b", "repaired");
    node.step();
    node.answers("a", 400, 0, 3.0);
    node.after(1_000);
    assert_eq!(node.why(), None);
}

#[test]
fn no_step_is_made_while_requests_wait_but_not_for_ever() {
    let mut node = rolling(60, GATE);
    node.answers("a", 400, 0, 3.0);
    node.waiting("b", &[(1, 4_000)]);
    node.now = node.now.after(8_000);
    for _ in 0..56 {
        let stepped = node.step();
        assert_eq!(node.percent_of("b"), 1);
        node.now = stepped.wake.unwrap();
    }
    assert_eq!(node.now, Moment(1_000_000).after(120_000), "twice the duration");
    node.step();
    assert!(node.percent_of("b") > 1, "{}", node.shares());

    // It goes on when they are answered, and does not wait when there is enough to judge by.
    for answers in [1, 30] {
        let mut node = rolling(60, GATE);
        node.answers("a", 400, 0, 3.0);
        node.answers("b", answers, 0, 3.0);
        node.waiting("b", if answers == 1 { &[] } else { &[(1, 4_000)] });
        node.after(8_000);
        assert!(node.percent_of("b") > 1, "{answers}: {}", node.shares());
    }
}

#[test]
fn without_a_gate_nobody_is_waited_for() {
    let mut node = Node::new(60, None);
    node.has(&["b", "a"]);
    node.step();
    node.waiting("b", &[(9, 20_000)]);
    node.now = node.now.after(30_000);
    node.step();
    assert_eq!((node.why(), node.percent_of("b") > 1), (None, true));
}

#[test]
fn a_restart_remembers_who_gave_up() {
    let mut node = rolling(60, GATE);
    node.answers("a", 400, 0, 3.0);
    node.abandoned("b", 2);
    node.after(LOOK_MS);
    node.restart();
    node.step();
    node.abandoned("b", 1);
    node.after(LOOK_MS);
    assert_eq!(node.why().as_deref(), Some("NoAnswers"));
}
