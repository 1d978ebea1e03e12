//! Suspended instances: many functions take turns on one device.

use super::devices::{has, held, of, with_devices};
use super::*;
use crate::actual::Delay;
use crate::devices::{DeviceId, ResourceName};

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
            (key.clone(), Target { want: u32::from(recent), at: now, timed_out: false })
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

/// `name` has an instance in this phase with the devices, and has been called at `called`.
fn given_one(
    (desired, actual): (&Desired, &mut Actual),
    name: &str,
    phase: Phase,
    ids: &str,
    called: Moment,
) -> InstanceId {
    let id = InstanceId(format!("{name}-i"));
    let ids = ids.chars().map(|id| DeviceId(id.into())).collect();
    let devices: Devices = [(ResourceName("a.example/x".into()), ids)].into();
    let made =
        InstanceActual { devices, since: called, ..instance(name, desired.revisions[&key(name)].0, phase) };
    actual.instances.insert(id.clone(), made);
    let known = actual.revisions.get_mut(&key(name)).unwrap();
    (known.ready_once, known.last_active) = (true, called);
    id
}

fn given_three(devices: &str) -> (Desired, Actual) {
    let objects = ["s-00001", "t-00001", "u-00001"].map(|name| with_devices(name, 1, &SUSPENDED));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, devices, NOW);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    (desired, actual)
}

/// The autoscaler keeps all of them up.
fn planned_up(desired: &Desired, actual: &Actual, traffic: &Traffic, now: Moment) -> Plan {
    targeted(desired, actual, traffic, &asking(desired, 1, now), now)
}

#[test]
fn without_a_request_that_waits_nothing_moves() {
    let (desired, mut actual) = given_three("a");
    let world = (&desired, &mut actual);
    given_one(world, "s-00001", Phase::Ready, "a", NOW);
    given_one((&desired, &mut actual), "t-00001", Phase::Suspended, "a", NOW.after(1));
    given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "a", NOW.after(2));
    let plan = planned_up(&desired, &actual, &Traffic::default(), NOW.after(3));
    assert_eq!((plan.actions, plan.cuts), (vec![], BTreeMap::new()));
    assert_eq!(plan.wanted, [(key("s-00001"), 1)].into());
}

/// When an instance became ready says nothing of when it was called last.
#[test]
fn who_was_called_last_stays_though_it_has_been_ready_for_longest() {
    let (desired, mut actual) = given_three("ab");
    given_one((&desired, &mut actual), "s-00001", Phase::Ready, "a", NOW);
    let t = given_one((&desired, &mut actual), "t-00001", Phase::Ready, "b", NOW.after(1));
    given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "b", NOW);
    actual.instances.remove(&InstanceId("u-00001-i".into()));
    let mut traffic = with_demand("u-00001", 0, 1, NOW.after(3));
    let last = Demand { last_request: Some(NOW.after(2)), ..Demand::default() };
    traffic.revisions.insert(key("s-00001"), last);
    let plan = planned_up(&desired, &actual, &traffic, NOW.after(3));
    assert_eq!(plan.actions, [Action::Drain { instance: t }]);
}

#[test]
fn one_that_is_called_without_a_pause_lets_go_when_its_turn_is_over() {
    let (desired, mut actual) = given_three("a");
    let s = given_one((&desired, &mut actual), "s-00001", Phase::Ready, "a", NOW);
    let t = given_one((&desired, &mut actual), "t-00001", Phase::Suspended, "a", NOW);
    let mut traffic = with_demand("t-00001", 0, 1, NOW);
    traffic.revisions.insert(key("s-00001"), Demand { in_flight: 3, held: 1, last_request: Some(NOW) });
    traffic.instances.insert(s.clone(), 3);
    let (early, over) = (Moment(NOW.0 + TURN_MS - 1), NOW.after(TURN_MS));
    let plan = planned_up(&desired, &actual, &traffic, early);
    assert_eq!((plan.actions, plan.wake), (vec![], Some((over, WakeReason::TurnOver))));
    let plan = planned_up(&desired, &actual, &traffic, over);
    assert_eq!(plan.actions, [Action::Drain { instance: s.clone() }]);
    // Nobody else is waiting: it goes on.
    let mut alone = traffic.clone();
    alone.revisions.remove(&key("t-00001"));
    assert_eq!(planned_up(&desired, &actual, &alone, over).actions, []);
    // Its requests come to an end first, and then it is the other's turn, who ever waits.
    execute(&desired, &mut actual, &[Action::Drain { instance: s.clone() }], over);
    assert_eq!(planned_up(&desired, &actual, &traffic, over).actions, []);
    traffic.instances.clear();
    traffic.revisions.insert(key("s-00001"), Demand { in_flight: 0, held: 4, last_request: Some(over) });
    settle(&desired, &mut actual, &traffic, &asking(&desired, 1, over), over);
    assert_eq!(
        (&actual.instances[&s].phase, &actual.instances[&t].phase),
        (&Phase::Suspended, &Phase::Ready)
    );
}

#[test]
fn who_has_the_very_device_lets_go_not_who_was_called_longest_ago() {
    let (desired, mut actual) = given_three("ab");
    let s = given_one((&desired, &mut actual), "s-00001", Phase::Ready, "a", NOW.after(2));
    given_one((&desired, &mut actual), "t-00001", Phase::Ready, "b", NOW);
    let u = given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "a", NOW);
    let waits = with_demand("u-00001", 0, 1, NOW.after(3));
    let plan = planned_up(&desired, &actual, &waits, NOW.after(3));
    assert_eq!(plan.actions, [Action::Drain { instance: s.clone() }]);
    settle(&desired, &mut actual, &waits, &asking(&desired, 1, NOW), NOW.after(3));
    assert_eq!(
        (&actual.instances[&s].phase, &actual.instances[&u].phase),
        (&Phase::Suspended, &Phase::Ready)
    );
    assert_eq!(actual.instances.len(), 3, "none was begun anew");
    // Where the device is somebody's who never lets go, it begins anew on another one.
    let firm = with_devices("v-00001", 1, &[(keys::IDLE_TIER, "running")]);
    let (desired, mut actual) = given_routed(&[firm, with_devices("u-00001", 1, &SUSPENDED)]);
    has(&mut actual, "ab", NOW);
    given_one((&desired, &mut actual), "v-00001", Phase::Ready, "a", NOW);
    given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "a", NOW);
    let plan = planned_up(&desired, &actual, &waits, NOW.after(3));
    let [Action::Launch { devices, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert_eq!(devices.values().flatten().map(|id| id.0.as_str()).collect::<String>(), "b");
}

#[test]
fn a_new_instance_takes_what_nobody_comes_back_to_or_all_of_one() {
    let objects = ["s-00001", "t-00001", "u-00001"].map(|name| with_devices(name, 2, &SUSPENDED));
    let (desired, mut actual) = given_routed(&objects);
    given_one((&desired, &mut actual), "s-00001", Phase::Suspended, "bd", NOW);
    given_one((&desired, &mut actual), "t-00001", Phase::Suspended, "ac", NOW.after(1));
    let given = |actual: &Actual| {
        let waits = with_demand("u-00001", 0, 1, NOW.after(3));
        let plan = planned_up(&desired, actual, &waits, NOW.after(3));
        let [Action::Launch { devices, .. }] = plan.actions.as_slice() else { panic!("{plan:?}") };
        devices.values().flatten().map(|id| id.0.clone()).collect::<String>()
    };
    has(&mut actual, "abcdef", NOW);
    assert_eq!(given(&actual), "ef");
    has(&mut actual, "abcde", NOW);
    assert_eq!(given(&actual), "bd", "whole, and of who was stopped first");
}

#[test]
fn one_that_cannot_start_takes_nobodys_device() {
    let (desired, mut actual) = given_three("a");
    given_one((&desired, &mut actual), "s-00001", Phase::Ready, "a", NOW);
    let waits = with_demand("t-00001", 0, 1, NOW.after(3));
    let known = actual.revisions.get_mut(&key("t-00001")).unwrap();
    known.crashes = crashed(2, NOW.after(5_000));
    assert_eq!(planned_up(&desired, &actual, &waits, NOW.after(3)).actions, []);
    actual.revisions.get_mut(&key("t-00001")).unwrap().image = ImageState::Preparing;
    assert_eq!(planned_up(&desired, &actual, &waits, NOW.after(5_000)).actions, []);
    actual.revisions.get_mut(&key("t-00001")).unwrap().image = ImageState::Present;
    assert_eq!(planned_up(&desired, &actual, &waits, NOW.after(5_000)).actions.len(), 1);
}

fn delay(crowded: bool) -> Option<Delay> {
    Some(Delay { why: "no".into(), since: NOW, until: NOW.after(1_000), crowded })
}

#[test]
fn a_move_that_could_not_be_is_tried_again_in_time() {
    let (desired, mut actual) = given_three("a");
    let u = given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "a", NOW);
    actual.instances.get_mut(&u).unwrap().delayed = delay(false);
    let waits = with_demand("u-00001", 0, 1, NOW);
    let plan = planned_up(&desired, &actual, &waits, NOW);
    assert_eq!((plan.actions, plan.wake), (vec![], Some((NOW.after(1_000), WakeReason::MoveRetry))));
    let reports = crate::status::revisions(&desired, &actual, &plan.wanted, &plan.cuts, NOW);
    assert_eq!((reports[2].reason.as_str(), reports[2].message.as_str()), ("NotRestored", "no"));
    let backend = &routes(&desired, &actual, NOW).revisions[&key("u-00001")];
    assert_eq!(backend.awaits.as_ref().map(|why| why.reason.as_str()), Some("NotRestored"));
    let plan = planned_up(&desired, &actual, &waits, NOW.after(1_000));
    assert_eq!(plan.actions, [Action::Restore { instance: u.clone() }]);
    // The same on the way out.
    let known = actual.instances.get_mut(&u).unwrap();
    known.phase = Phase::Draining;
    let nothing = asking(&desired, 0, NOW);
    let plan = targeted(&desired, &actual, &Traffic::default(), &nothing, NOW);
    assert_eq!((plan.actions, plan.wake), (vec![], Some((NOW.after(1_000), WakeReason::MoveRetry))));
    let plan = targeted(&desired, &actual, &Traffic::default(), &nothing, NOW.after(1_000));
    assert_eq!(plan.actions, [Action::Suspend { instance: u }]);
}

#[test]
fn room_is_made_by_one_after_the_other_until_it_suffices() {
    let (desired, mut actual) = given_three("abc");
    let s = given_one((&desired, &mut actual), "s-00001", Phase::Ready, "a", NOW);
    let t = given_one((&desired, &mut actual), "t-00001", Phase::Ready, "b", NOW.after(1));
    let u = given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "c", NOW);
    let waits = with_demand("u-00001", 0, 1, NOW);
    for (now, gives) in [(NOW, &s), (NOW.after(2_000), &t)] {
        let delayed = Delay { since: now, until: now.after(1_000), ..delay(true).unwrap() };
        actual.instances.get_mut(&u).unwrap().delayed = Some(delayed);
        let first = planned_up(&desired, &actual, &waits, now);
        assert_eq!(first.actions, [Action::Drain { instance: gives.clone() }]);
        execute(&desired, &mut actual, &first.actions, now.after(1));
        let second = planned_up(&desired, &actual, &waits, now.after(1));
        assert_eq!(second.actions, [Action::Suspend { instance: gives.clone() }]);
        execute(&desired, &mut actual, &second.actions, now.after(1));
        let third = planned_up(&desired, &actual, &waits, now.after(1));
        assert_eq!(third.actions, [Action::Restore { instance: u.clone() }], "at once");
    }
}

#[test]
fn what_is_astray_is_fetched_though_nobody_calls_and_nobody_gets_its_device() {
    let (desired, mut actual) = given_three("a");
    let s = given_one((&desired, &mut actual), "s-00001", Phase::Suspended, "a", NOW);
    given_one((&desired, &mut actual), "t-00001", Phase::Suspended, "a", NOW);
    actual.instances.get_mut(&s).unwrap().astray = true;
    let fetched = [Action::Restore { instance: s.clone() }];
    let waits = with_demand("t-00001", 0, 1, NOW);
    for traffic in [&Traffic::default(), &waits] {
        assert_eq!(planned_up(&desired, &actual, traffic, NOW).actions, fetched);
    }
    actual.instances.get_mut(&s).unwrap().delayed = delay(false);
    let plan = planned_up(&desired, &actual, &waits, NOW);
    assert_eq!((plan.actions, plan.wake), (vec![], Some((NOW.after(1_000), WakeReason::MoveRetry))));
}

#[test]
fn what_is_moved_counts_as_memory_of_the_node() {
    let (desired, mut actual) = given_three("ab");
    let u = given_one((&desired, &mut actual), "u-00001", Phase::Suspended, "a", NOW);
    let settings = Settings { memory_bytes: 128 << 20, ..SETTINGS };
    let assumed = crate::autoscale::capacity::ASSUMED_BYTES;
    assert_eq!(room_for_moved(&desired, &actual, &settings), (128 << 20) - assumed);
    let waits = with_demand("t-00001", 0, 1, NOW);
    for (moved_bytes, starts) in [(64 << 20, 1), (65 << 20, 0)] {
        actual.instances.get_mut(&u).unwrap().moved_bytes = moved_bytes;
        let plan = fitting(&desired, &actual, &waits, &asking(&desired, 0, NOW), &settings, NOW);
        let launched = |action: &&Action| matches!(action, Action::Launch { revision, .. } if *revision.name == *"t-00001");
        assert_eq!(plan.actions.iter().filter(launched).count(), starts, "{plan:?}");
    }
}

#[test]
fn why_nothing_is_suspended_stands_in_the_status() {
    let (desired, mut actual) = given_three("a");
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    (known.ready_once, known.cannot_suspend) = (true, Some("an old driver".into()));
    let report = &crate::status::revisions(&desired, &actual, &BTreeMap::new(), &BTreeMap::new(), NOW)[0];
    assert_eq!(report.reason, "NotSuspended");
    assert!(report.message.ends_with("an old driver"), "{}", report.message);
}

/// Six models of 16 GB each on one accelerator of 78: a call moves one away and one back, and none is loaded twice.
#[test]
fn models_that_share_an_accelerators_memory_take_turns_one_for_one() {
    let names: Vec<_> = (0..6).map(|number| format!("model-{number}")).collect();
    let objects: Vec<_> = names.iter().map(|name| memory::with_memory(name, 64, &SUSPENDED)).collect();
    let (desired, mut actual) = given_routed(&objects);
    memory::has(&mut actual, &[310]);
    for known in actual.revisions.values_mut() {
        (known.ready_once, known.last_active) = (true, Moment(0));
    }
    let mut now = NOW;
    for round in 0..4 {
        for (number, name) in names.iter().enumerate() {
            now = now.after(1_000);
            let traffic = with_demand(name, 0, 1, now);
            let (mut moved, mut back, mut begun) = (0, 0, 0);
            for _ in 0..20 {
                let plan = targeted(&desired, &actual, &traffic, &asking(&desired, 1, now), now);
                for action in &plan.actions {
                    moved += usize::from(matches!(action, Action::Suspend { .. }));
                    back += usize::from(matches!(action, Action::Restore { .. }));
                    begun += usize::from(matches!(action, Action::Launch { .. }));
                }
                execute(&desired, &mut actual, &plan.actions, now);
            }
            actual.revisions.get_mut(&key(name)).unwrap().last_active = now;
            let expected = match (round, number) {
                (0, 0..4) => (0, 0, 1),
                (0, _) => (1, 0, 1),
                // The first ones share their places with the last ones.
                (_, 0 | 1 | 4 | 5) => (1, 1, 0),
                _ => (0, 0, 0),
            };
            assert_eq!((moved, back, begun), expected, "{name} in round {round}");
        }
    }
}

/// One that waits for all devices must not be given what another holds that has yet to begin: neither would get any.
#[test]
fn one_that_is_made_and_called_begins_though_another_waits_for_all_devices() {
    let objects = [("s-00001", 1), ("t-00001", 1), ("u-00001", 2)]
        .map(|(name, count)| with_devices(name, count, &SUSPENDED));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, "ab", NOW);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    let digest = |name: &str| desired.revisions[&key(name)].0;
    for (id, name, phase, device) in
        [("s", "s-00001", Phase::Suspended, "a"), ("t", "t-00001", Phase::Primed, "b")]
    {
        let devices = [(ResourceName("a.example/x".into()), [DeviceId(device.into())].into())].into();
        let made = InstanceActual { devices, ..instance(name, digest(name), phase) };
        actual.instances.insert(InstanceId(id.into()), made);
    }
    let mut traffic = Traffic::default();
    for name in ["s-00001", "t-00001", "u-00001"] {
        traffic.revisions.insert(key(name), Demand { in_flight: 0, held: 1, last_request: Some(NOW) });
    }
    let plan = targeted(&desired, &actual, &traffic, &asking(&desired, 1, NOW), NOW);
    assert!(plan.actions.contains(&Action::Start { instance: InstanceId("t".into()) }), "{:?}", plan.actions);
}
