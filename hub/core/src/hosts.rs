//! Which route answers under which host. A tag's host, `{tag}-{name}`, can be another route's own: the older one has it.
//! Knows hosts by their first part only, which is all that differs within a namespace.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::meta::ObjectMeta;
use tombolo_api::serving::TrafficTarget;

use crate::snapshot::{Key, Object, Snapshot};

/// A host that somebody else has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// First part of the host.
    pub host: String,
    /// The field that asks for it.
    pub path: String,
    /// What the field says.
    pub value: String,
    /// `Route` or `Service`.
    pub kind: &'static str,
    /// Who has it.
    pub name: String,
}

/// The routes that have each host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(BTreeMap<Key, Holder>);

/// By age, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    since: String,
    name: String,
}

impl Taken {
    /// For who asked.
    pub fn why(&self) -> String {
        let Self { host, kind, name, .. } = self;
        format!("{kind} {name:?} of this namespace answers under the host {host}: choose another name")
    }
}

impl Hosts {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let mut hosts: BTreeMap<Key, Holder> = BTreeMap::new();
        for route in snapshot.routes.values() {
            let metadata = &route.metadata;
            // What was assigned last goes on being served while the spec cannot be.
            let assigned = labels(&metadata.name, &route.status.traffic);
            let hosts_of_route = labels(&metadata.name, &route.spec.traffic).chain(assigned);
            for host in hosts_of_route.map(|(host, ..)| host).collect::<BTreeSet<_>>() {
                let since = metadata.creation_timestamp.clone().unwrap_or_default();
                let holder = Holder { since, name: metadata.name.clone() };
                let known =
                    hosts.entry(Key::new(&metadata.namespace, host)).or_insert_with(|| holder.clone());
                if holder < *known {
                    *known = holder;
                }
            }
        }
        Self(hosts)
    }

    /// Who has the host of a route, or of one of its tags, if it is another route.
    pub(crate) fn holder(&self, tag: &str, route: &ObjectMeta) -> Option<&str> {
        let holder = self.0.get(&Key::new(&route.namespace, label(tag, &route.name)))?;
        (holder.name != route.name).then_some(holder.name.as_str())
    }
}

/// The first host that `object` asks for, beyond what it had as `current`, and that another Route or Service has.
pub fn taken(object: &Object, current: Option<&Object>, snapshot: &Snapshot) -> Option<Taken> {
    let (metadata, traffic) = asks(object)?;
    let had: BTreeSet<String> = current
        .and_then(asks)
        .iter()
        .flat_map(|(it, traffic)| labels(&it.name, traffic))
        .map(|it| it.0)
        .collect();
    let others = || {
        let services = snapshot.services.values().map(|it| ("Service", &it.metadata, &it.spec.traffic));
        let routes = snapshot.routes.values().map(|it| ("Route", &it.metadata, &it.spec.traffic));
        // A Service and its Route have one name, and so the same hosts.
        services
            .chain(routes)
            .filter(|(_, other, _)| other.namespace == metadata.namespace && other.name != metadata.name)
    };
    labels(&metadata.name, traffic).filter(|(host, ..)| !had.contains(host)).find_map(
        |(host, path, value)| {
            let (kind, other, _) = others()
                .find(|(_, other, traffic)| labels(&other.name, traffic).any(|(it, ..)| it == host))?;
            Some(Taken { host, path, value, kind, name: other.name.clone() })
        },
    )
}

fn asks(object: &Object) -> Option<(&ObjectMeta, &[TrafficTarget])> {
    match object {
        Object::Service(it) => Some((&it.metadata, &it.spec.traffic)),
        Object::Route(it) => Some((&it.metadata, &it.spec.traffic)),
        Object::Configuration(_) | Object::Revision(_) => None,
    }
}

/// The hosts of a route: first part, field, and what stands in it.
fn labels<'a>(
    name: &'a str,
    traffic: &'a [TrafficTarget],
) -> impl Iterator<Item = (String, String, String)> + use<'a> {
    let own = (name.to_owned(), "metadata.name".to_owned(), name.to_owned());
    let tagged = traffic.iter().enumerate().filter(|(_, target)| !target.tag.is_empty());
    std::iter::once(own).chain(tagged.map(move |(index, target)| {
        (label(&target.tag, name), format!("spec.traffic[{index}].tag"), target.tag.clone())
    }))
}

fn label(tag: &str, name: &str) -> String {
    if tag.is_empty() { name.to_owned() } else { format!("{tag}-{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tombolo_api::serving::{Route, RouteSpec, Service, ServiceSpec};

    use super::*;

    fn metadata(namespace: &str, name: &str, since: &str) -> ObjectMeta {
        ObjectMeta {
            name: name.into(),
            namespace: namespace.into(),
            creation_timestamp: Some(since.into()),
            ..ObjectMeta::default()
        }
    }

    fn traffic(tags: &[&str]) -> Vec<TrafficTarget> {
        tags.iter().map(|tag| serde_json::from_value(json!({ "tag": tag })).unwrap()).collect()
    }

    fn route(namespace: &str, name: &str, tags: &[&str], since: &str) -> Object {
        let spec = RouteSpec { traffic: traffic(tags) };
        Object::Route(Route::new(metadata(namespace, name, since), spec).into())
    }

    fn service(name: &str, tags: &[&str]) -> Object {
        let spec = ServiceSpec { traffic: traffic(tags), ..ServiceSpec::default() };
        Object::Service(Service::new(metadata("n", name, "1"), spec).into())
    }

    fn snapshot(objects: &[Object]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        objects.iter().cloned().for_each(|object| snapshot.put(object));
        snapshot
    }

    #[test]
    fn a_new_claim_of_a_host_that_is_taken_names_who_has_it() {
        let there = [route("n", "b", &["a"], "1"), service("d", &["c"]), route("other", "x-y", &[], "1")];
        let snapshot = snapshot(&there);
        for (object, found) in [
            (service("a-b", &[]), Some(("a-b", "metadata.name", "Route", "b"))),
            (route("n", "a-b", &[], "2"), Some(("a-b", "metadata.name", "Route", "b"))),
            (route("n", "c-d", &[], "2"), Some(("c-d", "metadata.name", "Service", "d"))),
            (service("y", &["z", "x"]), None),
            (service("d", &["c", "a"]), None),
            (route("n", "d", &["c"], "2"), None),
        ] {
            let taken = taken(&object, None, &snapshot);
            let told = taken.as_ref().map(|it| (&*it.host, &*it.path, it.kind, &*it.name));
            assert_eq!(told, found, "{object:?}");
        }
        let other = snapshot_with(&snapshot, service("e-f", &[]));
        let (before, after) = (service("f", &["e"]), service("f", &["g", "e"]));
        assert_eq!(taken(&after, None, &other).unwrap().path, "spec.traffic[1].tag");
        assert_eq!(taken(&after, Some(&before), &other), None, "what it had already is not asked for anew");
    }

    fn snapshot_with(snapshot: &Snapshot, object: Object) -> Snapshot {
        let mut snapshot = snapshot.clone();
        snapshot.put(object);
        snapshot
    }

    #[test]
    fn the_older_route_has_the_host() {
        for (since_b, since_a_b, holder_in_b, holder_in_a_b) in
            [("1", "2", None, Some("b")), ("2", "1", Some("a-b"), None), ("1", "1", Some("a-b"), None)]
        {
            let routes = [route("n", "b", &["a"], since_b), route("n", "a-b", &[], since_a_b)];
            let hosts = Hosts::of(&snapshot(&routes));
            assert_eq!(hosts.holder("a", routes[0].metadata()), holder_in_b);
            assert_eq!(hosts.holder("", routes[1].metadata()), holder_in_a_b);
            assert_eq!(hosts.holder("", routes[0].metadata()), None);
        }
    }
}
