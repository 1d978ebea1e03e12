//! What the hub knows of its nodes, and what nodes' messages change in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::Encoded;
use tombolo_api::report::{EventBatch, NodeInfo, Presence, Report, RevisionPhase, RevisionReport};
use tombolo_api::serving::admission::is_extended;
use tombolo_api::serving::{Revision, RevisionSpec};
use tombolo_api::tail::TailChunk;
use tombolo_api::{Digest, NodeId};

/// A node as the hub knows it. Kept in the hub's store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    pub id: NodeId,
    /// Seconds since 1970 (UTC).
    pub enrolled_s: u64,
    /// Last message of any kind, seconds since 1970 (UTC).
    pub last_seen_s: u64,
    pub presence: Option<Presence>,
    pub report: Option<Report>,
    /// Digest of the report's bytes, as the node's presence names it.
    #[serde(default)]
    pub report_digest: Option<Digest>,
}

/// What a node has too little of for one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub resource: String,
    pub needed: u64,
    /// That one instance can be given.
    pub most: u64,
    /// Of the whole node: more than `most` where these are pieces of several accelerators.
    pub all: u64,
}

/// The nodes that are enrolled.
pub type Fleet = BTreeMap<NodeId, NodeState>;

impl NodeState {
    /// A node that has just been enrolled and said nothing yet.
    pub fn enrolled(id: NodeId, now_s: u64) -> Self {
        Self { id, enrolled_s: now_s, last_seen_s: now_s, presence: None, report: None, report_digest: None }
    }

    pub fn is_online(&self) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.online)
    }

    /// Whether the node has sent a report that did not get here.
    pub fn lacks_report(&self, presence: &Presence) -> bool {
        presence.online && presence.report.is_some() && presence.report != self.report_digest
    }

    /// Whether the node has all of these labels. One that never reported has none.
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        let label = |key: &String| self.report.as_ref().and_then(|report| report.info.labels.get(key));
        selector.iter().all(|(key, value)| label(key) == Some(value))
    }

    /// Whether the node should have this revision: it has its labels, and the devices that an instance needs. One that was given
    /// it keeps it whatever becomes of the devices: a plugin that is away takes nothing from what runs.
    pub fn should_have(&self, revision: &Revision) -> bool {
        let metadata = &revision.metadata;
        let has = || self.revision(&metadata.namespace, &metadata.name, &metadata.uid).is_some();
        self.matches(&revision.spec.node_selector) && (self.lacking(&revision.spec).is_none() || has())
    }

    /// The first resource of which the node can never give one instance what it needs, whoever has what.
    pub fn lacking(&self, spec: &RevisionSpec) -> Option<Lack> {
        let info = self.report.as_ref().map(|report| &report.info);
        let count = |of: fn(&NodeInfo) -> &BTreeMap<String, u64>, name: &str| {
            info.and_then(|info| of(info).get(name)).copied()
        };
        let container = spec.serving_container()?;
        let mut asked = container.resources.limits.iter().filter(|(name, _)| is_extended(name));
        asked.find_map(|(name, needed)| {
            let all = count(|info| &info.capacity, name).unwrap_or(0);
            let most = count(|info| &info.largest_piece, name).map_or(all, |piece| piece.min(all));
            let (resource, needed) = (name.clone(), needed.bytes());
            (most < needed).then_some(Lack { resource, needed, most, all })
        })
    }

    /// What the node says of the revision with this uid.
    pub fn revision(&self, namespace: &str, name: &str, uid: &str) -> Option<&RevisionReport> {
        let same = |report: &&RevisionReport| {
            report.namespace == namespace && report.name == name && report.uid == uid
        };
        self.report.as_ref()?.revisions.iter().find(same)
    }

    /// Whether the node says that it has this revision ready.
    pub fn has_ready(&self, revision: &Revision) -> bool {
        let metadata = &revision.metadata;
        let report = self.revision(&metadata.namespace, &metadata.name, &metadata.uid);
        report.is_some_and(|report| report.phase == RevisionPhase::Ready)
    }
}

/// What a node's message changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing but when it was last seen.
    None,
    /// What nothing is decided by, and what the node says again to a hub that has lost it: figures of its accelerators.
    Figures,
    /// What is worth keeping, or deciding on.
    State,
}

/// Takes in what a node said. Of a node that is not enrolled nothing is taken in.
pub fn observe(fleet: &mut Fleet, message: &FleetMessage, now_s: u64) -> Change {
    let (FleetMessage::Enrolled { node }
    | FleetMessage::Presence { node, .. }
    | FleetMessage::Report { node, .. }
    | FleetMessage::Events { node, .. }
    | FleetMessage::Tail { node, .. }) = message;
    let state_if = |changed: bool| if changed { Change::State } else { Change::None };
    if let FleetMessage::Enrolled { .. } = message {
        let new = !fleet.contains_key(node);
        fleet.entry(node.clone()).or_insert_with(|| NodeState::enrolled(node.clone(), now_s));
        return state_if(new);
    }
    let Some(state) = fleet.get_mut(node) else { return Change::None };
    state.last_seen_s = state.last_seen_s.max(now_s);
    match message {
        FleetMessage::Presence { presence, .. } => {
            let changed = state.presence.as_ref() != Some(presence);
            state.presence = Some(presence.clone());
            state_if(changed)
        }
        FleetMessage::Report { report, digest, .. } => {
            let is_another = state.report_digest != Some(*digest);
            let figures_alone = state.report.as_ref().is_some_and(|before| {
                before.accelerators != report.accelerators
                    && without_figures(before) == without_figures(report)
            });
            state.report = Some((**report).clone());
            state.report_digest = Some(*digest);
            if is_another && figures_alone { Change::Figures } else { state_if(is_another) }
        }
        FleetMessage::Enrolled { .. } | FleetMessage::Events { .. } | FleetMessage::Tail { .. } => {
            Change::None
        }
    }
}

/// Everything of a report but what is measured of accelerators.
fn without_figures(report: &Report) -> Report {
    Report { accelerators: Vec::new(), ..report.clone() }
}

/// What a node said, checked and decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum FleetMessage {
    Enrolled { node: NodeId },
    Presence { node: NodeId, presence: Presence },
    Report { node: NodeId, report: Box<Report>, digest: Digest },
    Events { node: NodeId, batch: EventBatch },
    Tail { node: NodeId, id: String, chunk: TailChunk },
}

/// What every node should hold: each list sorted as a manifest's entries are. A node absent here gets an empty manifest
/// if it has had one.
pub type Placement = BTreeMap<NodeId, Vec<Encoded>>;

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_api::report::AcceleratorReport;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn report(labels: &[(&str, &str)]) -> Box<Report> {
        let labels = crate::fixture::labels(labels);
        Box::new(Report { info: NodeInfo { labels, ..NodeInfo::default() }, ..Report::default() })
    }

    #[test]
    fn figures_alone_are_no_change_of_state() {
        let mut fleet = Fleet::from([(id("a"), NodeState::enrolled(id("a"), 0))]);
        let mut say = |label: &str, degrees| {
            let mut report = report(&[("x", label)]);
            let warm = AcceleratorReport { temperature_celsius: degrees, ..AcceleratorReport::default() };
            report.accelerators.extend(degrees.map(|_| warm));
            let digest = Digest::of(&serde_json::to_vec(&report).unwrap());
            observe(&mut fleet, &FleetMessage::Report { node: id("a"), report, digest }, 1)
        };
        assert_eq!(say("1", Some(40)), Change::State, "the first");
        assert_eq!([say("1", Some(40)), say("1", Some(50))], [Change::None, Change::Figures]);
        assert_eq!([say("2", Some(60)), say("2", None)], [Change::State, Change::Figures]);
        let degrees = fleet[&id("a")].report.as_ref().unwrap().accelerators.len();
        assert_eq!(degrees, 0, "taken in all the same");
    }

    #[test]
    fn only_what_changes_something_counts() {
        let mut fleet = Fleet::new();
        let digest = Digest::of(b"1");
        let said = FleetMessage::Report { node: id("a"), report: report(&[("x", "1")]), digest };
        assert_eq!(observe(&mut fleet, &said, 5), Change::None, "not enrolled");
        assert!(fleet.is_empty());
        let enrolled = FleetMessage::Enrolled { node: id("a") };
        assert_eq!(observe(&mut fleet, &enrolled, 10), Change::State);
        assert_eq!(observe(&mut fleet, &enrolled, 11), Change::None);
        assert_eq!(observe(&mut fleet, &said, 12), Change::State);
        assert_eq!(observe(&mut fleet, &said, 13), Change::None, "the same again");
        assert_eq!((fleet[&id("a")].enrolled_s, fleet[&id("a")].last_seen_s), (10, 13));
        assert_eq!(observe(&mut fleet, &said, 3), Change::None);
        assert_eq!(fleet[&id("a")].last_seen_s, 13, "a clock set back makes no node unseen");
    }

    #[test]
    fn a_selector_is_matched_by_all_its_labels() {
        let mut node = NodeState::enrolled(id("a"), 0);
        let selector = crate::fixture::labels;
        assert!(node.matches(&selector(&[])) && !node.matches(&selector(&[("x", "1")])));
        node.report = Some(*report(&[("x", "1"), ("y", "2")]));
        for (pairs, matches) in [
            (&[][..], true),
            (&[("x", "1")], true),
            (&[("x", "2")], false),
            (&[("x", "1"), ("z", "")], false),
        ] {
            assert_eq!(node.matches(&selector(pairs)), matches, "{pairs:?}");
        }
    }
}
