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
    assert_eq!(waiting.wake, Some((NOW.after(DRAIN_MIN_MS), WakeReason::DrainDeadline)));
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
    let due = plan(&desired, &actual, &Traffic::default(), &SETTINGS, retry_at);
    assert_eq!(due.actions.len(), 1);
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
        Just(ended()),
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

        // Launching ones come up; the rest is time and execution.
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
    fn nothing_changes_before_the_wake(phase in any_phase(), age in 0..70_000u64, step in 1..100_000u64) {
        let made_object = object("a-00001", &[]);
        let digest = made_object.0;
        let (desired, mut actual) = given(&[made_object]);
        let mut made = instance("a-00001", digest, phase);
        made.since = Moment(NOW.0 - age);
        actual.instances.insert(InstanceId("x".into()), made);
        actual.revisions.get_mut(&key("a-00001")).unwrap().ready_once = true;
        let now = plan(&desired, &actual, &Traffic::default(), &SETTINGS, NOW);
        let until = now.wake.map_or(u64::MAX, |(at, _)| at.0);
        let probe_at = Moment((NOW.0 + step).min(until - 1));
        if now.actions.is_empty() {
            let then = plan(&desired, &actual, &Traffic::default(), &SETTINGS, probe_at);
            prop_assert_eq!(then.actions, vec![]);
        }
    }
}
