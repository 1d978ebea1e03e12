//! Devices: nobody gets more than there are, what waits gives way, what is lost ends, and an update takes them over.

use proptest::prelude::*;

use super::*;
use crate::devices::{Device, DeviceId, Fit, Inventory, Known, LOST_GRACE_MS, Resource, ResourceName};

const X: &str = "a.example/x";

pub(super) fn with_devices(name: &str, count: u32, annotations: &[(&str, &str)]) -> (Digest, RevisionObject) {
    let (_, mut object) = object(name, annotations);
    let mut container = tombolo_api::serving::Container::default();
    container.resources.limits.insert(X.into(), count.to_string().parse().unwrap());
    object.spec.containers = vec![container];
    (tombolo_api::desired::encode_revision(&object).entry.digest, object)
}

/// Devices named by letters; capital ones are unhealthy.
fn inventory(devices: &str) -> Inventory {
    let device = |id: char| {
        let device = Device { healthy: id.is_lowercase(), numa: BTreeSet::new() };
        (DeviceId(id.to_lowercase().to_string()), device)
    };
    let resource = Resource {
        devices: devices.chars().map(device).collect(),
        connected: true,
        has_preference: false,
        ..Resource::default()
    };
    Inventory { resources: [(ResourceName(X.into()), resource)].into(), ..Inventory::default() }
}

pub(super) fn has(actual: &mut Actual, devices: &str, now: Moment) {
    actual.note_devices(Arc::new(inventory(devices)), now);
}

pub(super) fn held(instance: &InstanceActual) -> String {
    instance.devices.values().flatten().map(|id| id.0.as_str()).collect()
}

/// Of a revision: the phase and the devices of each instance.
pub(super) fn of(actual: &Actual, name: &str) -> Vec<(Phase, String)> {
    let instances = actual.instances.values().filter(|instance| instance.revision == key(name));
    instances.map(|instance| (instance.phase.clone(), held(instance))).collect()
}

fn idle(actual: &mut Actual) {
    for known in actual.revisions.values_mut() {
        known.ready_once = true;
    }
}

#[test]
fn no_more_instances_run_than_there_are_devices() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 2, &[])]);
    has(&mut actual, "abcdE", NOW);
    let asked = asking(&desired, 3, NOW);
    at_work(&mut actual);
    let first = targeted(&desired, &actual, &Traffic::default(), &asked, NOW);
    assert_eq!(first.wanted, [(key("s-00001"), 2)].into());
    let cut = &first.cuts[&key("s-00001")];
    assert!(
        cut.starts_with("InsufficientDevices: 2 of 3 wanted instances; one needs 2 of a.example/x"),
        "{cut}"
    );
    settle(&desired, &mut actual, &Traffic::default(), &asked, NOW);
    let devices: Vec<_> = of(&actual, "s-00001").into_iter().map(|(_, devices)| devices).collect();
    assert_eq!(devices, ["ab", "cd"]);
}

#[test]
fn a_plugin_that_has_not_come_yet_is_waited_for() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[])]);
    actual.devices = Known { awaited_until: NOW.after(5), ..Known::default() };
    let waits = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!((waits.actions, waits.wake), (vec![], Some((NOW.after(5), WakeReason::DevicesAwaited))));
    assert!(waits.cuts[&key("s-00001")].starts_with("DevicesNotReady: "), "{:?}", waits.cuts);
    let unavailable = |now| routes(&desired, &actual, now).revisions[&key("s-00001")].unavailable.clone();
    assert_eq!(unavailable(NOW), None, "requests wait");
    assert_eq!(unavailable(NOW.after(5)).unwrap().reason, "InsufficientDevices");
    let late = planned(&desired, &actual, &Traffic::default(), NOW.after(5));
    let reports = crate::status::revisions(&desired, &actual, &late.wanted, &late.cuts, NOW.after(5));
    let told = (reports[0].phase, reports[0].reason.as_str());
    assert_eq!(told, (tombolo_api::report::RevisionPhase::Failed, "InsufficientDevices"));
    has(&mut actual, "a", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "a".into())]);
}

#[test]
fn what_waits_gives_its_device_to_whom_a_request_waits_for() {
    for (tier, phase) in [("primed", Phase::Primed), ("frozen", Phase::Frozen)] {
        let objects = ["s-00001", "t-00001"].map(|name| with_devices(name, 1, &[(keys::IDLE_TIER, tier)]));
        let (desired, mut actual) = given_routed(&objects);
        idle(&mut actual);
        has(&mut actual, "a", NOW);
        let digest = objects[0].0;
        let devices: Devices = [(ResourceName(X.into()), [DeviceId("a".into())].into())].into();
        let waiting = InstanceActual { devices, ..instance("s-00001", digest, phase) };
        actual.instances.insert(InstanceId("i".into()), waiting);
        let nothing = asking(&desired, 0, NOW);
        let quiet = targeted(&desired, &actual, &Traffic::default(), &nothing, NOW);
        assert_eq!(quiet.actions, [], "{tier}");
        settle(&desired, &mut actual, &with_demand("t-00001", 0, 1, NOW), &nothing, NOW);
        assert_eq!(of(&actual, "s-00001"), [], "{tier}");
        assert_eq!(of(&actual, "t-00001"), [(Phase::Ready, "a".into())], "{tier}");
    }
}

#[test]
fn one_that_serves_keeps_its_device_and_the_other_says_that_it_waits() {
    let (desired, mut actual) =
        given_routed(&[with_devices("s-00001", 1, &[]), with_devices("t-00001", 1, &[])]);
    has(&mut actual, "a", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    assert_eq!((of(&actual, "s-00001").len(), of(&actual, "t-00001").len()), (1, 0));
    let plan =
        targeted(&desired, &actual, &with_demand("t-00001", 0, 1, NOW), &asking(&desired, 1, NOW), NOW);
    assert_eq!(plan.actions, []);
    assert!(plan.cuts[&key("t-00001")].starts_with("InsufficientDevices: 0 of 1"), "{:?}", plan.cuts);
    let reports = crate::status::revisions(&desired, &actual, &plan.wanted, &plan.cuts, NOW);
    assert_eq!([reports[0].reason.as_str(), reports[1].reason.as_str()], ["", "InsufficientDevices"]);
    // Its only instance is gone.
    actual.instances.clear();
    let plan =
        targeted(&desired, &actual, &with_demand("t-00001", 0, 1, NOW), &asking(&desired, 0, NOW), NOW);
    assert!(
        matches!(plan.actions.as_slice(), [Action::Launch { revision, .. }] if *revision == key("t-00001"))
    );
}

#[test]
fn an_instance_moves_from_an_unhealthy_device_to_a_healthy_one() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[])]);
    has(&mut actual, "ab", NOW);
    let asked = asking(&desired, 1, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &asked, NOW);
    assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "a".into())]);
    has(&mut actual, "Ab", NOW);
    let patient = targeted(&desired, &actual, &Traffic::default(), &asked, NOW);
    let end = NOW.after(LOST_GRACE_MS);
    assert_eq!((patient.actions, patient.wake), (vec![], Some((end, WakeReason::DeviceLost))));
    has(&mut actual, "ab", NOW.after(1));
    assert_eq!(targeted(&desired, &actual, &Traffic::default(), &asked, end).actions, [], "it healed");
    has(&mut actual, "Ab", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &asked, end);
    assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "b".into())]);
}

#[test]
fn without_a_healthy_device_a_function_says_so_and_comes_back_by_itself() {
    for phase in [Phase::Ready, Phase::Probing, Phase::Primed, Phase::Frozen, Phase::Draining] {
        let (desired, mut actual) =
            given_routed(&[with_devices("s-00001", 1, &[(keys::IDLE_TIER, "frozen")])]);
        idle(&mut actual);
        has(&mut actual, "a", NOW);
        let asked = asking(&desired, 1, NOW);
        settle(&desired, &mut actual, &Traffic::default(), &asked, NOW);
        actual.instances.values_mut().next().unwrap().phase = phase.clone();
        has(&mut actual, "A", NOW);
        let end = NOW.after(LOST_GRACE_MS);
        settle(&desired, &mut actual, &Traffic::default(), &asked, end);
        assert_eq!(of(&actual, "s-00001"), [], "{phase:?}");
        let plan = targeted(&desired, &actual, &Traffic::default(), &asked, end);
        assert!(plan.cuts[&key("s-00001")].starts_with("DeviceUnhealthy: "), "{:?}", plan.cuts);
        let table = routes(&desired, &actual, end);
        assert_eq!(table.revisions[&key("s-00001")].unavailable.as_ref().unwrap().reason, "DeviceUnhealthy");
        has(&mut actual, "a", end);
        settle(&desired, &mut actual, &Traffic::default(), &asked, end);
        assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "a".into())], "{phase:?}");
    }
}

#[test]
fn a_plugin_that_goes_takes_nothing_from_what_runs_and_gives_nothing() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[])]);
    has(&mut actual, "ab", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
    let mut gone = inventory("ab");
    gone.resources.values_mut().for_each(|resource| resource.connected = false);
    actual.note_devices(Arc::new(gone), NOW);
    let late = NOW.after(2 * LOST_GRACE_MS);
    let plan = targeted(&desired, &actual, &Traffic::default(), &asking(&desired, 2, NOW), late);
    assert_eq!(plan.actions, []);
    assert_eq!(plan.wanted, [(key("s-00001"), 1)].into());
}

#[test]
fn what_a_plugin_prefers_is_asked_for_before_anything_is_given() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[])]);
    let mut inventory = inventory("abc");
    inventory.resources.values_mut().for_each(|resource| resource.has_preference = true);
    actual.note_devices(Arc::new(inventory.clone()), NOW);
    let asks = planned(&desired, &actual, &Traffic::default(), NOW);
    assert_eq!((asks.actions.len(), asks.choices.len()), (0, 1));
    let choice = asks.choices.into_iter().next().unwrap();
    assert_eq!((choice.free.len(), choice.count), (3, 1));
    for (answer, given) in [(&["b"][..], "b"), (&[], "a"), (&["z"], "a")] {
        let answer = answer.iter().map(|id| DeviceId((*id).into())).collect();
        inventory.preferences = [(choice.clone(), answer)].into();
        actual.note_devices(Arc::new(inventory.clone()), NOW);
        actual.instances.clear();
        settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
        assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, given.into())]);
    }
}

/// A route from one revision to the next, the newer one first.
fn updated(old: (Digest, RevisionObject), new: (Digest, RevisionObject)) -> (Desired, Actual) {
    let (mut desired, actual) = given_routed(&[old, new]);
    let mut route = desired.routes.remove(&("default".into(), "s-00001".into())).unwrap();
    desired.routes.clear();
    Arc::make_mut(&mut route).targets[0].candidates = vec!["s-00002".into(), "s-00001".into()];
    desired.routes.insert(("default".into(), "s".into()), route);
    (desired, actual)
}

#[test]
fn an_update_takes_the_only_device_over_and_overlaps_where_there_are_two() {
    for strategy in ["overlap", "hand-over", "stop-first", "auto"] {
        let strategy = [(keys::UPDATE_STRATEGY, strategy)];
        let (desired, mut actual) =
            updated(with_devices("s-00001", 1, &[]), with_devices("s-00002", 1, &strategy));
        let new = actual.revisions.remove(&key("s-00002")).unwrap();
        has(&mut actual, "a", NOW);
        settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
        assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "a".into())]);
        actual.revisions.insert(key("s-00002"), new);
        let first = planned(&desired, &actual, &Traffic::default(), NOW);
        assert_eq!(first.actions, [Action::TakeOver { revision: key("s-00002") }], "{strategy:?}");
        assert_eq!(first.cuts, BTreeMap::new(), "{strategy:?}");
        settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
        assert_eq!(of(&actual, "s-00001"), [], "{strategy:?}");
        assert_eq!(of(&actual, "s-00002"), [(Phase::Ready, "a".into())], "{strategy:?}");
    }
    let (desired, mut actual) = updated(with_devices("s-00001", 1, &[]), with_devices("s-00002", 1, &[]));
    let new = actual.revisions.remove(&key("s-00002")).unwrap();
    has(&mut actual, "ab", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    actual.revisions.insert(key("s-00002"), new);
    let first = planned(&desired, &actual, &Traffic::default(), NOW);
    assert!(matches!(first.actions.as_slice(), [Action::Launch { .. }]), "{:?}", first.actions);
}

#[test]
fn an_outdated_object_lets_go_of_the_only_device() {
    let (old, _) = with_devices("s-00001", 1, &[]);
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[("tombolo.dev/x", "1")])]);
    has(&mut actual, "a", NOW);
    let devices: Devices = [(ResourceName(X.into()), [DeviceId("a".into())].into())].into();
    let outdated = InstanceActual { devices, ..instance("s-00001", old, Phase::Ready) };
    actual.instances.insert(InstanceId("old".into()), outdated);
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
    let instances: Vec<_> =
        actual.instances.values().map(|instance| (held(instance), instance.object == old)).collect();
    assert_eq!(instances, [("a".into(), false)]);
}

/// No device is given to two, and none that is not there.
/// What its plugin lists of `a`, which has come back so often.
fn returned(actual: &mut Actual, devices: &str, times: u64, now: Moment) {
    let mut inventory = inventory(devices);
    let resource = inventory.resources.get_mut(&ResourceName(X.into())).unwrap();
    resource.returns.insert(DeviceId("a".into()), times);
    actual.note_devices(Arc::new(inventory), now);
}

#[test]
fn a_device_that_comes_back_is_given_anew_to_the_instance_that_has_it() {
    let (desired, mut actual) = given_routed(&[with_devices("s-00001", 1, &[])]);
    has(&mut actual, "ab", NOW);
    settle(&desired, &mut actual, &Traffic::default(), &Targets::new(), NOW);
    assert_eq!(of(&actual, "s-00001"), [(Phase::Ready, "a".into())]);
    let planned = |actual: &Actual, now| planned(&desired, actual, &Traffic::default(), now);
    // Gone: it is waited for, and nothing is done to the instance.
    returned(&mut actual, "b", 0, NOW);
    assert_eq!(planned(&actual, NOW).actions, []);
    returned(&mut actual, "ab", 1, NOW);
    let plan = planned(&actual, NOW);
    assert!(matches!(&plan.actions[..], [Action::Refit { devices, .. }] if devices.len() == 1), "{plan:?}");
    // Under way: not once more.
    actual.instances.values_mut().for_each(|instance| instance.fit.begin(NOW));
    assert_eq!(planned(&actual, NOW).actions, []);
    // It fails, and again, until the instance ends as one whose device is gone.
    actual.instances.values_mut().for_each(|instance| instance.fit.end(Err(()), NOW));
    let plan = planned(&actual, NOW);
    assert_eq!((plan.actions.len(), plan.wake.unwrap().1), (0, WakeReason::DeviceStale));
    let later = NOW.after(LOST_GRACE_MS);
    assert!(matches!(planned(&actual, Moment(later.0 - 1)).actions[..], [Action::Refit { .. }]));
    assert!(matches!(planned(&actual, later).actions[..], [Action::Terminate { .. }]));
    // Not while its plugin is away.
    let mut away = inventory("ab");
    away.resources.get_mut(&ResourceName(X.into())).unwrap().connected = false;
    actual.note_devices(Arc::new(away), later);
    assert_eq!(planned(&actual, later.after(60_000)).actions, []);
    assert!(matches!(actual.instances.values().next().unwrap().fit, Fit::Stale { failed: false, .. }));
}

fn check_exclusive(actual: &Actual, plan: &Plan) -> Result<(), TestCaseError> {
    let mut seen: BTreeSet<&DeviceId> = BTreeSet::new();
    let held = actual.instances.values().filter_map(InstanceActual::held_devices);
    for id in held.flat_map(|devices| devices.values().flatten()) {
        prop_assert!(seen.insert(id), "{id} is held twice");
    }
    let restored = plan.actions.iter().filter_map(|action| match action {
        Action::Restore { instance } => Some(&actual.instances[instance]),
        _ => None,
    });
    for id in restored.flat_map(|instance| instance.devices.values().flatten()) {
        prop_assert!(seen.insert(id), "{id} is taken back while another has it: {:?}", plan.actions);
    }
    let resource = &actual.devices.inventory.resources[&ResourceName(X.into())];
    for action in &plan.actions {
        if let Action::Launch { devices, .. } | Action::Prime { devices, .. } = action {
            for id in devices.values().flatten() {
                prop_assert!(seen.insert(id), "{id} is given twice: {:?}", plan.actions);
                prop_assert!(
                    resource.devices.get(id).is_some_and(|device| device.healthy),
                    "{id} is not healthy"
                );
            }
        }
    }
    Ok(())
}

proptest! {
    /// Whatever is asked for, requested, plugged, unplugged and broken: no device is given twice, the plan is the same for the
    /// same node, and it converges.
    #[test]
    fn no_device_is_given_twice(
        counts in proptest::collection::vec(1..3u32, 3),
        tier in prop_oneof![Just("cold"), Just("primed"), Just("frozen"), Just("suspended")],
        strategy in prop_oneof![Just("overlap"), Just("hand-over"), Just("auto")],
        steps in proptest::collection::vec(("[aA]?[bB]?[cC]?[dD]?", 0..4u32, 0..4usize, 0..40_000u64), 1..6),
    ) {
        let annotations = [(keys::IDLE_TIER, tier), (keys::UPDATE_STRATEGY, strategy)];
        let names = ["s-00001", "s-00002", "t-00001"];
        let objects: Vec<_> =
            names.iter().zip(&counts).map(|(name, count)| with_devices(name, *count, &annotations)).collect();
        let (mut desired, mut actual) = given_routed(&objects);
        let route = desired.routes.get_mut(&("default".into(), "s-00001".into())).unwrap();
        Arc::make_mut(route).targets[0].candidates = vec!["s-00002".into(), "s-00001".into()];
        let mut now = NOW;
        for (devices, want, held, passed) in steps {
            now = now.after(passed);
            has(&mut actual, &devices, now);
            for instance in actual.instances.values_mut().filter(|_| want % 2 == 0) {
                instance.fit.outdate(now);
            }
            let traffic = names.get(held).map_or_else(Traffic::default, |name| with_demand(name, 0, 1, now));
            let asked = asking(&desired, want, now);
            let mut settled = false;
            for _ in 0..30 {
                let plan = targeted(&desired, &actual, &traffic, &asked, now);
                prop_assert_eq!(&plan, &targeted(&desired, &actual, &traffic, &asked, now));
                check_exclusive(&actual, &plan)?;
                if plan.actions.is_empty() {
                    settled = true;
                    break;
                }
                execute(&desired, &mut actual, &plan.actions, now);
                let inventory = actual.devices.inventory.clone();
                actual.note_devices(inventory, now);
            }
            prop_assert!(settled, "did not converge");
        }
    }

    /// Nothing happens to an instance that has lost its device before the plan's wake.
    #[test]
    fn nothing_of_devices_changes_before_the_wake(
        phase in prop_oneof![
            Just(Phase::Primed), Just(Phase::Launching), Just(Phase::Probing), Just(Phase::Ready), Just(Phase::Draining),
            Just(Phase::Frozen),
        ],
        devices in "[aA][bB]?",
        lost_ms in 0..2 * LOST_GRACE_MS,
        awaited_ms in 0..600_000u64,
        is_registered: bool,
        want in 0..3u32,
        step in 1..700_000u64,
    ) {
        let made = with_devices("s-00001", 1, &[(keys::IDLE_TIER, "cold")]);
        let digest = made.0;
        let (desired, mut actual) = given_routed(&[made]);
        idle(&mut actual);
        let held: Devices = [(ResourceName(X.into()), [DeviceId("a".into())].into())].into();
        actual.instances.insert(InstanceId("i".into()), InstanceActual { devices: held, ..instance("s-00001", digest, phase) });
        actual.devices.awaited_until = Moment(NOW.0 - 300_000 + awaited_ms);
        if is_registered {
            has(&mut actual, &devices, Moment(NOW.0 - lost_ms));
        }
        let asked = asking(&desired, want, NOW);
        let now = targeted(&desired, &actual, &Traffic::default(), &asked, NOW);
        let until = now.wake.map_or(u64::MAX, |(at, _)| at.0);
        prop_assert!(until > NOW.0, "a wake that is over: {:?}", now.wake);
        let then = Moment((NOW.0 + step).min(until - 1));
        if now.actions.is_empty() {
            prop_assert_eq!(targeted(&desired, &actual, &Traffic::default(), &asked, then).actions, vec![]);
            let unavailable = |at| routes(&desired, &actual, at).revisions[&key("s-00001")].unavailable.clone();
            prop_assert_eq!(unavailable(NOW), unavailable(then));
        }
    }
}
