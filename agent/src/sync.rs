//! Desired state as it comes in: manifests are judged, missing objects fetched, everything verified and made durable, and
//! only then in force.
//!
//! ```text
//! received ─▶ judge ─newer─▶ gather objects ─▶ commit (fsync) ─▶ watch<Accepted> ─▶ export
//!               └─▶ refused: counted, kept, told
//! ```
//!
//! Takes: what the link received. Gives: blobs to ask for, the accepted state, the last refusal. It must not know MQTT, and
//! nothing here touches what runs: until a manifest is whole and durable the one before it stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tombolo_agent_core::accept::{self, Reason, Refusal, Verdict};
use tombolo_api::desired::Desired;
use tombolo_api::frame::{self, Frame};
use tombolo_api::manifest::Manifest;
use tombolo_api::report::{EventKind, Refused};
use tombolo_api::{Digest, NodeId};

use crate::accepted::Accepted;
use crate::export;
use crate::gather::Gather;
use crate::identity::Identity;
use crate::keep::{Keep, KeepError, Kept, Refusals};
use crate::outbox::Outbox;

mod offer;

pub(crate) use offer::{Offer, Verdict as OfferVerdict};

/// Without a further piece for this long, what is under way is given up.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);

/// After a manifest that was refused for want of something that may come: objects, disk space.
const RETRY: Duration = Duration::from_secs(10);

/// Refusals are written at most this often: a flood of forged manifests must not wear the disk.
const REFUSAL_WRITES: Duration = Duration::from_secs(1);

/// What the link received, or a bundle holds.
#[derive(Debug)]
pub(crate) enum Received {
    /// Payload of the manifest's topic.
    Manifest(Bytes),
    /// Payload of a blob's topic.
    Blob(Digest, Bytes),
    /// The connection is there again, or gone: a wait without one is nobody's fault.
    Connected(bool),
    /// Somebody imports a bundle.
    Bundle(Offer),
}

/// What the task works with.
pub(crate) struct Sync {
    pub(crate) keep: Keep,
    pub(crate) me: NodeId,
    pub(crate) state_dir: PathBuf,
    pub(crate) identity: watch::Receiver<Option<Arc<Identity>>>,
    /// Whose manifests are believed before the node is enrolled.
    pub(crate) trust: Option<VerifyingKey>,
    pub(crate) accepted: watch::Sender<Option<Arc<Accepted>>>,
    /// Blobs the link should ask for.
    pub(crate) wanted: watch::Sender<BTreeSet<Digest>>,
    pub(crate) refusals: watch::Sender<Refusals>,
    pub(crate) outbox: Outbox,
}

/// A manifest that is not there yet.
struct UnderWay {
    /// As received, to begin again with.
    payload: Bytes,
    gather: Gather,
    stage: Stage,
    deadline: Instant,
}

enum Stage {
    /// The manifest itself comes in pieces.
    Manifest { digest: Digest },
    /// Its objects are being fetched.
    Objects { bytes: Vec<u8>, manifest: Box<Manifest> },
}

struct Task {
    io: Sync,
    /// The key that signed what is held. Another hub's numbers say nothing against it.
    held_key: Option<VerifyingKey>,
    connected: bool,
    under_way: Option<UnderWay>,
    /// A manifest that gave way to a later one; tried if that one comes to nothing.
    displaced: Option<Bytes>,
    retry: Option<(Instant, Bytes)>,
    /// Digest and reason of the last refusal: the same one again is counted, not told again.
    last_refused: Option<(Digest, Reason)>,
    unwritten_refusals: Option<Instant>,
}

impl Sync {
    /// Runs until the link's end of `received` is gone.
    pub(crate) async fn run(self, mut received: mpsc::Receiver<Received>) {
        let held_key = self.trusted();
        let mut task = Task {
            io: self,
            held_key,
            connected: false,
            under_way: None,
            displaced: None,
            retry: None,
            last_refused: None,
            unwritten_refusals: None,
        };
        loop {
            let wake = task.next_deadline();
            tokio::select! {
                message = received.recv() => match message {
                    None => return,
                    Some(message) => task.received(message).await,
                },
                () = tokio::time::sleep_until(wake) => task.deadline_passed(Instant::now()).await,
            }
        }
    }
}

impl Sync {
    /// Whose manifests are believed.
    fn trusted(&self) -> Option<VerifyingKey> {
        self.identity.borrow().as_ref().map(|identity| identity.manifest_key()).or(self.trust)
    }
}

impl Task {
    fn next_deadline(&self) -> Instant {
        let stalled = self.under_way.as_ref().filter(|_| self.connected).map(|under_way| under_way.deadline);
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        let far = Instant::now() + Duration::from_secs(3600);
        [stalled, retry, self.unwritten_refusals].into_iter().flatten().min().unwrap_or(far)
    }

    async fn deadline_passed(&mut self, now: Instant) {
        if self.unwritten_refusals.is_some_and(|at| at <= now) {
            self.write_refusals().await;
        }
        if self.retry.as_ref().is_some_and(|(at, _)| *at <= now)
            && let Some((_, payload)) = self.retry.take()
            && self.under_way.is_none()
        {
            self.manifest(payload).await;
        }
        if self.connected && self.under_way.as_ref().is_some_and(|under_way| under_way.deadline <= now) {
            let message = format!("no further part of it came within {} s", PIECE_DEADLINE.as_secs());
            self.give_up(Refusal { reason: Reason::ObjectsMissing, message }).await;
        }
    }

    async fn received(&mut self, message: Received) {
        match message {
            Received::Manifest(payload) => self.manifest(payload).await,
            Received::Blob(digest, payload) => self.blob(&digest, &payload).await,
            Received::Bundle(offer) => self.offer(offer).await,
            Received::Connected(connected) => {
                self.connected = connected;
                if let Some(under_way) = &mut self.under_way {
                    under_way.deadline = Instant::now() + PIECE_DEADLINE;
                }
            }
        }
    }

    /// A manifest's payload: whole, or the list of its pieces.
    async fn manifest(&mut self, payload: Bytes) {
        // What a broker delivers when a retained message is cleared.
        if payload.is_empty() {
            return;
        }
        match frame::decode(&payload) {
            Ok(Frame::Inline(bytes)) => {
                let bytes = bytes.to_vec();
                self.judge(bytes, payload).await;
            }
            Ok(Frame::Chunks(list)) => {
                let held = self.io.accepted.borrow().as_ref().map(|accepted| accepted.serving.digest);
                if held == Some(list.digest) {
                    return;
                }
                let stage = Stage::Manifest { digest: list.digest };
                self.begin(payload, Gather::of_list(list), stage).await;
            }
            Err(error) => {
                let refusal = Refusal { reason: Reason::Malformed, message: error.to_string() };
                self.refuse(Digest::of(&payload), refusal);
            }
        }
    }

    async fn judge(&mut self, bytes: Vec<u8>, payload: Bytes) {
        let Some(verdict) = self.verdict(&bytes) else { return };
        match verdict {
            Verdict::Same => {}
            Verdict::Refuse(refusal) => self.refuse(Digest::of(&bytes), refusal),
            Verdict::Accept(manifest) => {
                let lacks = |digest: &Digest| self.io.keep.object(digest).is_none();
                let missing: Vec<_> = manifest
                    .objects
                    .iter()
                    .map(|entry| entry.digest)
                    .filter(|digest| lacks(digest))
                    .collect();
                tracing::info!(
                    epoch = manifest.epoch,
                    generation = manifest.generation,
                    objects = manifest.objects.len(),
                    missing = missing.len(),
                    "a newer manifest"
                );
                let stage = Stage::Objects { bytes, manifest: Box::new(manifest) };
                self.begin(payload, Gather::new(missing), stage).await;
            }
        }
    }

    /// What the generation rule says of a manifest; nothing without a key to verify it by.
    fn verdict(&self, bytes: &[u8]) -> Option<Verdict> {
        let key = self.io.trusted()?;
        let held = self.io.accepted.borrow().as_ref().map(|accepted| accepted.held());
        let held = held.filter(|_| self.held_key == Some(key));
        Some(accept::judge(held.as_ref(), bytes, &key, &self.io.me))
    }

    /// Starts to gather. What was under way gives way: the later message is the likelier one.
    async fn begin(&mut self, payload: Bytes, gather: Gather, stage: Stage) {
        let deadline = Instant::now() + PIECE_DEADLINE;
        let before = self.under_way.replace(UnderWay { payload, gather, stage, deadline });
        if let (Some(before), Some(now)) = (before, &self.under_way)
            && before.payload != now.payload
        {
            self.displaced = Some(before.payload);
        }
        self.retry = None;
        self.advance().await;
    }

    async fn blob(&mut self, digest: &Digest, payload: &[u8]) {
        let Some(under_way) = &mut self.under_way else { return };
        if payload.is_empty() || !under_way.gather.missing().contains(digest) {
            return;
        }
        under_way.deadline = Instant::now() + PIECE_DEADLINE;
        match under_way.gather.take(digest, payload) {
            Ok(()) => self.advance().await,
            Err(error) => {
                self.give_up(Refusal { reason: Reason::BadObject, message: error.to_string() }).await;
            }
        }
    }

    /// Goes on as far as what has come allows.
    async fn advance(&mut self) {
        let Some(mut under_way) = self.under_way.take() else { return };
        let Some(contents) = under_way.gather.finish() else {
            self.want(under_way.gather.missing());
            self.under_way = Some(under_way);
            return;
        };
        self.want(BTreeSet::new());
        match under_way.stage {
            Stage::Manifest { digest } => {
                let bytes = contents.into_values().next().unwrap_or_default();
                debug_assert_eq!(Digest::of(&bytes), digest);
                Box::pin(self.judge(bytes, under_way.payload)).await;
            }
            Stage::Objects { bytes, manifest } => {
                if let Err(refusal) = self.commit(&bytes, &manifest, contents).await {
                    let digest = Digest::of(&bytes);
                    self.refuse(digest, refusal);
                    Box::pin(self.after_failure(under_way.payload)).await;
                }
            }
        }
    }

    /// Makes a complete manifest durable, then puts it in force.
    async fn commit(
        &mut self,
        bytes: &[u8],
        manifest: &Manifest,
        mut contents: BTreeMap<Digest, Vec<u8>>,
    ) -> Result<(), Refusal> {
        for entry in &manifest.objects {
            if !contents.contains_key(&entry.digest)
                && let Some(content) = self.io.keep.object(&entry.digest)
            {
                contents.insert(entry.digest, content);
            }
        }
        let before = self.io.accepted.borrow().clone();
        let nothing = Desired::default();
        let before = before.as_deref().map_or(&nothing, |accepted| &accepted.desired);
        let accepted = Accepted::assemble(manifest, Digest::of(bytes), &contents, before)?;
        let kept = Kept { manifest: bytes.to_vec(), contents };
        self.io.keep.accept(&kept).await.map_err(|error| not_kept(&error))?;
        tracing::info!(
            epoch = manifest.epoch,
            generation = manifest.generation,
            revisions = accepted.desired.revisions.len(),
            routes = accepted.desired.routes.len(),
            "accepted a manifest"
        );
        self.displaced = None;
        self.retry = None;
        self.last_refused = None;
        self.held_key = self.io.trusted();
        self.io.accepted.send_replace(Some(Arc::new(accepted)));
        self.io.refusals.send_modify(|refusals| refusals.last = None);
        export::write_behind(self.io.state_dir.clone(), kept).await;
        Ok(())
    }

    async fn give_up(&mut self, refusal: Refusal) {
        let Some(under_way) = self.under_way.take() else { return };
        self.want(BTreeSet::new());
        let digest = match &under_way.stage {
            Stage::Manifest { digest } => *digest,
            Stage::Objects { bytes, .. } => Digest::of(bytes),
        };
        self.refuse(digest, refusal);
        Box::pin(self.after_failure(under_way.payload)).await;
    }

    /// Tries the manifest that had given way, or this one again after a while.
    async fn after_failure(&mut self, payload: Bytes) {
        self.retry = Some((Instant::now() + RETRY, payload));
        if let Some(displaced) = self.displaced.take() {
            let later = self.retry.take();
            self.manifest(displaced).await;
            self.retry = self.retry.take().or(later);
        }
    }

    fn want(&self, blobs: BTreeSet<Digest>) {
        self.io.wanted.send_if_modified(|wanted| {
            let changed = *wanted != blobs;
            *wanted = blobs;
            changed
        });
    }

    /// Counts a refusal and tells of it, once for each manifest and reason.
    fn refuse(&mut self, digest: Digest, refusal: Refusal) {
        let reason = refusal.reason.as_str();
        if !self.count(digest, &refusal) {
            tracing::warn!(reason, message = refusal.message, "refused a manifest");
            self.io.outbox.push(
                EventKind::Warning,
                "ManifestRefused",
                "node",
                format!("{reason}: {}", refusal.message),
            );
        }
    }

    /// Counts a refusal. Returns whether the last one was the same.
    fn count(&mut self, digest: Digest, refusal: &Refusal) -> bool {
        let again = self.last_refused == Some((digest, refusal.reason));
        self.last_refused = Some((digest, refusal.reason));
        self.io.refusals.send_modify(|refusals| {
            refusals.count += 1;
            let (reason, message) = (refusal.reason.as_str().into(), refusal.message.clone());
            refusals.last = Some(Refused { reason, message, count: refusals.count });
        });
        if self.unwritten_refusals.is_none() {
            self.unwritten_refusals = Some(Instant::now() + REFUSAL_WRITES);
        }
        again
    }

    async fn write_refusals(&mut self) {
        self.unwritten_refusals = None;
        let refusals = self.io.refusals.borrow().clone();
        if let Err(error) = self.io.keep.put_refusals(&refusals).await {
            tracing::warn!(%error, "cannot keep the count of refused manifests");
        }
    }
}

fn not_kept(error: &KeepError) -> Refusal {
    let reason = match error {
        KeepError::DiskFull(_) => Reason::DiskFull,
        KeepError::Failed(_) => Reason::StoreFailed,
    };
    Refusal { reason, message: error.to_string() }
}

#[cfg(test)]
mod tests;
