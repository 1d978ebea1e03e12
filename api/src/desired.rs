//! The objects of a manifest: what a node needs to know of revisions and routes, and nothing that changes without need.
//!
//! An object's bytes are its JSON in the field order of these types; its digest is its identity. So a field is added at the
//! end, optional and skipped when absent: otherwise every object of every fleet changes its digest with an upgrade.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::manifest::{Entry, ObjectKind};
use crate::serving::RevisionSpec;
use crate::verification::Verification;
use crate::{Digest, RevisionKey};

/// Most instances of one revision on one node in this release, whatever is asked for: bounds a burst on a small machine.
pub const INSTANCES_PER_REVISION_MAX: u32 = 20;

/// A revision a node should be able to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevisionObject {
    pub namespace: String,
    pub name: String,
    /// The Revision's uid at the hub: a revision deleted and created again under its old name is another one.
    pub uid: String,
    /// `K_SERVICE`; empty for a Configuration without a Service.
    pub service: String,
    /// `K_CONFIGURATION`.
    pub configuration: String,
    /// The template's annotations that say how to run (autoscaling and tombolo.dev keys).
    pub annotations: BTreeMap<String, String>,
    /// As at the hub, defaults filled in; every container's `image` is `registry/repository@sha256:…`.
    pub spec: RevisionSpec,
    /// Whether its image may be run: it says nothing of how. `None`: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// A route a node should serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteObject {
    pub namespace: String,
    pub name: String,
    /// Host names without port, lower case. The first is the route's own.
    pub hosts: Vec<String>,
    /// Percentages sum to 100.
    pub targets: Vec<RouteTarget>,
    /// Requests that a header sends to a tag whatever the percentages say; the first that matches decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steering: Vec<Steer>,
    /// How the share of a configuration moves to its next revision; at once when that is ready if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
}

/// One target of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTarget {
    /// Share of requests to the route's own hosts, percent.
    pub percent: u8,
    /// Revisions of the route's namespace that may serve this share, the preferred first. The node gives it to the first
    /// one that has been ready there; until any was, requests wait for the first.
    pub candidates: Vec<String>,
    /// Hosts that reach this target alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The tag by which a header may ask for this target; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// The configuration whose latest revision this target follows; empty: it is fixed to one revision.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub configuration: String,
}

/// One rule of `tombolo.dev/steering`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Steer {
    /// Name of the request header, lower case.
    pub header: String,
    pub value: HeaderMatch,
    /// Of the target that gets the request.
    pub tag: String,
}

/// What a header's value must be. Case counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderMatch {
    Exact(String),
    Prefix(String),
    /// Anywhere in the value unless anchored; without look-around and back references, so that its time is linear.
    Regex(String),
}

/// How a configuration's share moves to its next revision, carried out by the node alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutSpec {
    /// Asked length of the whole shift, seconds; at least 1.
    pub duration_s: u64,
    /// When the shift is undone; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<HealthGate>,
}

/// How much worse than the former revision the next one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthGate {
    /// By how many percentage points its share of 5xx answers may be above the former revision's.
    pub max_error_percent: u8,
    /// Its mean time to the first byte, in percent of the former revision's, at least 100.
    pub max_latency_percent: u32,
    /// Answers of the next revision before it is judged.
    pub min_requests: u32,
}

impl RevisionObject {
    pub fn key(&self) -> RevisionKey {
        RevisionKey::new(&self.namespace, &self.name)
    }

    /// What identifies how it runs: the digest that the object, whose own is `digest`, would have without what only says whether
    /// it may. Other keys or signatures leave instances and all that is known of them as they are.
    fn identity(&self, digest: Digest) -> Digest {
        match self.verification {
            None => digest,
            Some(_) => encode_revision(&Self { verification: None, ..self.clone() }).entry.digest,
        }
    }
}

/// One object with its entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub entry: Entry,
    pub bytes: Vec<u8>,
}

/// Encodes a revision.
pub fn encode_revision(object: &RevisionObject) -> Encoded {
    encode(ObjectKind::Revision, &object.namespace, &object.name, object)
}

/// Encodes a route.
pub fn encode_route(object: &RouteObject) -> Encoded {
    encode(ObjectKind::Route, &object.namespace, &object.name, object)
}

fn encode(kind: ObjectKind, namespace: &str, name: &str, object: &impl Serialize) -> Encoded {
    let bytes = serde_json::to_vec(object).expect("an object is plain data");
    let entry = Entry {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    Encoded { entry, bytes }
}

/// Everything a node should run, decoded: always a whole manifest's worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// By key; the digest says whether how it runs has changed. It is that of the object without its verification.
    pub revisions: BTreeMap<RevisionKey, (Digest, Arc<RevisionObject>)>,
    /// By namespace and name.
    pub routes: BTreeMap<(String, String), Arc<RouteObject>>,
}

/// Why an object could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("{kind:?} {namespace}/{name} ({digest}) cannot be read: {reason}")]
pub struct ObjectError {
    pub kind: ObjectKind,
    pub namespace: String,
    pub name: String,
    pub digest: Digest,
    pub reason: String,
}

impl Desired {
    /// Adds the object that `entry` names, after checking that `bytes` are its content. What is the same in `before` is shared
    /// with it.
    pub fn add(&mut self, entry: &Entry, bytes: &[u8], before: &Self) -> Result<(), ObjectError> {
        let fail = |reason: String| ObjectError {
            kind: entry.kind,
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            digest: entry.digest,
            reason,
        };
        if Digest::of(bytes) != entry.digest {
            return Err(fail("its content does not match its digest".into()));
        }
        let named = |namespace: &str, name: &str| namespace == entry.namespace && name == entry.name;
        match entry.kind {
            ObjectKind::Revision => {
                let known = before.revisions.get_key_value(&RevisionKey::new(&entry.namespace, &entry.name));
                // Its identity is the digest of its content, if it has no verification.
                let is_known = |(digest, object): &(Digest, Arc<RevisionObject>)| {
                    *digest == entry.digest && object.verification.is_none()
                };
                if let Some((key, known)) = known.filter(|(_, known)| is_known(known)) {
                    self.revisions.insert(key.clone(), known.clone());
                    return Ok(());
                }
                let object: RevisionObject =
                    serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
                if !named(&object.namespace, &object.name) {
                    return Err(fail("it names another object within".into()));
                }
                let identity = object.identity(entry.digest);
                let same = known.filter(|(_, (_, known))| **known == object);
                let (key, object) = match same {
                    Some((key, (_, known))) => (key.clone(), Arc::clone(known)),
                    None => (object.key(), Arc::new(object)),
                };
                self.revisions.insert(key, (identity, object));
            }
            ObjectKind::Route => {
                let mut object: RouteObject =
                    serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
                if !named(&object.namespace, &object.name) {
                    return Err(fail("it names another object within".into()));
                }
                // It stays for long, and most routes have one target.
                object.targets.shrink_to_fit();
                let key = (object.namespace.clone(), object.name.clone());
                let same = before.routes.get(&key).filter(|known| ***known == object);
                let object = same.map_or_else(|| Arc::new(object), Arc::clone);
                self.routes.insert(key, object);
            }
        }
        Ok(())
    }
}
