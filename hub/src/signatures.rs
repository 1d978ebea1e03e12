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

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_api::Digest;
use tombolo_api::verification::{ImageSignatures, Trust, TrustedKey};
use tombolo_hub_core::images::Images;
use tombolo_hub_core::signatures::{Collected, Collection, Demands, Wanted, wanted};
use tombolo_oci::signature::Keys;
use tombolo_oci::{HUB_HOST, ImageReference, Repository};

use crate::catalog::State;
use crate::lookups::{Lookup, Lookups};
use crate::registry::Registry;
use crate::upstream::Upstreams;

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
    foreign: Lookups<Asked, Answer>,
}

type Answer = Result<ImageSignatures, String>;

/// What is known of an image of another registry.
struct Asked {
    keys: Vec<TrustedKey>,
    answer: Option<Answer>,
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
        let (own, own_at, foreign) = (BTreeMap::new(), 0, Lookups::new());
        (receiver, Self { registry, upstreams, state, images, collection, own, own_at, foreign })
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
                Some(answered) = self.foreign.answered() => {
                    self.foreign.take(answered, || Err("the hub failed to look it up".into()), finish);
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Looks at every wanted image once. Returns when the next question is due.
    async fn pass(&mut self, wanted: BTreeMap<String, Wanted>) -> Instant {
        self.own.retain(|image, _| wanted.contains_key(image));
        self.foreign.retain(|image| wanted.contains_key(image));
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
                self.foreign.forget(&name);
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
        let upstreams = self.upstreams.clone();
        self.foreign.start_due(move |image| ask(upstreams.clone(), image), late)
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
        let lookup = self.foreign.entry(name, || {
            let answer = known_good.then_some(Ok(wanted.known));
            let mut lookup = Lookup::new(image, Asked { keys: new_keys.clone(), answer });
            if known_good {
                lookup.done();
            }
            lookup
        });
        if lookup.known.keys != new_keys {
            lookup.known.keys = new_keys;
            if lookup.known.is_good(&digest) { lookup.done() } else { lookup.ask_anew() }
        }
        Some(match lookup.known.answer.clone()? {
            Ok(mut found) => {
                found.found.extend(own.found);
                found.passed_over.extend(own.passed_over);
                Collected::Found(found)
            }
            Err(_) if !own.found.is_empty() => Collected::Found(own),
            Err(why) => Collected::Unreachable(why),
        })
    }
}

impl Asked {
    /// Whether there is a signature by one of the keys.
    fn is_good(&self, image: &Digest) -> bool {
        let keys = Keys::of(&self.keys);
        matches!((&self.answer, keys), (Some(Ok(found)), Ok(keys)) if has_good(&keys, found, image))
    }
}

/// Takes in what another registry answered.
fn finish(lookup: &mut Lookup<Asked>, answer: Answer) {
    tracing::debug!(image = %lookup.image, ?answer, "looked up signatures");
    // What was found before stands while the registry is away.
    if answer.is_ok() || !matches!(lookup.known.answer, Some(Ok(_))) {
        lookup.known.answer = Some(answer);
    }
    let good = lookup.image.target.digest().is_some_and(|digest| lookup.known.is_good(&digest));
    if good { lookup.done() } else { lookup.ask_later() }
}

fn has_good(keys: &Keys, found: &ImageSignatures, image: &Digest) -> bool {
    keys.judge(&found.found, image).is_ok()
}

/// What other registries are asked again and again for lies in a Revision: it holds no more than it needs.
fn worth_keeping(collected: Collected, keys: &Keys, image: &Digest) -> Collected {
    let Collected::Found(ImageSignatures { found, passed_over }) = collected else { return collected };
    let good = keys.judge(&found, image).is_ok();
    let found = keys.select(found, image);
    Collected::Found(ImageSignatures { found, passed_over: if good { Vec::new() } else { passed_over } })
}

async fn ask(upstreams: Upstreams, image: ImageReference) -> Answer {
    let Some(digest) = image.target.digest() else { return Ok(ImageSignatures::default()) };
    let asked = async {
        let (client, repository) = upstreams.client(&image.host, &image.repository).await?;
        client.signatures(&repository, &digest).await
    };
    asked.await.map_err(|error| format!("the signatures of {image} cannot be looked up: {error}"))
}

fn late(image: &ImageReference, seconds: u64) -> Answer {
    Err(format!("the registry did not answer for the signatures of {image} within {seconds} s"))
}

#[cfg(test)]
mod tests;
