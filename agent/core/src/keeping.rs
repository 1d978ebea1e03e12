//! Which images stay on a node, and which go first. Pinned is whatever the desired state names, what instances run, what a
//! configuration could go back to, and what is loaded ahead of need; the rest goes by age, and sooner where the disk is short.
//! Pure: knows no store.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tombolo_api::Digest;
use tombolo_api::desired::{Desired, RevisionObject};

/// Longest time that counts between two looks where only a clock on the wall saw it pass, seconds: the node was off, or the agent
/// was, and that clock may have been set meanwhile by years.
pub const UNSEEN_MAX_S: u64 = 3_600;

/// Images of a configuration that served before, of which one is the way back: more than one, since what it goes back to may be
/// among them itself.
const FORMER_MAX: usize = 3;

/// What is wanted now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of desired revisions, instances, and what is loaded ahead.
    pub images: BTreeSet<Digest>,
    /// The images of each configuration's desired revisions, by namespace and name.
    pub configurations: BTreeMap<String, BTreeSet<Digest>>,
    /// Those of them that have been ready on this node.
    pub ready: BTreeMap<String, BTreeSet<Digest>>,
}

/// What is known of the images of a node. Written to its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    /// Images that may be on the disk; those that nobody wants with the seconds for which that is so.
    known: BTreeMap<Digest, Option<u64>>,
    /// Images of each desired configuration that have been ready, the last one last.
    ready: BTreeMap<String, Vec<Digest>>,
    /// Seconds since 1970 (UTC) at the last look, as the node's clock had it then.
    at_s: u64,
}

/// Namespace and name of the configuration of a revision.
pub fn configuration_of(object: &RevisionObject) -> String {
    format!("{}/{}", object.namespace, object.configuration)
}

impl Wanted {
    /// Adds a revision's image.
    pub fn add(&mut self, object: &RevisionObject, image: Digest, ready: bool) {
        let configuration = configuration_of(object);
        self.images.insert(image);
        if ready {
            self.ready.entry(configuration.clone()).or_default().insert(image);
        }
        self.configurations.entry(configuration).or_default().insert(image);
    }

    /// Adds what `desired` names by `image`, of which `ready` tells what has been ready here.
    pub fn of(
        desired: &Desired,
        image: impl Fn(&RevisionObject) -> Option<Digest>,
        ready: impl Fn(&RevisionObject) -> bool,
    ) -> Self {
        let mut wanted = Self::default();
        for (_, object) in desired.revisions.values() {
            if let Some(image) = image(object) {
                wanted.add(object, image, ready(object));
            }
        }
        wanted
    }
}

impl Images {
    /// Time passes: the clock shows `now_s`, and `passed_s` went by since the last look; `None`: that was before a restart. What a
    /// clock is set by makes nothing older.
    pub fn pass(&mut self, now_s: u64, passed_s: Option<u64>) {
        let passed_s = passed_s.unwrap_or_else(|| now_s.saturating_sub(self.at_s).min(UNSEEN_MAX_S));
        for age in self.known.values_mut().flatten() {
            *age = age.saturating_add(passed_s);
        }
        self.at_s = now_s;
    }

    /// Takes note of what is wanted. True: it has to be written.
    pub fn note(&mut self, wanted: &Wanted) -> bool {
        let before = self.clone();
        self.ready.retain(|configuration, _| wanted.configurations.contains_key(configuration));
        for (configuration, images) in &wanted.ready {
            let known = self.ready.entry(configuration.clone()).or_default();
            // What serves now comes last, in the order in which it came; before it, what did.
            let (mut current, mut former): (Vec<_>, Vec<_>) =
                known.drain(..).partition(|image| images.contains(image));
            let fresh: Vec<_> = images.iter().filter(|image| !current.contains(*image)).copied().collect();
            current.extend(fresh);
            former.drain(..former.len().saturating_sub(FORMER_MAX));
            former.append(&mut current);
            *known = former;
        }
        let pinned = self.pinned(wanted);
        for image in &pinned {
            self.known.insert(*image, None);
        }
        for (_, age) in self.known.iter_mut().filter(|(image, _)| !pinned.contains(*image)) {
            age.get_or_insert(0);
        }
        *self != before
    }

    /// An image of a configuration has been ready, whether or not it is wanted any more when that is noted. Before [`Images::note`].
    /// True: it has to be written.
    pub fn note_ready(&mut self, configuration: &str, image: Digest) -> bool {
        let before = self.clone();
        let known = self.ready.entry(configuration.to_owned()).or_default();
        known.retain(|other| *other != image);
        known.push(image);
        // It was wanted, though it may never be seen to be.
        self.known.entry(image).or_insert(None);
        *self != before
    }

    /// What must not go, whatever happens.
    pub fn pinned(&self, wanted: &Wanted) -> BTreeSet<Digest> {
        let ways_back = wanted.configurations.iter().filter_map(|(configuration, desired)| {
            let ready = self.ready.get(configuration)?;
            ready.iter().rev().find(|image| !desired.contains(*image))
        });
        wanted.images.iter().chain(ways_back).copied().collect()
    }

    /// What may go, the one first that nobody has wanted for longest, each with for how many seconds.
    pub fn loose(&self, wanted: &Wanted) -> Vec<(Digest, u64)> {
        let pinned = self.pinned(wanted);
        let known = self.known.iter().filter(|(image, _)| !pinned.contains(*image));
        let mut loose: Vec<_> = known.map(|(image, age)| (*image, age.unwrap_or(0))).collect();
        loose.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
        loose
    }

    /// It is not on the disk any more.
    pub fn forget(&mut self, image: &Digest) {
        self.known.remove(image);
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("digests and numbers serialise")
    }

    /// What cannot be read is begun anew: nothing that is wanted goes for it.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut images: Self = serde_json::from_slice(bytes).unwrap_or_default();
        if images.at_s == 0 {
            // As it was written before: what is told of each is a time of day.
            images.known.values_mut().flatten().for_each(|age| *age = 0);
        }
        images
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(number: u8) -> Digest {
        Digest::of(&[number])
    }

    /// Of one configuration: what is desired, what of it has been ready.
    fn wanted(desired: &[u8], ready: &[u8]) -> Wanted {
        let set = |numbers: &[u8]| numbers.iter().map(|number| image(*number)).collect::<BTreeSet<_>>();
        Wanted {
            images: set(desired),
            configurations: [("default/a".to_owned(), set(desired))].into(),
            ready: [("default/a".to_owned(), set(ready))].into(),
        }
    }

    #[test]
    fn the_way_back_stays_and_the_rest_ages() {
        let mut images = Images::default();
        assert!(images.note(&wanted(&[1], &[1])));
        images.note(&wanted(&[1, 2], &[1]));
        images.note(&wanted(&[2], &[2]));
        assert_eq!(images.pinned(&wanted(&[2], &[2])), [image(1), image(2)].into());
        images.note(&wanted(&[3], &[3]));
        images.pass(100, Some(20));
        assert!(!images.note(&wanted(&[3], &[3])), "nothing is other than it was");
        assert_eq!(images.loose(&wanted(&[3], &[3])), [(image(1), 20)]);
        // One that never got ready is no way back.
        images.note(&wanted(&[4], &[]));
        images.note(&wanted(&[5], &[5]));
        assert_eq!(images.pinned(&wanted(&[5], &[5])), [image(5), image(3)].into());
        // Back to what was: the same two stay, and from there the way back leads to it.
        images.note(&wanted(&[3], &[3]));
        assert_eq!(images.pinned(&wanted(&[3], &[3])), [image(5), image(3)].into());
        images.note(&wanted(&[6], &[6]));
        assert_eq!(images.pinned(&wanted(&[6], &[6])), [image(3), image(6)].into());
        assert_eq!(Images::decode(&images.encode()), images);
        // Without its configuration nothing of it is a way back.
        images.note(&Wanted::default());
        assert_eq!(images.pinned(&Wanted::default()), BTreeSet::new());
        assert_eq!(images.loose(&Wanted::default()).len(), 6);
    }

    #[test]
    fn what_was_ready_between_two_looks_is_a_way_back() {
        let mut images = Images::default();
        images.note(&wanted(&[1], &[1]));
        for passing in [image(2), image(3)] {
            images.note_ready("default/a", passing);
        }
        images.note(&wanted(&[4], &[4]));
        assert_eq!(images.pinned(&wanted(&[4], &[4])), [image(3), image(4)].into());
        // What is ready still is told of too, and is no way back from itself.
        assert!(!images.note_ready("default/a", image(4)));
        images.note(&wanted(&[4], &[4]));
        assert_eq!(images.pinned(&wanted(&[4], &[4])), [image(3), image(4)].into());
    }

    #[test]
    fn what_was_wanted_between_two_looks_alone_stays_for_its_time() {
        let mut images = Images::default();
        assert!(images.note_ready("default/passing", image(9)));
        assert!(!images.note_ready("default/passing", image(9)), "nothing is other than it was");
        images.note(&Wanted::default());
        images.pass(100, Some(20));
        assert_eq!(images.loose(&Wanted::default()), [(image(9), 20)]);
    }

    #[test]
    fn what_a_clock_is_set_by_makes_nothing_older() {
        const YEARS: u64 = 56 * 365 * 86_400;
        let mut images = Images::default();
        images.note(&wanted(&[1], &[]));
        images.pass(60, None);
        images.note(&Wanted::default());
        let mut is = |now_s, passed_s, age| {
            images.pass(now_s, passed_s);
            assert_eq!(images.loose(&Wanted::default()), [(image(1), age)], "{now_s}");
            images = Images::decode(&images.encode());
        };
        is(70, Some(10), 10);
        // Set right, set back, and set by somebody while the agent was away.
        is(YEARS, Some(10), 20);
        is(80, Some(10), 30);
        is(70, None, 30);
        is(80, None, 40);
        is(YEARS, None, 40 + UNSEEN_MAX_S);
        assert_eq!(Images::decode(b"neither"), Images::default());
        let before = format!("{{\"known\":{{\"{}\":1700000000}}}}", image(1));
        assert_eq!(Images::decode(before.as_bytes()).loose(&Wanted::default()), [(image(1), 0)]);
    }

    /// What is desired next, what of it is ready, how much time passes, and how many of the loose are removed then.
    fn step() -> impl Strategy<Value = (BTreeSet<u8>, BTreeSet<u8>, u64, usize)> {
        let some = || proptest::collection::btree_set(0..6u8, 0..4);
        (some(), some(), 0..100u64, 0..4usize)
    }

    proptest! {
        /// For any sequence: what is desired, runs, or was the last other one that was ready, is never among the loose.
        #[test]
        fn nothing_pinned_is_ever_loose(steps in proptest::collection::vec(step(), 1..30)) {
            let mut images = Images::default();
            // The model: images that got ready, in the order in which they first did.
            let mut model: Vec<u8> = Vec::new();
            for (desired, ready, passes, removed) in steps {
                images.pass(1, Some(passes));
                let ready: Vec<u8> = ready.intersection(&desired).copied().collect();
                let desired: Vec<u8> = desired.into_iter().collect();
                if desired.is_empty() {
                    model.clear();
                }
                if !desired.is_empty() {
                    let (mut current, mut former): (Vec<u8>, Vec<u8>) =
                        model.drain(..).partition(|number| ready.contains(number));
                    let mut fresh: Vec<u8> =
                        ready.iter().copied().filter(|number| !current.contains(number)).collect();
                    fresh.sort_by_key(|number| image(*number));
                    current.extend(fresh);
                    former.drain(..former.len().saturating_sub(FORMER_MAX));
                    model = [former, current].concat();
                }
                let now = if desired.is_empty() { Wanted::default() } else { wanted(&desired, &ready) };
                images.note(&now);
                let loose = images.loose(&now);
                let is_loose = |number: &u8| loose.iter().any(|(other, _)| *other == image(*number));
                prop_assert!(!desired.iter().any(is_loose));
                if let Some(back) = model.iter().rev().find(|number| !desired.contains(*number)) {
                    prop_assert!(!is_loose(back), "{back} of {model:?}");
                }
                prop_assert!(loose.is_sorted_by_key(|(_, age)| std::cmp::Reverse(*age)));
                for (image, _) in loose.into_iter().take(removed) {
                    images.forget(&image);
                }
                let read = Images::decode(&images.encode());
                prop_assert_eq!(&read, &images);
            }
        }
    }
}
