//! A revision without a memory limit grows by what its instances were seen to hold at work.

use super::*;

const MI: u64 = 1 << 20;

/// One that is ready and was looked at as often as could be: at `looked`, which is so long after it became ready.
fn with_one(looked_after_ms: u64, spec: impl FnOnce(&mut RevisionObject)) -> (Desired, Actual) {
    let (_, mut made) = object("a-00001", &[]);
    spec(&mut made);
    let digest = tombolo_api::desired::encode_revision(&made).entry.digest;
    let (desired, mut actual) = given_routed(&[(digest, made)]);
    let known = actual.revisions.get_mut(&key("a-00001")).unwrap();
    known.ready_once = true;
    let one = InstanceActual {
        looked_at: Some(NOW.after(looked_after_ms)),
        ..instance("a-00001", digest, Phase::Ready)
    };
    actual.instances.insert(InstanceId("one".into()), one);
    (desired, actual)
}

fn learn(actual: &mut Actual, most_mebibytes: u64, served: bool) {
    let seen = Footprint { least_bytes: 20 * MI, most_bytes: most_mebibytes * MI, served };
    actual.revisions.get_mut(&key("a-00001")).unwrap().memory = Learnt::Seen(seen);
}

/// How many start at once where 20 are wanted and the node has 8 GiB, and when that is asked again.
fn planned_at(desired: &Desired, actual: &Actual, served: bool, now: Moment) -> (usize, Option<Moment>) {
    let mut traffic = with_demand("a-00001", 1, 9, now);
    traffic.served.extend(served.then(|| InstanceId("one".into())));
    let plan = targeted(desired, actual, &traffic, &asking(desired, 20, NOW), now);
    let starts = plan.actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count();
    assert_eq!(plan.paced, starts < 19, "{plan:?}");
    assert!(plan.cuts.is_empty(), "{:?}", plan.cuts);
    let wake = plan.wake.filter(|(_, reason)| *reason == WakeReason::Growth);
    (starts, wake.map(|(at, _)| at))
}

#[test]
fn one_that_has_answered_nothing_stays_alone_until_it_was_looked_at_for_long() {
    let (desired, mut actual) = with_one(5_000, |_| {});
    let at = |actual: &Actual, ms| planned_at(&desired, actual, false, NOW.after(ms));
    assert_eq!(at(&actual, 5_000), (0, Some(NOW.after(10_000))));
    learn(&mut actual, 30, false);
    assert_eq!(at(&actual, 5_000), (0, Some(NOW.after(10_000))));
    // The look is late.
    assert_eq!(at(&actual, 10_500), (0, Some(NOW.after(10_600))));
    actual.instances.values_mut().for_each(|one| one.looked_at = Some(NOW.after(10_500)));
    assert_eq!(at(&actual, 10_500), (1, None), "as many again");
}

#[test]
fn one_that_has_answered_has_as_many_as_it_needs_where_memory_is_ample() {
    let (desired, mut actual) = with_one(5, |_| {});
    learn(&mut actual, 30, true);
    assert_eq!(planned_at(&desired, &actual, true, NOW.after(10)).0, 19);
    // Also in an agent that has not seen it answer.
    assert_eq!(planned_at(&desired, &actual, false, NOW.after(10)).0, 19);
    // Where nothing can be learnt, an answer is all there is.
    actual.revisions.get_mut(&key("a-00001")).unwrap().memory = Learnt::Nothing;
    assert_eq!(planned_at(&desired, &actual, true, NOW.after(10)).0, 19);
}

#[test]
fn where_memory_is_not_ample_as_many_again_start_as_were_looked_at() {
    let (desired, mut actual) = with_one(5, |_| {});
    // Twenty fit, but not four times.
    learn(&mut actual, 200, true);
    let at = |actual: &Actual, ms| planned_at(&desired, actual, true, NOW.after(ms));
    assert_eq!(at(&actual, 10), (0, Some(NOW.after(1_000))));
    actual.instances.values_mut().for_each(|one| one.looked_at = Some(NOW.after(1_000)));
    assert_eq!(at(&actual, 1_000), (1, None));
    // What runs stays, looked at or not.
    let young = actual.instances.values().next().unwrap().clone();
    for name in ["two", "three"] {
        let young = InstanceActual { since: NOW.after(900), ..young.clone() };
        actual.instances.insert(InstanceId(name.into()), young);
    }
    assert_eq!(at(&actual, 1_000), (0, Some(NOW.after(1_900))));
}

#[test]
fn those_of_another_object_have_as_many_successors_at_once() {
    let (desired, mut actual) = with_one(5, |_| {});
    let former =
        InstanceActual { object: Digest::of(b"before"), ..actual.instances.values().next().unwrap().clone() };
    for number in 0..9 {
        actual.instances.insert(InstanceId(format!("former-{number}")), former.clone());
    }
    assert_eq!(planned_at(&desired, &actual, false, NOW.after(10)).0, 9);
}

#[test]
fn several_that_grow_at_once_share_what_is_ample() {
    let (desired, mut actual) = given_routed(&["a-00001", "b-00001"].map(|name| object(name, &[])));
    at_work(&mut actual);
    actual.revisions.values_mut().for_each(|known| known.ready_once = true);
    let starts = |memory_mebibytes: u64| {
        let settings = Settings { memory_bytes: memory_mebibytes * MI, ..SETTINGS };
        let targets = asking(&desired, 20, NOW);
        let plan = fitting(&desired, &actual, &Traffic::default(), &targets, &settings, NOW);
        plan.actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count()
    };
    // Nineteen more of 30 MiB, four times each.
    assert_eq!([2_000, 3_000, 5_000].map(starts), [2, 21, 40]);
}

#[test]
fn what_has_a_limit_or_is_asked_for_by_number_waits_for_nobody() {
    let limited = |object: &mut RevisionObject| {
        let mut container = tombolo_api::serving::Container::default();
        container.resources.limits.insert("memory".into(), "300Mi".parse().unwrap());
        object.spec.containers = vec![container];
    };
    let (desired, actual) = with_one(5, limited);
    assert_eq!(planned_at(&desired, &actual, false, NOW.after(10)).0, 19);
    for number in ["min-scale", "activation-scale"] {
        let least = |object: &mut RevisionObject| {
            object.annotations.insert(format!("autoscaling.knative.dev/{number}"), "7".into());
        };
        let (desired, actual) = with_one(5, least);
        assert_eq!(planned_at(&desired, &actual, false, NOW.after(10)).0, 6, "{number}");
    }
}
