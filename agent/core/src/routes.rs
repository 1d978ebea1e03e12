//! The router's view of the node: which host leads to which revisions, and where their instances listen.
//!
//! Made by the reconciler at every change that concerns it, read by the router at every request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::RevisionKey;
use tombolo_api::desired::Steer;

use crate::supervision::InstanceId;

/// Everything the router needs, in one immutable value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTable {
    /// Host names, lower case, without port.
    pub hosts: BTreeMap<Arc<str>, Arc<HostRoutes>>,
    pub revisions: BTreeMap<RevisionKey, Arc<Backend>>,
}

impl RouteTable {
    /// The revisions that some host leads to.
    pub fn routed(&self) -> BTreeSet<&RevisionKey> {
        let hosts = self.hosts.values();
        let splits = hosts.flat_map(|host| host.splits.iter().chain(host.tags.values().flatten()));
        splits.map(|split| &split.revision).collect()
    }
}

/// Where a host's requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRoutes {
    pub splits: Vec<Split>,
    /// What the header `Knative-Serving-Tag` may ask for. Empty on the hosts of tags.
    pub tags: BTreeMap<String, Vec<Split>>,
    /// Rules before the splits; their tags are in `tags`.
    pub steering: Vec<Steer>,
}

/// A share of a host's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Percent of the host's requests; a host's splits sum to 100.
    pub percent: u8,
    pub revision: RevisionKey,
}

/// A revision as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Instances that passed their readiness probe. Empty, and nothing in `standby`: hold requests, ask for an instance, unless
    /// `unavailable`.
    pub ready: Vec<Endpoint>,
    /// Frozen instances, which take requests as soon as they are woken. Of use only while none is ready.
    pub standby: Vec<Endpoint>,
    /// Why holding is in vain (image missing, program ends at once): reason word and message for the client's 503.
    pub unavailable: Option<Unavailable>,
    /// What held requests wait for that is longer in coming than an instance is: for those who have waited in vain.
    pub awaits: Option<Unavailable>,
    /// Speaks HTTP/2 with prior knowledge (port named `h2c`), otherwise HTTP/1.1.
    pub h2c: bool,
    /// Requests an instance takes at a time; 0: no limit.
    pub container_concurrency: u32,
    /// Whole request, `timeoutSeconds`, milliseconds.
    pub timeout_ms: u64,
    /// To the first byte of the answer, `responseStartTimeoutSeconds`, milliseconds; 0: none.
    pub response_start_timeout_ms: u64,
    /// Without a byte either way, `idleTimeoutSeconds`, milliseconds; 0: none.
    pub idle_timeout_ms: u64,
}

impl Backend {
    /// The instances that may be given a request now: those that are ready, or else those to be woken for it.
    pub fn takers(&self) -> &[Endpoint] {
        if self.ready.is_empty() { &self.standby } else { &self.ready }
    }
}

/// Why a revision cannot serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    pub reason: String,
    pub message: String,
}

/// A ready instance: port on the loopback address inside its network namespace, which the dialler knows by id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub instance: InstanceId,
    pub port: u16,
}
