//! What instances hold of the node's memory and what other programs leave them, from what the kernel says; and what was learnt of
//! each revision, as it is written for the node's store. Knows no file and no store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::Desired;
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{Actual, InstanceActual, Moment, Phase, RevisionActual, Traffic};
use crate::autoscale::capacity::ASSUMED_BYTES;
use crate::stored::{self, StoredError};
use crate::supervision::InstanceId;

/// Of the encoding. A higher one was written by a newer release.
const VERSION: u32 = 1;

/// Percent of the node's memory that instances may fill; the rest is the kernel's, the agent's and the system's.
const INSTANCES_PERCENT: u64 = 90;

/// Percent of the node's memory that stays free beside what other programs have: theirs moves, too.
const SPARE_PERCENT: u64 = 5;

/// What others have is reckoned in steps of this part of the node's memory: what moves a little is no news.
const STEPS: u64 = 64;

/// What cannot be taken back of a cgroup's memory, by the names in `memory.stat`: of v1, the whole tree's, and of v2. The rest is
/// files that can be read again.
const HELD_V1: [&str; 2] = ["total_rss", "total_shmem"];
const HELD_V2: [&str; 7] =
    ["anon", "shmem", "kernel_stack", "pagetables", "percpu", "sock", "slab_unreclaimable"];

/// What the kernel says of the node's memory, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    pub total_bytes: u64,
    /// What programs that start now can have without anything being swapped.
    pub available_bytes: u64,
}

impl NodeMemory {
    /// From `/proc/meminfo`; `None`: it does not say.
    pub fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let kibibytes: u64 = rest.split_whitespace().next()?.parse().ok()?;
            kibibytes.checked_mul(1024)
        };
        let (total_bytes, available_bytes) = (bytes("MemTotal")?, bytes("MemAvailable")?);
        Some(Self { total_bytes, available_bytes })
    }

    /// What instances may fill where other programs have little, bytes.
    pub fn for_instances(&self) -> u64 {
        self.total_bytes / 100 * INSTANCES_PERCENT
    }

    /// What other programs have of that, bytes, where instances hold `held_bytes`, and it was `before` when last asked.
    pub fn taken_by_others(&self, held_bytes: u64, before: u64) -> u64 {
        let others = self.total_bytes.saturating_sub(self.available_bytes).saturating_sub(held_bytes);
        let with_spare = others.saturating_add(self.total_bytes / 100 * SPARE_PERCENT);
        let theirs = self.total_bytes - self.for_instances();
        let step = (self.total_bytes / STEPS).max(1);
        let taken = with_spare.saturating_sub(theirs).next_multiple_of(step);
        // More counts at once, and less only when it is a whole step less: what moves about the edge of one would be news each time.
        let is_less = with_spare.saturating_add(2 * step) < theirs.saturating_add(before);
        if taken > before || is_less { taken } else { before }
    }
}

/// Memory of a cgroup that cannot be taken back while its processes live, bytes, from its `memory.stat`; `None`: it does not say.
pub fn held_bytes(memory_stat: &str) -> Option<u64> {
    let figures: BTreeMap<&str, u64> = memory_stat
        .lines()
        .filter_map(|line| {
            let (name, figure) = line.split_once(' ')?;
            Some((name, figure.trim().parse().ok()?))
        })
        .collect();
    let names = if figures.contains_key(HELD_V1[0]) { &HELD_V1[..] } else { &HELD_V2[..] };
    figures.get(names[0])?;
    Some(names.iter().filter_map(|name| figures.get(name)).fold(0, |sum, bytes| sum.saturating_add(*bytes)))
}

/// What instances of a revision were seen to hold, bytes; in steps, for each change is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Footprint {
    /// The least that one held that was ready: what one begins with.
    pub least_bytes: u64,
    /// The most that one held.
    pub most_bytes: u64,
    /// Of one that had answered a request by then: this is what they hold at work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub served: bool,
}

impl Footprint {
    /// Of one that holds `bytes`.
    fn of(bytes: u64) -> Self {
        let step = (bytes.checked_next_power_of_two().unwrap_or(bytes) / 16).max(1 << 20);
        Self {
            least_bytes: bytes / step * step,
            most_bytes: bytes.div_ceil(step).saturating_mul(step),
            served: false,
        }
    }
}

/// What was learnt of the memory that a revision's instances hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learnt {
    #[default]
    Nothing,
    /// What those of another revision of the same configuration hold.
    Inherited(Footprint),
    Seen(Footprint),
}

impl Learnt {
    pub fn footprint(&self) -> Option<Footprint> {
        match self {
            Self::Nothing => None,
            Self::Inherited(footprint) | Self::Seen(footprint) => Some(*footprint),
        }
    }

    pub fn is_seen(&self) -> bool {
        matches!(self, Self::Seen(_))
    }

    /// An instance holds `bytes`. It serves (`ready`), and does so for the first time (`begins`); it has answered requests
    /// (`served`).
    fn see(&mut self, bytes: u64, ready: bool, begins: bool, served: bool) {
        let now = Footprint { served, ..Footprint::of(bytes) };
        match self {
            Self::Seen(footprint) => {
                footprint.most_bytes = footprint.most_bytes.max(now.most_bytes);
                footprint.served |= ready && served;
                // What was frozen may have been swapped out.
                if ready && begins {
                    footprint.least_bytes = footprint.least_bytes.min(now.least_bytes);
                }
            }
            Self::Nothing | Self::Inherited(_) if ready => *self = Self::Seen(now),
            // Only what serves says what one needs.
            Self::Nothing | Self::Inherited(_) => {}
        }
    }
}

impl Actual {
    /// Takes in what instances hold of the node's memory, bytes; `None`: the kernel does not say. Whether that changes what any of
    /// their revisions is reckoned with.
    pub fn note_held(
        &mut self,
        held: impl IntoIterator<Item = (InstanceId, Option<u64>)>,
        traffic: &Traffic,
        now: Moment,
    ) -> bool {
        let mut changed = false;
        for (id, bytes) in held {
            let Some(instance) = self.instances.get_mut(&id) else { continue };
            instance.looked_at = Some(now);
            let Some(bytes) = bytes else { continue };
            // What came from its devices counts for itself.
            instance.held_bytes = bytes.saturating_sub(instance.moved_bytes);
            let ready = instance.phase == Phase::Ready;
            let begins = instance.begins;
            instance.begins &= !ready;
            let revision = self.revisions.get_mut(&instance.revision);
            let Some(known) = revision.filter(|known| known.object == instance.object) else { continue };
            let before = known.memory;
            let served = traffic.served.contains(&id);
            known.memory.see(instance.held_bytes, ready, begins, served);
            changed |= known.memory != before;
        }
        changed
    }

    /// Takes in what the kernel says of the node. `tells`: it also says what each instance holds.
    pub fn note_node(&mut self, node: &NodeMemory, tells: bool) {
        // Of one that was found and not looked at yet, or cannot be, is not known what it holds: no more than it is given. One that
        // has just been made holds nothing yet.
        let held = |instance: &InstanceActual| match instance.held_bytes {
            _ if !instance.phase.holds_memory() => 0,
            0 if tells && instance.begins => 0,
            0 => instance.claim.memory_bytes.unwrap_or(ASSUMED_BYTES),
            bytes => bytes,
        };
        let instances = self.instances.values();
        let held = instances.map(|instance| held(instance).saturating_add(instance.moved_bytes));
        self.others_bytes = node.taken_by_others(held.fold(0, u64::saturating_add), self.others_bytes);
    }
}

/// What was learnt of revisions, each of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Footprints(BTreeMap<RevisionKey, (Digest, Footprint)>);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    footprints: Vec<One>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct One {
    revision: RevisionKey,
    object: Digest,
    footprint: Footprint,
}

impl Footprints {
    /// Those of `revisions` that were seen.
    pub fn among(revisions: &BTreeMap<RevisionKey, RevisionActual>) -> Self {
        let of = |(key, known): (&RevisionKey, &RevisionActual)| match known.memory {
            Learnt::Seen(footprint) => Some((key.clone(), (known.object, footprint))),
            Learnt::Nothing | Learnt::Inherited(_) => None,
        };
        Self(revisions.iter().filter_map(of).collect())
    }

    /// What is known of a desired revision with this very object, or of others of its configuration among `known`.
    pub fn of(
        &self,
        revision: &RevisionKey,
        object: &Digest,
        desired: &Desired,
        known: &BTreeMap<RevisionKey, RevisionActual>,
    ) -> Learnt {
        if let Some((_, footprint)) = self.0.get(revision).filter(|(of, _)| of == object) {
            return Learnt::Seen(*footprint);
        }
        let configuration = |key: &RevisionKey| desired.revisions.get(key).map(|(_, of)| &of.configuration);
        let others = desired.revisions.keys().filter(|key| {
            key.namespace == revision.namespace && configuration(key) == configuration(revision)
        });
        let footprints = others.filter_map(|key| match known.get(key).map(|known| known.memory) {
            Some(Learnt::Seen(footprint)) => Some(footprint),
            _ => self.0.get(key).map(|(_, footprint)| *footprint),
        });
        let most = footprints.max_by_key(|footprint| footprint.most_bytes);
        most.map_or(Learnt::Nothing, Learnt::Inherited)
    }

    /// Everything that a restart needs to go on.
    pub fn encode(&self) -> Vec<u8> {
        let one = |(revision, (object, footprint)): (&RevisionKey, &(Digest, Footprint))| One {
            revision: revision.clone(),
            object: *object,
            footprint: *footprint,
        };
        let stored = Stored { version: VERSION, footprints: self.0.iter().map(one).collect() };
        serde_json::to_vec(&stored).expect("footprints are plain data")
    }

    /// What [`Footprints::encode`] wrote. Without it, revisions are learnt anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let stored: Stored = stored::decode(bytes, VERSION)?;
        let one = |one: One| (one.revision, (one.object, one.footprint));
        Ok(Self(stored.footprints.into_iter().map(one).collect()))
    }
}

#[cfg(test)]
mod tests;
