//! The resources as they stand at one moment, by kind, namespace and name. Knows no store and no wire format.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use tombolo_api::meta::ObjectMeta;
use tombolo_api::serving::{Configuration, Revision, Route, Service};

/// The kinds of resources a hub reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    Configuration,
    Revision,
    Route,
}

/// A resource's place within its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

/// One resource of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Service(Arc<Service>),
    Configuration(Arc<Configuration>),
    Revision(Arc<Revision>),
    Route(Arc<Route>),
}

/// All resources. Cheap to copy: the resources themselves are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub services: BTreeMap<Key, Arc<Service>>,
    pub configurations: BTreeMap<Key, Arc<Configuration>>,
    pub revisions: BTreeMap<Key, Arc<Revision>>,
    pub routes: BTreeMap<Key, Arc<Route>>,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Service, Self::Configuration, Self::Revision, Self::Route];

    /// As in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Configuration => "Configuration",
            Self::Revision => "Revision",
            Self::Route => "Route",
        }
    }

    /// As in URLs and keys.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Configuration => "configurations",
            Self::Revision => "revisions",
            Self::Route => "routes",
        }
    }

    pub fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key under which an object of this metadata stands.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(&metadata.namespace, &metadata.name)
    }

    /// Another name in the same namespace.
    pub fn sibling(&self, name: &str) -> Self {
        Self::new(&self.namespace, name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Runs `$body` with `$object` bound to whichever resource is inside.
macro_rules! each_kind {
    ($self:expr, $object:ident => $body:expr) => {
        match $self {
            Object::Service($object) => $body,
            Object::Configuration($object) => $body,
            Object::Revision($object) => $body,
            Object::Route($object) => $body,
        }
    };
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Configuration(_) => Kind::Configuration,
            Self::Revision(_) => Kind::Revision,
            Self::Route(_) => Kind::Route,
        }
    }

    pub fn key(&self) -> Key {
        Key::of(self.metadata())
    }

    pub fn metadata(&self) -> &ObjectMeta {
        each_kind!(self, object => &object.metadata)
    }

    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        each_kind!(self, object => &mut Arc::make_mut(object).metadata)
    }

    pub fn to_json(&self) -> Value {
        each_kind!(self, object => serde_json::to_value(&**object)).expect("a resource is plain data")
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        each_kind!(self, object => serde_json::to_vec(&**object)).expect("a resource is plain data")
    }

    /// Reads what [`Object::to_json`] or a client wrote.
    pub fn from_json(kind: Kind, value: Value) -> serde_json::Result<Self> {
        Ok(match kind {
            Kind::Service => Self::Service(Arc::new(serde_json::from_value(value)?)),
            Kind::Configuration => Self::Configuration(Arc::new(serde_json::from_value(value)?)),
            Kind::Revision => Self::Revision(Arc::new(serde_json::from_value(value)?)),
            Kind::Route => Self::Route(Arc::new(serde_json::from_value(value)?)),
        })
    }

    /// Whether both have the same spec: if not, the generation grows.
    pub fn same_spec(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Service(a), Self::Service(b)) => a.spec == b.spec,
            (Self::Configuration(a), Self::Configuration(b)) => a.spec == b.spec,
            (Self::Revision(a), Self::Revision(b)) => a.spec == b.spec,
            (Self::Route(a), Self::Route(b)) => a.spec == b.spec,
            _ => false,
        }
    }

    /// Takes over `other`'s status: writers of specs do not write statuses.
    pub fn with_status_of(mut self, other: &Self) -> Self {
        match (&mut self, other) {
            (Self::Service(a), Self::Service(b)) => Arc::make_mut(a).status = b.status.clone(),
            (Self::Configuration(a), Self::Configuration(b)) => Arc::make_mut(a).status = b.status.clone(),
            (Self::Revision(a), Self::Revision(b)) => Arc::make_mut(a).status = b.status.clone(),
            (Self::Route(a), Self::Route(b)) => Arc::make_mut(a).status = b.status.clone(),
            _ => {}
        }
        self
    }
}

impl Snapshot {
    pub fn get(&self, kind: Kind, key: &Key) -> Option<Object> {
        match kind {
            Kind::Service => self.services.get(key).cloned().map(Object::Service),
            Kind::Configuration => self.configurations.get(key).cloned().map(Object::Configuration),
            Kind::Revision => self.revisions.get(key).cloned().map(Object::Revision),
            Kind::Route => self.routes.get(key).cloned().map(Object::Route),
        }
    }

    /// Every resource of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> Vec<Object> {
        match kind {
            Kind::Service => self.services.values().cloned().map(Object::Service).collect(),
            Kind::Configuration => self.configurations.values().cloned().map(Object::Configuration).collect(),
            Kind::Revision => self.revisions.values().cloned().map(Object::Revision).collect(),
            Kind::Route => self.routes.values().cloned().map(Object::Route).collect(),
        }
    }

    /// Every resource.
    pub fn all(&self) -> impl Iterator<Item = Object> + '_ {
        Kind::ALL.into_iter().flat_map(|kind| self.list(kind))
    }

    pub fn put(&mut self, object: Object) {
        let key = object.key();
        match object {
            Object::Service(object) => drop(self.services.insert(key, object)),
            Object::Configuration(object) => drop(self.configurations.insert(key, object)),
            Object::Revision(object) => drop(self.revisions.insert(key, object)),
            Object::Route(object) => drop(self.routes.insert(key, object)),
        }
    }

    pub fn remove(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::Service => drop(self.services.remove(key)),
            Kind::Configuration => drop(self.configurations.remove(key)),
            Kind::Revision => drop(self.revisions.remove(key)),
            Kind::Route => drop(self.routes.remove(key)),
        }
    }

    /// Everything that goes when the resource with `uid` goes, owners before what they own.
    pub fn owned_by(&self, uid: &str) -> Vec<Object> {
        let mut owned: Vec<Object> = Vec::new();
        let mut owners = vec![uid.to_owned()];
        while let Some(owner) = owners.pop() {
            for object in self.all() {
                if object.metadata().controller().is_some_and(|controller| controller.uid == owner) {
                    owners.push(object.metadata().uid.clone());
                    owned.push(object);
                }
            }
        }
        owned
    }

    /// Why this revision must stay, if it must: routes send requests to it, or its Configuration would make it again.
    pub fn revision_in_use(&self, key: &Key) -> Option<String> {
        let revision = self.revisions.get(key)?;
        let in_namespace = |owner: &&Arc<Route>| owner.metadata.namespace == key.namespace;
        let routed = self.routes.values().filter(in_namespace).find(|route| {
            let named = |target: &tombolo_api::serving::TrafficTarget| target.revision_name == key.name;
            route.spec.traffic.iter().any(named) || route.status.traffic.iter().any(named)
        });
        if let Some(route) = routed {
            return Some(format!(
                "route \"{}\" sends requests to it; change its traffic first",
                route.metadata.name
            ));
        }
        let owner = revision.metadata.controller()?;
        let configuration = self.configurations.get(&key.sibling(&owner.name))?;
        (configuration.metadata.uid == owner.uid
            && configuration.status.latest_created_revision_name == key.name)
            .then(|| format!("it is the latest of configuration \"{}\"", owner.name))
    }
}
