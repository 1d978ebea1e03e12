//! Tables and properties of the planner. `execute` is the world: it does what the plan says, at once and successfully.

use proptest::prelude::*;
use tombolo_api::desired::RevisionObject;

use super::*;
use crate::actual::Crashes;
use crate::supervision::ExitRecord;

const SETTINGS: Settings = Settings { idle_timeout_ms: 60_000 };
const NOW: Moment = Moment(10_000_000);

fn object(name: &str, annotations: &[(&str, &str)]) -> (Digest, RevisionObject) {
    let object = RevisionObject {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        service: "s".into(),
        configuration: "s".into(),
        annotations: annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        spec: Default::default(),
    };
    (tombolo_api::desired::encode_revision(&object).entry.digest, object)
}

fn key(name: &str) -> RevisionKey {
    RevisionKey::new("default", name)
}

/// A node that was just given `objects`, whose images it has.
fn given(objects: &[(Digest, RevisionObject)]) -> (Desired, Actual) {
    let mut desired = Desired::default();
    let mut actual = Actual { incarnation: "abcde".into(), ..Actual::default() };
    for (digest, object) in objects {
        desired.revisions.insert(object.key(), (*digest, object.clone()));
        let known = RevisionActual {
            object: *digest,
            image: ImageState::Present,
            ready_once: false,
            last_active: NOW,
            crashes: Crashes::default(),
        };
        actual.revisions.insert(object.key(), known);
    }
    (desired, actual)
}

fn instance(revision: &str, object: Digest, phase: Phase) -> InstanceActual {
    InstanceActual { revision: key(revision), object, port: 8080, pid: 7, phase, since: NOW }
}

fn ended() -> Phase {
    Phase::Ended { exit: ExitRecord { code: Some(0), signal: None, out_of_memory: false, time_ms: 0 } }
}

/// Does every action, as if all went well at once.
fn execute(desired: &Desired, actual: &mut Actual, actions: &[Action], now: Moment) {
    for action in actions {
        match action {
            Action::Drain { instance } => set(actual, instance, Phase::Draining, now),
            Action::Terminate { instance } | Action::Kill { instance } => set(actual, instance, ended(), now),
            Action::Delete { instance } => drop(actual.instances.remove(instance)),
            Action::PrepareImage { revision } => {
                actual.revisions.get_mut(revision).unwrap().image = ImageState::Present;
            }
            Action::Launch { instance, revision } => {
                actual.named += 1;
                let (object, _) = &desired.revisions[revision];
                let made =
                    InstanceActual { since: now, ..tests::instance(&revision.name, *object, Phase::Ready) };
                assert!(
                    actual.instances.insert(instance.clone(), made).is_none(),
                    "an instance's name was used twice"
                );
                let known = actual.revisions.get_mut(revision).unwrap();
                known.ready_once = true;
                known.last_active = now;
            }
        }
    }
}

fn set(actual: &mut Actual, id: &InstanceId, phase: Phase, now: Moment) {
    let instance = actual.instances.get_mut(id).unwrap();
    instance.phase = phase;
    instance.since = now;
}

/// Plans and executes until there is nothing more to do; how many passes it took.
fn settle(desired: &Desired, actual: &mut Actual, traffic: &Traffic, now: Moment) -> usize {
    for pass in 0..20 {
        let plan = plan(desired, actual, traffic, &SETTINGS, now);
        if plan.actions.is_empty() {
            return pass;
        }
        execute(desired, actual, &plan.actions, now);
    }
    panic!("did not converge");
}

fn with_demand(name: &str, in_flight: u32, held: u32, last: Moment) -> Traffic {
    let demand = Demand { in_flight, held, last_request: Some(last) };
    Traffic { revisions: [(key(name), demand)].into(), instances: BTreeMap::new() }
}

#[test]
fn a_new_revision_gets_one_instance_to_prove_itself() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), NOW);
    assert_eq!(actual.instances.len(), 1);
}

#[test]
fn goes_to_zero_when_idle_and_back_on_a_held_request() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), NOW);
    let idle = NOW.after(SETTINGS.idle_timeout_ms);
    let before = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!(before.wake, Some((idle, WakeReason::IdleTimeout)));
    settle(&desired, &mut actual, &Traffic::default(), idle);
    assert_eq!(actual.instances.len(), 0);
    settle(&desired, &mut actual, &with_demand("s-00001", 0, 1, idle), idle);
    assert_eq!(actual.instances.len(), 1);
}

#[test]
fn a_request_in_flight_keeps_an_instance_for_ever() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), NOW);
    let much_later = NOW.after(10 * SETTINGS.idle_timeout_ms);
    settle(&desired, &mut actual, &with_demand("s-00001", 1, 0, NOW), much_later);
    assert_eq!(actual.instances.len(), 1);
    let busy = with_demand("s-00001", 1, 0, NOW);
    let watched = plan(&desired, &actual, &busy, &SETTINGS, NOW).wake;
    assert_eq!(watched, Some((NOW.after(SETTINGS.idle_timeout_ms), WakeReason::IdleTimeout)));
}

#[test]
fn min_scale_and_max_scale_are_kept() {
    let min = object(
        "s-00001",
        &[("autoscaling.knative.dev/min-scale", "3"), ("autoscaling.knative.dev/max-scale", "4")],
    );
    let (desired, mut actual) = given(&[min]);
    settle(&desired, &mut actual, &Traffic::default(), NOW);
    let later = NOW.after(SETTINGS.idle_timeout_ms * 2);
    settle(&desired, &mut actual, &Traffic::default(), later);
    assert_eq!(actual.instances.len(), 3);
}

#[test]
fn concurrency_limits_make_more_instances() {
    let (digest, mut object) = object("s-00001", &[]);
    object.spec.container_concurrency = Some(2);
    let (desired, mut actual) = given(&[(digest, object)]);
    settle(&desired, &mut actual, &with_demand("s-00001", 2, 3, NOW), NOW);
    assert_eq!(actual.instances.len(), 3);
}

#[test]
fn what_leaves_the_manifest_drains_stops_and_goes() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), NOW);
    let id = actual.instances.keys().next().unwrap().clone();
    let nothing = Desired::default();
    let busy = Traffic { instances: [(id.clone(), 1)].into(), ..Traffic::default() };
    let first = plan(&nothing, &actual, &busy, &SETTINGS, NOW);
    assert_eq!(first.actions, [Action::Drain { instance: id.clone() }]);
    execute(&nothing, &mut actual, &first.actions, NOW);
    let waiting = plan(&nothing, &actual, &busy, &SETTINGS, NOW);
    assert_eq!(waiting.actions, []);
    assert_eq!(waiting.wake, Some((NOW.after(DRAIN_MAX_MS), WakeReason::DrainDeadline)));
    settle(&nothing, &mut actual, &Traffic::default(), NOW);
    assert!(actual.instances.is_empty());
}

#[test]
fn an_instance_that_ignores_sigterm_is_killed_after_its_grace() {
    let (desired, mut actual) = given(&[]);
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("gone", Digest::of(b""), Phase::Stopping { killed: false }));
    let waiting = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!(waiting.actions, []);
    let (deadline, reason) = waiting.wake.unwrap();
    assert_eq!(reason, WakeReason::TerminationGrace);
    let due = plan(&desired, &actual, &Traffic::default(), &SETTINGS, deadline);
    assert_eq!(due.actions, [Action::Kill { instance: id }]);
}

#[test]
fn a_crash_waits_for_its_backoff_and_restarts_one_at_a_time() {
    let (desired, mut actual) = given(&[object("s-00001", &[("autoscaling.knative.dev/min-scale", "3")])]);
    let retry_at = NOW.after(4_000);
    actual.revisions.get_mut(&key("s-00001")).unwrap().crashes =
        Crashes { total: 2, recent: 2, retry_at, reason: "ExitedBeforeReady".into(), message: String::new() };
    let waiting = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::CrashBackoff))));
    let launches_one = |actual: &Actual| {
        let due = plan(&desired, actual, &Traffic::default(), &SETTINGS, retry_at);
        matches!(due.actions.as_slice(), [Action::Launch { .. }])
    };
    assert!(launches_one(&actual));
    let digest = desired.revisions[&key("s-00001")].0;
    for (phase, next) in [(Phase::Launching, false), (Phase::Probing, false), (Phase::Ready, true)] {
        actual.instances.insert(InstanceId("i".into()), instance("s-00001", digest, phase.clone()));
        assert_eq!(launches_one(&actual), next, "beside one that is {phase:?}");
    }
}

fn crashed(recent: u32, retry_at: Moment) -> Crashes {
    Crashes { total: recent, recent, retry_at, reason: "ContainerExited".into(), message: String::new() }
}

#[test]
fn a_backoff_ends_with_a_wake_though_no_instance_is_wanted() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    let retry_at = NOW.after(4_000);
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.crashes = crashed(3, retry_at);
    let waiting = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::CrashBackoff))));
    let over = plan(&desired, &actual, &Traffic::default(), &SETTINGS, retry_at);
    assert_eq!((over.actions, over.wake), (vec![], None));
}

#[test]
fn crashes_are_forgotten_by_the_last_one_not_by_a_healthy_instance_beside() {
    let (digest, object) = object("s-00001", &[("autoscaling.knative.dev/min-scale", "1")]);
    let (desired, mut actual) = given(&[(digest, object)]);
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.crashes = crashed(3, NOW);
    let mut old = instance("s-00001", digest, Phase::Ready);
    old.since = Moment(NOW.0 - 2 * CRASH_FORGET_MS);
    let at = NOW.after(CRASH_FORGET_MS);
    assert_eq!(crashes_forgotten_at(known, &old), Some(at));
    let outdated = InstanceActual { object: Digest::of(b"outdated"), ..old.clone() };
    assert_eq!(crashes_forgotten_at(known, &outdated), None);
    let probing = InstanceActual { phase: Phase::Probing, ..old.clone() };
    assert_eq!(crashes_forgotten_at(known, &probing), None);
    let fresh = InstanceActual { since: NOW.after(5), ..old.clone() };
    assert_eq!(crashes_forgotten_at(known, &fresh), Some(at.after(5)));
    actual.instances.insert(InstanceId("i".into()), old.clone());
    let watched = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW).wake;
    assert_eq!(watched, Some((at, WakeReason::CrashForget)));
    actual.revisions.get_mut(&key("s-00001")).unwrap().crashes.recent = 0;
    assert_eq!(plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW).wake, None);
}

#[test]
fn what_is_not_heard_of_again_is_removed() {
    for phase in [Phase::Launching, Phase::Deleting] {
        let (digest, object) = object("s-00001", &[]);
        let (desired, mut actual) = given(&[(digest, object)]);
        let id = InstanceId("i".into());
        actual.instances.insert(id.clone(), instance("s-00001", digest, phase.clone()));
        // At zero instances, so that nothing else is to be done.
        actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
        let traffic = Traffic::default();
        let late = NOW.after(OUTCOME_MAX_MS);
        let waiting = plan(&desired, &actual, &traffic, &SETTINGS, Moment(late.0 - 1));
        assert_eq!(
            (waiting.actions, waiting.wake),
            (vec![], Some((late, WakeReason::OutcomeLost))),
            "{phase:?}"
        );
        let due = plan(&desired, &actual, &traffic, &SETTINGS, late);
        assert_eq!(due.actions, [Action::Delete { instance: id }], "{phase:?}");
    }
}

#[test]
fn a_kill_that_may_have_been_lost_is_sent_again() {
    let (desired, mut actual) = given(&[]);
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("gone", Digest::of(b""), Phase::Stopping { killed: true }));
    let waiting = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    let deadline = NOW.after(KILL_AGAIN_MS);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((deadline, WakeReason::KillAgain))));
    let due = plan(&desired, &actual, &Traffic::default(), &SETTINGS, deadline);
    assert_eq!(due.actions, [Action::Kill { instance: id }]);
}

#[test]
fn requests_in_a_draining_instance_get_the_revisions_own_time() {
    let (digest, mut object) = object("s-00001", &[]);
    let id = InstanceId("i".into());
    let busy = Traffic { instances: [(id.clone(), 1)].into(), ..Traffic::default() };
    for (timeout_s, wait_ms) in [(Some(7), 7_000), (None, crate::limits::REQUEST_TIMEOUT_MS)] {
        object.spec.timeout_seconds = timeout_s;
        let (desired, mut actual) = given(&[(digest, object.clone())]);
        actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
        actual.revisions.get_mut(&key("s-00001")).unwrap().last_active = Moment(0);
        actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Draining));
        let waiting = plan(&desired, &actual, &busy, &SETTINGS, NOW);
        let deadline = NOW.after(wait_ms);
        assert_eq!((waiting.actions, waiting.wake), (vec![], Some((deadline, WakeReason::DrainDeadline))));
        let due = plan(&desired, &actual, &busy, &SETTINGS, deadline);
        assert_eq!(due.actions, [Action::Terminate { instance: id.clone() }]);
    }
}

#[test]
fn held_requests_are_served_though_the_last_instance_goes() {
    let (digest, object) = object("s-00001", &[]);
    let (desired, mut actual) = given(&[(digest, object)]);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    let idle = NOW.after(SETTINGS.idle_timeout_ms);
    let held = with_demand("s-00001", 0, 2, NOW);
    let id = InstanceId("i".into());
    for (phase, launches) in [
        (Phase::Launching, 0),
        (Phase::Probing, 0),
        (Phase::Ready, 0),
        (Phase::Draining, 1),
        (Phase::Stopping { killed: false }, 1),
        (ended(), 1),
    ] {
        let mut made = instance("s-00001", digest, phase.clone());
        made.since = idle;
        actual.instances.insert(id.clone(), made);
        let actions = plan(&desired, &actual, &held, &SETTINGS, idle).actions;
        let launched = actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count();
        assert_eq!(launched, launches, "{phase:?}");
        assert!(!actions.contains(&Action::Drain { instance: id.clone() }), "{phase:?}");
    }
}

#[test]
fn an_outdated_instance_goes_once_it_is_not_needed() {
    let (old, _) = object("s-00001", &[]);
    let (new, object) = object("s-00001", &[("tombolo.dev/x", "1")]);
    let drains = |successor: Option<Phase>, ready_once: bool, held: u32| {
        let (desired, mut actual) = given(&[(new, object.clone())]);
        let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
        known.ready_once = ready_once;
        known.last_active = Moment(0);
        let id = InstanceId("old".into());
        actual.instances.insert(id.clone(), instance("s-00001", old, Phase::Ready));
        if let Some(phase) = successor {
            actual.instances.insert(InstanceId("new".into()), instance("s-00001", new, phase));
        }
        let demand = with_demand("s-00001", 0, held, Moment(0));
        plan(&desired, &actual, &demand, &SETTINGS, NOW).actions.contains(&Action::Drain { instance: id })
    };
    assert!(!drains(None, false, 0));
    assert!(!drains(Some(Phase::Launching), false, 0));
    assert!(!drains(Some(Phase::Probing), false, 0));
    assert!(!drains(Some(ended()), false, 0));
    assert!(drains(Some(Phase::Ready), true, 1));
    // The new one was ready and has ended: nothing is wanted, or another one is on the way.
    assert!(drains(Some(ended()), true, 0));
    assert!(!drains(Some(ended()), true, 1));
}

#[test]
fn a_revision_not_ready_by_its_progress_deadline_is_stopped() {
    let (digest, object) = object("s-00001", &[("serving.knative.dev/progress-deadline", "5s")]);
    let (desired, mut actual) = given(&[(digest, object)]);
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Probing));
    let waiting = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!(waiting.wake, Some((NOW.after(5_000), WakeReason::ProgressDeadline)));
    let due = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW.after(5_000));
    assert_eq!(due.actions, [Action::Terminate { instance: id }]);
}

#[test]
fn images_are_prepared_though_no_instance_is_wanted() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.last_active = Moment(0);
    known.image = ImageState::Unknown;
    let plan = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!(plan.actions, [Action::PrepareImage { revision: key("s-00001") }]);
}

#[test]
fn a_failed_image_is_tried_again_in_time_and_not_twice_at_once() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    let retry_at = NOW.after(500);
    let mut planned = |retry_at, now| {
        let image = ImageState::Failed { reason: "r".into(), message: "m".into(), attempts: 1, retry_at };
        actual.revisions.get_mut(&key("s-00001")).unwrap().image = image;
        plan(&desired, &actual, &Traffic::default(), &SETTINGS, now)
    };
    let waiting = planned(Some(retry_at), NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::ImageRetry))));
    assert_eq!(
        planned(Some(retry_at), retry_at).actions,
        [Action::PrepareImage { revision: key("s-00001") }]
    );
    assert_eq!(planned(None, retry_at).actions, []);
}

#[test]
fn a_changed_object_overlaps_the_old_instance_until_the_new_one_is_ready() {
    let (old, _) = object("s-00001", &[]);
    let (desired, mut actual) = given(&[object("s-00001", &[("tombolo.dev/x", "1")])]);
    let id = InstanceId("old".into());
    actual.instances.insert(id.clone(), instance("s-00001", old, Phase::Ready));
    let first = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert!(matches!(first.actions.as_slice(), [Action::Launch { .. }]), "{first:?}");
    execute(&desired, &mut actual, &first.actions, NOW);
    let second = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
    assert_eq!(second.actions, [Action::Drain { instance: id }]);
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Launching),
        Just(Phase::Probing),
        Just(Phase::Ready),
        Just(Phase::Draining),
        Just(Phase::Stopping { killed: false }),
        Just(Phase::Stopping { killed: true }),
        Just(ended()),
        Just(Phase::Deleting),
    ]
}

proptest! {
    /// From any state: planning converges, is deterministic, removes before it adds, and a settled node has just what is wanted.
    #[test]
    fn converges_from_anything(
        phases in proptest::collection::vec((0..4usize, any_phase(), 0..70_000u64), 0..12),
        desired_count in 0..4usize,
        held in 0..3u32,
    ) {
        let names = ["a-00001", "b-00001", "c-00001", "d-00001"];
        let objects: Vec<_> = names.iter().map(|name| object(name, &[])).collect();
        let (desired, mut actual) = given(&objects[..desired_count]);
        for (number, (revision, phase, age)) in phases.into_iter().enumerate() {
            let mut made = instance(names[revision], objects[revision].0, phase);
            made.since = Moment(NOW.0 - age);
            actual.instances.insert(InstanceId(format!("x{number}")), made);
        }
        let traffic = with_demand(names[0], 0, held, NOW);
        let once = plan(&desired, &actual, &traffic, &SETTINGS, NOW);
        prop_assert_eq!(&once, &plan(&desired, &actual, &traffic, &SETTINGS, NOW));
        let adds = |action: &Action| matches!(action, Action::Launch { .. } | Action::PrepareImage { .. });
        let first_add = once.actions.iter().position(adds).unwrap_or(once.actions.len());
        prop_assert!(once.actions[first_add..].iter().all(adds), "an addition came before a removal: {:?}", once.actions);

        // Launching ones come up, deleted ones are gone; the rest is time and execution.
        actual.instances.retain(|_, instance| instance.phase != Phase::Deleting);
        for instance in actual.instances.values_mut() {
            if instance.phase == Phase::Launching {
                instance.phase = Phase::Ready;
            }
        }
        let later = NOW.after(SETTINGS.idle_timeout_ms + TERMINATION_GRACE_MS);
        settle(&desired, &mut actual, &traffic, NOW);
        let traffic = with_demand(names[0], 0, held, later);
        settle(&desired, &mut actual, &traffic, later);
        for known in actual.revisions.values_mut() {
            known.ready_once = true;
        }
        settle(&desired, &mut actual, &traffic, later.after(SETTINGS.idle_timeout_ms));
        for instance in actual.instances.values() {
            prop_assert!(desired.revisions.contains_key(&instance.revision));
            prop_assert!(matches!(instance.phase, Phase::Ready | Phase::Probing));
        }
    }

    /// Every deadline that changes the answer is in `wake`: nothing happens before it that planning now would not show.
    #[test]
    fn nothing_changes_before_the_wake(
        phases in proptest::collection::vec((any_phase(), 0..1_300_000u64, any::<bool>(), 0..2u32), 0..3),
        ready_once: bool,
        crashes in (0..3u32, 0..2_000_000u64),
        min in 0..3u32,
        requests in 0..2u32,
        step in 1..1_300_000u64,
    ) {
        let made_object = object("a-00001", &[("autoscaling.knative.dev/min-scale", &min.to_string())]);
        let digest = made_object.0;
        let (desired, mut actual) = given(&[made_object]);
        let mut traffic = with_demand("a-00001", 0, requests, Moment(NOW.0 - 30_000));
        for (number, (phase, age, outdated, load)) in phases.into_iter().enumerate() {
            let of = if outdated { Digest::of(b"outdated") } else { digest };
            let mut made = instance("a-00001", of, phase);
            made.since = Moment(NOW.0 - age);
            let id = InstanceId(format!("x{number}"));
            traffic.instances.insert(id.clone(), load);
            actual.instances.insert(id, made);
        }
        let known = actual.revisions.get_mut(&key("a-00001")).unwrap();
        known.ready_once = ready_once;
        known.crashes = crashed(crashes.0, Moment(NOW.0 - 1_000_000 + crashes.1));
        // As the reconciler does before it plans.
        let forgotten = |instance: &InstanceActual| {
            crashes_forgotten_at(&actual.revisions[&key("a-00001")], instance).is_some_and(|at| NOW >= at)
        };
        if actual.instances.values().any(forgotten) {
            actual.revisions.get_mut(&key("a-00001")).unwrap().crashes.recent = 0;
        }
        let now = plan(&desired, &actual, &traffic, &SETTINGS, NOW);
        let until = now.wake.map_or(u64::MAX, |(at, _)| at.0);
        prop_assert!(until > NOW.0, "a wake that is over: {:?}", now.wake);
        let probe_at = Moment((NOW.0 + step).min(until - 1));
        if now.actions.is_empty() {
            let then = plan(&desired, &actual, &traffic, &SETTINGS, probe_at);
            prop_assert_eq!(then.actions, vec![]);
        }
    }
}
