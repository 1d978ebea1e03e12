//! Instances that hold more of an accelerator's memory than they declared.

use super::memory::{has, with_memory};
use super::*;
use crate::devices::overuse::{Use, Uses};

/// A node with one function that runs, and declared 256 MiB.
fn running(annotations: &[(&str, &str)], phase: Phase) -> (Desired, Actual, InstanceId) {
    let made = with_memory("s-00001", 1, annotations);
    let (desired, mut actual) = given_routed(std::slice::from_ref(&made));
    has(&mut actual, &[2]);
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
    let id = actual.instances.keys().next().unwrap().clone();
    actual.instances.get_mut(&id).unwrap().phase = phase;
    (desired, actual, id)
}

fn holds(actual: &mut Actual, id: &InstanceId, mib: u64, now: Moment) {
    let held = [("GPU-0".to_owned(), Use { bytes: mib << 20, processes: 1 })].into();
    let uses: Uses = [(id.clone(), held)].into();
    actual.note_uses(Arc::new(uses), OVERUSE.context_bytes, now);
}

fn next(desired: &Desired, actual: &Actual, now: Moment) -> (Vec<Action>, Option<(Moment, WakeReason)>) {
    let plan = targeted(desired, actual, &Traffic::default(), &asking(desired, 1, now), now);
    (plan.actions, plan.wake)
}

const OVER: u64 = 256 + 100 + 1;

#[test]
fn who_holds_too_much_for_too_long_is_killed_and_not_before() {
    let (desired, mut actual, id) = running(&[], Phase::Ready);
    holds(&mut actual, &id, OVER - 1, NOW);
    assert_eq!(next(&desired, &actual, NOW), (vec![], None));
    holds(&mut actual, &id, OVER, NOW);
    let end = NOW.after(OVERUSE.grace_ms);
    assert_eq!(next(&desired, &actual, NOW), (vec![], Some((end, WakeReason::MemoryOveruse))));
    // More of it does not begin the grace anew.
    holds(&mut actual, &id, OVER + 50, NOW.after(5_000));
    assert_eq!(next(&desired, &actual, Moment(end.0 - 1)), (vec![], Some((end, WakeReason::MemoryOveruse))));
    assert_eq!(next(&desired, &actual, end).0, [Action::Kill { instance: id }]);
}

#[test]
fn who_gives_back_in_time_begins_with_a_whole_grace() {
    let (desired, mut actual, id) = running(&[], Phase::Ready);
    holds(&mut actual, &id, OVER, NOW);
    holds(&mut actual, &id, OVER - 1, NOW.after(9_000));
    holds(&mut actual, &id, OVER, NOW.after(9_500));
    assert_eq!(next(&desired, &actual, NOW.after(15_000)).0, []);
    // The plugin has gone: nothing is known, and nobody killed for it.
    actual.note_uses(Arc::default(), OVERUSE.context_bytes, NOW.after(16_000));
    assert_eq!(next(&desired, &actual, NOW.after(60_000)), (vec![], None));
}

#[test]
fn a_function_decides_what_becomes_of_it() {
    let at = |annotations: &[(&str, &str)], ms: u64| {
        let (desired, mut actual, id) = running(annotations, Phase::Ready);
        holds(&mut actual, &id, OVER, NOW);
        next(&desired, &actual, NOW.after(ms)).0.len()
    };
    for word in ["warn", "off"] {
        assert_eq!(at(&[(keys::MEMORY_OVERUSE, word)], 1_000_000), 0, "{word}");
    }
    let grace = [(keys::MEMORY_OVERUSE_GRACE, "1m")];
    assert_eq!((at(&grace, 59_999), at(&grace, 60_000)), (0, 1));
    assert_eq!(at(&[(keys::MEMORY_OVERUSE_GRACE, "0s")], 0), 1);
}

#[test]
fn what_it_is_doing_says_how_it_ends() {
    let end = NOW.after(OVERUSE.grace_ms);
    for (phase, want, kills) in [
        (Phase::Probing, 1, true),
        (Phase::Ready, 1, true),
        (Phase::Draining, 0, true),
        (Phase::Thawing, 1, false),
        (Phase::Stopping { killed: false }, 1, false),
    ] {
        let (desired, mut actual, id) = running(&[], phase.clone());
        holds(&mut actual, &id, OVER, NOW);
        let actions =
            targeted(&desired, &actual, &Traffic::default(), &asking(&desired, want, NOW), end).actions;
        let killed = actions.contains(&Action::Kill { instance: id });
        assert_eq!(killed, kills, "{phase:?}: {actions:?}");
    }
    let (desired, mut actual, id) = running(&[(keys::IDLE_TIER, "frozen")], Phase::Frozen);
    holds(&mut actual, &id, OVER, NOW);
    let plan = targeted(&desired, &actual, &Traffic::default(), &asking(&desired, 0, NOW), end);
    assert_eq!(plan.actions, [Action::Drain { instance: id }]);
}
