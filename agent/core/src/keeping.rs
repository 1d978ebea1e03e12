//! Which images stay on a node, and which go first. Pinned is whatever the desired state names, what instances run, what a
//! configuration could go back to, and what is loaded ahead of need; the rest goes by age, and sooner where the disk is short.
//! Pure: knows no store.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tombolo_api::Digest;
use tombolo_api::desired::{Desired, RevisionObject};

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
    /// Images that may be on the disk; those that nobody wants with the second since when.
    known: BTreeMap<Digest, Option<u64>>,
    /// Images of each desired configuration that have been ready, the last one last.
    ready: BTreeMap<String, Vec<Digest>>,
}

impl Wanted {
    /// Adds a revision's image.
    pub fn add(&mut self, object: &RevisionObject, image: Digest, ready: bool) {
        let configuration = format!("{}/{}", object.namespace, object.configuration);
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
    /// Takes note of what is wanted at `now_s`. True: it has to be written.
    pub fn note(&mut self, wanted: &Wanted, now_s: u64) -> bool {
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
        for (_, since) in self.known.iter_mut().filter(|(image, _)| !pinned.contains(*image)) {
            since.get_or_insert(now_s);
        }
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
    pub fn loose(&self, wanted: &Wanted, now_s: u64) -> Vec<(Digest, u64)> {
        let pinned = self.pinned(wanted);
        let age = |since: Option<u64>| now_s.saturating_sub(since.unwrap_or(now_s));
        let known = self.known.iter().filter(|(image, _)| !pinned.contains(*image));
        let mut loose: Vec<_> = known.map(|(image, since)| (*image, age(*since))).collect();
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
        serde_json::from_slice(bytes).unwrap_or_default()
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
        assert!(images.note(&wanted(&[1], &[1]), 10));
        images.note(&wanted(&[1, 2], &[1]), 20);
        images.note(&wanted(&[2], &[2]), 30);
        assert_eq!(images.pinned(&wanted(&[2], &[2])), [image(1), image(2)].into());
        images.note(&wanted(&[3], &[3]), 40);
        assert!(!images.note(&wanted(&[3], &[3]), 50), "nothing is other than it was");
        assert_eq!(images.loose(&wanted(&[3], &[3]), 60), [(image(1), 20)]);
        // One that never got ready is no way back.
        images.note(&wanted(&[4], &[]), 70);
        images.note(&wanted(&[5], &[5]), 80);
        assert_eq!(images.pinned(&wanted(&[5], &[5])), [image(5), image(3)].into());
        // Back to what was: the same two stay, and from there the way back leads to it.
        images.note(&wanted(&[3], &[3]), 90);
        assert_eq!(images.pinned(&wanted(&[3], &[3])), [image(5), image(3)].into());
        images.note(&wanted(&[6], &[6]), 95);
        assert_eq!(images.pinned(&wanted(&[6], &[6])), [image(3), image(6)].into());
        assert_eq!(Images::decode(&images.encode()), images);
        // Without its configuration nothing of it is a way back.
        images.note(&Wanted::default(), 100);
        assert_eq!(images.pinned(&Wanted::default()), BTreeSet::new());
        assert_eq!(images.loose(&Wanted::default(), 100).len(), 6);
    }

    #[test]
    fn a_clock_that_goes_back_makes_nothing_old() {
        let mut images = Images::default();
        images.note(&wanted(&[1], &[]), 1_000_000);
        images.note(&Wanted::default(), 1_000_000);
        assert_eq!(images.loose(&Wanted::default(), 5), [(image(1), 0)]);
        assert_eq!(Images::decode(b"neither"), Images::default());
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
            let (mut images, mut now_s) = (Images::default(), 0);
            // The model: images that got ready, in the order in which they first did.
            let mut model: Vec<u8> = Vec::new();
            for (desired, ready, passes, removed) in steps {
                now_s += passes;
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
                images.note(&now, now_s);
                let loose = images.loose(&now, now_s);
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
