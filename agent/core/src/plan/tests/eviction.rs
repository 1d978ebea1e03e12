//! Instances that wait for nobody give their memory to who has none.

use super::*;

const MEGABYTE: u64 = 1 << 20;

fn with_limit(name: &str, megabytes: u32, tier: &str) -> (Digest, RevisionObject) {
    let (_, mut object) = object(name, &[(keys::IDLE_TIER, tier)]);
    let mut container = tombolo_api::serving::Container::default();
    container.resources.limits.insert("memory".into(), format!("{megabytes}Mi").parse().unwrap());
    object.spec.containers = vec![container];
    (tombolo_api::desired::encode_revision(&object).entry.digest, object)
}

/// Plans and executes until there is nothing more to do on a node with 900 MiB.
fn settle_small(desired: &Desired, actual: &mut Actual, traffic: &Traffic, now: Moment) -> Plan {
    let settings = Settings { memory_bytes: 900 * MEGABYTE, ..SETTINGS };
    for _ in 0..20 {
        let plan = fitting(desired, actual, traffic, &asking(desired, 0, now), &settings, now);
        if plan.actions.is_empty() {
            return plan;
        }
        execute(desired, actual, &plan.actions, now);
    }
    panic!("did not converge");
}

/// A node with a frozen instance of each; the first was called longest ago.
fn frozen(objects: &[(Digest, RevisionObject)]) -> (Desired, Actual) {
    let (desired, mut actual) = given_routed(objects);
    for (at, (digest, object)) in objects.iter().enumerate() {
        let known = actual.revisions.get_mut(&object.key()).unwrap();
        (known.ready_once, known.last_active) = (true, Moment(at as u64));
        actual
            .instances
            .insert(InstanceId(object.name.clone()), instance(&object.name, *digest, Phase::Frozen));
    }
    (desired, actual)
}

fn phase<'a>(actual: &'a Actual, name: &str) -> Option<&'a Phase> {
    actual.instances.values().find(|instance| instance.revision == key(name)).map(|instance| &instance.phase)
}

#[test]
fn who_was_called_longest_ago_gives_way() {
    let names = ["a-00001", "b-00001", "c-00001", "d-00001"];
    let mut objects: Vec<_> = names.iter().map(|name| with_limit(name, 200, "frozen")).collect();
    let (_, mut actual) = frozen(&objects);
    objects.push(with_limit("e-00001", 200, "cold"));
    let (desired, known) = given_routed(&objects);
    actual.revisions.insert(key("e-00001"), known.revisions[&key("e-00001")].clone());
    actual.revisions.get_mut(&key("e-00001")).unwrap().ready_once = true;
    // Nothing goes before somebody needs it.
    settle_small(&desired, &mut actual, &Traffic::default(), NOW);
    assert_eq!(actual.instances.len(), 4);
    let plan = settle_small(&desired, &mut actual, &with_demand("e-00001", 0, 1, NOW), NOW);
    assert_eq!(phase(&actual, "e-00001"), Some(&Phase::Ready));
    assert_eq!(phase(&actual, "a-00001"), Some(&Phase::Primed), "what waits costs next to nothing");
    assert!(names[1..].iter().all(|name| phase(&actual, name) == Some(&Phase::Frozen)));
    assert_eq!(plan.cuts, BTreeMap::new());
}

#[test]
fn nobody_gives_way_for_nothing_or_while_called() {
    let objects = [with_limit("a-00001", 200, "frozen"), with_limit("b-00001", 500, "frozen")];
    let (_, actual) = frozen(&objects);
    let big = [objects[0].clone(), objects[1].clone(), with_limit("c-00001", 800, "cold")];
    let (desired, known) = given_routed(&big);
    let mut actual = Actual { revisions: known.revisions, ..actual };
    actual.revisions.values_mut().for_each(|known| known.ready_once = true);
    // The one that is called keeps its place, and without it there is not enough.
    let mut traffic = with_demand("c-00001", 0, 1, NOW);
    traffic.revisions.insert(key("b-00001"), Demand { in_flight: 1, held: 0, last_request: Some(NOW) });
    traffic.instances.insert(InstanceId("b-00001".into()), 1);
    let plan = settle_small(&desired, &mut actual, &traffic, NOW);
    assert_eq!(phase(&actual, "a-00001"), Some(&Phase::Frozen));
    assert_eq!(phase(&actual, "b-00001"), Some(&Phase::Ready));
    assert!(plan.cuts[&key("c-00001")].starts_with("InsufficientMemory: 0 of 1"), "{:?}", plan.cuts);
    // Both go once that is enough.
    settle_small(&desired, &mut actual, &with_demand("c-00001", 0, 1, NOW), NOW);
    assert_eq!(phase(&actual, "c-00001"), Some(&Phase::Ready));
    assert_eq!(actual.instances.len(), 1);
}

/// Requests that wait for others to end keep nobody from being made to wait.
#[test]
fn slots_are_made_beside_a_queue() {
    let objects = [object("a-00001", &[("autoscaling.knative.dev/max-scale", "1")]), object("b-00001", &[])];
    let (desired, mut actual) = given_routed(&objects);
    actual.revisions.values_mut().for_each(|known| known.ready_once = true);
    actual.instances.insert(InstanceId("a".into()), instance("a-00001", objects[0].0, Phase::Ready));
    let mut traffic = with_demand("a-00001", 1, 9, NOW);
    traffic.instances.insert(InstanceId("a".into()), 1);
    let targets = Targets::from([(key("a-00001"), Target { want: 1, at: NOW, timed_out: false })]);
    settle(&desired, &mut actual, &traffic, &targets, NOW);
    assert_eq!(phase(&actual, "b-00001"), Some(&Phase::Primed));
}
