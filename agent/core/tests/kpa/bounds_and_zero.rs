//! Bounds, the way to zero and back, and the condition that follows.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde_json::{Value, json};
use tombolo_agent_core::actual::Moment;
use tombolo_agent_core::autoscale::Mode;
use tombolo_agent_core::autoscale::bounds::Bounds;
use tombolo_agent_core::autoscale::parameters::{Defaults, Parameters};
use tombolo_agent_core::autoscale::zero::{self, Activity, Idle, Situation, Step};

use crate::recorded::{assert_replayed, at, count, lines, ms};

fn parameters(given: &Value) -> Parameters {
    let mut annotations: BTreeMap<String, String> =
        serde_json::from_value(given["annotations"].clone()).unwrap();
    let deadline = format!("{}s", given["progress_deadline_s"]);
    annotations.insert("serving.knative.dev/progress-deadline".into(), deadline);
    let defaults = Defaults {
        allow_zero_initial_scale: given["allow_zero_initial_scale"].as_bool().unwrap(),
        grace_period_ms: ms(&given["cfg_grace_s"]),
        initial_scale: count(&given["cfg_initial_scale"]),
        max_scale: count(&given["cfg_max_scale"]),
        min_scale: count(&given["cfg_min_scale"]),
        retention_ms: ms(&given["cfg_retention_s"]),
        stable_window_ms: ms(&given["cfg_stable_window_s"]),
        target_burst_capacity: given["cfg_target_burst_capacity"].as_f64().unwrap(),
        enable_scale_to_zero: given["enable_scale_to_zero"].as_bool().unwrap(),
        ..Defaults::default()
    };
    Parameters::of(&annotations, 0, &defaults)
}

fn activity(given: &Value, now: Moment) -> Activity {
    let since = Moment(now.0 - ms(&given["pa_state_for_s"]));
    match given["pa_state"].as_str().unwrap() {
        "activating" => Activity::Activating { since },
        "active" => Activity::Active { since },
        // The recorded conditions start without a reason; this one never follows from being inactive, so it marks them.
        "inactive" => Activity::Inactive { since, why: Idle::TimedOut },
        other => panic!("{other}"),
    }
}

/// The state and, as the condition says it, the reason.
fn written(activity: Activity) -> (&'static str, &'static str) {
    match activity {
        Activity::Activating { .. } => ("activating", "Queued"),
        Activity::Active { .. } => ("active", ""),
        Activity::Inactive { why: Idle::NoTraffic, .. } => ("inactive", "NoTraffic"),
        Activity::Inactive { why: Idle::TimedOut, .. } => ("inactive", "TimedOut"),
    }
}

fn timed_out(activity: Activity) -> bool {
    matches!(activity, Activity::Inactive { why: Idle::TimedOut, .. })
}

/// An unknown number is recorded as -1.
fn signed(number: Option<u32>) -> i64 {
    number.map_or(-1, i64::from)
}

/// What was decided from a recorded situation, in the recording's words, and what the condition is computed from.
fn decide(given: &Value, excess: i32) -> (Value, Step, Bounds, Activity) {
    let now = at(&json!(0));
    let parameters = parameters(given);
    let reachable = given["reachability"] != "Unreachable";
    let bounds =
        Bounds::of(&parameters.range, reachable, given["scale_target_initialized"].as_bool().unwrap());
    let activity = activity(given, now);
    let desired = u32::try_from(given["desired_in"].as_i64().unwrap()).ok();
    let situation = Situation {
        desired: bounds.apply(desired, activity.is_activating()),
        activity,
        reachable,
        proxied_ms: (given["sks_mode"] == "proxy").then(|| ms(&given["sks_proxy_for_s"])),
    };
    let probed = Cell::new(false);
    let answer = given["probe_ok"].as_bool().unwrap();
    let step = zero::step(&parameters, situation, now, || {
        probed.set(true);
        answer
    });
    let ours = json!({
        "min": bounds.min,
        "max": bounds.max,
        "initial_scale": bounds.initial,
        "want": signed(step.want),
        "apply": step.apply,
        "probed": probed.get(),
        "async_probe": probed.get() && !answer,
        "ebc_in": excess,
        "requeue_after_s": step.recheck_ms.map(|ms| vec![ms as f64 / 1000.0]),
        "sks_mode_out": Mode::of(step.want, excess).word(),
    });
    (ours, step, bounds, activity)
}

/// Whole numbers of seconds are written without a fraction.
fn plain(mut value: Value) -> Value {
    if let Some(seconds) = value["requeue_after_s"][0].as_f64() {
        value["requeue_after_s"] = json!([seconds]);
    }
    value
}

#[test]
fn bounds_and_the_way_to_zero_are_as_recorded() {
    let mut cases = 0;
    for line in lines("scale-bounds-and-zero") {
        cases += 1;
        let (given, status) = (&line["in"], &line["status"]);
        let excess = i32::try_from(line["out"]["ebc_in"].as_i64().unwrap()).unwrap();
        let (ours, step, bounds, activity) = decide(given, excess);
        assert_eq!(ours, plain(line["out"].clone()), "{line}");

        let (ready, threshold) = (count(&status["ready"]), bounds.active_threshold());
        let next = activity.next(step.want, ready, threshold, at(&json!(0)));
        let (state, reason) =
            if next == activity && timed_out(next) { ("inactive", "") } else { written(next) };
        let ours = json!({
            "active_threshold": threshold,
            "new_state": state,
            "reason": reason,
            "scale_target_initialized": bounds.reached_initial || ready >= threshold,
            "ready": ready,
            "want": signed(step.want),
        });
        assert_eq!(ours, *status, "{line}");
    }
    assert_replayed([cases], [4_000]);
}
