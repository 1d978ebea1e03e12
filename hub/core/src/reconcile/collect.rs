//! What nobody needs any more: old Revisions, and whatever outlived its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tombolo_api::serving::{Revision, keys};

use super::{Inputs, Write, Writes};
use crate::snapshot::{Key, Kind};
use crate::{moment, targets};

/// How long a Revision is kept whatever became of it, seconds: Knative's `retain-since-create-time`, 48 hours.
const KEPT_SINCE_CREATED_S: i64 = 48 * 3600;
/// How long it is kept after nothing leads to it any more, seconds: `retain-since-last-active-time`, 15 hours.
const KEPT_SINCE_ACTIVE_S: i64 = 15 * 3600;
/// How many that nothing leads to are kept of each Configuration, to go back to: `min-non-active-revisions`.
const KEPT_MIN: usize = 20;
/// How many are kept at most, however new: `max-non-active-revisions`.
const KEPT_MAX: usize = 1000;

/// `in_use`: what nodes have or serve, which is more than what resources tell.
pub(super) fn reconcile(inputs: &Inputs<'_>, in_use: impl Fn(&Key) -> bool, writes: &mut Writes) {
    orphans(inputs, writes);
    old_revisions(inputs, in_use, writes);
}

/// A deletion takes what is owned with it; this is for what was made of a resource that went meanwhile.
fn orphans(inputs: &Inputs<'_>, writes: &mut Writes) {
    let uids: BTreeSet<String> = inputs.snapshot.all().map(|object| object.metadata().uid.clone()).collect();
    for object in inputs.snapshot.all() {
        let metadata = object.metadata();
        if metadata.controller().is_some_and(|owner| !uids.contains(&owner.uid)) {
            writes.push(Write::Delete { kind: object.kind(), key: object.key(), uid: metadata.uid.clone() });
        }
    }
}

fn old_revisions(inputs: &Inputs<'_>, in_use: impl Fn(&Key) -> bool, writes: &mut Writes) {
    let Some(now_s) = moment::seconds(inputs.now) else { return };
    let mut idle: BTreeMap<&str, Vec<&Arc<Revision>>> = BTreeMap::new();
    for (key, revision) in &inputs.snapshot.revisions {
        let Some(owner) = revision.metadata.controller() else { continue };
        if !in_use(key) && !is_needed(key, revision, inputs) {
            idle.entry(&owner.uid).or_default().push(revision);
        }
    }
    for mut revisions in idle.into_values() {
        revisions.sort_by_key(|revision| targets::generation(revision));
        let ages: Vec<Age> = revisions.iter().map(|revision| Age::of(revision, now_s)).collect();
        for index in superfluous(&ages) {
            let metadata = &revisions[index].metadata;
            writes.push(Write::Delete {
                kind: Kind::Revision,
                key: Key::of(metadata),
                uid: metadata.uid.clone(),
            });
        }
    }
}

/// How long ago something happened to a Revision, seconds.
#[derive(Clone, Copy, Debug)]
struct Age {
    created_s: i64,
    /// Since something led to it.
    active_s: i64,
}

impl Age {
    /// What is not known has just happened.
    fn of(revision: &Revision, now_s: i64) -> Self {
        let metadata = &revision.metadata;
        let since = |text: Option<&str>| text.and_then(moment::seconds).map(|then| now_s - then);
        let created_s = since(metadata.creation_timestamp.as_deref()).unwrap_or(0);
        let active_s = since(metadata.annotation(keys::ROUTING_STATE_MODIFIED)).unwrap_or(created_s);
        Self { created_s, active_s }
    }

    fn is_stale(&self) -> bool {
        self.created_s >= KEPT_SINCE_CREATED_S && self.active_s >= KEPT_SINCE_ACTIVE_S
    }
}

/// Which Revisions of one Configuration, of those that nothing leads to, should go: the stale ones beyond the least number,
/// and any beyond the greatest. Those that have been idle longest go first.
fn superfluous(ages: &[Age]) -> Vec<usize> {
    let mut oldest_first: Vec<usize> = (0..ages.len()).collect();
    oldest_first.sort_by_key(|index| std::cmp::Reverse(ages[*index].active_s));
    let (stale, fresh): (Vec<usize>, Vec<usize>) =
        oldest_first.into_iter().partition(|index| ages[*index].is_stale());
    let stale = stale.into_iter().take(ages.len().saturating_sub(KEPT_MIN)).collect::<Vec<_>>();
    let left = ages.len() - stale.len();
    stale.into_iter().chain(fresh.into_iter().take(left.saturating_sub(KEPT_MAX))).collect()
}

fn is_needed(key: &Key, revision: &Revision, inputs: &Inputs<'_>) -> bool {
    let latest = revision.metadata.controller().is_some_and(|owner| {
        inputs.snapshot.configurations.get(&key.sibling(&owner.name)).is_some_and(|configuration| {
            let status = &configuration.status;
            status.latest_created_revision_name == key.name || status.latest_ready_revision_name == key.name
        })
    });
    latest
        || revision.metadata.label(keys::ROUTING_STATE) == Some("pending")
        || revision.metadata.annotation(keys::NO_GC) == Some("true")
        || inputs.snapshot.revision_in_use(key).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: Age = Age { created_s: KEPT_SINCE_CREATED_S, active_s: KEPT_SINCE_ACTIVE_S };

    #[test]
    fn the_stale_go_down_to_the_least_number() {
        let young = Age { created_s: KEPT_SINCE_CREATED_S - 1, ..OLD };
        let busy = Age { active_s: KEPT_SINCE_ACTIVE_S - 1, ..OLD };
        for (stale, other, kind, gone) in [
            (20, 0, young, 0),
            (21, 0, young, 1),
            (0, 21, young, 0),
            (0, 21, busy, 0),
            (5, 18, busy, 3),
            (5, 100, young, 5),
            (0, 1000, young, 0),
            (0, 1003, busy, 3),
            (2, 1003, busy, 5),
        ] {
            let ages = [vec![OLD; stale], vec![kind; other]].concat();
            assert_eq!(superfluous(&ages).len(), gone, "{stale} stale, {other} of {kind:?}");
        }
        let ages: Vec<Age> = (0..25).map(|days| Age { active_s: OLD.active_s + days, ..OLD }).collect();
        assert_eq!(superfluous(&ages), [24, 23, 22, 21, 20]);
    }

    proptest! {
        #[test]
        fn what_goes_is_old_and_enough_stays(
            ages in prop::collection::vec((0..400_000_i64, 0..400_000_i64), 0..60)
        ) {
            let ages: Vec<Age> =
                ages.into_iter().map(|(created_s, active_s)| Age { created_s, active_s }).collect();
            let gone: BTreeSet<usize> = superfluous(&ages).into_iter().collect();
            prop_assert!(gone.is_empty() || ages.len() - gone.len() >= KEPT_MIN);
            for index in &gone {
                prop_assert!(ages[*index].is_stale());
            }
            let stale_left = (0..ages.len()).filter(|index| ages[*index].is_stale() && !gone.contains(index));
            let stale_left: Vec<usize> = stale_left.collect();
            prop_assert!(stale_left.is_empty() || ages.len() - gone.len() <= KEPT_MIN);
            for (left, went) in stale_left.iter().flat_map(|left| gone.iter().map(move |went| (left, went))) {
                prop_assert!(ages[*left].active_s <= ages[*went].active_s);
            }
        }
    }
}
