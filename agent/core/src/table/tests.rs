//! Which revision gets a route's requests, and what the router is told of it.

use tombolo_api::desired::encode_revision;

use super::*;
use crate::actual::{Crashes, InstanceActual};
use crate::supervision::InstanceId;

fn build(desired: &Desired, actual: &Actual, now: Moment) -> RouteTable {
    super::build(desired, actual, &Rollouts::default(), &RouteTable::default(), now)
}

const NOW: Moment = Moment(1_000);

fn add_instance(actual: &mut Actual, name: &str, revision: &RevisionKey, object: Digest, phase: Phase) {
    let revision = revision.clone();
    let made = InstanceActual { pid: 1, ..InstanceActual::new(revision, object, 8080, phase, NOW) };
    actual.instances.insert(InstanceId(name.into()), made);
}

fn add_revision(desired: &mut Desired, actual: &mut Actual, name: &str, ready_once: bool) -> Digest {
    let object = RevisionObject {
        namespace: "default".into(),
        name: name.into(),
        uid: name.into(),
        service: "s".into(),
        configuration: "s".into(),
        annotations: BTreeMap::new(),
        spec: Default::default(),
        verification: None,
    };
    let digest = encode_revision(&object).entry.digest;
    let known = RevisionActual { image: ImageState::Present, ..RevisionActual::new(digest, ready_once, NOW) };
    actual.revisions.insert(object.key(), known);
    desired.revisions.insert(object.key(), (digest, object.into()));
    digest
}

fn route(targets: Vec<RouteTarget>) -> Desired {
    let route = RouteObject {
        namespace: "default".into(),
        name: "s".into(),
        hosts: vec!["s.default.localhost".into()],
        targets,
        steering: vec![],
        rollout: None,
    };
    Desired { routes: [(("default".into(), "s".into()), Arc::new(route))].into(), ..Desired::default() }
}

fn target(percent: u8, candidates: &[&str], hosts: &[&str]) -> RouteTarget {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    RouteTarget {
        percent,
        candidates: owned(candidates),
        hosts: owned(hosts),
        tag: String::new(),
        configuration: String::new(),
    }
}

fn split(table: &RouteTable, host: &str) -> Vec<(String, u8)> {
    table.hosts[host].splits.iter().map(|split| (split.revision.name.to_string(), split.percent)).collect()
}

#[test]
fn the_newest_candidate_serves_once_it_has_been_ready_here() {
    let mut desired = route(vec![target(100, &["s-00002", "s-00001"], &[])]);
    let mut actual = Actual::default();
    add_revision(&mut desired, &mut actual, "s-00001", true);
    add_revision(&mut desired, &mut actual, "s-00002", false);
    assert_eq!(split(&build(&desired, &actual, NOW), "s.default.localhost"), [("s-00001".into(), 100)]);
    actual.revisions.get_mut(&RevisionKey::new("default", "s-00002")).unwrap().ready_once = true;
    assert_eq!(split(&build(&desired, &actual, NOW), "s.default.localhost"), [("s-00002".into(), 100)]);
}

#[test]
fn a_candidate_that_can_never_run_here_is_the_last_choice() {
    let mut desired = route(vec![target(100, &["s-00002", "s-00001"], &[])]);
    let mut actual = Actual::default();
    let why = Unavailable { reason: "InsufficientMemory".into(), message: "m".into() };
    for (name, serves) in [("s-00002", "s-00002"), ("s-00001", "s-00001")] {
        add_revision(&mut desired, &mut actual, name, false);
        actual.revisions.get_mut(&RevisionKey::new("default", "s-00002")).unwrap().misfit = Some(why.clone());
        let table = build(&desired, &actual, NOW);
        assert_eq!(split(&table, "s.default.localhost"), [(serves.into(), 100)]);
    }
}

#[test]
fn splits_and_tags_have_their_own_hosts() {
    let mut desired =
        route(vec![target(90, &["s-00001"], &[]), target(10, &["s-00002"], &["next-s.default.localhost"])]);
    let mut actual = Actual::default();
    add_revision(&mut desired, &mut actual, "s-00001", true);
    add_revision(&mut desired, &mut actual, "s-00002", true);
    let table = build(&desired, &actual, NOW);
    assert_eq!(split(&table, "s.default.localhost"), [("s-00001".into(), 90), ("s-00002".into(), 10)]);
    assert_eq!(split(&table, "next-s.default.localhost"), [("s-00002".into(), 100)]);
}

#[test]
fn only_ready_instances_are_endpoints() {
    let mut desired = route(vec![target(100, &["s-00001"], &[])]);
    let mut actual = Actual::default();
    let object = add_revision(&mut desired, &mut actual, "s-00001", true);
    let key = RevisionKey::new("default", "s-00001");
    for (name, phase) in [("a", Phase::Ready), ("b", Phase::Probing), ("c", Phase::Draining)] {
        add_instance(&mut actual, name, &key, object, phase);
    }
    let table = build(&desired, &actual, NOW);
    let ready: Vec<_> =
        table.revisions[&key].ready.iter().map(|endpoint| endpoint.instance.0.as_str()).collect();
    assert_eq!(ready, ["a"]);
}

#[test]
fn frozen_instances_stand_by_while_none_is_ready() {
    let mut desired = route(vec![target(100, &["s-00001"], &[])]);
    let mut actual = Actual::default();
    let object = add_revision(&mut desired, &mut actual, "s-00001", true);
    let key = RevisionKey::new("default", "s-00001");
    let old = Digest::of(b"old");
    let standby = |actual: &Actual| {
        let table = build(&desired, actual, NOW);
        table.revisions[&key].standby.iter().map(|endpoint| endpoint.instance.0.clone()).collect::<Vec<_>>()
    };
    for (name, object, phase) in [
        ("a", object, Phase::Frozen),
        ("b", object, Phase::Thawing),
        ("c", object, Phase::Freezing),
        ("d", object, Phase::Draining),
        ("e", old, Phase::Frozen),
    ] {
        add_instance(&mut actual, name, &key, object, phase);
    }
    assert_eq!(standby(&actual), ["a", "b"]);
    actual.instances.get_mut(&InstanceId("c".into())).unwrap().phase = Phase::Ready;
    assert_eq!(standby(&actual), [""; 0]);
}

#[test]
fn a_crashed_revision_is_unavailable_until_it_is_tried_again() {
    let mut desired = route(vec![target(100, &["s-00001"], &[])]);
    let mut actual = Actual::default();
    add_revision(&mut desired, &mut actual, "s-00001", false);
    let key = RevisionKey::new("default", "s-00001");
    actual.revisions.get_mut(&key).unwrap().crashes = Crashes {
        total: 1,
        recent: 1,
        retry_at: NOW.after(500),
        reason: "OOMKilled".into(),
        message: "m".into(),
    };
    let unavailable =
        |now| build(&desired, &actual, now).revisions[&key].unavailable.clone().map(|why| why.reason);
    assert_eq!(unavailable(NOW), Some("OOMKilled".into()));
    assert_eq!(unavailable(NOW.after(500)), None);
}

#[test]
fn a_route_to_an_absent_revision_says_so() {
    let desired = route(vec![target(100, &["s-00009"], &[])]);
    let table = build(&desired, &Actual::default(), NOW);
    let backend = &table.revisions[&RevisionKey::new("default", "s-00009")];
    assert_eq!(backend.unavailable.as_ref().unwrap().reason, "RevisionMissing");
}

#[test]
fn a_rollout_shares_the_hosts_the_tags_and_the_percentages() {
    let both = |percent, tag: &str, hosts: &[&str]| RouteTarget {
        tag: tag.into(),
        configuration: "s".into(),
        ..target(percent, &["s-00002", "s-00001"], hosts)
    };
    let mut desired = route(vec![both(100, "", &[]), both(0, "next", &["next-s.default.localhost"])]);
    let spec = tombolo_api::desired::RolloutSpec { duration_s: 100, gate: None };
    Arc::make_mut(desired.routes.values_mut().next().unwrap()).rollout = Some(spec);
    let mut actual = Actual::default();
    add_revision(&mut desired, &mut actual, "s-00001", true);
    add_revision(&mut desired, &mut actual, "s-00002", false);
    let mut rollouts = Rollouts::default();
    let table = |rollouts: &mut Rollouts, actual: &Actual, now| {
        rollouts.step(&desired, |key| serves(&desired, actual, key), &BTreeMap::new(), now);
        super::build(&desired, actual, rollouts, &RouteTable::default(), now)
    };
    assert_eq!(serves_at(&table(&mut rollouts, &actual, NOW)), [("s-00001".into(), 100)]);
    actual.revisions.get_mut(&RevisionKey::new("default", "s-00002")).unwrap().ready_once = true;
    let begun = table(&mut rollouts, &actual, NOW);
    let shares = [("s-00001".to_owned(), 99), ("s-00002".to_owned(), 1)];
    assert_eq!(serves_at(&begun), shares);
    assert_eq!(split(&begun, "next-s.default.localhost"), shares);
    assert_eq!(begun.hosts["s.default.localhost"].tags["next"].len(), 2);
    assert_eq!(begun.routed().len(), 2);
}

fn serves_at(table: &RouteTable) -> Vec<(String, u8)> {
    split(table, "s.default.localhost")
}

#[test]
fn what_did_not_change_is_shared_with_the_table_before() {
    let alias = "next-s.default.localhost";
    let mut desired = route(vec![target(100, &["s-00001"], &[]), target(0, &["s-00002"], &[alias])]);
    let mut actual = Actual::default();
    add_revision(&mut desired, &mut actual, "s-00001", true);
    add_revision(&mut desired, &mut actual, "s-00002", true);
    let before = build(&desired, &actual, NOW);
    let key = RevisionKey::new("default", "s-00002");
    actual.revisions.get_mut(&key).unwrap().misfit =
        Some(Unavailable { reason: "NoRoom".into(), message: "m".into() });
    let after = super::build(&desired, &actual, &Rollouts::default(), &before, NOW);
    assert_eq!(after, build(&desired, &actual, NOW));
    for (host, routes) in &after.hosts {
        let (name, known) = before.hosts.get_key_value(host).unwrap();
        assert!(Arc::ptr_eq(host, name) && Arc::ptr_eq(routes, known), "{host}");
    }
    for (other, backend) in &after.revisions {
        assert_eq!(Arc::ptr_eq(backend, &before.revisions[other]), *other != key, "{other}");
    }
}

#[test]
fn each_time_out_of_a_revision_is_the_backends() {
    let timeouts = |given: [Option<i64>; 3]| {
        let mut desired = route(vec![target(100, &["a-00001"], &[])]);
        let mut actual = Actual::default();
        add_revision(&mut desired, &mut actual, "a-00001", true);
        let (_, object) = desired.revisions.values_mut().next().unwrap();
        let spec = &mut Arc::make_mut(object).spec;
        [spec.timeout_seconds, spec.response_start_timeout_seconds, spec.idle_timeout_seconds] = given;
        let table = build(&desired, &actual, NOW);
        let backend = &table.revisions[&RevisionKey::new("default", "a-00001")];
        [backend.timeout_ms, backend.response_start_timeout_ms, backend.idle_timeout_ms]
    };
    assert_eq!(timeouts([Some(7), Some(5), Some(3)]), [7_000, 5_000, 3_000]);
    assert_eq!(timeouts([None; 3]), [300_000, 0, 0], "Knative has no others either until they are said");
    assert_eq!(timeouts([Some(0); 3]), [300_000, 0, 0]);
}
