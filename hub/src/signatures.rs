//! The collector: which signatures each image has whose namespace demands any.
//!
//! ```text
//! catalog, images ─▶ wanted images ─┬─ the own registry, at once; again whenever something is pushed or deleted
//!                                   └─ the image's registry, unless a good one is known; again until there is one, later each time
//! ```
//!
//! Takes: the catalog's state, resolved images, pushes. Gives: what was found through a watch, of wanted images only, and of that
//! what is worth keeping: one signature of each key. Must not know what becomes of an image without one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_api::Digest;
use tombolo_api::verification::{ImageSignatures, Trust, TrustedKey};
use tombolo_hub_core::images::Images;
use tombolo_hub_core::signatures::{Collected, Collection, Demands, Wanted, wanted};
use tombolo_oci::signature::Keys;
use tombolo_oci::{HUB_HOST, ImageReference, Repository};

use crate::catalog::State;
use crate::registry::Registry;
use crate::upstream::Upstreams;

/// Questions to other registries at one time.
const LOOKUPS_MAX: usize = 4;

/// Longest wait for all of an image's signatures.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(30);

/// Pauses while there is no good signature: the first, and the longest. It may be pushed any time, or never.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// What the namespaces demand.
pub(crate) fn demands(state: &State) -> Demands {
    let of = |(name, metadata): (&String, &Arc<tombolo_api::meta::ObjectMeta>)| {
        // What is kept has been admitted; what was kept before it was looked at demands nothing.
        Some((name.clone(), Trust::of(&metadata.annotations).ok()??))
    };
    state.namespaces.iter().filter_map(of).collect()
}

/// The task that collects.
pub(crate) struct Collector {
    registry: Registry,
    upstreams: Upstreams,
    state: watch::Receiver<Arc<State>>,
    images: watch::Receiver<Arc<Images>>,
    collection: watch::Sender<Arc<Collection>>,
    /// Of the own registry, as it was when it had changed so often.
    own: BTreeMap<String, ImageSignatures>,
    own_at: u64,
    /// Images of other registries.
    foreign: BTreeMap<String, Lookup>,
    running: JoinSet<(String, Answer)>,
}

type Answer = Result<ImageSignatures, String>;

/// An image of another registry.
struct Lookup {
    image: ImageReference,
    keys: Vec<TrustedKey>,
    answer: Option<Answer>,
    /// Questions in a row that brought no good signature.
    attempts: u32,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    Waiting {
        due: Instant,
    },
    Running,
    /// There is a good one: it is not asked for again.
    Done,
}

impl Collector {
    /// What is found, and the task that finds it.
    pub(crate) fn new(
        registry: Registry,
        upstreams: Upstreams,
        state: watch::Receiver<Arc<State>>,
        images: watch::Receiver<Arc<Images>>,
    ) -> (watch::Receiver<Arc<Collection>>, Self) {
        let (collection, receiver) = watch::channel(Arc::default());
        let (own, own_at) = (BTreeMap::new(), 0);
        let (foreign, running) = (BTreeMap::new(), JoinSet::new());
        (receiver, Self { registry, upstreams, state, images, collection, own, own_at, foreign, running })
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pushes = self.registry.changes();
        loop {
            let at = *pushes.borrow_and_update();
            if at != self.own_at {
                self.own.clear();
                self.own_at = at;
            }
            let state = self.state.borrow_and_update().clone();
            let images = self.images.borrow_and_update().clone();
            let due = self.pass(wanted(&state.snapshot, &images, &demands(&state))).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                changed = self.images.changed() => if changed.is_err() { return },
                changed = pushes.changed() => if changed.is_err() { return },
                Some(done) = self.running.join_next() => self.take(done),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Looks at every wanted image once. Returns when the next question is due.
    async fn pass(&mut self, wanted: BTreeMap<String, Wanted>) -> Instant {
        self.own.retain(|image, _| wanted.contains_key(image));
        self.foreign.retain(|image, _| wanted.contains_key(image));
        let parsed = wanted.into_iter().filter_map(|(name, wanted)| {
            let reference: ImageReference = name.parse().ok()?;
            let digest = reference.target.digest()?;
            Some((name, reference, digest, wanted))
        });
        let parsed: Vec<_> = parsed.collect();
        self.read_own(&parsed).await;
        let mut collection = Collection::new();
        for (name, reference, digest, wanted) in parsed {
            let keys = match Keys::of(&wanted.keys) {
                Ok(keys) => keys,
                Err(error) => {
                    tracing::error!(image = name, %error, "a key that was admitted cannot be read");
                    continue;
                }
            };
            let found = self.own.get(&name).cloned().unwrap_or_default();
            let is_own = reference.host == HUB_HOST && !self.upstreams.is_external();
            let collected = if is_own || has_good(&keys, &found, &digest) {
                self.foreign.remove(&name);
                Some(Collected::Found(found))
            } else {
                self.elsewhere(&name, reference, (&keys, wanted), found)
            };
            collection.extend(collected.map(|collected| (name, worth_keeping(collected, &keys, &digest))));
        }
        self.collection.send_if_modified(|known| {
            let changed = **known != collection;
            if changed {
                *known = Arc::new(collection);
            }
            changed
        });
        self.start_due()
    }

    /// Reads what the own registry has of the images it was not asked for since it last changed. Signatures of other registries'
    /// images may lie here too, in the repository of the same name: not everybody may write into those.
    async fn read_own(&mut self, wanted: &[(String, ImageReference, Digest, Wanted)]) {
        let missing = wanted.iter().filter(|(name, ..)| !self.own.contains_key(name));
        let missing: Vec<(String, Repository, Digest)> = missing
            .map(|(name, reference, digest, _)| (name.clone(), reference.repository.clone(), *digest))
            .collect();
        if missing.is_empty() {
            return;
        }
        let registry = self.registry.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = |(name, repository, digest): (String, Repository, Digest)| {
                let found = registry.signatures(&repository, &digest).unwrap_or_else(|error| {
                    let what = format!("those in the hub's registry, which cannot be read: {error}");
                    ImageSignatures { found: Vec::new(), passed_over: vec![what] }
                });
                (name, found)
            };
            missing.into_iter().map(read).collect::<Vec<_>>()
        });
        match read.await {
            Ok(read) => self.own.extend(read),
            Err(error) => tracing::error!(%error, "looking up signatures failed"),
        }
    }

    /// What is known of an image of another registry, `own` being what lies in the hub's.
    fn elsewhere(
        &mut self,
        name: &str,
        image: ImageReference,
        (keys, wanted): (&Keys, Wanted),
        own: ImageSignatures,
    ) -> Option<Collected> {
        let digest = image.target.digest()?;
        let new_keys: Vec<TrustedKey> = wanted.keys.into_iter().collect();
        let known_good = has_good(keys, &wanted.known, &digest);
        let lookup = self.foreign.entry(name.to_owned()).or_insert_with(|| Lookup {
            image,
            keys: new_keys.clone(),
            answer: known_good.then_some(Ok(wanted.known)),
            attempts: 0,
            step: if known_good { Step::Done } else { Step::Waiting { due: Instant::now() } },
        });
        if lookup.keys != new_keys {
            lookup.keys = new_keys;
            lookup.settle(&digest, false);
        }
        Some(match lookup.answer.clone()? {
            Ok(mut found) => {
                found.found.extend(own.found);
                found.passed_over.extend(own.passed_over);
                Collected::Found(found)
            }
            Err(_) if !own.found.is_empty() => Collected::Found(own),
            Err(why) => Collected::Unreachable(why),
        })
    }

    /// Asks what is due, as much as may run. Returns when the next question is.
    fn start_due(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (name, lookup) in &mut self.foreign {
            let Step::Waiting { due } = lookup.step else { continue };
            if due > now {
                next = next.min(due);
            } else if self.running.len() < LOOKUPS_MAX {
                lookup.step = Step::Running;
                let (name, image) = (name.clone(), lookup.image.clone());
                let upstreams = self.upstreams.clone();
                self.running.spawn(async move { (name, ask(&upstreams, &image).await) });
            }
        }
        // With all places taken, the next one begins when one ends.
        next
    }

    fn take(&mut self, done: Result<(String, Answer), tokio::task::JoinError>) {
        let (name, answer) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "looking up signatures failed");
                // It does not say which one: all are tried again, later.
                let failed = |lookup: &mut Lookup| lookup.finish(Err("the hub failed to look it up".into()));
                return self.foreign.values_mut().for_each(failed);
            }
        };
        if let Some(lookup) = self.foreign.get_mut(&name) {
            tracing::debug!(image = name, ?answer, "looked up signatures");
            lookup.finish(answer);
        }
    }
}

impl Lookup {
    fn finish(&mut self, answer: Answer) {
        let Some(digest) = self.image.target.digest() else { return };
        if matches!(self.step, Step::Running) {
            // What was found before stands while the registry is away.
            if answer.is_ok() || !matches!(self.answer, Some(Ok(_))) {
                self.answer = Some(answer);
            }
            self.settle(&digest, true);
        }
    }

    /// Decides whether the image is asked about again: after an answer, or for other keys.
    fn settle(&mut self, digest: &Digest, answered: bool) {
        let keys = Keys::of(&self.keys);
        let good =
            matches!((&self.answer, keys), (Some(Ok(found)), Ok(keys)) if has_good(&keys, found, digest));
        self.step = match (good, self.step) {
            (true, _) => Step::Done,
            (false, Step::Running) if !answered => Step::Running,
            (false, _) if answered => {
                let due = Instant::now() + pause(self.attempts);
                self.attempts = self.attempts.saturating_add(1);
                Step::Waiting { due }
            }
            (false, _) => {
                self.attempts = 0;
                Step::Waiting { due: Instant::now() }
            }
        };
    }
}

fn has_good(keys: &Keys, found: &ImageSignatures, image: &Digest) -> bool {
    found.found.iter().any(|signature| keys.verify(signature, image).is_ok())
}

/// What other registries are asked again and again for lies in a Revision: it holds no more than it needs.
fn worth_keeping(collected: Collected, keys: &Keys, image: &Digest) -> Collected {
    let Collected::Found(ImageSignatures { found, passed_over }) = collected else { return collected };
    let good = found.iter().any(|signature| keys.verify(signature, image).is_ok());
    let found = keys.select(found, image);
    Collected::Found(ImageSignatures { found, passed_over: if good { Vec::new() } else { passed_over } })
}

/// The pause after so many questions in a row before this one.
fn pause(attempts: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << attempts.min(16)).min(PAUSE_MAX)
}

async fn ask(upstreams: &Upstreams, image: &ImageReference) -> Answer {
    let Some(digest) = image.target.digest() else { return Ok(ImageSignatures::default()) };
    let asked = async {
        let (client, repository) = upstreams.client(&image.host, &image.repository).await?;
        client.signatures(&repository, &digest).await
    };
    match tokio::time::timeout(LOOKUP_DEADLINE, asked).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(format!("the signatures of {image} cannot be looked up: {error}")),
        Err(_) => {
            let limit = LOOKUP_DEADLINE.as_secs();
            Err(format!("the registry did not answer for the signatures of {image} within {limit} s"))
        }
    }
}

#[cfg(test)]
mod tests;
