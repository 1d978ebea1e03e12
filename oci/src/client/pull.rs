//! Pulling an image by digest: documents first, then layers side by side, each going on where it broke off.
//!
//! ```text
//! summary complete? ─▶ (index ─▶) manifest ─▶ config ─▶ room? ─▶ layers: blob by range ─▶ verify ─▶ unpack ─▶ summary
//! ```

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};
use tombolo_api::Digest;

use super::{Client, Gate, Progress, TransferError, blocking};
use crate::image::{
    self, Blob, Config, Document, ImageError, ImageSummary, MAX_DOCUMENT, Manifest, Platform,
};
use crate::reference::{Repository, Target};
use crate::store::{Partial, Reservation, Store, StoreError};

/// Layers fetched at the same time: more gain nothing on a link that one fills, and cost memory.
const PARALLEL: usize = 3;

/// Attempts of one blob in a row that brought it no further than it had been.
const ATTEMPTS_MAX: u32 = 5;

/// Bytes handed to the disk at once.
const WRITE_PIECE: usize = 256 * 1024;

/// Bytes that a layer is taken to unpack to for each one of its blob: gzip leaves a third to a half of programs and text.
const UNPACKED_RATIO: u64 = 3;

/// One layer's share of the numbers, and of the room that was reserved.
struct Share<'a> {
    progress: &'a Progress,
    here: u64,
    room: &'a Reservation,
    /// Bytes reserved for it that are not written yet.
    reserved: u64,
}

impl Share<'_> {
    /// So many bytes were here before, and nothing was reserved for them.
    fn starts_at(&mut self, here: u64) {
        self.progress.moved(self.here, here);
        self.here = here;
    }

    fn is_at(&mut self, here: u64) {
        self.progress.moved(self.here, here);
        self.fills(here.saturating_sub(self.here));
        self.here = here;
    }

    /// So much of the room reserved for it is taken.
    fn fills(&mut self, bytes: u64) {
        let bytes = bytes.min(self.reserved);
        self.reserved -= bytes;
        self.room.used(bytes);
    }
}

/// A layer to be had.
#[derive(Clone, Copy, Debug)]
struct Layer {
    blob: Blob,
    diff_id: Digest,
    /// Bytes it will take on the disk, as far as is known.
    needs: u64,
    /// Bytes of its blob that are here.
    here: u64,
}

impl Client {
    /// Makes the image `digest` complete in `store`, for `platform`. What is there is asked of nobody.
    pub async fn pull(
        &self,
        store: &Store,
        repository: &Repository,
        digest: &Digest,
        platform: &Platform,
        progress: &Progress,
    ) -> Result<ImageSummary, TransferError> {
        if let Some(summary) = summary(store, digest, platform).await? {
            return Ok(summary);
        }
        let (manifest_digest, manifest) = self.manifest_for(store, repository, digest, platform).await?;
        let config = self.config(store, repository, &manifest_digest, &manifest, platform).await?;
        progress.start(manifest.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)));
        // Owned: a closure over references would keep the future from being spawned.
        let layers: Vec<_> = manifest.layers.iter().copied().zip(config.diff_ids.iter().copied()).collect();
        let to = store.clone();
        let (layers, room) = blocking(move || reserve(&to, &layers)).await?;
        self.layers(store, repository, layers, (&room, progress)).await?;
        let complete = summary(store, digest, platform).await?;
        complete.ok_or(TransferError::Store(StoreError::Missing(*digest)))
    }

    /// Makes all layers present and unpacked, several at a time. After the first that fails the others end with what they have: none is
    /// dropped while the disk is written.
    async fn layers(
        &self,
        store: &Store,
        repository: &Repository,
        layers: Vec<Layer>,
        (room, progress): (&Reservation, &Progress),
    ) -> Result<(), TransferError> {
        let failed = Gate::default();
        let client = self.clone().with_pace(self.pace.behind(&failed));
        let client = &client;
        let mut under_way = stream::iter(layers)
            .map(|layer| async move {
                let share = Share { progress, here: 0, room, reserved: layer.needs };
                client.layer(store, repository, layer, share).await
            })
            .buffer_unordered(PARALLEL);
        let mut outcome = Ok(());
        while let Some(ended) = under_way.next().await {
            if ended.is_err() {
                failed.close();
            }
            outcome = outcome.and(ended);
        }
        outcome
    }

    /// The manifest that `digest` leads to, over an index or not.
    async fn manifest_for(
        &self,
        store: &Store,
        repository: &Repository,
        digest: &Digest,
        platform: &Platform,
    ) -> Result<(Digest, Manifest), TransferError> {
        match self.manifest_document(store, repository, digest).await? {
            Document::Manifest(manifest) => Ok((*digest, manifest)),
            Document::Index(entries) => {
                let chosen = image::choose(&entries, platform)?.manifest.digest;
                match self.manifest_document(store, repository, &chosen).await? {
                    Document::Manifest(manifest) => Ok((chosen, manifest)),
                    Document::Index(_) => Err(image::nested(&chosen).into()),
                }
            }
        }
    }

    async fn manifest_document(
        &self,
        store: &Store,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Document, TransferError> {
        let content = match read(store, digest).await? {
            Some(content) => content,
            None => {
                let (_, content) = self.manifest(repository, &Target::Digest(*digest)).await?;
                put(store, content.to_vec()).await?
            }
        };
        Ok(Document::parse(digest, &content)?)
    }

    async fn config(
        &self,
        store: &Store,
        repository: &Repository,
        manifest_digest: &Digest,
        manifest: &Manifest,
        platform: &Platform,
    ) -> Result<Config, TransferError> {
        let Blob { digest, size } = manifest.config;
        if size > MAX_DOCUMENT {
            return Err(StoreError::TooLarge { digest, size, limit: MAX_DOCUMENT }.into());
        }
        let content = match read(store, &digest).await? {
            Some(content) => content,
            None => {
                let what = format!("{repository}@{digest}");
                let answer = self
                    .send(self.request(Method::GET, &format!("{repository}/blobs/{digest}")), &what)
                    .await?;
                let content = self.body(answer, size, &what).await?;
                let actual = Digest::of(&content);
                if actual != digest {
                    return Err(StoreError::DigestMismatch { expected: digest, actual }.into());
                }
                put(store, content.to_vec()).await?
            }
        };
        let config = Config::parse(&digest, &content)?;
        config.check(manifest_digest, manifest, platform)?;
        Ok(config)
    }

    /// Makes one layer present and unpacked. A copy that was damaged on the disk is fetched once more.
    async fn layer(
        &self,
        store: &Store,
        repository: &Repository,
        Layer { blob, diff_id, here, .. }: Layer,
        mut share: Share<'_>,
    ) -> Result<(), TransferError> {
        share.starts_at(here);
        let mut again = true;
        loop {
            // What is unpacked: the blob, or the content itself if that was put together from chunks.
            let mut source = blob.digest;
            if self.delta(store, repository, blob, &diff_id, &mut |here| share.is_at(here)).await? {
                source = diff_id;
            } else if store.layer_path(&diff_id).is_none() {
                // One claim after the other, never both: an uncompressed layer's two digests are the same.
                let claim = store.claim(&blob.digest).await;
                self.blob(store, repository, blob, &mut share).await?;
                drop(claim);
            }
            let _claim = store.claim(&diff_id).await;
            let from = store.clone();
            let error = match blocking(move || from.unpack(&source, &diff_id)).await {
                Ok(_) => {
                    share.is_at(blob.size);
                    share.fills(u64::MAX);
                    return Ok(());
                }
                Err(error) => error,
            };
            let from = store.clone();
            if !again || !error.is_damage() || blocking(move || from.verify(&source)).await? {
                return Err(error.into());
            }
            tracing::warn!(digest = %source, %error, "a stored layer is damaged, fetching it again");
            store.remove_blob(&source)?;
            again = false;
        }
    }

    /// Makes one blob present: by range from where an earlier attempt stopped, until it is whole and verified.
    async fn blob(
        &self,
        store: &Store,
        repository: &Repository,
        blob: Blob,
        share: &mut Share<'_>,
    ) -> Result<(), TransferError> {
        let mut attempts = 0;
        let mut furthest = 0;
        let mut mismatched = false;
        loop {
            if store.contains(&blob.digest) {
                return Ok(());
            }
            if self.pace.is_closed() {
                return Err(TransferError::Paused);
            }
            let to = store.clone();
            let partial = blocking(move || to.partial(&blob.digest, blob.size)).await?;
            furthest = furthest.max(partial.len());
            share.is_at(partial.len());
            let error = match self.rest_of(repository, blob, partial, share).await {
                Ok(()) => return Ok(()),
                // What was here from before may have been damaged: once more, from the first byte.
                Err(error @ TransferError::Store(StoreError::DigestMismatch { .. })) if !mismatched => {
                    mismatched = true;
                    error
                }
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            attempts = if share.here > furthest { 1 } else { attempts + 1 };
            if attempts >= ATTEMPTS_MAX {
                return Err(error);
            }
            let (here, of) = (share.here, blob.size);
            tracing::debug!(digest = %blob.digest, here, of, %error, "a transfer broke off");
            tokio::time::sleep(self.deadlines.retry * 2u32.pow(attempts - 1)).await;
        }
    }

    /// One attempt: appends what is missing, verifies, makes it a blob.
    async fn rest_of(
        &self,
        repository: &Repository,
        blob: Blob,
        mut partial: Partial,
        share: &mut Share<'_>,
    ) -> Result<(), TransferError> {
        while !partial.is_complete() {
            if self.pace.is_closed() {
                return Err(TransferError::Paused);
            }
            partial = self.part_of(repository, blob, partial, share).await?;
        }
        Ok(blocking(move || partial.commit()).await?)
    }

    /// Appends what is missing, or as much as may be asked for at once.
    async fn part_of(
        &self,
        repository: &Repository,
        blob: Blob,
        mut partial: Partial,
        share: &mut Share<'_>,
    ) -> Result<Partial, TransferError> {
        let what = format!("{repository}@{}", blob.digest);
        let request = || self.request(Method::GET, &format!("{repository}/blobs/{}", blob.digest));
        let here = partial.len();
        let until = self.pace.stretch().map_or(blob.size, |bytes| blob.size.min(here.saturating_add(bytes)));
        let rest = match here {
            0 if until == blob.size => request(),
            here if until == blob.size => request().header(RANGE, format!("bytes={here}-")),
            here => request().header(RANGE, format!("bytes={here}-{}", until - 1)),
        };
        let answer = match self.send(rest, &what).await {
            // It takes no range: everything, then.
            Err(TransferError::Refused { status: 416, .. }) => self.send(request(), &what).await?,
            other => other?,
        };
        let (start, end) = fitting(&answer, here, until, blob.size).map_err(|cause| {
            let what = what.clone();
            TransferError::Broken { what, cause }
        })?;
        if start != here {
            partial.restart()?;
        }
        self.receive(answer, partial, end, share, &what).await
    }

    /// Appends a body to a download, up to its byte `until`.
    async fn receive(
        &self,
        mut answer: Response,
        mut partial: Partial,
        until: u64,
        share: &mut Share<'_>,
        what: &str,
    ) -> Result<Partial, TransferError> {
        let mut waiting = Vec::with_capacity(WRITE_PIECE);
        let broken_off = |cause| TransferError::Interrupted { what: what.to_owned(), cause };
        let mut end = Ok(());
        loop {
            match self.next_piece(&mut answer).await {
                Ok(Some(piece)) => {
                    partial.came(piece.len());
                    waiting.extend_from_slice(&piece);
                    end = self.pace.take(piece.len(), || partial.beat()).await;
                }
                Ok(None) if until - partial.len() > waiting.len() as u64 => {
                    end = Err(broken_off("it ended too early".into()));
                }
                Ok(None) => {}
                Err(cause) => end = Err(broken_off(cause)),
            }
            let ended = end.is_err() || waiting.len() as u64 >= until - partial.len();
            if waiting.len() >= WRITE_PIECE || ended {
                let piece = std::mem::replace(&mut waiting, Vec::with_capacity(WRITE_PIECE));
                partial = blocking(move || partial.write(&piece).map(|()| partial)).await?;
                share.is_at(partial.len());
            }
            if ended {
                // What came before a break is kept for the next attempt.
                return end.map(|()| partial);
            }
        }
    }
}

/// What has to be had of `layers`, and room for it: for the bytes that are missing, and for what they unpack to, which nobody
/// knows before. Reads the disk: blocks.
fn reserve(store: &Store, layers: &[(Blob, Digest)]) -> Result<(Vec<Layer>, Reservation), StoreError> {
    let mut counted = BTreeSet::new();
    let layer = |&(blob, diff_id): &(Blob, Digest)| {
        let is_whole = store.contains(&blob.digest);
        let here = if is_whole { blob.size } else { store.partial_size(&blob.digest).min(blob.size) };
        let needs = match counted.insert(diff_id) && store.layer_path(&diff_id).is_none() {
            true => (blob.size - here).saturating_add(blob.size.saturating_mul(UNPACKED_RATIO)),
            false => 0,
        };
        Layer { blob, diff_id, needs, here }
    };
    let layers: Vec<Layer> = layers.iter().map(layer).collect();
    let needed = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.needs));
    Ok((layers, store.reserve(needed)?))
}

/// The bytes of the blob at which an answer's body begins and ends: where the download is, or the first; and what was asked for, or the
/// last. Anything else is not the blob: a network's login page must not cost what is here.
fn fitting(answer: &Response, here: u64, until: u64, size: u64) -> Result<(u64, u64), String> {
    let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
    let start = if is_part {
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok())
    } else {
        Some(0)
    };
    let start = start
        .filter(|start| *start == 0 || *start == here)
        .ok_or_else(|| format!("it is not what follows the first {here} bytes"))?;
    match answer.content_length() {
        Some(length) if length == size - start => Ok((start, size)),
        Some(length) if is_part && start == here && length == until - here => Ok((start, until)),
        Some(length) => Err(format!("{length} bytes were announced where {} are missing", size - start)),
        None => Ok((start, size)),
    }
}

async fn summary(
    store: &Store,
    digest: &Digest,
    platform: &Platform,
) -> Result<Option<ImageSummary>, ImageError> {
    let (store, digest, platform) = (store.clone(), *digest, platform.clone());
    blocking(move || image::summary(&store, &digest, &platform)).await
}

async fn read(store: &Store, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
    let (store, digest) = (store.clone(), *digest);
    blocking(move || match store.read_blob(&digest, MAX_DOCUMENT) {
        Ok(content) => Ok(Some(content)),
        Err(StoreError::Missing(_)) => Ok(None),
        Err(StoreError::DigestMismatch { .. }) => store.remove_blob(&digest).map(|()| None),
        Err(error) => Err(error),
    })
    .await
}

async fn put(store: &Store, content: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let store = store.clone();
    blocking(move || store.put(&content).map(|_| content)).await
}
