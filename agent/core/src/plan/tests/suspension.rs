//! Suspended instances: many functions take turns on one device.

use super::devices::{has, held, of, with_devices};
use super::*;

const SUSPENDED: [(&str, &str); 1] = [(keys::IDLE_TIER, "suspended")];

/// One request for the revision, held while it has no instance that is ready.
fn call(desired: &Desired, actual: &mut Actual, name: &str, now: Moment) {
    // The autoscaler keeps what was called lately.
    let asked: Targets = desired
        .revisions
        .keys()
        .map(|key| {
            let recent =
                actual.revisions[key].last_active.after(60_000) > now && actual.revisions[key].ready_once;
            (key.clone(), Target { want: u32::from(recent), at: now })
        })
        .collect();
    settle(desired, actual, &with_demand(name, 0, 1, now), &asked, now);
    let known = actual.revisions.get_mut(&key(name)).unwrap();
    (known.ready_once, known.last_active) = (true, now);
}

fn phase(actual: &Actual, name: &str) -> Vec<Phase> {
    of(actual, name).into_iter().map(|(phase, _)| phase).collect()
}

#[test]
fn ten_functions_take_turns_on_one_device_and_none_is_started_twice() {
    let names: Vec<_> = (0..10).map(|number| format!("model-{number}")).collect();
    let objects: Vec<_> = names.iter().map(|name| with_devices(name, 1, &SUSPENDED)).collect();
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "a", NOW);
    for known in actual.revisions.values_mut() {
        known.last_active = Moment(0);
        known.ready_once = true;
    }
    let mut now = NOW;
    let mut first = None;
    for round in 0..3 {
        for name in &names {
            now = now.after(1_000);
            call(&desired, &mut actual, name, now);
            assert_eq!(of(&actual, name), [(Phase::Ready, "a".into())], "{name} in round {round}");
            let ready = actual.instances.values().filter(|instance| instance.phase == Phase::Ready).count();
            assert_eq!(ready, 1, "one at a time");
        }
        let ids: Vec<_> = actual.instances.keys().cloned().collect();
        assert_eq!(
            (ids.len(), first.get_or_insert_with(|| ids.clone())),
            (10, &mut ids.clone()),
            "round {round}"
        );
    }
}

#[test]
fn who_was_called_longest_ago_lets_go_first() {
    let objects = ["s-00001", "t-00001", "u-00001"].map(|name| with_devices(name, 1, &SUSPENDED));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "ab", NOW);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    call(&desired, &mut actual, "s-00001", NOW.after(1));
    call(&desired, &mut actual, "t-00001", NOW.after(2));
    assert_eq!(
        (phase(&actual, "s-00001"), phase(&actual, "t-00001")),
        (vec![Phase::Ready], vec![Phase::Ready])
    );
    call(&desired, &mut actual, "u-00001", NOW.after(3));
    assert_eq!(phase(&actual, "s-00001"), [Phase::Suspended]);
    assert_eq!(
        (phase(&actual, "t-00001"), phase(&actual, "u-00001")),
        (vec![Phase::Ready], vec![Phase::Ready])
    );
}

#[test]
fn one_that_answers_is_not_taken_from() {
    let objects = ["s-00001", "t-00001"].map(|name| with_devices(name, 1, &SUSPENDED));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "a", NOW);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    call(&desired, &mut actual, "s-00001", NOW.after(1));
    let mut traffic = with_demand("t-00001", 0, 1, NOW.after(2));
    traffic
        .revisions
        .insert(key("s-00001"), Demand { in_flight: 1, held: 0, last_request: Some(NOW.after(2)) });
    let plan = targeted(&desired, &actual, &traffic, &asking(&desired, 0, NOW), NOW.after(2));
    assert_eq!(plan.actions, []);
    assert!(plan.cuts[&key("t-00001")].starts_with("InsufficientDevices: "), "{:?}", plan.cuts);
}

#[test]
fn an_idle_one_is_suspended_and_keeps_to_its_device() {
    let objects = [with_devices("s-00001", 1, &SUSPENDED)];
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "ab", NOW);
    call(&desired, &mut actual, "s-00001", NOW);
    let nothing = asking(&desired, 0, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &nothing, NOW);
    assert_eq!(of(&actual, "s-00001"), [(Phase::Suspended, "a".into())]);
    let reports = crate::status::revisions(&desired, &actual, &BTreeMap::new(), &BTreeMap::new(), NOW);
    assert_eq!(reports[0].instances[0].tier, tombolo_api::report::Tier::Suspended);
    let plan = targeted(&desired, &actual, &with_demand("s-00001", 0, 1, NOW), &nothing, NOW);
    let id = actual.instances.keys().next().unwrap().clone();
    assert_eq!(plan.actions, [Action::Restore { instance: id }]);
}

#[test]
fn where_nothing_can_be_suspended_an_idle_one_ends() {
    let objects = [with_devices("s-00001", 1, &SUSPENDED)];
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "a", NOW);
    call(&desired, &mut actual, "s-00001", NOW);
    actual.revisions.get_mut(&key("s-00001")).unwrap().cannot_suspend = Some("an old driver".into());
    let (id, made) = actual.instances.iter_mut().next().unwrap();
    made.phase = Phase::Draining;
    let id = id.clone();
    let plan = targeted(&desired, &actual, &Traffic::default(), &asking(&desired, 0, NOW), NOW);
    assert_eq!(plan.actions, [Action::Terminate { instance: id }]);
}

#[test]
fn a_suspended_one_of_a_former_object_or_without_its_device_ends() {
    let objects = [with_devices("s-00001", 1, &SUSPENDED)];
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "a", NOW);
    call(&desired, &mut actual, "s-00001", NOW);
    let nothing = asking(&desired, 0, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &nothing, NOW);
    let id = actual.instances.keys().next().unwrap().clone();
    let end = [Action::Delete { instance: id.clone() }];
    let mut outdated = actual.clone();
    outdated.instances.get_mut(&id).unwrap().object = Digest::of(b"former");
    assert_eq!(targeted(&desired, &outdated, &Traffic::default(), &nothing, NOW).actions[..1], end);
    let lost_at = NOW.after(crate::devices::LOST_GRACE_MS);
    has(&mut actual, "A", NOW);
    assert_eq!(targeted(&desired, &actual, &Traffic::default(), &nothing, lost_at).actions[..1], end);
    assert_eq!(held(&actual.instances[&id]), "a");
}
