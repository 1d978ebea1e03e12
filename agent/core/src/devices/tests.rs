//! What is free, what is lost, which devices are chosen, and what a node says that cannot give them.

use proptest::prelude::*;
use tombolo_api::serving::{Container, RevisionSpec};

use super::*;

fn name(text: &str) -> ResourceName {
    ResourceName(text.into())
}

fn ids(ids: &[&str]) -> BTreeSet<DeviceId> {
    ids.iter().map(|id| DeviceId((*id).into())).collect()
}

fn resource(devices: &[(&str, bool, &[u32])]) -> Resource {
    let device = |(id, healthy, numa): &(&str, bool, &[u32])| {
        (DeviceId((*id).into()), Device { healthy: *healthy, numa: numa.iter().copied().collect() })
    };
    Resource {
        devices: devices.iter().map(device).collect(),
        connected: true,
        has_preference: false,
        ..Resource::default()
    }
}

fn known(resources: &[(&str, Resource)]) -> Known {
    let resources = resources.iter().map(|(text, resource)| (name(text), resource.clone())).collect();
    let inventory = Arc::new(Inventory { resources, ..Inventory::default() });
    Known { inventory, awaited_until: Moment(1000), ..Known::default() }
}

#[test]
fn what_a_revision_asks_for_are_its_limits_of_extended_resources() {
    let mut container = Container::default();
    for (resource, amount) in [
        ("cpu", "2"),
        ("tombolo.dev/pids", "9"),
        ("a.example/x", "2"),
        ("tombolo.dev/gpu-memory", "4"),
        ("b.example/none", "0"),
    ] {
        container.resources.limits.insert(resource.into(), amount.parse().unwrap());
    }
    let spec = RevisionSpec { containers: vec![container], ..RevisionSpec::default() };
    let object = RevisionObject {
        namespace: "default".into(),
        name: "s-00001".into(),
        uid: "u".into(),
        service: String::new(),
        configuration: String::new(),
        annotations: BTreeMap::new(),
        spec,
        verification: None,
    };
    assert_eq!(asked(&object), [(name("a.example/x"), 2), (name("tombolo.dev/gpu-memory"), 4)].into());
}

#[test]
fn only_healthy_devices_of_a_plugin_that_is_there_are_free_and_held_ones_are_not() {
    let mut x = resource(&[("0", true, &[]), ("1", false, &[]), ("2", true, &[])]);
    let held: Devices = [(name("a/x"), ids(&["2"]))].into();
    let free = |x: &Resource| known(&[("a/x", x.clone())]).inventory.free([&held].into_iter());
    assert_eq!(free(&x), [(name("a/x"), ids(&["0"]))].into());
    let inventory = known(&[("a/x", x.clone())]).inventory;
    assert_eq!((inventory.capacity()["a/x"], inventory.allocatable()["a/x"]), (3, 2));
    x.connected = false;
    assert_eq!(free(&x), [(name("a/x"), ids(&[]))].into());
    let inventory = known(&[("a/x", x)]).inventory;
    assert_eq!((inventory.capacity()["a/x"], inventory.allocatable()["a/x"]), (3, 0));
}

#[test]
fn a_device_is_lost_only_if_its_plugin_says_so() {
    let lost = |x: &Resource, id: &str| {
        known(&[("a/x", x.clone())]).inventory.lost(&[(name("a/x"), ids(&[id]))].into()).next().is_some()
    };
    let mut x = resource(&[("0", true, &[]), ("1", false, &[])]);
    assert_eq!(["0", "1", "unplugged"].map(|id| lost(&x, id)), [false, true, true]);
    x.connected = false;
    assert_eq!(["0", "1", "unplugged"].map(|id| lost(&x, id)), [false; 3]);
    assert!(
        Inventory::default().lost(&[(name("a/x"), ids(&["0"]))].into()).next().is_none(),
        "an agent that has just started"
    );
}

#[test]
fn a_plugins_preference_goes_first_if_it_can_be_had() {
    let x = resource(&[("0", true, &[0]), ("1", true, &[0]), ("2", true, &[1]), ("3", true, &[1])]);
    let all = ids(&["0", "1", "2", "3"]);
    let chosen = |preferred: &[&str]| choose(&name("a/x"), &x, &all, 2, Some(&ids(preferred))).unwrap();
    assert_eq!(chosen(&["1", "2"]), ids(&["1", "2"]));
    for useless in [&[][..], &["1"], &["1", "9"], &["1", "2", "3"]] {
        assert_eq!(chosen(useless), ids(&["0", "1"]), "{useless:?}");
    }
    assert_eq!(choose(&name("a/x"), &x, &all, 5, None), None);
}

#[test]
fn devices_that_are_near_to_each_other_are_given_and_large_groups_stay_whole() {
    let x = resource(&[
        ("a", true, &[]),
        ("b", true, &[0]),
        ("c", true, &[0]),
        ("d", true, &[0]),
        ("e", true, &[1]),
        ("f", true, &[1]),
    ]);
    let all = ids(&["a", "b", "c", "d", "e", "f"]);
    for (count, expected) in
        [(1, &["e"][..]), (2, &["e", "f"]), (3, &["b", "c", "d"]), (4, &["b", "c", "d", "e"])]
    {
        assert_eq!(choose(&name("a/x"), &x, &all, count, None), Some(ids(expected)), "{count}");
    }
}

fn units(counts: &[(&str, u32)]) -> Resource {
    let device = || Device { healthy: true, numa: BTreeSet::new() };
    let ids = counts.iter().flat_map(|(gpu, count)| {
        (0..*count).map(move |number| (DeviceId(format!("{gpu}/256Mi/{number}")), device()))
    });
    Resource { devices: ids.collect(), connected: true, has_preference: false, ..Resource::default() }
}

#[test]
fn memory_is_of_one_accelerator_where_it_fits_best() {
    let memory = units(&[("GPU-1", 8), ("GPU-2", 4), ("GPU-3", 6)]);
    let all: BTreeSet<_> = memory.devices.keys().cloned().collect();
    let chosen = |count, preferred: Option<&BTreeSet<DeviceId>>| {
        let chosen = choose(&name(GPU_MEMORY), &memory, &all, count, preferred)?;
        assert_eq!(chosen.len(), count as usize);
        let gpus: BTreeSet<String> = chosen.iter().map(|id| id.0[..5].to_owned()).collect();
        Some(gpus.into_iter().collect::<Vec<_>>().join(" "))
    };
    for (count, gpu) in [(1, "GPU-2"), (4, "GPU-2"), (5, "GPU-3"), (7, "GPU-1")] {
        assert_eq!(chosen(count, None).as_deref(), Some(gpu), "{count}");
    }
    assert_eq!(chosen(9, None), None, "eighteen in all");
    let preferred = ids(&["GPU-1/256Mi/0", "GPU-1/256Mi/1"]);
    assert_eq!(chosen(2, Some(&preferred)).as_deref(), Some("GPU-1"));
    let scattered = ids(&["GPU-1/256Mi/0", "GPU-3/256Mi/1"]);
    assert_eq!(chosen(2, Some(&scattered)).as_deref(), Some("GPU-2"));
}

#[test]
fn memory_that_no_accelerator_has_is_an_obstacle_though_the_sum_suffices() {
    let mut memory = units(&[("GPU-1", 4), ("GPU-2", 4)]);
    let said = |memory: &Resource, count| {
        let known = known(&[(GPU_MEMORY, memory.clone())]);
        let found = obstacle(&[(name(GPU_MEMORY), count)].into(), &known, Moment(0));
        found.map(|found| format!("{}: {}", found.why.reason, found.why.message))
    };
    assert_eq!(said(&memory, 4), None);
    let others = ("a/x", resource(&[("0", true, &[]), ("1", true, &[])]));
    let inventory = known(&[(GPU_MEMORY, memory.clone()), others]).inventory;
    assert_eq!(inventory.largest_piece(), [(GPU_MEMORY.to_owned(), 4)].into(), "what one instance can have");
    assert!(known(&[(GPU_MEMORY, units(&[("GPU-1", 4)]))]).inventory.largest_piece().is_empty(), "it is all");
    let too_much = said(&memory, 5).unwrap();
    assert!(too_much.starts_with("InsufficientDevices") && too_much.contains("largest accelerator has 4"));
    for gpu in ["GPU-1", "GPU-2"] {
        memory.devices.get_mut(&DeviceId(format!("{gpu}/256Mi/3"))).unwrap().healthy = false;
    }
    let sick = said(&memory, 4).unwrap();
    assert!(sick.starts_with("DeviceUnhealthy: 3 of an accelerator's 4 of"), "{sick}");
    let two = |memory: Resource, count| {
        known(&[(GPU_MEMORY, memory)]).inventory.is_too_few_for_two(&[(name(GPU_MEMORY), count)].into())
    };
    assert!(!two(memory.clone(), 4) && !two(units(&[("GPU-1", 8)]), 4));
    assert!(two(units(&[("GPU-1", 4), ("GPU-2", 3)]), 4) && two(memory, 5));
}

#[test]
fn what_stands_in_the_way_is_named_with_what_to_do() {
    let mut gone = resource(&[("0", true, &[])]);
    gone.connected = false;
    let known = known(&[
        ("a/two", resource(&[("0", true, &[]), ("1", true, &[])])),
        ("a/sick", resource(&[("0", false, &[])])),
        ("a/gone", gone),
    ]);
    let said = |asked: &[(&str, u32)], now: u64| {
        let asked = asked.iter().map(|(text, count)| (name(text), *count)).collect();
        obstacle(&asked, &known, Moment(now)).map(|obstacle| (obstacle.why.reason, obstacle.passes))
    };
    let of = |reason: &str, passes| Some((reason.to_owned(), passes));
    assert_eq!(said(&[("a/two", 2)], 0), None);
    assert_eq!(said(&[("a/two", 3)], 0), of("InsufficientDevices", false));
    assert_eq!(said(&[("a/sick", 1)], 0), of("DeviceUnhealthy", false));
    assert_eq!(said(&[("a/gone", 1)], 2000), of("DevicesNotReady", true));
    assert_eq!(said(&[("a/none", 1)], 999), of("DevicesNotReady", true));
    assert_eq!(said(&[("a/none", 1)], 1000), of("InsufficientDevices", false));
    assert_eq!(said(&[("a/gone", 1), ("a/two", 3)], 0), of("InsufficientDevices", false));
}

proptest! {
    /// As many as asked for, all of them free, the same for the same question; none only if there are too few.
    #[test]
    fn a_choice_is_of_free_devices(
        devices in proptest::collection::btree_map("[a-f]", proptest::collection::btree_set(0..3u32, 0..3), 0..6),
        count in 1..5u32,
        preferred in proptest::option::of(proptest::collection::btree_set("[a-f]", 0..4)),
    ) {
        let free: BTreeSet<DeviceId> = devices.keys().map(|id| DeviceId(id.clone())).collect();
        let device = |(id, numa): (String, BTreeSet<u32>)| (DeviceId(id), Device { healthy: true, numa });
        let devices = devices.into_iter().map(device).collect();
        let resource = Resource { devices, connected: true, has_preference: true, ..Resource::default() };
        let preferred = preferred.map(|ids| ids.into_iter().map(DeviceId).collect());
        let chosen = choose(&name("a/x"), &resource, &free, count, preferred.as_ref());
        prop_assert_eq!(&chosen, &choose(&name("a/x"), &resource, &free, count, preferred.as_ref()));
        match chosen {
            Some(chosen) => prop_assert!(chosen.len() == count as usize && chosen.is_subset(&free)),
            None => prop_assert!(free.len() < count as usize),
        }
    }
}
