//! Replays the gradual rollouts of the real Knative (`recorded/`, described in `recorded/README.md`).

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "kpa/recorded.rs"]
#[allow(dead_code, reason = "shared with other replays")]
mod recorded;

use std::collections::BTreeMap;

use serde_json::Value;
use tombolo_agent_core::rollout::Rollouts;
use tombolo_agent_core::rollout::steps::{Pace, Share, Shift};
use tombolo_agent_core::stored::StoredError;

/// Where the recordings' clocks start, nanoseconds since 1970.
const START_NS: i64 = 946_684_800_000_000_000;

fn time(value: &Value) -> i64 {
    value.as_i64().unwrap()
}

fn percent(value: &Value) -> u8 {
    u8::try_from(value.as_u64().unwrap()).unwrap()
}

/// A recorded configuration; `None` for what no [`Shift`] can be, such as a step's size without a time for it.
fn shift(config: &Value) -> Option<Shift> {
    let part = |share: &Value| {
        let percent = u8::try_from(share["percent"].as_u64()?).ok()?;
        Some(Share { revision: share["revisionName"].as_str()?.to_owned(), percent })
    };
    let revisions = config["revisions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let params = &config["stepParams"];
    let pace = match (params["starttime"].as_i64(), params["stepDuration"].as_i64()) {
        (_, None) if !params["stepSize"].is_null() => return None,
        (None, _) => Pace::Settled,
        (Some(at_ns), None) => Pace::Started { at_ns },
        (Some(started_ns), Some(period_ns)) => Pace::Stepping {
            started_ns,
            next_ns: time(&params["nextStepTime"]),
            period_ns,
            size_percent: u8::try_from(params["stepSize"].as_i64()?).ok()?,
        },
    };
    let shares = revisions.iter().map(part).collect::<Option<_>>()?;
    Some(Shift { percent: u8::try_from(config["percent"].as_u64()?).ok()?, shares, pace })
}

/// By tag and configuration.
fn shifts(rollout: &Value) -> Option<BTreeMap<(String, String), Shift>> {
    let key = |config: &Value| {
        let tag = config["tag"].as_str().unwrap_or_default().to_owned();
        (tag, config["configurationName"].as_str().unwrap().to_owned())
    };
    let configurations = rollout["configurations"].as_array().unwrap();
    configurations.iter().map(|config| Some((key(config), shift(config)?))).collect()
}

fn sum(shift: &Shift) -> u8 {
    shift.shares.iter().map(|share| share.percent).sum()
}

#[test]
fn replays_whole_rollouts() {
    let (mut rollouts, mut steps) = (0, 0);
    for line in recorded::lines("rollout-steps") {
        let whole = percent(&line["percent"]);
        let ready_ns = START_NS + time(&line["ready_after_ns"]);
        let mut shift = Shift::settled("a", whole);
        for step in line["steps"].as_array().unwrap() {
            let now_ns = START_NS + time(&step[0]);
            shift = shift.step("b", whole, now_ns);
            if now_ns == ready_ns && matches!(shift.pace, Pace::Started { .. }) {
                shift.ready(line["duration_s"].as_f64().unwrap(), now_ns);
                let Pace::Stepping { next_ns, period_ns, size_percent, .. } = shift.pace else { panic!() };
                let ours = (next_ns - START_NS, period_ns, size_percent);
                let recorded = (time(&line["first_step_ns"]), time(&line["step_duration_ns"]));
                assert_eq!(ours, (recorded.0, recorded.1, percent(&line["step_size"])), "{line}");
            }
            let shares: Vec<_> = shift.shares.iter().map(|share| share.percent).collect();
            let recorded: Vec<_> = step[1].as_array().unwrap().iter().map(percent).collect();
            let next_ns = shift.next_ns().map_or(0, |next_ns| next_ns - START_NS);
            assert_eq!((shares, next_ns), (recorded, time(&step[2])), "{step} of {line}");
            steps += 1;
        }
        assert!(shift.is_done() && shift.goal() == Some("b"), "{line}");
        rollouts += 1;
    }
    recorded::assert_replayed([rollouts, steps], [238, 5930]);
}

#[test]
fn replays_changes_in_the_middle_of_a_rollout() {
    let (mut steps, mut observed, mut validated, mut better) = (0, 0, 0, 0);
    for line in recorded::lines("rollout-random") {
        match line["k"].as_str().unwrap() {
            "scenario" => {}
            "observe_ready" => {
                let mut ours = shifts(&line["before"]).unwrap();
                for shift in ours.values_mut() {
                    shift.ready(line["duration_s"].as_f64().unwrap(), time(&line["now_ns"]));
                }
                assert_eq!(ours, shifts(&line["after"]).unwrap(), "{line}");
                observed += 1;
            }
            "validate" => {
                let valid = shifts(&line["rollout"]).is_some_and(|ours| ours.values().all(Shift::is_valid));
                assert_eq!(valid, line["valid"].as_bool().unwrap(), "{line}");
                validated += 1;
            }
            "step" => {
                let ours = step(&line);
                if line["reference_crashes"] == Value::Bool(true) {
                    better += 1;
                    continue;
                }
                assert_eq!(ours, shifts(&line["out"]).unwrap(), "{line}");
                let next_ns = ours.values().filter_map(Shift::next_ns).min().unwrap_or(0);
                let done = ours.values().all(Shift::is_done);
                assert_eq!(
                    (next_ns, done),
                    (time(&line["next_ns"]), line["done"].as_bool().unwrap()),
                    "{line}"
                );
                steps += 1;
            }
            other => panic!("unknown line {other}"),
        }
    }
    recorded::assert_replayed([steps, observed, validated, better], [3185, 2162, 211, 15]);
}

/// What follows a recorded state; what must hold even where the real one fails is checked here.
fn step(line: &Value) -> BTreeMap<(String, String), Shift> {
    let mut former = shifts(&line["prev"]).unwrap();
    let mut next = BTreeMap::new();
    for (key, goal) in shifts(&line["goal"]).unwrap() {
        let revision = goal.goal().unwrap().to_owned();
        let shift = match former.remove(&key) {
            None => goal,
            Some(shift) => shift.step(&revision, goal.percent, time(&line["now_ns"])),
        };
        assert_eq!(sum(&shift), shift.percent, "{line}");
        assert_eq!(shift.goal(), Some(revision.as_str()), "{line}");
        assert!(shift.shares.iter().all(|share| share.percent > 0), "{line}");
        next.insert(key, shift);
    }
    next
}

/// What every release must read: a settled target, one that is moved with its counts, one that was undone.
#[test]
fn stored_rollouts_keep_their_encoding() {
    let golden = include_str!("golden/rollouts-1.json").trim_end();
    let rollouts = Rollouts::decode(golden.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(rollouts.encode()).unwrap(), golden);
    assert_eq!(golden.matches("\"track\"").count(), 3);
}

#[test]
fn stored_rollouts_that_cannot_be_read_are_said_to_be_so() {
    let newer = Rollouts::decode(br#"{"version":2,"anything":[]}"#);
    assert!(matches!(newer, Err(StoredError::Version { found: 2, .. })));
    assert!(matches!(Rollouts::decode(b"{}"), Err(StoredError::Malformed(_))));
    let golden = include_str!("golden/rollouts-1.json");
    let bent = Rollouts::decode(golden.replace("\"percent\":26}", "\"percent\":27}").as_bytes()).unwrap();
    let kept = String::from_utf8(bent.encode()).unwrap();
    assert_eq!(
        kept.matches("\"track\"").count(),
        2,
        "a target whose shares do not add up is left out: {kept}"
    );
}
