//! A node's second hand around the scaler: samples each second, decisions every other, instances that follow at once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::autoscale::parameters::Defaults;

const START_MS: u64 = 7_777_777;

fn parameters(annotations: &[(&str, &str)]) -> Parameters {
    let annotations: BTreeMap<_, _> =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Parameters::of(&annotations, 0, &Defaults::default())
}

struct Node {
    scaler: Scaler,
    now: Moment,
    seconds: u64,
    observed: Observed,
}

impl Node {
    fn new(annotations: &[(&str, &str)], ready: u32, reached_initial: bool) -> Self {
        let now = Moment(START_MS);
        let scaler = Scaler::new(parameters(annotations), ready, reached_initial, now);
        Self { scaler, now, seconds: 0, observed: Observed { ready, reachable: true } }
    }

    fn decide(&mut self) -> Decision {
        self.scaler.decide(self.now, self.observed)
    }

    fn want(&self) -> u32 {
        self.scaler.decision().want
    }

    /// One second with so many requests at a time.
    fn second(&mut self, concurrency: f64) {
        self.now = self.now.after(1_000);
        self.seconds += 1;
        self.scaler.record(
            self.now,
            Sample { average_concurrency: concurrency, requests_per_second: concurrency * 10.0 },
        );
        if self.seconds.is_multiple_of(2) {
            self.observed.ready = self.decide().want;
        }
    }

    fn run(&mut self, seconds: u64, concurrency: f64) {
        for _ in 0..seconds {
            self.second(concurrency);
        }
    }

    /// Seconds without requests until it is at rest.
    fn idle_until_rest(&mut self) -> u64 {
        let started = self.seconds;
        while !self.scaler.is_at_rest() {
            assert!(self.seconds - started < 1_000, "it never goes to zero");
            self.second(0.0);
        }
        self.seconds - started
    }
}

#[test]
fn a_new_revision_has_its_initial_scale_until_it_is_ready() {
    for (annotations, initial) in [
        (vec![], 1),
        (vec![("autoscaling.knative.dev/initial-scale", "3")], 3),
        (vec![("autoscaling.knative.dev/min-scale", "4")], 4),
        (
            vec![
                ("autoscaling.knative.dev/initial-scale", "9"),
                ("autoscaling.knative.dev/max-scale", "2"),
                ("autoscaling.knative.dev/min-scale", "1"),
            ],
            2,
        ),
    ] {
        let mut node = Node::new(&annotations, 0, false);
        assert_eq!(node.want(), initial, "{annotations:?}");
        assert!(node.decide().activity.is_activating());
    }
    let mut node = Node::new(&[], 0, false);
    node.run(30, 0.0);
    assert!(matches!(node.scaler.decision().activity, Activity::Active { .. }));
}

#[test]
fn a_least_or_initial_scale_that_the_node_does_not_give_is_not_waited_for() {
    let most = INSTANCES_PER_REVISION_MAX;
    let beyond = (most + 1).to_string();
    for (annotations, up, least) in [
        (
            vec![("autoscaling.knative.dev/initial-scale", "9"), ("autoscaling.knative.dev/max-scale", "2")],
            2,
            0,
        ),
        (vec![("autoscaling.knative.dev/initial-scale", beyond.as_str())], most, 0),
        (vec![("autoscaling.knative.dev/min-scale", beyond.as_str())], most, most),
    ] {
        let mut node = Node::new(&annotations, 0, false);
        assert_eq!(node.want(), up, "{annotations:?}");
        node.observed.ready = up;
        assert!(matches!(node.decide().activity, Activity::Active { .. }), "{annotations:?}");
        node.run(200, 0.0);
        assert_eq!(node.want(), least, "{annotations:?}");
        // What its annotations say later is held to the same.
        let mut node = Node::new(&[], 1, false);
        node.scaler.reconfigure(parameters(&annotations), node.now);
        node.observed.ready = up;
        assert!(matches!(node.decide().activity, Activity::Active { .. }), "{annotations:?}");
        node.run(200, 0.0);
        assert_eq!(node.want(), least, "{annotations:?}");
    }
}

#[test]
fn an_idle_revision_goes_to_zero_after_a_stable_window_and_its_retention() {
    let mut node = Node::new(&[], 1, true);
    let plain = node.idle_until_rest();
    assert!((60..=64).contains(&plain), "{plain} s");
    let mut node =
        Node::new(&[("autoscaling.knative.dev/scale-to-zero-pod-retention-period", "100s")], 1, true);
    let retained = node.idle_until_rest();
    assert!((160..=164).contains(&retained), "{retained} s");
    let mut node = Node::new(&[("autoscaling.knative.dev/window", "6s")], 1, true);
    node.run(20, 5.0);
    let short = node.idle_until_rest();
    assert!((6..=14).contains(&short), "{short} s");
}

#[test]
fn a_waiting_request_wakes_a_revision_at_once() {
    for (annotations, woken) in [
        (vec![], 1),
        (vec![("autoscaling.knative.dev/activation-scale", "3")], 3),
        (
            vec![
                ("autoscaling.knative.dev/activation-scale", "3"),
                ("autoscaling.knative.dev/max-scale", "2"),
            ],
            2,
        ),
    ] {
        let mut node = Node::new(&annotations, 0, true);
        assert!(node.scaler.is_at_rest());
        // A rest without samples, much longer than the window.
        node.now = node.now.after(10_000_000);
        let decision = node.scaler.poke(node.now);
        assert_eq!(decision.want, woken, "{annotations:?}");
        assert!(decision.activity.is_activating());
        assert_eq!(node.scaler.poke(node.now), decision, "a second request changes nothing");
        assert_eq!(node.decide().want, woken, "nor does a decision");
        assert!((60..=70).contains(&node.idle_until_rest()), "{annotations:?}");
    }
}

#[test]
fn a_request_that_woke_a_revision_counts_once() {
    let mut node = Node::new(&[("autoscaling.knative.dev/target", "1")], 0, true);
    node.run(61, 0.0);
    node.scaler.poke(node.now);
    node.run(1, 1.0);
    let averages = node.scaler.metrics.averages(&node.scaler.parameters, node.now).unwrap();
    assert!((averages.stable - 1.0 / 60.0).abs() < 1e-5, "{averages:?}");
}

#[test]
fn load_decides_the_number_of_instances() {
    let mut node = Node::new(&[], 1, true);
    node.run(70, 210.0);
    assert_eq!(node.want(), 3);
    let rps = ("autoscaling.knative.dev/metric", "rps");
    let mut node = Node::new(&[rps, ("autoscaling.knative.dev/target", "100")], 1, true);
    node.run(70, 28.0);
    assert_eq!(node.want(), 4, "280 requests a second, 70 aimed at");
    let mut node = Node::new(&[("autoscaling.knative.dev/max-scale", "2")], 1, true);
    node.run(70, 1e300);
    assert_eq!(node.want(), 2);
}

#[test]
fn a_burst_starts_a_panic() {
    let mut node = Node::new(&[], 1, true);
    node.run(60, 1.0);
    node.run(6, 700.0);
    assert!(node.scaler.decision().panicking);
    assert_eq!(node.want(), 10);
    node.run(40, 1.0);
    assert_eq!(node.want(), 10, "nothing is stopped in a panic");
    node.run(60, 1.0);
    assert!(!node.scaler.decision().panicking);
    assert_eq!(node.want(), 1);
}

#[test]
fn a_restart_of_the_agent_stops_nothing_and_starts_nothing() {
    let mut node = Node::new(&[], 5, true);
    assert_eq!(node.want(), 5);
    for _ in 0..60 {
        node.second(0.0);
        assert_eq!(node.want(), 5);
    }
    node.idle_until_rest();
    let mut node = Node::new(&[], 0, true);
    assert_eq!(node.decide().want, 0);
    let mut node = Node::new(&[("autoscaling.knative.dev/min-scale", "2")], 0, true);
    assert_eq!(node.decide().want, 2);
}

#[test]
fn min_scale_holds_only_while_a_route_leads_there() {
    let annotations = [("autoscaling.knative.dev/min-scale", "2")];
    let mut node = Node::new(&annotations, 2, true);
    node.run(300, 0.0);
    assert_eq!(node.want(), 2);
    node.observed.reachable = false;
    node.idle_until_rest();
    node.observed.reachable = true;
    assert_eq!(node.decide().want, 2);
}

#[test]
fn an_activation_that_takes_too_long_is_given_up() {
    let mut node = Node::new(&[("serving.knative.dev/progress-deadline", "10s")], 0, false);
    for second in 0..=40 {
        assert_eq!(node.want(), 1, "{second} s");
        node.now = node.now.after(1_000);
        node.scaler.record(node.now, Sample::default());
        node.decide();
    }
    let decision = node.scaler.decision();
    assert_eq!(decision.want, 0);
    assert!(matches!(decision.activity, Activity::Inactive { why: Idle::TimedOut, .. }));
    node.run(10, 0.0);
    assert!(node.scaler.decision().activity.is_timed_out(), "it is told for as long as nothing is tried");
    let tried = node.scaler.poke(node.now);
    assert!(tried.activity.is_activating(), "the next request tries again");
    assert_eq!(tried.want, 1);
}

#[test]
fn what_was_given_up_and_is_ready_all_the_same_is_idle_like_any_other() {
    let mut node = Node::new(&[("serving.knative.dev/progress-deadline", "10s")], 0, false);
    node.observed.ready = 0;
    while !node.scaler.decision().activity.is_timed_out() {
        node.now = node.now.after(1_000);
        assert!(node.now.0 < START_MS + 60_000, "it is never given up");
        node.scaler.record(node.now, Sample::default());
        node.decide();
    }
    node.observed.ready = 1;
    assert!(matches!(node.decide().activity, Activity::Inactive { why: Idle::NoTraffic, .. }));
}

#[test]
fn a_fast_revision_scales_at_the_request() {
    let fast = [("tombolo.dev/reaction", "fast"), ("autoscaling.knative.dev/target", "10")];
    let mut node = Node::new(&fast, 0, true);
    let decision = node.scaler.decide_now(node.now, 500, node.observed).unwrap();
    assert_eq!(decision.want, 72, "500 requests, 7 aimed at");
    assert!(decision.activity.is_activating());
    assert_eq!(node.scaler.decide_now(node.now, 500, node.observed), None);
    assert_eq!(node.scaler.decide_now(node.now, 8, node.observed), None, "it never lowers");
    node.observed.ready = 72;
    node.run(30, 1.0);
    assert_eq!(node.want(), 72, "the next ticks do not take it back");
    node.run(200, 1.0);
    assert_eq!(node.want(), 1);
}

#[test]
fn a_fast_revision_keeps_to_its_bounds_and_rate() {
    let fast = ("tombolo.dev/reaction", "fast");
    let mut node = Node::new(&[fast, ("autoscaling.knative.dev/max-scale", "3")], 1, true);
    assert_eq!(node.scaler.decide_now(node.now, 100_000, node.observed).unwrap().want, 3);
    let mut slow = parameters(&[fast]);
    slow.max_scale_up_rate = 2.0;
    let mut scaler = Scaler::new(slow, 2, true, Moment(0));
    let observed = Observed { ready: 2, reachable: true };
    assert_eq!(scaler.decide_now(Moment(0), 100_000, observed).unwrap().want, 4);
    let mut node = Node::new(&[fast, ("autoscaling.knative.dev/metric", "rps")], 0, true);
    assert_eq!(node.scaler.decide_now(node.now, 1_000, node.observed).unwrap().want, 1);
}

#[test]
fn a_fast_revision_is_calm_up_to_what_its_instances_are_to_take() {
    let fast = ("tombolo.dev/reaction", "fast");
    let target = ("autoscaling.knative.dev/target", "10");
    let mut node = Node::new(&[fast, target, ("autoscaling.knative.dev/max-scale", "3")], 0, true);
    assert_eq!(node.scaler.calm_up_to(node.observed), Some(0), "any request wakes it");
    node.scaler.decide_now(node.now, 1, node.observed);
    assert_eq!(node.scaler.calm_up_to(node.observed), Some(7), "7 of 10 are aimed at");
    node.scaler.decide_now(node.now, 8, node.observed);
    assert_eq!(
        node.scaler.calm_up_to(node.observed),
        Some(14),
        "those asked for count as if they were there"
    );
    node.scaler.decide_now(node.now, 1_000, node.observed);
    assert_eq!(node.scaler.calm_up_to(node.observed), None, "it may not have more");
    assert_eq!(
        Node::new(&[target], 1, true).scaler.calm_up_to(node.observed),
        None,
        "it does not react fast"
    );
    let rps = [fast, ("autoscaling.knative.dev/metric", "rps")];
    assert_eq!(Node::new(&rps, 1, true).scaler.calm_up_to(node.observed), None, "only time tells");
}

#[test]
fn a_fast_revision_that_was_woken_by_one_request_sleeps_as_soon_as_others() {
    let mut node = Node::new(&[("tombolo.dev/reaction", "fast")], 0, true);
    node.scaler.decide_now(node.now, 1, node.observed).unwrap();
    assert!((60..=70).contains(&node.idle_until_rest()));
}

#[test]
fn without_the_annotation_nothing_is_decided_at_a_request() {
    let mut node = Node::new(&[], 1, true);
    assert_eq!(node.scaler.decide_now(node.now, 100_000, node.observed), None);
}

#[test]
fn samples_that_are_no_numbers_count_as_none() {
    let mut node = Node::new(&[], 1, true);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0] {
        node.second(bad);
    }
    node.run(70, 210.0);
    assert_eq!(node.want(), 3);
}

#[test]
fn changed_parameters_keep_what_was_measured() {
    let mut node = Node::new(&[], 3, true);
    node.run(70, 210.0);
    node.scaler.reconfigure(parameters(&[("autoscaling.knative.dev/window", "30s")]), node.now);
    node.run(2, 210.0);
    assert_eq!(node.want(), 3);
    node.scaler.reconfigure(parameters(&[("autoscaling.knative.dev/max-scale", "2")]), node.now);
    node.run(2, 210.0);
    assert_eq!(node.want(), 2);
}

proptest! {
    #[test]
    fn one_request_more_than_calm_changes_the_decision_and_no_other_does(
        target in 0.01f64..50.0, max in 0u32..30, activation in 0u32..4, rate in 1.1f64..1_000.0, ready in 0u32..40,
        first in 1u32..1_000,
    ) {
        let annotations: Vec<_> = [
            ("autoscaling.knative.dev/target", target.to_string()),
            ("autoscaling.knative.dev/max-scale", max.to_string()),
            ("autoscaling.knative.dev/activation-scale", activation.to_string()),
            ("tombolo.dev/reaction", "fast".to_owned()),
        ].into();
        let annotations: Vec<_> = annotations.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut parameters = parameters(&annotations);
        parameters.max_scale_up_rate = rate;
        let now = Moment(START_MS);
        let mut scaler = Scaler::new(parameters, ready, true, now);
        let observed = Observed { ready, reachable: true };
        scaler.decide_now(now, first, observed);
        let raises = |demand| scaler.clone().decide_now(now, demand, observed).is_some();
        match scaler.calm_up_to(observed) {
            Some(calm) => prop_assert!(!raises(calm) && raises(calm + 1), "{calm}"),
            None => prop_assert!(!raises(1_000_000)),
        }
    }

    /// Whatever comes: bounds hold, a request is never left at zero, and a decision at a request never lowers.
    #[test]
    fn bounds_hold_whatever_comes(
        min in 0_u32..4,
        room in 0_u32..4,
        initial in 1_u32..6,
        weighted: bool,
        loads in prop::collection::vec((0_u8..4, 0.0..1e6_f64, any::<bool>()), 1..150),
    ) {
        let max = min + room;
        let (min_text, max_text, initial_text) = (min.to_string(), max.to_string(), initial.to_string());
        let algorithm = if weighted { "weighted-exponential" } else { "linear" };
        let mut node = Node::new(&[
            ("autoscaling.knative.dev/min-scale", &min_text),
            ("autoscaling.knative.dev/max-scale", &max_text),
            ("autoscaling.knative.dev/initial-scale", &initial_text),
            ("autoscaling.knative.dev/metric-aggregation-algorithm", algorithm),
            ("autoscaling.knative.dev/window", "6s"),
            ("tombolo.dev/reaction", "fast"),
        ], 0, true);
        node.decide();
        for (kind, load, reachable) in loads {
            let before = node.want();
            match kind {
                0 => node.second(load),
                1 => node.second(0.0),
                2 => prop_assert!(node.scaler.poke(node.now).want >= before.max(1)),
                _ => {
                    node.scaler.decide_now(node.now, load as u32 + 1, node.observed);
                    prop_assert!(node.want() >= before.max(1));
                }
            }
            prop_assert!(max == 0 || node.want() <= max);
            node.observed.reachable = reachable;
            let want = node.decide().want;
            prop_assert!(max == 0 || want <= max);
            prop_assert!(!reachable || want >= min);
        }
    }
}
