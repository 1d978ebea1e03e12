//! Memory of accelerators: what an instance has is of one of them, and large pieces stay whole.

use proptest::prelude::*;

use super::*;
use crate::devices::{Device, DeviceId, GPU_MEMORY, Inventory, Resource, ResourceName};

pub(super) fn with_memory(name: &str, units: u32, annotations: &[(&str, &str)]) -> (Digest, RevisionObject) {
    let (_, mut object) = object(name, annotations);
    let mut container = tombolo_api::serving::Container::default();
    container.resources.limits.insert(GPU_MEMORY.into(), units.to_string().parse().unwrap());
    object.spec.containers = vec![container];
    (tombolo_api::desired::encode_revision(&object).entry.digest, object)
}

/// A node whose accelerators have so many units of 256 MiB each.
pub(super) fn has(actual: &mut Actual, units: &[u32]) {
    let device = |(gpu, number)| {
        let device = Device { healthy: true, numa: BTreeSet::new() };
        (DeviceId(format!("GPU-{gpu}/256Mi/{number}")), device)
    };
    let all = units.iter().enumerate().flat_map(|(gpu, count)| (0..*count).map(move |number| (gpu, number)));
    let resource = Resource {
        devices: all.map(device).collect(),
        connected: true,
        has_preference: false,
        ..Resource::default()
    };
    let resources = [(ResourceName(GPU_MEMORY.into()), resource)].into();
    actual.note_devices(Arc::new(Inventory { resources, ..Inventory::default() }), NOW);
}

/// Of a revision: the phase of each instance, the accelerators it is on, and its units.
fn of(actual: &Actual, name: &str) -> Vec<(Phase, String, usize)> {
    let instances = actual.instances.values().filter(|instance| instance.revision == key(name));
    let of_one = |instance: &InstanceActual| {
        let ids: Vec<_> = instance.devices.values().flatten().collect();
        let gpus: BTreeSet<_> = ids.iter().map(|id| id.0.split('/').next().unwrap().to_owned()).collect();
        (instance.phase.clone(), gpus.into_iter().collect::<Vec<_>>().join(" "), ids.len())
    };
    instances.map(of_one).collect()
}

fn want(desired: &Desired, names: &[&str]) -> Targets {
    let mut targets = asking(desired, 0, NOW);
    for name in names {
        targets.insert(key(name), Target { want: 1, at: NOW, timed_out: false });
    }
    targets
}

#[test]
fn small_ones_leave_a_whole_accelerator_to_large_ones() {
    let objects =
        [with_memory("a-00001", 2, &[]), with_memory("b-00001", 2, &[]), with_memory("c-00001", 8, &[])];
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, &[8, 6]);
    settle(&desired, &mut actual, &Traffic::default(), &want(&desired, &["a-00001", "b-00001"]), NOW);
    for name in ["a-00001", "b-00001"] {
        assert_eq!(of(&actual, name), [(Phase::Ready, "GPU-1".into(), 2)], "{name}");
    }
    settle(&desired, &mut actual, &Traffic::default(), &asking(&desired, 1, NOW), NOW);
    assert_eq!(of(&actual, "c-00001"), [(Phase::Ready, "GPU-0".into(), 8)]);
}

#[test]
fn what_fits_in_sum_alone_waits_and_says_so() {
    let objects = ["a-00001", "b-00001", "c-00001"].map(|name| with_memory(name, 3, &[]));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, &[5, 4]);
    let all = asking(&desired, 1, NOW);
    settle(&desired, &mut actual, &Traffic::default(), &all, NOW);
    let plan = targeted(&desired, &actual, &Traffic::default(), &all, NOW);
    assert_eq!(plan.actions, []);
    let cut = &plan.cuts[&key("c-00001")];
    let needs =
        "one needs 3 of tombolo.dev/gpu-memory, of which 3 are free here, 2 at most on one accelerator";
    assert!(cut.starts_with("InsufficientDevices: 0 of 1") && cut.contains(needs), "{cut}");
    let reports = crate::status::revisions(&desired, &actual, &plan.wanted, &plan.cuts, NOW);
    assert_eq!(reports[2].reason, "InsufficientDevices");
}

#[test]
fn only_those_give_way_whose_memory_helps() {
    let frozen = [(keys::IDLE_TIER, "frozen")];
    let objects = [
        with_memory("a-00001", 3, &frozen),
        with_memory("b-00001", 4, &frozen),
        with_memory("c-00001", 4, &[]),
    ];
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, &[4, 3]);
    for (name, called) in [("a-00001", 1), ("b-00001", 2), ("c-00001", 0)] {
        let known = actual.revisions.get_mut(&key(name)).unwrap();
        (known.ready_once, known.last_active) = (true, Moment(called));
    }
    settle(&desired, &mut actual, &Traffic::default(), &want(&desired, &["a-00001", "b-00001"]), NOW);
    let later = NOW.after(100_000);
    let targets: Targets = asking(&desired, 0, later);
    settle(&desired, &mut actual, &Traffic::default(), &targets, later);
    settle(&desired, &mut actual, &with_demand("c-00001", 0, 1, later), &targets, later);
    assert_eq!(of(&actual, "c-00001"), [(Phase::Ready, "GPU-0".into(), 4)]);
    assert_eq!(of(&actual, "a-00001"), [(Phase::Frozen, "GPU-1".into(), 3)], "it was called longer ago");
}

/// Who was called longest ago has another accelerator than what is asked for.
#[test]
fn those_that_take_turns_let_go_where_it_helps() {
    let suspended = [(keys::IDLE_TIER, "suspended")];
    let objects = [("a-00001", 4), ("b-00001", 3), ("c-00001", 4)]
        .map(|(name, units)| with_memory(name, units, &suspended));
    let (desired, mut actual) = given_routed(&objects);
    has(&mut actual, &[4, 3]);
    settle(&desired, &mut actual, &Traffic::default(), &want(&desired, &["a-00001", "b-00001"]), NOW);
    for (name, called) in [("a-00001", 2), ("b-00001", 1), ("c-00001", 0)] {
        let known = actual.revisions.get_mut(&key(name)).unwrap();
        (known.ready_once, known.last_active) = (true, NOW.after(called));
    }
    let now = NOW.after(10);
    let targets = desired
        .revisions
        .keys()
        .map(|key| (key.clone(), Target { want: 1, at: now, timed_out: false }))
        .collect();
    settle(&desired, &mut actual, &with_demand("c-00001", 0, 1, now), &targets, now);
    assert_eq!(of(&actual, "c-00001"), [(Phase::Ready, "GPU-0".into(), 4)]);
    assert_eq!(of(&actual, "b-00001"), [(Phase::Ready, "GPU-1".into(), 3)]);
    assert_eq!(of(&actual, "a-00001"), [(Phase::Suspended, "GPU-0".into(), 4)]);
}

proptest! {
    /// Whatever is asked for: no unit is given twice, an instance's are of one accelerator, and the plan comes to rest.
    #[test]
    fn no_memory_is_given_twice_or_of_two(
        counts in proptest::collection::vec(1..6u32, 4),
        tier in prop_oneof![Just("cold"), Just("primed"), Just("frozen"), Just("suspended")],
        steps in proptest::collection::vec((proptest::collection::vec(0..7u32, 1..3), 0..3u32, 0..5usize), 1..6),
    ) {
        let names = ["a-00001", "b-00001", "c-00001", "d-00001"];
        let objects: Vec<_> =
            names.iter().zip(&counts).map(|(name, units)| with_memory(name, *units, &[(keys::IDLE_TIER, tier)])).collect();
        let (desired, mut actual) = given_routed(&objects);
        for known in actual.revisions.values_mut() {
            known.ready_once = true;
        }
        let mut now = NOW;
        for (units, want, held) in steps {
            now = now.after(10_000);
            has(&mut actual, &units);
            let traffic = names.get(held).map_or_else(Traffic::default, |name| with_demand(name, 0, 1, now));
            settle(&desired, &mut actual, &traffic, &asking(&desired, want, now), now);
            let mut seen = BTreeSet::new();
            for devices in actual.instances.values().filter_map(InstanceActual::held_devices) {
                let ids: Vec<_> = devices.values().flatten().collect();
                let gpus: BTreeSet<_> = ids.iter().map(|id| id.0.split('/').next()).collect();
                prop_assert!(gpus.len() == 1, "{ids:?}");
                for id in ids {
                    prop_assert!(seen.insert(id), "{id} is held twice");
                }
            }
        }
    }
}
