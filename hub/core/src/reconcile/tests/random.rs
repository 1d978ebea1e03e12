//! Whatever happens, in whatever order: passes come to rest, say the same twice, and what they say holds together.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use tombolo_api::NodeId;
use tombolo_api::desired::{RouteObject, RouteTarget};
use tombolo_api::meta::{Condition, ConditionStatus};
use tombolo_api::report::RevisionPhase;
use tombolo_api::serving::keys;

use crate::fixture::{Hub, revision_of, route_of};
use crate::images::{Resolution, is_pinned};
use crate::snapshot::{Key, Kind, Object};

#[derive(Clone, Debug)]
enum Step {
    Apply {
        service: u8,
        image: u8,
        line: Option<u8>,
        traffic: Traffic,
        name: Option<u8>,
        gradual: bool,
    },
    Delete {
        kind: Kind,
        pick: u8,
    },
    /// Removes one resource and leaves what it owned.
    Lose {
        kind: Kind,
        pick: u8,
    },
    Meddle {
        kind: Kind,
        pick: u8,
    },
    Node {
        node: u8,
        line: u8,
    },
    Connected {
        node: u8,
        online: bool,
    },
    Leave {
        node: u8,
    },
    Report {
        node: u8,
        pick: u8,
        phase: RevisionPhase,
    },
    /// A node tells how far it is with a service's traffic, between two of its revisions.
    Moving {
        node: u8,
        service: u8,
        from: u8,
        to: u8,
        percent: u8,
        back: bool,
    },
    Hours(u8),
    Resolve {
        image: u8,
        found: bool,
    },
    /// One pass only, so that the next step falls into unfinished work.
    Pass,
}

#[derive(Clone, Debug)]
enum Traffic {
    Latest,
    Split { pick: u8, percent: u8, tagged: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let phase =
        prop::sample::select(vec![RevisionPhase::Preparing, RevisionPhase::Ready, RevisionPhase::Failed]);
    let split = (0..4_u8, 0..=100_u8, any::<bool>()).prop_map(|(pick, percent, tagged)| Traffic::Split {
        pick,
        percent,
        tagged,
    });
    let traffic = prop_oneof![3 => Just(Traffic::Latest), 1 => split];
    let line = prop::option::weighted(0.3, 0..2_u8);
    let name = prop::option::weighted(0.2, 0..3_u8);
    let apply = (0..2_u8, 0..3_u8, line, traffic, name, any::<bool>()).prop_map(
        |(service, image, line, traffic, name, gradual)| Step::Apply {
            service,
            image,
            line,
            traffic,
            name,
            gradual,
        },
    );
    let moving = (0..3_u8, 0..2_u8, 0..4_u8, 0..4_u8, 0..=100_u8, prop::bool::weighted(0.3)).prop_map(
        |(node, service, from, to, percent, back)| Step::Moving { node, service, from, to, percent, back },
    );
    let step = prop_oneof![
        6 => apply,
        1 => (kind.clone(), 0..8_u8).prop_map(|(kind, pick)| Step::Delete { kind, pick }),
        1 => (kind.clone(), 0..8_u8).prop_map(|(kind, pick)| Step::Lose { kind, pick }),
        1 => (kind, 0..8_u8).prop_map(|(kind, pick)| Step::Meddle { kind, pick }),
        2 => (0..3_u8, 0..2_u8).prop_map(|(node, line)| Step::Node { node, line }),
        1 => (0..3_u8, any::<bool>()).prop_map(|(node, online)| Step::Connected { node, online }),
        1 => (0..3_u8).prop_map(|node| Step::Leave { node }),
        6 => (0..3_u8, 0..4_u8, phase).prop_map(|(node, pick, phase)| Step::Report { node, pick, phase }),
        2 => (0..3_u8, prop::bool::weighted(0.8)).prop_map(|(image, found)| Step::Resolve { image, found }),
        4 => moving,
        1 => (0..60_u8).prop_map(Step::Hours),
        4 => Just(Step::Pass),
    ];
    prop::collection::vec(step, 1..40)
}

fn image(number: u8) -> String {
    format!("hub.tombolo/hello:{number}")
}

fn service_spec(hub: &Hub, name: &str, step: &Step) -> Option<Value> {
    let Step::Apply { image: number, line, traffic, name: revision, .. } = step else { return None };
    let mut template = json!({ "spec": { "containers": [{ "image": image(*number) }] } });
    if let Some(line) = line {
        template["spec"]["nodeSelector"] = json!({ "line": line.to_string() });
    }
    if let Some(revision) = revision {
        template["metadata"] = json!({ "name": format!("{name}-r{revision}") });
    }
    let mut spec = json!({ "template": template });
    if let Traffic::Split { pick, percent, tagged } = traffic {
        let known: Vec<&Key> =
            hub.snapshot.revisions.keys().filter(|key| key.name.starts_with(name)).collect();
        let chosen = known.get(usize::from(*pick)).map_or("absent", |key| key.name.as_str());
        let mut first = json!({ "revisionName": chosen, "percent": percent });
        if *tagged {
            first["tag"] = "t".into();
        }
        spec["traffic"] = json!([first, { "latestRevision": true, "percent": 100 - percent }]);
    }
    Some(spec)
}

fn take(hub: &mut Hub, step: &Step) {
    let node = |number: &u8| format!("n{number}");
    let picked = |hub: &Hub, kind: Kind, pick: u8| hub.snapshot.list(kind).into_iter().nth(usize::from(pick));
    match step {
        Step::Apply { service, gradual, .. } => {
            let name = format!("s{service}");
            let spec = service_spec(hub, &name, step).unwrap();
            let annotations = match gradual {
                true => json!({ keys::ROLLOUT_DURATION: "1m" }),
                false => json!({}),
            };
            // Some are refused, such as a changed template under its old name.
            let _ = hub.apply_with(json!({ "name": name, "annotations": annotations }), spec);
        }
        Step::Delete { kind, pick } => {
            if let Some(object) = picked(hub, *kind, *pick) {
                hub.delete(*kind, &object.metadata().name);
            }
        }
        Step::Lose { kind, pick } => {
            if let Some(object) = picked(hub, *kind, *pick) {
                hub.snapshot.remove(*kind, &object.key());
            }
        }
        Step::Meddle { kind, pick } => {
            if let Some(mut object) = picked(hub, *kind, *pick) {
                object.metadata_mut().labels.clear();
                object.metadata_mut().annotations.insert("stray".into(), "x".into());
                hub.snapshot.put(object);
            }
        }
        Step::Node { node: number, line } => hub.node(&node(number), &[("line", &line.to_string())]),
        Step::Connected { node: number, online } => {
            if hub.fleet.contains_key(&node(number).parse::<NodeId>().unwrap()) {
                hub.connected(&node(number), *online);
            }
        }
        Step::Leave { node: number } => drop(hub.fleet.remove(&node(number).parse::<NodeId>().unwrap())),
        Step::Report { node: number, pick, phase } => {
            let name = node(number);
            if hub.fleet.contains_key(&name.parse::<NodeId>().unwrap()) {
                let revisions = hub.revisions_on(&name);
                let chosen = revisions.get(usize::from(*pick)).map_or("", String::as_str).to_owned();
                hub.report(&name, &[(&chosen, *phase)]);
            }
        }
        Step::Moving { node: number, service, from, to, percent, back } => {
            let (name, service) = (node(number), format!("s{service}"));
            let of_service: Vec<String> = hub
                .snapshot
                .revisions
                .keys()
                .map(|key| key.name.clone())
                .filter(|it| it.starts_with(&service))
                .collect();
            let chosen = |pick: &u8| of_service.get(usize::from(*pick)).map_or("s0-absent", String::as_str);
            if hub.fleet.contains_key(&name.parse::<NodeId>().unwrap()) {
                let shares = [(chosen(from), 100 - percent), (chosen(to), *percent)];
                if *back {
                    hub.went_back(&name, &service, chosen(to), chosen(from), "ErrorRateTooHigh");
                } else {
                    hub.moving(&name, &service, chosen(to), &shares);
                }
            }
        }
        // A whole month at most.
        Step::Hours(hours) => hub.wait_hours(u32::from(*hours / 4)),
        Step::Resolve { image: number, found } => {
            if *found {
                hub.image(&image(*number));
            } else {
                hub.images.insert(image(*number), Resolution::Missing("push it".into()));
            }
        }
        Step::Pass => {
            let outcome = hub.pass();
            hub.placement = outcome.placement;
            outcome.writes.into_iter().for_each(|write| hub.write(write));
        }
    }
}

fn conditions_of(object: &Object) -> (&[Condition], i64) {
    match object {
        Object::Service(it) => (&it.status.conditions, it.status.observed_generation),
        Object::Configuration(it) => (&it.status.conditions, it.status.observed_generation),
        Object::Revision(it) => (&it.status.conditions, it.status.observed_generation),
        Object::Route(it) => (&it.status.conditions, it.status.observed_generation),
    }
}

/// What holds of resources at rest.
fn check_resources(hub: &Hub) {
    let uids: BTreeSet<String> = hub.snapshot.all().map(|object| object.metadata().uid.clone()).collect();
    for object in hub.snapshot.all() {
        let metadata = object.metadata();
        let name = format!("{} {}", object.kind().name(), metadata.name);
        assert!(metadata.controller().is_none_or(|owner| uids.contains(&owner.uid)), "{name} is an orphan");
        let (conditions, observed) = conditions_of(&object);
        assert_eq!(observed, metadata.generation, "{name}");
        assert!(conditions.iter().any(|each| each.kind == "Ready"), "{name}");
        for each in conditions {
            let explained = each.status != ConditionStatus::False || !each.reason.is_empty();
            assert!(explained && !each.last_transition_time.is_empty(), "{name}: {each:?}");
        }
    }
    for (key, service) in &hub.snapshot.services {
        for child in [hub.snapshot.get(Kind::Configuration, key), hub.snapshot.get(Kind::Route, key)] {
            let child = child.unwrap_or_else(|| panic!("{key} has no child"));
            assert_eq!(child.metadata().controller().unwrap().uid, service.metadata.uid);
        }
    }
    for (key, route) in &hub.snapshot.routes {
        let sum: i64 = route.status.traffic.iter().filter_map(|target| target.percent).sum();
        assert!(route.status.traffic.is_empty() || sum == 100, "{key}: {:?}", route.status.traffic);
        assert!(route.status.traffic.iter().all(|target| !target.revision_name.is_empty()), "{key}");
    }
}

/// What holds of a placement.
fn check_placement(hub: &Hub) {
    assert!(hub.placement.keys().eq(hub.fleet.keys()));
    for (node, objects) in &hub.placement {
        assert!(objects.is_sorted_by(|a, b| a.entry < b.entry), "{node}");
        let revisions: Vec<_> = objects.iter().cloned().filter_map(revision_of).collect();
        for revision in &revisions {
            assert!(hub.fleet[node].matches(&revision.spec.node_selector), "{node}: {}", revision.name);
            assert!(revision.spec.containers.iter().all(|container| container.image.contains("@sha256:")));
            assert!(!revision.uid.is_empty());
        }
        for route in objects.iter().cloned().filter_map(route_of) {
            let sum: u32 = route.targets.iter().map(|target| u32::from(target.percent)).sum();
            assert_eq!(sum, if route.hosts.is_empty() { 0 } else { 100 }, "{node}: {route:?}");
            for candidate in route.targets.iter().flat_map(|target| &target.candidates) {
                let here = revisions.iter().any(|revision| revision.name == *candidate);
                assert!(here, "{node}: route {} names {candidate}, which is not there", route.name);
            }
            assert!(route.targets.iter().all(|target| !target.candidates.is_empty()));
            check_rollout(hub, node, &route);
        }
    }
}

/// What a node serves a share of while traffic moves, it keeps.
fn check_rollout(hub: &Hub, node: &NodeId, route: &RouteObject) {
    let said = hub.fleet[node].report.iter().flat_map(|report| &report.routes);
    let said = said.filter(|said| said.name == route.name && route.rollout.is_some());
    for report in said.flat_map(|said| &said.targets) {
        let same =
            |target: &&RouteTarget| target.configuration == report.configuration && target.tag == report.tag;
        for target in route.targets.iter().filter(same) {
            for share in report.shares.iter().filter(|share| share.percent > 0) {
                let key = Key::new("default", &share.revision);
                let there = hub.snapshot.revisions.get(&key).is_some_and(|revision| {
                    is_pinned(revision)
                        && hub.fleet[node].matches(&revision.spec.node_selector)
                        && revision.metadata.label(keys::CONFIGURATION) == Some(&report.configuration)
                });
                let kept = target.candidates.contains(&share.revision);
                assert!(kept || !there, "{node}: {} is not in {target:?}", share.revision);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn passes_come_to_rest_and_hold_together(steps in steps()) {
        let mut hub = Hub::new();
        for step in &steps {
            take(&mut hub, step);
            let outcome = hub.pass();
            prop_assert_eq!(&outcome, &hub.pass());
        }
        hub.settle();
        check_resources(&hub);
        check_placement(&hub);
    }
}
