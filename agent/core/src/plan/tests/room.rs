//! The node's memory is shared by what was seen, and what other programs have of it is left to them.

use super::*;
use crate::actual::InstanceClaim;

const MI: u64 = 1 << 20;

/// A node with 900 MiB for instances and one revision that is ready, of which one was seen to hold from 50 to 200 MiB.
fn one_that_grows() -> (Desired, Actual) {
    let (desired, mut actual) = given_routed(&[object("a-00001", &[]), object("b-00001", &[])]);
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
    let known = actual.revisions.get_mut(&key("a-00001")).unwrap();
    known.memory = Learnt::Seen(Footprint { least_bytes: 50 * MI, most_bytes: 200 * MI, served: true });
    (desired, actual)
}

/// Asks for so many instances of both until nothing more is to be done.
fn settle_at(desired: &Desired, actual: &mut Actual, a: u32, b: u32) -> Plan {
    let settings = Settings { memory_bytes: 900 * MI, ..SETTINGS };
    let targets = [("a-00001", a), ("b-00001", b)]
        .map(|(name, want)| (key(name), Target { want, at: NOW, timed_out: false }));
    for _ in 0..20 {
        let plan = fitting(desired, actual, &Traffic::default(), &targets.clone().into(), &settings, NOW);
        if plan.actions.iter().all(|action| matches!(action, Action::Prime { .. })) {
            return plan;
        }
        execute(desired, actual, &plan.actions, NOW);
    }
    panic!("did not converge");
}

fn ready(actual: &Actual, name: &str) -> usize {
    let all = actual.instances.values().filter(|instance| instance.revision == key(name));
    all.filter(|instance| instance.phase == Phase::Ready).count()
}

#[test]
fn a_revision_without_a_limit_grows_by_what_was_seen() {
    let (desired, mut actual) = one_that_grows();
    let plan = settle_at(&desired, &mut actual, 9, 0);
    assert_eq!(ready(&actual, "a-00001"), 4);
    let cut = &plan.cuts[&key("a-00001")];
    assert!(cut.starts_with("InsufficientMemory: 4 of 9") && cut.contains("was seen to need 200Mi"), "{cut}");
    assert!(!cut.contains("programs"), "{cut}");
    // Of which nothing was seen is what is assumed.
    let (_, mut actual) = one_that_grows();
    settle_at(&desired, &mut actual, 0, 20);
    assert_eq!(ready(&actual, "b-00001"), 20);
}

#[test]
fn what_an_instance_has_beyond_its_claim_is_not_given_again() {
    let (desired, mut actual) = one_that_grows();
    // Of a revision that is not desired any more.
    let claim = InstanceClaim { configuration: "z".into(), memory_bytes: Some(32 * MI) };
    let gone = InstanceActual {
        claim,
        held_bytes: 500 * MI,
        ..instance("z-00001", Digest::of(b"z"), Phase::Stopping { killed: false })
    };
    actual.instances.insert(InstanceId("z".into()), gone);
    settle_at(&desired, &mut actual, 9, 0);
    assert_eq!(ready(&actual, "a-00001"), 2);
}

#[test]
fn what_other_programs_have_is_left_to_them() {
    let (desired, mut actual) = one_that_grows();
    actual.others_bytes = 450 * MI;
    let plan = settle_at(&desired, &mut actual, 9, 0);
    assert_eq!(ready(&actual, "a-00001"), 2);
    let cut = &plan.cuts[&key("a-00001")];
    assert!(cut.contains("this node's 450Mi") && cut.contains("not Tombolo's have 450Mi more"), "{cut}");
    // They take more: what runs stays, and nobody else starts.
    actual.others_bytes = 880 * MI;
    let plan = settle_at(&desired, &mut actual, 9, 1);
    assert_eq!((ready(&actual, "a-00001"), ready(&actual, "b-00001")), (2, 0));
    assert!(plan.cuts[&key("b-00001")].contains("one is reckoned with 32Mi"), "{:?}", plan.cuts);
    // They end.
    actual.others_bytes = 0;
    settle_at(&desired, &mut actual, 3, 1);
    assert_eq!((ready(&actual, "a-00001"), ready(&actual, "b-00001")), (3, 1));
}

#[test]
fn nobody_gives_way_where_other_programs_have_it_all() {
    let frozen = [(keys::IDLE_TIER, "frozen")];
    let (desired, mut actual) =
        given_routed(&[object("a-00001", &frozen), object("b-00001", &[]), object("c-00001", &frozen)]);
    for (name, known) in &mut actual.revisions {
        known.ready_once = true;
        if *name.name == *"b-00001" {
            known.memory =
                Learnt::Seen(Footprint { least_bytes: 100 * MI, most_bytes: 100 * MI, served: true });
        } else {
            known.memory =
                Learnt::Seen(Footprint { least_bytes: 200 * MI, most_bytes: 200 * MI, served: true });
            let id = InstanceId(name.name.to_string());
            let digest = desired.revisions[name].0;
            actual.instances.insert(id, instance(&name.name, digest, Phase::Frozen));
        }
    }
    // 900 MiB less this: 150 MiB too much are in use, and one needs 100: the end of one frozen instance is not enough, both are.
    actual.others_bytes = 650 * MI;
    let settings = Settings { memory_bytes: 900 * MI, ..SETTINGS };
    let demand = with_demand("b-00001", 0, 1, NOW);
    let planned = |actual: &Actual| {
        let plan = fitting(&desired, actual, &demand, &asking(&desired, 0, NOW), &settings, NOW);
        plan.actions.iter().filter(|action| matches!(action, Action::Drain { .. })).count()
    };
    assert_eq!(planned(&actual), 2);
    actual.others_bytes = 850 * MI;
    assert_eq!(planned(&actual), 0, "it would be for nothing");
}

#[test]
fn two_that_were_seen_to_need_too_much_follow_each_other() {
    for (mebibytes, together) in [(400, true), (500, false)] {
        let (desired, mut actual) = given_routed(&[object("s-00001", &[]), object("s-00002", &[])]);
        let mut desired = desired;
        desired.routes.remove(&("default".to_owned(), "s-00001".to_owned()));
        let route = Arc::make_mut(desired.routes.values_mut().next().unwrap());
        route.targets[0].candidates = vec!["s-00002".into(), "s-00001".into()];
        let seen = Footprint { least_bytes: 40 * MI, most_bytes: mebibytes * MI, served: true };
        for (name, learnt) in [("s-00001", Learnt::Seen(seen)), ("s-00002", Learnt::Inherited(seen))] {
            let known = actual.revisions.get_mut(&key(name)).unwrap();
            (known.memory, known.ready_once) = (learnt, name == "s-00001");
        }
        let digest = desired.revisions[&key("s-00001")].0;
        actual.instances.insert(InstanceId("old".into()), instance("s-00001", digest, Phase::Ready));
        let settings = Settings { memory_bytes: 900 * MI, ..SETTINGS };
        let traffic = Traffic::default();
        let plan = fitting(&desired, &actual, &traffic, &Targets::new(), &settings, NOW);
        let takes_over = plan.actions.contains(&Action::TakeOver { revision: key("s-00002") });
        let starts = plan.actions.iter().any(|action| matches!(action, Action::Launch { .. }));
        assert_eq!((starts, takes_over), (together, !together), "{mebibytes}: {:?}", plan.actions);
    }
}

#[test]
fn one_that_takes_much_before_it_is_ready_is_reckoned_with() {
    let (desired, mut actual) = one_that_grows();
    let digest = desired.revisions[&key("b-00001")].0;
    let starting = InstanceActual { held_bytes: 500 * MI, ..instance("b-00001", digest, Phase::Probing) };
    actual.instances.insert(InstanceId("b".into()), starting);
    settle_at(&desired, &mut actual, 9, 1);
    assert_eq!(ready(&actual, "a-00001"), 2);
}

/// Two revisions of a configuration that were seen to need more together than there is, the former one serving.
fn too_large_together() -> (Desired, Actual) {
    let (mut desired, mut actual) = given_routed(&[object("s-00001", &[]), object("s-00002", &[])]);
    desired.routes.remove(&("default".to_owned(), "s-00001".to_owned()));
    let route = Arc::make_mut(desired.routes.values_mut().next().unwrap());
    route.targets[0].candidates = vec!["s-00002".into(), "s-00001".into()];
    route.targets[0].configuration = "s".into();
    let seen = Learnt::Seen(Footprint { least_bytes: 40 * MI, most_bytes: 500 * MI, served: true });
    actual.revisions.values_mut().for_each(|known| known.memory = seen);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    let digest = desired.revisions[&key("s-00001")].0;
    actual.instances.insert(InstanceId("old".into()), instance("s-00001", digest, Phase::Ready));
    (desired, actual)
}

#[test]
fn what_is_learnt_in_the_middle_of_a_swap_ends_nobody() {
    let settings = Settings { memory_bytes: 900 * MI, ..SETTINGS };
    let takes_over = |actual: &Actual| {
        let (desired, _) = too_large_together();
        let plan = fitting(&desired, actual, &Traffic::default(), &Targets::new(), &settings, NOW);
        plan.actions.contains(&Action::TakeOver { revision: key("s-00002") })
    };
    let (desired, actual) = too_large_together();
    assert!(takes_over(&actual), "neither runs beside the other");
    let mut beside = actual.clone();
    let digest = desired.revisions[&key("s-00002")].0;
    beside.instances.insert(InstanceId("new".into()), instance("s-00002", digest, Phase::Probing));
    assert!(!takes_over(&beside), "it runs already");
    let mut failed = actual.clone();
    failed.revisions.get_mut(&key("s-00002")).unwrap().crashes = Crashes { recent: 1, ..Crashes::default() };
    assert!(!takes_over(&failed), "it came to nothing beside the one that serves");
}

#[test]
fn what_is_learnt_ends_no_rollout_that_is_under_way() {
    use crate::rollout::Rollouts;
    let (mut desired, mut actual) = too_large_together();
    let settings = Settings { memory_bytes: 900 * MI, ..SETTINGS };
    let route = Arc::make_mut(desired.routes.values_mut().next().unwrap());
    route.rollout = Some(tombolo_api::desired::RolloutSpec { duration_s: 300, gate: None });
    let rolls = |actual: &Actual, rollouts: &Rollouts| {
        let rollable = rollable(&desired, actual, &settings, rollouts);
        rollable.routes.values().next().unwrap().rollout.is_some()
    };
    let mut rollouts = Rollouts::default();
    let step = |actual: &Actual, rollouts: &mut Rollouts| {
        let ready = |key: &RevisionKey| actual.revisions[key].ready_once;
        rollouts.step(&desired, ready, &BTreeMap::new(), NOW);
    };
    step(&actual, &mut rollouts);
    assert!(!rolls(&actual, &rollouts), "where none has begun the next one takes all at once");
    actual.revisions.get_mut(&key("s-00002")).unwrap().ready_once = true;
    step(&actual, &mut rollouts);
    assert!(rollouts.holds_back(desired.routes.values().next().unwrap()));
    assert!(rolls(&actual, &rollouts), "it is under way");
}
