//! Updates where both revisions must not run at a time.

use tombolo_api::desired::RolloutSpec;

use super::*;
use crate::actual::InstanceClaim;
use crate::rollout::Rollouts;

const OLD: &str = "s-00001";
const NEW: &str = "s-00002";

/// The first revision serves with one instance, the second one has just come.
fn update(strategy: &str) -> (Desired, Actual) {
    let new = object(NEW, &[(keys::UPDATE_STRATEGY, strategy), (keys::PROGRESS_DEADLINE, "5s")]);
    let old = object(OLD, &[]);
    let (mut desired, mut actual) = given(&[old.clone(), new]);
    let target = RouteTarget {
        percent: 100,
        candidates: vec![NEW.into(), OLD.into()],
        hosts: vec![],
        tag: String::new(),
        configuration: "s".into(),
    };
    let route = RouteObject {
        namespace: "default".into(),
        name: "s".into(),
        hosts: vec!["s.default.localhost".into()],
        targets: vec![target],
        steering: vec![],
        rollout: None,
    };
    desired.routes.insert(("default".into(), "s".into()), Arc::new(route));
    actual.revisions.get_mut(&key(OLD)).unwrap().ready_once = true;
    actual.instances.insert(InstanceId("old".into()), instance(OLD, old.0, Phase::Ready));
    (desired, actual)
}

fn step(desired: &Desired, actual: &mut Actual, traffic: &Traffic, now: Moment) -> Vec<String> {
    let actions = planned(desired, actual, traffic, now).actions;
    // The program takes its time: what is launched is probed.
    let names = actions.iter().map(name).collect();
    execute(desired, actual, &actions, now);
    for (_, instance) in actual.instances.iter_mut().filter(|(id, _)| id.0.starts_with(NEW)) {
        if instance.phase == Phase::Ready {
            instance.phase = Phase::Probing;
            actual.revisions.get_mut(&key(NEW)).unwrap().ready_once = false;
        }
    }
    names
}

fn name(action: &Action) -> String {
    let text = format!("{action:?}");
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn routed(desired: &Desired, actual: &Actual) -> String {
    let table = routes(desired, actual, NOW);
    table.hosts["s.default.localhost"].splits[0].revision.name.to_string()
}

fn all(desired: &Desired, actual: &mut Actual, traffic: &Traffic, now: Moment) -> Vec<String> {
    let mut steps = Vec::new();
    for _ in 0..20 {
        let names = step(desired, actual, traffic, now);
        if names.is_empty() {
            return steps;
        }
        steps.extend(names);
    }
    panic!("did not converge: {steps:?}");
}

#[test]
fn each_strategy_has_its_order() {
    let none = Traffic::default();
    for (strategy, expected) in [
        ("", vec!["Launch"]),
        ("overlap", vec!["Launch"]),
        ("auto", vec!["Launch"]),
        ("hand-over", vec!["Prime", "TakeOver", "Drain", "Terminate", "Delete", "Start"]),
        ("stop-first", vec!["TakeOver", "Drain", "Terminate", "Delete", "Launch"]),
    ] {
        let (desired, mut actual) = update(strategy);
        let steps = all(&desired, &mut actual, &none, NOW);
        let steps: Vec<_> =
            steps.iter().filter(|step| **step != "Prime" || strategy == "hand-over").collect();
        assert_eq!(steps, expected, "{strategy}");
    }
}

#[test]
fn both_never_run_at_a_time() {
    for strategy in ["hand-over", "stop-first"] {
        let (desired, mut actual) = update(strategy);
        for held in [0, 1, 1, 0, 1, 1, 1, 0, 0, 1] {
            step(&desired, &mut actual, &with_demand(NEW, 0, held, NOW), NOW);
            let runs = |name: &str| {
                let mut all = actual.instances.values().filter(|instance| *instance.revision.name == *name);
                all.any(|instance| !matches!(instance.phase, Phase::Primed | Phase::Ended { .. }))
            };
            assert!(!(runs(OLD) && runs(NEW)), "{strategy}: {:?}", actual.instances);
        }
    }
}

#[test]
fn auto_stops_first_where_one_more_does_not_fit() {
    let (desired, actual) = update("auto");
    let settings = Settings { memory_bytes: 48 << 20, ..SETTINGS };
    let (traffic, targets) = (Traffic::default(), Targets::new());
    assert_eq!(
        fitting(&desired, &actual, &traffic, &targets, &settings, NOW).actions,
        [Action::TakeOver { revision: key(NEW) }]
    );
}

#[test]
fn one_that_can_never_fit_takes_nobodys_place() {
    for strategy in ["overlap", "hand-over", "stop-first", "auto"] {
        let (mut desired, mut actual) = update(strategy);
        let (digest, object) = with_memory((*desired.revisions[&key(NEW)].1).clone(), "1Gi");
        actual.revisions.get_mut(&key(NEW)).unwrap().object = digest;
        desired.revisions.insert(key(NEW), (digest, object.into()));
        let settings = Settings { memory_bytes: (1 << 30) - 1, ..SETTINGS };
        measure(&desired, &mut actual, &settings);
        let plan = fitting(&desired, &actual, &Traffic::default(), &Targets::new(), &settings, NOW);
        let of_old =
            |action: &Action| matches!(action, Action::Prime { revision, .. } if *revision == key(OLD));
        assert!(plan.actions.iter().all(of_old), "{strategy}: {:?}", plan.actions);
        assert_eq!(routed(&desired, &actual), OLD, "{strategy}");
    }
}

#[test]
fn requests_wait_for_the_new_one_and_those_for_the_old_one_are_served_by_it() {
    let (desired, mut actual) = update("stop-first");
    assert_eq!(routed(&desired, &actual), OLD);
    step(&desired, &mut actual, &Traffic::default(), NOW);
    assert_eq!(routed(&desired, &actual), NEW);
    let unsettled = Traffic { unsettled: true, ..Traffic::default() };
    assert_eq!(step(&desired, &mut actual, &unsettled, NOW), Vec::<String>::new());
    let waiting = with_demand(OLD, 1, 3, NOW);
    assert_eq!(step(&desired, &mut actual, &waiting, NOW), Vec::<String>::new());
    assert_eq!(step(&desired, &mut actual, &with_demand(OLD, 1, 0, NOW), NOW), ["Drain"]);
}

#[test]
fn not_ready_in_time_means_back_to_the_old_one() {
    for strategy in ["hand-over", "stop-first"] {
        let (desired, mut actual) = update(strategy);
        let held = with_demand(NEW, 0, 1, NOW);
        all(&desired, &mut actual, &held, NOW);
        let deadline = NOW.after(5_000);
        assert_eq!(planned(&desired, &actual, &held, NOW).wake.unwrap().0, deadline, "{strategy}");
        let back = with_demand(OLD, 0, 1, deadline);
        let steps = all(&desired, &mut actual, &back, deadline);
        assert!(steps.contains(&"Undo".to_owned()), "{steps:?}");
        let last = steps.iter().rposition(|step| step == "Delete").unwrap();
        let again = steps.iter().position(|step| step == "Launch" || step == "Start").unwrap();
        assert!(last < again, "{strategy}: {steps:?}");
        assert_eq!(routed(&desired, &actual), OLD);
        let running: Vec<_> =
            actual.instances.values().filter(|instance| instance.phase == Phase::Ready).collect();
        assert_eq!(running.len(), 1);
        assert_eq!(running[0].revision, key(OLD));
        let report = crate::status::revisions(&desired, &actual, &BTreeMap::new(), &BTreeMap::new(), NOW);
        assert_eq!(report[1].reason, "NotReadyInTime");
    }
}

#[test]
fn a_program_that_ends_again_and_again_is_not_waited_for() {
    let (desired, mut actual) = update("stop-first");
    all(&desired, &mut actual, &Traffic::default(), NOW);
    let known = actual.revisions.get_mut(&key(NEW)).unwrap();
    known.crashes = crashed(TAKEOVER_CRASHES_MAX, NOW.after(1_000));
    actual.instances.clear();
    assert!(all(&desired, &mut actual, &Traffic::default(), NOW).contains(&"Undo".to_owned()));
}

#[test]
fn what_is_pinned_elsewhere_is_not_stopped() {
    let (mut desired, mut actual) = update("stop-first");
    let pinned = RouteTarget {
        percent: 0,
        candidates: vec![OLD.into()],
        hosts: vec!["old-s.default.localhost".into()],
        tag: "old".into(),
        configuration: String::new(),
    };
    Arc::make_mut(desired.routes.values_mut().next().unwrap()).targets.push(pinned);
    assert_eq!(step(&desired, &mut actual, &Traffic::default(), NOW), ["Launch"]);
    let reports = |actual: &Actual| {
        let reports = crate::status::revisions(&desired, actual, &BTreeMap::new(), &BTreeMap::new(), NOW);
        reports.into_iter().map(|report| (report.reason, report.message)).collect::<Vec<_>>()
    };
    for ready_once in [false, true] {
        actual.revisions.get_mut(&key(NEW)).unwrap().ready_once = ready_once;
        let told = reports(&actual);
        assert_eq!(told[0], Default::default(), "the old one has asked for nothing");
        assert_eq!(told[1].0, "UpdateStrategyNotKept");
        let why =
            "stop-first is not kept: route s leads to s-00001 too, by tag \"old\", which runs beside it";
        assert!(told[1].1.ends_with(why), "{}", told[1].1);
    }
}

#[test]
fn one_that_is_kept_says_nothing() {
    for strategy in ["", "overlap", "hand-over", "stop-first", "auto"] {
        let (desired, actual) = update(strategy);
        assert_eq!(not_kept(&desired, &actual, &key(NEW)), None, "{strategy}");
    }
}

#[test]
fn instances_of_a_former_object_end_before_the_next_one_starts() {
    for (strategy, mebibytes, both) in [
        ("stop-first", 8_000, false),
        ("hand-over", 8_000, false),
        ("auto", 48, false),
        ("", 48, false),
        ("", 64, true),
    ] {
        for ready_once in [false, true] {
            let settings = Settings { memory_bytes: mebibytes << 20, ..SETTINGS };
            let (desired, mut actual) = given_routed(&[object(NEW, &[(keys::UPDATE_STRATEGY, strategy)])]);
            actual.revisions.get_mut(&key(NEW)).unwrap().ready_once = ready_once;
            let former = Digest::of(b"former");
            actual.instances.insert(InstanceId("old".into()), instance(NEW, former, Phase::Ready));
            let held = with_demand(NEW, 0, 1, NOW);
            let mut met = false;
            for _ in 0..10 {
                let plan = fitting(&desired, &actual, &held, &Targets::new(), &settings, NOW);
                execute(&desired, &mut actual, &plan.actions, NOW);
                let runs = |of_former: bool| {
                    let mut all =
                        actual.instances.values().filter(|known| (known.object == former) == of_former);
                    all.any(|known| !matches!(known.phase, Phase::Primed | Phase::Ended { .. }))
                };
                met |= runs(true) && runs(false);
            }
            assert_eq!(met, both, "{strategy}, ready once: {ready_once}");
            let phases: Vec<_> =
                actual.instances.values().map(|known| (known.object == former, &known.phase)).collect();
            assert!(phases.contains(&(false, &Phase::Ready)), "{strategy}: {phases:?}");
            assert!(!phases.iter().any(|(former, _)| *former), "{strategy}: {phases:?}");
        }
    }
}

#[test]
fn an_undone_one_stays_undone_and_one_in_the_middle_goes_on_after_a_restart() {
    let (desired, mut actual) = update("auto");
    let why = RolledBack { reason: "NotReadyInTime".into(), message: "m".into() };
    let settings = Settings { memory_bytes: 48 << 20, ..SETTINGS };
    let after_restart = |actual: &Actual| {
        let read = crate::takeovers::Takeovers::decode(
            &crate::takeovers::Takeovers::among(&actual.revisions).encode(),
        );
        let mut again = Actual { instances: BTreeMap::new(), ..actual.clone() };
        for (key, known) in &mut again.revisions {
            known.takeover = read.as_ref().unwrap().of(key, &known.object);
        }
        let held = with_demand(OLD, 0, 1, NOW);
        let actions = fitting(&desired, &again, &held, &Targets::new(), &settings, NOW).actions;
        (actions, routed(&desired, &again))
    };
    let launches = |actions: &[Action], name: &str| {
        let launches =
            |action: &Action| matches!(action, Action::Launch { revision, .. } if *revision.name == *name);
        actions.iter().any(launches)
    };
    actual.revisions.get_mut(&key(NEW)).unwrap().takeover = Takeover::Undone(why);
    let (undone, serves) = after_restart(&actual);
    assert!(launches(&undone, OLD) && !launches(&undone, NEW), "{undone:?}");
    assert_eq!(serves, OLD);
    actual.revisions.get_mut(&key(NEW)).unwrap().takeover = Takeover::Begun { started: Some(NOW) };
    let (begun, serves) = after_restart(&actual);
    assert!(!begun.contains(&Action::TakeOver { revision: key(NEW) }), "{begun:?}");
    assert_eq!(serves, NEW, "auto, too: it would count as overlap without instances");
}

#[test]
fn an_agent_that_starts_again_goes_on() {
    let (desired, mut actual) = update("stop-first");
    actual.instances.clear();
    let digest = desired.revisions[&key(NEW)].0;
    actual.instances.insert(InstanceId("n".into()), instance(NEW, digest, Phase::Probing));
    let held = with_demand(OLD, 0, 1, NOW);
    let actions = planned(&desired, &actual, &held, NOW).actions;
    assert!(actions.contains(&Action::TakeOver { revision: key(NEW) }), "{actions:?}");
}

#[test]
fn where_nobody_said_how_both_run_unless_the_memory_never_does_for_two() {
    let taken = |strategy: &str, mebibytes: u64, is_crowded: bool| {
        let (mut desired, mut actual) = update(strategy);
        if is_crowded {
            beside(&mut desired, &mut actual);
        }
        let settings = Settings { memory_bytes: mebibytes << 20, ..SETTINGS };
        let Plan { actions, cuts, .. } =
            fitting(&desired, &actual, &Traffic::default(), &Targets::new(), &settings, NOW);
        let actions: Vec<_> = actions.iter().map(name).filter(|action| action != "Prime").collect();
        (actions.join(" "), cuts.get(&key(NEW)).cloned().unwrap_or_default())
    };
    assert_eq!(taken("", 64, false), ("Launch".into(), String::new()));
    assert_eq!(taken("", 63, false), ("TakeOver".into(), String::new()));
    // It may become free: nothing says that it must not be waited for.
    let (actions, cut) = taken("", 95, true);
    assert!(actions.is_empty() && cut.starts_with("InsufficientMemory: 0 of 1"), "{actions}, {cut}");
    assert!(!cut.contains(keys::UPDATE_STRATEGY), "{cut}");
    let (actions, cut) = taken("overlap", 63, false);
    assert!(actions.is_empty() && cut.starts_with("InsufficientMemory: 0 of 1"), "{actions}, {cut}");
    assert!(cut.contains("tombolo.dev/update-strategy: overlap"), "{cut}");
}

/// The same with a gradual rollout: what is planned where routes are shared as that says, and who gets requests then.
fn rolled(
    (desired, actual): (&Desired, &Actual),
    rollouts: &mut Rollouts,
    traffic: &Traffic,
    settings: &Settings,
) -> (Plan, BTreeSet<String>) {
    let rollable = rollable(desired, actual, settings, rollouts);
    let ready = |key: &RevisionKey| crate::table::serves(&rollable, actual, key);
    rollouts.step(&rollable, ready, &BTreeMap::new(), NOW);
    let table = &crate::table::build(desired, actual, rollouts, &RouteTable::default(), NOW);
    let targets = &Targets::new();
    let routed = table.routed().into_iter().map(|key| key.name.to_string()).collect();
    (plan(&Situation { desired, actual, traffic, table, targets, settings }, NOW), routed)
}

fn with_rollout(desired: &mut Desired) {
    let spec = RolloutSpec { duration_s: 300, gate: None };
    Arc::make_mut(desired.routes.values_mut().next().unwrap()).rollout = Some(spec);
}

/// Another function that runs all the time.
fn beside(desired: &mut Desired, actual: &mut Actual) {
    let (_, mut other) = object("t-00001", &[("autoscaling.knative.dev/min-scale", "1")]);
    other.configuration = "t".into();
    let digest = tombolo_api::desired::encode_revision(&other).entry.digest;
    desired.revisions.insert(key("t-00001"), (digest, Arc::new(other)));
    let known = RevisionActual { image: ImageState::Present, ..RevisionActual::new(digest, true, NOW) };
    actual.revisions.insert(key("t-00001"), known);
    actual.instances.insert(InstanceId("other".into()), instance("t-00001", digest, Phase::Ready));
}

#[test]
fn no_rollout_leads_to_a_revision_that_ends_for_the_next_one() {
    // For the last there would be room for two, were there not another function.
    for (strategy, mebibytes) in [("stop-first", 8_000), ("hand-over", 8_000), ("auto", 48), ("auto", 80)] {
        let (mut desired, mut actual) = update(strategy);
        with_rollout(&mut desired);
        if mebibytes == 80 {
            beside(&mut desired, &mut actual);
        }
        let settings = Settings { memory_bytes: mebibytes << 20, ..SETTINGS };
        let (mut rollouts, new) = (Rollouts::default(), actual.revisions.remove(&key(NEW)).unwrap());
        let mut busy = with_demand(OLD, 1, 0, NOW);
        busy.instances.insert(InstanceId("old".into()), 1);
        let before = rolled((&desired, &actual), &mut rollouts, &busy, &settings);
        assert_eq!(before.1, [OLD.to_owned()].into());
        actual.revisions.insert(key(NEW), new);
        for pass in 0.. {
            // It answers its last request after a while.
            let traffic = if pass < 4 { busy.clone() } else { Traffic::default() };
            let (plan, routed) = rolled((&desired, &actual), &mut rollouts, &traffic, &settings);
            let known = &actual.revisions[&key(NEW)];
            let has_begun = matches!(known.takeover, Takeover::Begun { .. });
            assert!(!has_begun || routed == [NEW.to_owned()].into(), "{strategy} {mebibytes}: {routed:?}");
            assert!(!plan.actions.iter().any(|action| matches!(action, Action::Resume { .. })), "{plan:?}");
            if known.ready_once {
                assert_eq!(routed, [NEW.to_owned()].into(), "{strategy} {mebibytes}");
                break;
            }
            assert!(pass < 20, "{strategy} {mebibytes}: {plan:?}");
            execute(&desired, &mut actual, &plan.actions, NOW);
            for known in actual.instances.values().filter(|known| known.phase == Phase::Ready) {
                let of = actual.revisions.get_mut(&known.revision).unwrap();
                if !of.ready_once {
                    (of.ready_once, of.takeover) = (true, Takeover::None);
                }
            }
        }
    }
}

#[test]
fn a_rollout_goes_on_where_both_fit_and_is_left_out_where_they_never_do() {
    let (mut desired, mut actual) = update("overlap");
    with_rollout(&mut desired);
    let of = |mebibytes: u64| Settings { memory_bytes: mebibytes << 20, ..SETTINGS };
    let rolls = |actual: &Actual, settings: &Settings| {
        let rollable = rollable(&desired, actual, settings, &Rollouts::default());
        rollable.routes.values().next().unwrap().rollout.is_some()
    };
    assert!(rolls(&actual, &of(64)));
    assert!(!rolls(&actual, &of(63)));
    actual.revisions.get_mut(&key(NEW)).unwrap().takeover = Takeover::Begun { started: None };
    assert!(!rolls(&actual, &of(64)), "it may be a device that it waits for");
}

#[test]
fn one_that_cannot_start_though_those_before_it_are_gone_is_undone() {
    let (mut desired, mut actual) = update("stop-first");
    beside(&mut desired, &mut actual);
    let settings = Settings { memory_bytes: 48 << 20, ..SETTINGS };
    let planned = |actual: &Actual, now| {
        fitting(&desired, actual, &with_demand(NEW, 0, 1, NOW), &Targets::new(), &settings, now)
    };
    let begins = Action::StartDeadline { revision: key(NEW) };
    actual.revisions.get_mut(&key(NEW)).unwrap().takeover = Takeover::Begun { started: None };
    assert!(!planned(&actual, NOW).actions.contains(&begins), "the one before is still there");
    actual.instances.remove(&InstanceId("old".into()));
    let later = NOW.after(600_000);
    let plan = planned(&actual, later);
    assert_eq!(plan.actions, [begins], "another function has the memory");
    execute(&desired, &mut actual, &plan.actions, later);
    assert_eq!(planned(&actual, later).wake.unwrap().1, WakeReason::TakeoverDeadline);
    let undone = planned(&actual, later.after(5_000)).actions;
    assert!(matches!(&undone[..], [Action::Undo { revision, .. }] if *revision == key(NEW)), "{undone:?}");
}

/// Of a revision that came between the two, and is not desired any more.
fn between(memory_mebibytes: u64, phase: Phase) -> InstanceActual {
    let claim = InstanceClaim { configuration: "s".into(), memory_bytes: Some(memory_mebibytes << 20) };
    InstanceActual { claim, ..instance("s-00009", Digest::of(b"between"), phase) }
}

#[test]
fn one_that_comes_in_the_middle_waits_for_the_end_of_the_one_before_it() {
    for (strategy, ends) in [("stop-first", true), ("hand-over", true), ("stop-first", false)] {
        let (mut desired, mut actual) = update(strategy);
        actual.instances.remove(&InstanceId("old".into()));
        if ends {
            let stopping = between(600, Phase::Stopping { killed: false });
            actual.instances.insert(InstanceId("two".into()), stopping);
        } else {
            // Or it is still among the candidates, and has begun to take over.
            let (digest, object) = object("s-00009", &[(keys::UPDATE_STRATEGY, strategy)]);
            let known = RevisionActual::new(digest, false, NOW);
            let takeover = Takeover::Begun { started: Some(NOW) };
            actual.revisions.insert(key("s-00009"), RevisionActual { takeover, ..known });
            actual.instances.insert(InstanceId("two".into()), instance("s-00009", digest, Phase::Probing));
            desired.revisions.insert(key("s-00009"), (digest, object.into()));
            let route = Arc::make_mut(desired.routes.values_mut().next().unwrap());
            route.targets[0].candidates = vec![NEW.into(), "s-00009".into(), OLD.into()];
        }
        let runs = |actual: &Actual, name: &str| {
            let mut all = actual.instances.values().filter(|instance| *instance.revision.name == *name);
            all.any(|instance| !matches!(instance.phase, Phase::Primed | Phase::Ended { .. }))
        };
        for _ in 0..6 {
            step(&desired, &mut actual, &with_demand(NEW, 0, 1, NOW), NOW);
            assert!(!(runs(&actual, "s-00009") && runs(&actual, NEW)), "{strategy}: {:?}", actual.instances);
        }
        assert_eq!(runs(&actual, "s-00009"), ends, "{strategy}: {:?}", actual.instances);
        actual.instances.remove(&InstanceId("two".into()));
        step(&desired, &mut actual, &with_demand(NEW, 0, 1, NOW), NOW);
        assert!(runs(&actual, NEW), "{strategy}: {:?}", actual.instances);
        let known = actual.revisions.get_mut(&key(NEW)).unwrap();
        (known.ready_once, known.takeover) = (true, Takeover::None);
        let after = planned(&desired, &actual, &Traffic::default(), NOW).actions;
        assert!(!after.iter().any(|action| matches!(action, Action::Launch { .. })), "{strategy}: {after:?}");
    }
}

#[test]
fn one_that_takes_nobodys_place_waits_too() {
    for ready_once in [false, true] {
        let (mut desired, mut actual) = update("stop-first");
        desired.revisions.remove(&key(OLD));
        actual.revisions.remove(&key(OLD));
        actual.instances.clear();
        actual.revisions.get_mut(&key(NEW)).unwrap().ready_once = ready_once;
        actual.instances.insert(InstanceId("two".into()), between(32, Phase::Draining));
        let held = with_demand(NEW, 0, 1, NOW);
        let launches = |actual: &Actual| {
            let actions = planned(&desired, actual, &held, NOW).actions;
            actions.iter().any(|action| matches!(action, Action::Launch { .. }))
        };
        assert!(!launches(&actual), "ready once: {ready_once}");
        actual.instances.clear();
        assert!(launches(&actual), "ready once: {ready_once}");
    }
}

#[test]
fn what_is_not_desired_any_more_has_the_memory_that_it_was_made_with() {
    let other = |claim: InstanceClaim, phase| InstanceActual {
        claim,
        ..instance("t-00001", Digest::of(b"t"), phase)
    };
    let settings = Settings { memory_bytes: 1 << 30, ..SETTINGS };
    let (digest, new) = with_memory(object("s-00001", &[]).1, "600Mi");
    let (desired, mut actual) = given_routed(&[(digest, new)]);
    let wanted = |actual: &Actual| {
        fitting(&desired, actual, &Traffic::default(), &Targets::new(), &settings, NOW).wanted
    };
    for (mebibytes, fits) in [(Some(424), true), (Some(425), false), (None, true)] {
        let memory_bytes = mebibytes.map(|mebibytes: u64| mebibytes << 20);
        let claim = InstanceClaim { configuration: "t".into(), memory_bytes };
        let stopping = other(claim.clone(), Phase::Stopping { killed: false });
        actual.instances = [(InstanceId("t".into()), stopping)].into();
        assert_eq!(wanted(&actual).len(), usize::from(fits), "{mebibytes:?}");
        // The same where it is of the revision's former object, but for one whose memory nobody knows: as much as the next one's.
        let outdated =
            InstanceActual { claim, ..instance("s-00001", Digest::of(b"former"), Phase::Draining) };
        actual.instances = [(InstanceId("s".into()), outdated)].into();
        assert_eq!(wanted(&actual).len(), usize::from(fits && mebibytes.is_some()), "{mebibytes:?}");
    }
}
