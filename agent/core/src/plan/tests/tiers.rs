//! What waits at zero, what a request makes of it, and when the next is made to wait.

use super::*;

const QUIET: u64 = REFILL_QUIET_MS;

/// One revision of a tier that has proved itself and idled.
fn idle(tier: &str) -> (Desired, Actual, Moment) {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[(keys::IDLE_TIER, tier)])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    let nothing = asking(&desired, 0, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &nothing, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &nothing, NOW.after(QUIET));
    (desired, actual, NOW.after(QUIET))
}

fn phases(actual: &Actual) -> Vec<Phase> {
    actual.instances.values().map(|instance| instance.phase.clone()).collect()
}

#[test]
fn at_zero_each_tier_keeps_what_it_says() {
    for (tier, waits) in [
        ("cold", vec![]),
        ("primed", vec![Phase::Primed]),
        ("frozen", vec![Phase::Frozen]),
        ("running", vec![Phase::Ready]),
    ] {
        let (_, actual, _) = idle(tier);
        assert_eq!(phases(&actual), waits, "{tier}");
    }
}

#[test]
fn a_held_request_takes_the_quickest_there_is() {
    for (tier, starts) in [("primed", "Start"), ("frozen", "Thaw"), ("cold", "Launch")] {
        let (desired, actual, at) = idle(tier);
        let held = with_demand("s-00001", 0, 1, at);
        let actions = targeted(&desired, &actual, &held, &asking(&desired, 0, NOW), at).actions;
        let [action] = actions.as_slice() else { panic!("{tier}: {actions:?}") };
        assert!(format!("{action:?}").starts_with(starts), "{tier}: {action:?}");
    }
}

#[test]
fn more_than_one_are_made_of_what_waits_and_new_ones() {
    let (digest, made) = object("s-00001", &[]);
    let (desired, mut actual) = given_routed(&[(digest, made)]);
    let three = asking(&desired, 3, NOW);
    at_work(&mut actual);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    for (id, phase, starts) in [("a", Phase::Primed, 1), ("b", Phase::Priming, 0), ("c", Phase::Draining, 0)]
    {
        actual.instances = [(InstanceId(id.into()), instance("s-00001", digest, phase))].into();
        let actions = targeted(&desired, &actual, &Traffic::default(), &three, NOW).actions;
        let count = |wanted: fn(&Action) -> bool| actions.iter().filter(|action| wanted(action)).count();
        assert_eq!(count(|action| matches!(action, Action::Launch { .. })), 2, "{id}: {actions:?}");
        assert_eq!(count(|action| matches!(action, Action::Start { .. })), starts, "{id}");
    }
}

#[test]
fn the_next_slot_is_made_when_nothing_starts_and_nobody_waits() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[]), object("t-00001", &[])]);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    actual.last_start = NOW;
    let primes = |actual: &Actual, traffic: &Traffic, now| {
        let plan = planned(&desired, actual, traffic, now);
        let primed = plan.actions.iter().filter(|action| matches!(action, Action::Prime { .. })).count();
        (primed, plan.wake.map(|(at, _)| at))
    };
    let quiet = NOW.after(QUIET);
    let none = Traffic::default();
    assert_eq!(primes(&actual, &none, NOW), (0, Some(quiet)));
    assert_eq!(primes(&actual, &none, quiet).0, 1);
    assert_eq!(primes(&actual, &with_demand("s-00001", 0, 1, quiet), quiet).0, 0);
    // One at a time, though two are missing; and a program that does not answer holds nobody up for long.
    let digest = desired.revisions[&key("s-00001")].0;
    for phase in [Phase::Priming, Phase::Launching, Phase::Thawing] {
        let mut starting = instance("s-00001", digest, phase.clone());
        starting.since = NOW;
        actual.instances = [(InstanceId("i".into()), starting)].into();
        let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
        known.last_active = quiet;
        assert_eq!(primes(&actual, &none, quiet).0, 0, "{phase:?}");
        assert_eq!(primes(&actual, &none, NOW.after(STARTING_MAX_MS)).0, 1, "{phase:?}");
    }
}

#[test]
fn a_node_on_which_there_is_always_a_start_gets_its_slots_between_them() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[]), object("t-00001", &[])]);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    let digest = desired.revisions[&key("t-00001")].0;
    let primed = |actual: &Actual, now| {
        let actions = planned(&desired, actual, &Traffic::default(), now).actions;
        let of = |action: Action| match action {
            Action::Prime { revision, .. } => Some(revision.name.to_string()),
            _ => None,
        };
        actions.into_iter().find_map(of)
    };
    let late = NOW.after(REFILL_LATEST_MS);
    for (now, expected) in [(NOW.after(REFILL_LATEST_MS - 1), None), (late, Some("s-00001".to_owned()))] {
        // The other one has been started just now.
        actual.last_start = Moment(now.0 - 1);
        actual.revisions.get_mut(&key("t-00001")).unwrap().last_active = now;
        assert_eq!(primed(&actual, now), expected);
    }
    // Not while one starts.
    let starting = InstanceActual { since: late, ..instance("t-00001", digest, Phase::Launching) };
    actual.instances = [(InstanceId("i".into()), starting)].into();
    assert_eq!(primed(&actual, late), None);
}

#[test]
fn who_was_called_last_waits_first() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[]), object("t-00001", &[])]);
    for (name, age) in [("s-00001", 90_000), ("t-00001", 80_000)] {
        let known = actual.revisions.get_mut(&key(name)).unwrap();
        known.ready_once = true;
        known.last_active = Moment(NOW.0 - age);
    }
    let actions = planned(&desired, &actual, &Traffic::default(), NOW).actions;
    assert!(
        matches!(actions.as_slice(), [Action::Prime { revision, .. }] if *revision.name == *"t-00001"),
        "{actions:?}"
    );
}

#[test]
fn nothing_waits_of_what_no_route_leads_to_or_has_never_answered() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    actual.revisions.get_mut(&key("s-00001")).unwrap().last_active = Moment(0);
    assert_eq!(planned(&desired, &actual, &Traffic::default(), NOW).actions, []);
    let digest = desired.revisions[&key("s-00001")].0;
    let id = InstanceId("i".into());
    for (phase, action) in [
        (Phase::Primed, Action::Delete { instance: id.clone() }),
        (Phase::Frozen, Action::Drain { instance: id.clone() }),
        (Phase::Draining, Action::Terminate { instance: id.clone() }),
    ] {
        actual.instances = [(id.clone(), instance("s-00001", digest, phase))].into();
        assert_eq!(planned(&desired, &actual, &Traffic::default(), NOW).actions, [action]);
    }
    let (desired, actual) = given_routed(&[object("s-00001", &[])]);
    let actions = planned(&desired, &actual, &Traffic::default(), NOW).actions;
    assert!(matches!(actions.as_slice(), [Action::Launch { .. }]), "{actions:?}");
}

#[test]
fn what_waits_of_an_outdated_object_goes() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[("tombolo.dev/x", "1")])]);
    let old = Digest::of(b"old");
    let (primed, frozen) = (InstanceId("p".into()), InstanceId("q".into()));
    actual.instances.insert(primed.clone(), instance("s-00001", old, Phase::Primed));
    actual.instances.insert(frozen.clone(), instance("s-00001", old, Phase::Frozen));
    let actions = planned(&desired, &actual, &Traffic::default(), NOW).actions;
    assert_eq!(actions[..2], [Action::Delete { instance: primed }, Action::Drain { instance: frozen }]);
}

#[test]
fn a_frozen_one_that_was_given_a_request_goes_on() {
    let (desired, actual, at) = idle("frozen");
    let id = actual.instances.keys().next().unwrap().clone();
    let mut woken = with_demand("s-00001", 1, 0, at);
    woken.instances.insert(id.clone(), 1);
    let actions = targeted(&desired, &actual, &woken, &asking(&desired, 0, NOW), at).actions;
    assert_eq!(actions, [Action::Thaw { instance: id }]);
}

#[test]
fn of_several_that_drain_the_first_is_frozen() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[(keys::IDLE_TIER, "frozen")])]);
    let digest = desired.revisions[&key("s-00001")].0;
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.last_active = Moment(0);
    let ids: Vec<_> = ["a", "b", "c"].map(|id| InstanceId(id.into())).into();
    for id in &ids {
        actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Draining));
    }
    let expected = [
        Action::Freeze { instance: ids[0].clone() },
        Action::Terminate { instance: ids[1].clone() },
        Action::Terminate { instance: ids[2].clone() },
    ];
    assert_eq!(planned(&desired, &actual, &Traffic::default(), NOW).actions, expected);
    let busy = Traffic { instances: [(ids[0].clone(), 1)].into(), ..Traffic::default() };
    let timeout = crate::limits::REQUEST_TIMEOUT_MS;
    assert_eq!(planned(&desired, &actual, &busy, NOW).actions, expected[1..]);
    let late = planned(&desired, &actual, &busy, NOW.after(timeout)).actions;
    assert_eq!(late[0], Action::Terminate { instance: ids[0].clone() });
}

#[test]
fn what_could_not_be_made_to_wait_is_not_tried_at_once() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[])]);
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.last_active = Moment(0);
    known.prime_retry_at = NOW.after(5_000);
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((NOW.after(5_000), WakeReason::Refill))));
    // A request needs no slot.
    let held = planned(&desired, &actual, &with_demand("s-00001", 0, 1, NOW), NOW).actions;
    assert!(matches!(held.as_slice(), [Action::Launch { .. }]), "{held:?}");
}
