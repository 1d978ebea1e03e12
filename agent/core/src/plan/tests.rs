//! Tables and properties of the planner. `execute` is the world: it does what the plan says, at once and successfully.

use std::sync::Arc;

use tombolo_api::desired::{INSTANCES_PER_REVISION_MAX, RouteObject, RouteTarget};
use tombolo_api::serving::keys;

use super::*;
use crate::actual::{Crashes, Demand, ImageState, Takeover, Target};
use crate::devices::overuse::{Policy, Rule};
use crate::memory::{Footprint, Learnt};
use crate::supervision::ExitRecord;

mod devices;
mod eviction;
mod given_up;
mod growth;
mod memory;
mod overuse;
mod properties;
mod room;
mod suspension;
mod takeovers;
mod tiers;
mod turns;

const OVERUSE: Rule = Rule { policy: Policy::Stop, grace_ms: 10_000, context_bytes: 100 << 20 };
const SETTINGS: Settings = Settings { memory_bytes: 8 << 30, overuse: OVERUSE };
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
        verification: None,
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
        desired.revisions.insert(object.key(), (*digest, Arc::new(object.clone())));
        let known = RevisionActual { image: ImageState::Present, ..RevisionActual::new(*digest, false, NOW) };
        actual.revisions.insert(object.key(), known);
    }
    (desired, actual)
}

/// With a route to each revision of its own.
fn given_routed(objects: &[(Digest, RevisionObject)]) -> (Desired, Actual) {
    let (mut desired, actual) = given(objects);
    for (_, object) in objects {
        let target = RouteTarget {
            percent: 100,
            candidates: vec![object.name.clone()],
            hosts: vec![],
            tag: String::new(),
            configuration: String::new(),
        };
        let route = RouteObject {
            namespace: "default".into(),
            name: object.name.clone(),
            hosts: vec![format!("{}.default.localhost", object.name)],
            targets: vec![target],
            steering: vec![],
            rollout: None,
        };
        desired.routes.insert(("default".into(), object.name.clone()), Arc::new(route));
    }
    (desired, actual)
}

/// Before the autoscaler has said anything.
fn planned(desired: &Desired, actual: &Actual, traffic: &Traffic, now: Moment) -> Plan {
    targeted(desired, actual, traffic, &Targets::new(), now)
}

fn targeted(desired: &Desired, actual: &Actual, traffic: &Traffic, targets: &Targets, now: Moment) -> Plan {
    fitting(desired, actual, traffic, targets, &SETTINGS, now)
}

fn fitting(
    desired: &Desired,
    actual: &Actual,
    traffic: &Traffic,
    targets: &Targets,
    settings: &Settings,
    now: Moment,
) -> Plan {
    let table = &routes(desired, actual, now);
    plan(&Situation { desired, actual, traffic, table, targets, settings }, now)
}

fn routes(desired: &Desired, actual: &Actual, now: Moment) -> RouteTable {
    crate::table::build(desired, actual, &crate::rollout::Rollouts::default(), &RouteTable::default(), now)
}

/// The autoscaler asks for `want` instances of every revision.
fn asking(desired: &Desired, want: u32, at: Moment) -> Targets {
    desired.revisions.keys().map(|key| (key.clone(), Target { want, at, timed_out: false })).collect()
}

fn instance(revision: &str, object: Digest, phase: Phase) -> InstanceActual {
    // Looked at for long enough, whenever it is asked.
    let looked_at = Some(Moment(u64::MAX));
    InstanceActual { pid: 7, looked_at, ..InstanceActual::new(key(revision), object, 8080, phase, NOW) }
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
            Action::Freeze { instance } => set(actual, instance, Phase::Frozen, now),
            Action::Suspend { instance } => set(actual, instance, Phase::Suspended, now),
            Action::Resume { instance } => set(actual, instance, Phase::Ready, now),
            Action::PrepareImage { revision } => {
                actual.revisions.get_mut(revision).unwrap().image = ImageState::Present;
            }
            Action::Thaw { instance } | Action::Restore { instance } | Action::Start { instance } => {
                set(actual, instance, Phase::Ready, now);
                actual.last_start = now;
            }
            Action::Refit { instance, .. } => {
                let fit = &mut actual.instances.get_mut(instance).unwrap().fit;
                fit.begin(now);
                fit.end(Ok::<_, ()>(()), now);
            }
            Action::TakeOver { revision } => {
                actual.revisions.get_mut(revision).unwrap().takeover = Takeover::Begun { started: Some(now) };
            }
            Action::StartDeadline { revision } => {
                actual.revisions.get_mut(revision).unwrap().takeover = Takeover::Begun { started: Some(now) };
            }
            Action::Undo { revision, why } => {
                actual.revisions.get_mut(revision).unwrap().takeover = Takeover::Undone(why.clone());
            }
            Action::Prime { instance, revision, devices } => {
                make(desired, actual, (instance, devices), revision, Phase::Primed, now)
            }
            Action::Launch { instance, revision, devices } => {
                make(desired, actual, (instance, devices), revision, Phase::Ready, now);
                actual.last_start = now;
                let known = actual.revisions.get_mut(revision).unwrap();
                known.ready_once = true;
                known.last_active = now;
            }
        }
    }
}

fn make(
    desired: &Desired,
    actual: &mut Actual,
    (id, devices): (&InstanceId, &Devices),
    revision: &RevisionKey,
    phase: Phase,
    now: Moment,
) {
    actual.named += 1;
    let (object, _) = &desired.revisions[revision];
    let devices = devices.clone();
    let made = InstanceActual { since: now, devices, ..instance(&revision.name, *object, phase) };
    assert!(actual.instances.insert(id.clone(), made).is_none(), "an instance's name was used twice");
}

fn set(actual: &mut Actual, id: &InstanceId, phase: Phase, now: Moment) {
    let instance = actual.instances.get_mut(id).unwrap();
    instance.phase = phase;
    instance.since = now;
}

/// Plans and executes until there is nothing more to do; how many passes it took.
fn settle(
    desired: &Desired,
    actual: &mut Actual,
    traffic: &Traffic,
    targets: &Targets,
    now: Moment,
) -> usize {
    for pass in 0..20 {
        let plan = targeted(desired, actual, traffic, targets, now);
        if plan.actions.is_empty() {
            return pass;
        }
        execute(desired, actual, &plan.actions, now);
    }
    panic!("did not converge");
}

/// One instance of each revision has answered and was looked at.
fn at_work(actual: &mut Actual) {
    let seen = Footprint { least_bytes: 20 << 20, most_bytes: 30 << 20, served: true };
    actual.revisions.values_mut().for_each(|known| known.memory = Learnt::Seen(seen));
}

fn with_demand(name: &str, in_flight: u32, held: u32, last: Moment) -> Traffic {
    let demand = Demand { in_flight, held, last_request: Some(last) };
    Traffic { revisions: [(key(name), demand)].into(), ..Traffic::default() }
}

#[test]
fn a_new_revision_gets_one_instance_to_prove_itself() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    assert_eq!(actual.instances.len(), 1);
}

#[test]
fn goes_to_zero_when_nothing_is_asked_for_and_back_on_a_held_request() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    let nothing = asking(&desired, 0, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &nothing, NOW);
    assert_eq!(actual.instances.len(), 0);
    settle(&desired, &mut actual, &with_demand("s-00001", 0, 1, NOW), &nothing, NOW);
    assert_eq!(actual.instances.len(), 1);
}

#[test]
fn what_requests_need_stays_whatever_is_asked_for() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    let (before, after) = (asking(&desired, 0, NOW), asking(&desired, 0, NOW.after(2)));
    let drains = |traffic: &Traffic, targets: &Targets| {
        !targeted(&desired, &actual, traffic, targets, NOW.after(2)).actions.is_empty()
    };
    assert!(!drains(&with_demand("s-00001", 1, 0, NOW), &after), "in flight");
    // The autoscaler has not seen this request yet.
    assert!(!drains(&with_demand("s-00001", 0, 0, NOW.after(1)), &before), "since its decision");
    assert!(drains(&with_demand("s-00001", 0, 0, NOW.after(1)), &after));
}

#[test]
fn fewer_become_of_instances_though_requests_keep_coming() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 5, NOW), NOW);
    let busy = with_demand("s-00001", 1, 0, NOW.after(1));
    settle(&desired, &mut actual, &busy, &asking(&desired, 2, NOW), NOW.after(2));
    assert_eq!(actual.instances.values().filter(|instance| instance.phase.is_up()).count(), 2);
}

#[test]
fn a_request_in_a_draining_instance_asks_for_no_other() {
    let (digest, object) = object("s-00001", &[]);
    let (desired, mut actual) = given(&[(digest, object)]);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Draining));
    let mut traffic = with_demand("s-00001", 1, 0, NOW);
    traffic.instances.insert(id, 1);
    assert_eq!(targeted(&desired, &actual, &traffic, &asking(&desired, 0, NOW), NOW).actions, []);
}

#[test]
fn bounds_are_kept_whatever_is_asked_for() {
    let bounds = [("autoscaling.knative.dev/min-scale", "3"), ("autoscaling.knative.dev/max-scale", "4")];
    let (desired, mut actual) = given_routed(&[object("s-00001", &bounds)]);
    for (want, runs) in [(0, 3), (9, 4), (3, 3), (0, 3)] {
        settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, want, NOW), NOW);
        assert_eq!(actual.instances.len(), runs, "{want}");
    }
    // What no route leads to needs no least number.
    let unrouted = Desired { routes: BTreeMap::new(), ..desired };
    settle(&unrouted, &mut actual, &Traffic::default(), &asking(&unrouted, 0, NOW), NOW);
    assert_eq!(actual.instances.len(), 0);
}

#[test]
fn what_is_more_than_a_node_gives_one_revision_is_told_of() {
    let most = INSTANCES_PER_REVISION_MAX;
    let beyond = (most + 1).to_string();
    let (desired, mut actual) =
        given_routed(&[object("s-00001", &[("autoscaling.knative.dev/initial-scale", &beyond)])]);
    let settings = Settings { memory_bytes: 64 << 30, ..SETTINGS };
    let planned = |actual: &Actual, want: u32| {
        let targets = asking(&desired, want, NOW);
        fitting(&desired, actual, &Traffic::default(), &targets, &settings, NOW)
    };
    // It proves itself with what there is.
    let plan = planned(&actual, 0);
    assert_eq!((plan.wanted[&key("s-00001")], plan.cuts.len()), (most, 0));
    execute(&desired, &mut actual, &plan.actions, NOW);
    assert!(planned(&actual, most).cuts.is_empty());
    let plan = planned(&actual, 50);
    assert_eq!(plan.wanted[&key("s-00001")], most);
    let cut = format!("InsufficientInstances: {most} of 50 wanted instances, ");
    assert!(plan.cuts[&key("s-00001")].starts_with(&cut), "{:?}", plan.cuts);
    // What the revision itself bounds is what it wants.
    let bound = [("autoscaling.knative.dev/max-scale", most.to_string())];
    let bound: Vec<_> = bound.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let (desired, mut actual) = given_routed(&[object("s-00001", &bound)]);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    at_work(&mut actual);
    let plan = fitting(&desired, &actual, &Traffic::default(), &asking(&desired, 50, NOW), &settings, NOW);
    assert_eq!((plan.wanted[&key("s-00001")], plan.cuts.len()), (most, 0));
}

#[test]
fn a_new_revision_starts_with_its_initial_scale() {
    let (desired, mut actual) =
        given(&[object("s-00001", &[("autoscaling.knative.dev/initial-scale", "3")])]);
    let plan = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!(plan.actions.len(), 3);
    assert_eq!(plan.wanted, [(key("s-00001"), 3)].into());
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
    assert_eq!(actual.instances.len(), 1);
}

fn with_memory(mut object: RevisionObject, limit: &str) -> (Digest, RevisionObject) {
    let mut container = tombolo_api::serving::Container::default();
    container.resources.limits.insert("memory".into(), limit.parse().unwrap());
    object.spec.containers = vec![container];
    (tombolo_api::desired::encode_revision(&object).entry.digest, object)
}

#[test]
fn no_more_run_than_there_is_memory_for() {
    let (s, t) =
        (with_memory(object("s-00001", &[]).1, "64Mi"), with_memory(object("t-00001", &[]).1, "1Gi"));
    let (desired, mut actual) = given(&[s, t]);
    let traffic = with_demand("t-00001", 0, 1, NOW);
    let settings = Settings { memory_bytes: 1200 << 20, ..SETTINGS };
    let targets = asking(&desired, 9, NOW);
    let planned = |actual: &Actual| fitting(&desired, actual, &traffic, &targets, &settings, NOW);
    let first = planned(&actual);
    assert_eq!(first.wanted, [(key("s-00001"), 2), (key("t-00001"), 1)].into());
    assert!(first.cuts[&key("s-00001")].starts_with("InsufficientMemory: 2 of 9"), "{:?}", first.cuts);
    execute(&desired, &mut actual, &first.actions, NOW);
    assert_eq!(planned(&actual).actions, []);
    // What is being stopped is not free yet.
    for instance in actual.instances.values_mut() {
        instance.phase = Phase::Stopping { killed: false };
    }
    assert_eq!(planned(&actual).wanted, BTreeMap::new());
}

/// As the reconciler does with a revision that has just come.
fn measure(desired: &Desired, actual: &mut Actual, settings: &Settings) {
    for (key, known) in &mut actual.revisions {
        known.misfit = misfit(&desired.revisions[key].1, settings);
    }
}

#[test]
fn what_can_never_fit_is_refused_with_figures_and_the_rest_goes_on() {
    let settings = Settings { memory_bytes: 1200 << 20, ..SETTINGS };
    let fits = with_memory(object("s-00001", &[]).1, "1200Mi");
    let too_large = with_memory(object("t-00001", &[]).1, "1201Mi");
    let (desired, mut actual) = given_routed(&[fits, too_large]);
    actual.revisions.get_mut(&key("t-00001")).unwrap().image = ImageState::Unknown;
    measure(&desired, &mut actual, &settings);
    let held = with_demand("t-00001", 0, 1, NOW);
    let first = fitting(&desired, &actual, &held, &asking(&desired, 1, NOW), &settings, NOW);
    let launched = InstanceId("s-00001-abcde-1".into());
    assert_eq!(
        first.actions,
        [Action::Launch { instance: launched, revision: key("s-00001"), devices: Devices::new() }]
    );
    let table = routes(&desired, &actual, NOW);
    let why = table.revisions[&key("t-00001")].unavailable.clone().unwrap();
    assert_eq!(why.reason, "InsufficientMemory");
    assert!(
        why.message.starts_with("one instance needs 1201Mi, and this node has 1200Mi for all"),
        "{why:?}"
    );
    assert_eq!(table.revisions[&key("s-00001")].unavailable, None);
    let reports = crate::status::revisions(&desired, &actual, &first.wanted, &first.cuts, NOW);
    let told = |index: usize| (reports[index].phase, reports[index].reason.as_str());
    assert_eq!(told(1), (tombolo_api::report::RevisionPhase::Failed, "InsufficientMemory"));
    assert_eq!((told(0).1, &reports[1].message), ("", &why.message));
}

#[test]
fn what_is_requested_counts_where_there_is_no_limit() {
    let (_, mut object) = with_memory(object("s-00001", &[]).1, "64Mi");
    let resources = &mut object.spec.containers[0].resources;
    resources.requests.insert("memory".into(), "1Gi".parse().unwrap());
    assert_eq!(misfit(&object, &Settings { memory_bytes: 64 << 20, ..SETTINGS }), None);
    object.spec.containers[0].resources.limits.clear();
    assert!(misfit(&object, &Settings { memory_bytes: 1 << 30, ..SETTINGS }).is_none());
    assert!(misfit(&object, &Settings { memory_bytes: (1 << 30) - 1, ..SETTINGS }).is_some());
}

#[test]
fn what_no_route_leads_to_does_not_grow() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    let later = with_demand("s-00001", 0, 0, NOW.after(1));
    for traffic in [Traffic::default(), later] {
        settle(&desired, &mut actual, &traffic, &asking(&desired, 3, NOW), NOW);
        assert_eq!(actual.instances.len(), 1);
    }
}

#[test]
fn as_many_run_as_are_asked_for() {
    let (desired, mut actual) = given_routed(&[object("s-00001", &[])]);
    for want in [3, 5, 2] {
        settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, want, NOW), NOW);
        assert_eq!(actual.instances.len(), want as usize);
    }
}

#[test]
fn what_leaves_the_manifest_drains_stops_and_goes() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    let id = actual.instances.keys().next().unwrap().clone();
    let nothing = Desired::default();
    let busy = Traffic { instances: [(id.clone(), 1)].into(), ..Traffic::default() };
    let first = planned(&nothing, &actual, &busy, NOW);
    assert_eq!(first.actions, [Action::Drain { instance: id.clone() }]);
    execute(&nothing, &mut actual, &first.actions, NOW);
    let waiting = planned(&nothing, &actual, &busy, NOW);
    assert_eq!(waiting.actions, []);
    assert_eq!(waiting.wake, Some((NOW.after(DRAIN_MAX_MS), WakeReason::DrainDeadline)));
    settle(&nothing, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    assert!(actual.instances.is_empty());
}

#[test]
fn an_instance_that_ignores_sigterm_is_killed_after_its_grace() {
    let (desired, mut actual) = given(&[]);
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("gone", Digest::of(b""), Phase::Stopping { killed: false }));
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!(waiting.actions, []);
    let (deadline, reason) = waiting.wake.unwrap();
    assert_eq!(reason, WakeReason::TerminationGrace);
    let due = planned(&desired, &actual, &Traffic::default(), deadline);
    assert_eq!(due.actions, [Action::Kill { instance: id }]);
}

#[test]
fn a_crash_waits_for_its_backoff_and_restarts_one_at_a_time() {
    let (desired, mut actual) = given(&[object("s-00001", &[("autoscaling.knative.dev/min-scale", "3")])]);
    let retry_at = NOW.after(4_000);
    actual.revisions.get_mut(&key("s-00001")).unwrap().crashes =
        Crashes { total: 2, recent: 2, retry_at, reason: "ExitedBeforeReady".into(), message: String::new() };
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::CrashBackoff))));
    let launches_one = |actual: &Actual| {
        let due = planned(&desired, actual, &Traffic::default(), retry_at);
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
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::CrashBackoff))));
    let over = planned(&desired, &actual, &Traffic::default(), retry_at);
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
    let watched = planned(&desired, &actual, &Traffic::default(), NOW).wake;
    assert_eq!(watched, Some((at, WakeReason::CrashForget)));
    actual.revisions.get_mut(&key("s-00001")).unwrap().crashes.recent = 0;
    assert_eq!(planned(&desired, &actual, &Traffic::default(), NOW).wake, None);
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
        let waiting = planned(&desired, &actual, &traffic, Moment(late.0 - 1));
        assert_eq!(
            (waiting.actions, waiting.wake),
            (vec![], Some((late, WakeReason::OutcomeLost))),
            "{phase:?}"
        );
        let due = planned(&desired, &actual, &traffic, late);
        assert_eq!(due.actions, [Action::Delete { instance: id }], "{phase:?}");
    }
}

#[test]
fn a_kill_that_may_have_been_lost_is_sent_again() {
    let (desired, mut actual) = given(&[]);
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("gone", Digest::of(b""), Phase::Stopping { killed: true }));
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    let deadline = NOW.after(KILL_AGAIN_MS);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((deadline, WakeReason::KillAgain))));
    let due = planned(&desired, &actual, &Traffic::default(), deadline);
    assert_eq!(due.actions, [Action::Kill { instance: id }]);
}

#[test]
fn requests_in_a_draining_instance_get_the_revisions_own_time_and_tunnels_their_grace() {
    let (digest, mut object) = object("s-00001", &[]);
    let id = InstanceId("i".into());
    let busy = Traffic { instances: [(id.clone(), 1)].into(), ..Traffic::default() };
    const { assert!(DRAIN_MIN_MS > crate::limits::TUNNEL_GRACE_MS) };
    let default_ms = crate::limits::REQUEST_TIMEOUT_MS;
    for (timeout_s, wait_ms) in [(Some(7), DRAIN_MIN_MS), (Some(70), 70_000), (None, default_ms)] {
        object.spec.timeout_seconds = timeout_s;
        let (desired, mut actual) = given(&[(digest, object.clone())]);
        actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
        actual.revisions.get_mut(&key("s-00001")).unwrap().last_active = Moment(0);
        actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Draining));
        let waiting = planned(&desired, &actual, &busy, NOW);
        let deadline = NOW.after(wait_ms);
        assert_eq!((waiting.actions, waiting.wake), (vec![], Some((deadline, WakeReason::DrainDeadline))));
        let due = planned(&desired, &actual, &busy, deadline);
        let terminate = [Action::Terminate { instance: id.clone() }];
        assert_eq!(due.actions, terminate);
        assert_eq!(
            planned(&desired, &actual, &Traffic::default(), NOW).actions,
            terminate,
            "nothing is in it"
        );
    }
}

#[test]
fn held_requests_are_served_though_the_last_instance_goes() {
    let (digest, object) = object("s-00001", &[]);
    let (desired, mut actual) = given(&[(digest, object)]);
    actual.revisions.get_mut(&key("s-00001")).unwrap().ready_once = true;
    let idle = NOW;
    let held = with_demand("s-00001", 0, 2, NOW);
    let id = InstanceId("i".into());
    for (phase, launches) in [
        (Phase::Launching, 0),
        (Phase::Probing, 0),
        (Phase::Ready, 0),
        (Phase::Draining, 0),
        (Phase::Stopping { killed: false }, 1),
        (ended(), 1),
    ] {
        let mut made = instance("s-00001", digest, phase.clone());
        made.since = idle;
        actual.instances.insert(id.clone(), made);
        let actions = planned(&desired, &actual, &held, idle).actions;
        let launched = actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count();
        assert_eq!(launched, launches, "{phase:?}");
        assert!(!actions.contains(&Action::Drain { instance: id.clone() }), "{phase:?}");
        let resumed = actions.contains(&Action::Resume { instance: id.clone() });
        assert_eq!(resumed, phase == Phase::Draining, "{phase:?}");
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
        planned(&desired, &actual, &demand, NOW).actions.contains(&Action::Drain { instance: id })
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
    let waiting = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!(waiting.wake, Some((NOW.after(5_000), WakeReason::ProgressDeadline)));
    let due = planned(&desired, &actual, &Traffic::default(), NOW.after(5_000));
    assert_eq!(due.actions, [Action::Terminate { instance: id }]);
}

#[test]
fn images_are_prepared_though_no_instance_is_wanted() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    known.ready_once = true;
    known.last_active = Moment(0);
    known.image = ImageState::Unknown;
    let plan = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!(plan.actions, [Action::PrepareImage { revision: key("s-00001") }]);
}

#[test]
fn a_failed_image_is_tried_again_in_time_and_not_twice_at_once() {
    let (desired, mut actual) = given(&[object("s-00001", &[])]);
    let retry_at = NOW.after(500);
    let mut with_retry = |retry_at, now| {
        let image = ImageState::Failed { reason: "r".into(), message: "m".into(), attempts: 1, retry_at };
        actual.revisions.get_mut(&key("s-00001")).unwrap().image = image;
        planned(&desired, &actual, &Traffic::default(), now)
    };
    let waiting = with_retry(Some(retry_at), NOW);
    assert_eq!((waiting.actions, waiting.wake), (vec![], Some((retry_at, WakeReason::ImageRetry))));
    assert_eq!(
        with_retry(Some(retry_at), retry_at).actions,
        [Action::PrepareImage { revision: key("s-00001") }]
    );
    assert_eq!(with_retry(None, retry_at).actions, []);
}

#[test]
fn a_changed_object_overlaps_the_old_instance_until_the_new_one_is_ready() {
    let (old, _) = object("s-00001", &[]);
    let (desired, mut actual) = given(&[object("s-00001", &[("tombolo.dev/x", "1")])]);
    let id = InstanceId("old".into());
    actual.instances.insert(id.clone(), instance("s-00001", old, Phase::Ready));
    let first = planned(&desired, &actual, &Traffic::default(), NOW);
    assert!(matches!(first.actions.as_slice(), [Action::Launch { .. }]), "{first:?}");
    execute(&desired, &mut actual, &first.actions, NOW);
    let second = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!(second.actions, [Action::Drain { instance: id }]);
}
