//! Fetching of a layer only what no layer here has: the registry's list of its chunks, then those that are missing.
//!
//! ```text
//! alike layers here? ─▶ list ─▶ search them ─▶ cheaper than the blob? ─▶ fetch the rest, until nothing is missing ─▶ verify
//! ```
//!
//! Whatever stands in the way (a registry that knows no lists, a wrong chunk, a wrong whole) ends in the blob being fetched as ever.
//! Only a link that broke off in the middle ends the pull, as it does with blobs: the next attempt goes on from there.

use reqwest::Method;
use tombolo_api::Digest;

use super::{Client, TransferError, blocking};
use crate::delta::{
    Arriving, ChunkList, ListError, MAX_ENCODED, RebuildError, Rebuilding, Selection, WORTHWHILE_FROM,
    resembling,
};
use crate::image::Blob;
use crate::reference::Repository;
use crate::store::{Store, StoreError};

/// Attempts in a row that brought nothing.
const ATTEMPTS_MAX: u32 = 5;

/// Attempts to get a list; the registry makes it while the first one waits.
const LIST_ATTEMPTS_MAX: u32 = 2;

/// Compressed bytes taken at once.
const PIECE: usize = 64 * 1024;

/// Nothing more is searched for once so little of the layer is missing: reading through another layer costs more.
const LITTLE: u64 = 16;

/// Why a layer travels whole.
#[derive(Debug, thiserror::Error)]
enum DeltaError {
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its chunk list is no good: {0}")]
    List(#[from] ListError),
    #[error("its chunk list is one of other content, {actual}")]
    OtherContent { actual: Digest },
    #[error("its chunks cost more than the whole")]
    Costly,
    #[error("the layers that are here have too little of it: {missing} of {size} bytes are missing")]
    Strange { missing: u64, size: u64 },
    #[error("no layer that is here may resemble it")]
    NoBase,
}

impl DeltaError {
    fn is_retryable(&self) -> bool {
        matches!(self, Self::Transfer(error) if error.is_retryable())
    }
}

/// A layer being put together, and what it is of.
struct Delta<'a> {
    repository: &'a Repository,
    blob: Blob,
    rebuilding: Rebuilding,
}

impl Client {
    /// Makes a layer's uncompressed content present as the blob `diff_id`, if less has to come for that than its blob. `false`: the blob
    /// has to. `moved` is told how much of the blob that equals.
    pub(super) async fn delta(
        &self,
        store: &Store,
        repository: &Repository,
        blob: Blob,
        diff_id: &Digest,
        moved: &mut (dyn FnMut(u64) + Send),
    ) -> Result<bool, TransferError> {
        if store.contains(&blob.digest) {
            return Ok(false);
        }
        let _claim = store.claim(diff_id).await;
        if store.contains(diff_id) || store.layer_path(diff_id).is_some() {
            return Ok(true);
        }
        if !self.deltas || blob.size < WORTHWHILE_FROM {
            return Ok(false);
        }
        let begun = match self.begin(store, repository, blob, diff_id).await {
            Ok(rebuilding) => Delta { repository, blob, rebuilding },
            Err(error) => {
                tell(&blob.digest, &error);
                return Ok(false);
            }
        };
        let before = begun.rebuilding.missing();
        let (delta, fetched) = self.rest(begun, moved).await;
        let came = before - delta.rebuilding.missing();
        let error = match fetched {
            Ok(()) => {
                let (size, of) = (delta.rebuilding.size(), store.clone());
                match blocking(move || finish(&of, blob, delta.rebuilding)).await {
                    Ok(()) => {
                        tracing::info!(digest = %blob.digest, size, fetched = came, "put a layer together from chunks");
                        return Ok(true);
                    }
                    Err(error) => error,
                }
            }
            // The link has to come back for anything to go on, and what came is kept for then.
            Err(DeltaError::Transfer(error)) if error.is_retryable() && came > 0 => return Err(error),
            Err(DeltaError::Transfer(error @ TransferError::Paused)) => return Err(error),
            Err(error) => {
                blocking(move || delta.rebuilding.discard()).await?;
                error
            }
        };
        tell(&blob.digest, &error);
        Ok(false)
    }

    /// What of the layer is here, if that is enough of it.
    async fn begin(
        &self,
        store: &Store,
        repository: &Repository,
        blob: Blob,
        diff_id: &Digest,
    ) -> Result<Rebuilding, DeltaError> {
        let (from, wanted) = (store.clone(), *diff_id);
        let resumed = blocking(move || Rebuilding::resume(&from, &wanted)).await?;
        let from = store.clone();
        let bases = blocking(move || resembling(&from, &blob.digest, blob.size)).await?;
        let rebuilding = match resumed {
            Some(rebuilding) => rebuilding,
            None if bases.is_empty() => return Err(DeltaError::NoBase),
            None => {
                let list = self.chunk_list(repository, blob).await?;
                if list.diff_id() != *diff_id {
                    return Err(DeltaError::OtherContent { actual: list.diff_id() });
                }
                let to = store.clone();
                blocking(move || Rebuilding::begin(&to, list)).await?
            }
        };
        let from = store.clone();
        blocking(move || -> Result<_, DeltaError> {
            let mut rebuilding = rebuilding;
            let size = rebuilding.size();
            for base in bases {
                if rebuilding.missing() > size / LITTLE {
                    rebuilding.search(&base)?;
                }
            }
            // Of the blob, some may be here from before.
            let whole = blob.size - from.partial_size(&blob.digest).min(blob.size);
            let missing = rebuilding.missing();
            // Compressed as well as the whole is, and twice that still has to be less than what is left of it.
            let cost = u128::from(missing) * u128::from(blob.size) / u128::from(size.max(1));
            if cost * 2 > u128::from(whole) {
                rebuilding.discard()?;
                return Err(DeltaError::Strange { missing, size });
            }
            Ok(rebuilding)
        })
        .await
    }

    async fn chunk_list(&self, repository: &Repository, blob: Blob) -> Result<ChunkList, DeltaError> {
        let what = format!("the chunk list of {repository}@{}", blob.digest);
        // One that is long beside the blob saves nothing.
        let limit = MAX_ENCODED.min(blob.size / 4);
        let mut attempts = 0;
        let encoded = loop {
            let request = self.request(Method::GET, &path(repository, &blob.digest));
            let answer = match self.send(request, &what).await {
                Ok(answer) => self.body(answer, limit, &what).await,
                Err(error) => Err(error),
            };
            attempts += 1;
            match answer {
                Ok(encoded) => break encoded,
                Err(error) if error.is_retryable() && attempts < LIST_ATTEMPTS_MAX => {
                    tokio::time::sleep(self.deadlines.retry).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(ChunkList::decode(&encoded)?)
    }

    /// Fetches what is missing.
    async fn rest<'a>(
        &self,
        mut delta: Delta<'a>,
        moved: &mut (dyn FnMut(u64) + Send),
    ) -> (Delta<'a>, Result<(), DeltaError>) {
        let mut attempts = 0;
        while let Some(selection) = delta.rebuilding.selection() {
            let before = delta.rebuilding.missing();
            let end;
            (delta, end) = self.receive_chunks(delta, selection, moved).await;
            match end {
                Ok(()) => attempts = 0,
                Err(error) if error.is_retryable() => {
                    attempts = if delta.rebuilding.missing() < before { 1 } else { attempts + 1 };
                    if attempts >= ATTEMPTS_MAX {
                        return (delta, Err(error));
                    }
                    let (missing, of) = (delta.rebuilding.missing(), delta.rebuilding.size());
                    tracing::debug!(digest = %delta.blob.digest, missing, of, %error, "a transfer of chunks broke off");
                    tokio::time::sleep(self.deadlines.retry * 2u32.pow(attempts - 1)).await;
                }
                Err(error) => return (delta, Err(error)),
            }
        }
        (delta, Ok(()))
    }

    /// One request: takes the chunks in the order in which they come.
    async fn receive_chunks<'a>(
        &self,
        mut delta: Delta<'a>,
        selection: Selection,
        moved: &mut (dyn FnMut(u64) + Send),
    ) -> (Delta<'a>, Result<(), DeltaError>) {
        let Blob { digest, size } = delta.blob;
        let what = format!("chunks of {}@{digest}", delta.repository);
        let request = self.request(Method::POST, &path(delta.repository, &digest)).body(selection.encode());
        let mut answer = match self.send(request, &what).await {
            Ok(answer) => answer,
            Err(error) => return (delta, Err(error.into())),
        };
        let mut arriving = Arriving::new(&selection);
        let (mut waiting, mut came) = (Vec::new(), 0);
        while !arriving.is_complete() {
            let interrupted = |cause| TransferError::Interrupted { what: what.clone(), cause };
            let end = match self.next_piece(&mut answer).await {
                Ok(Some(piece)) => {
                    came += piece.len() as u64;
                    waiting.extend_from_slice(&piece);
                    self.pace.take(piece.len(), || delta.rebuilding.beat()).await
                }
                Ok(None) => Err(interrupted("it ended too early".to_owned())),
                Err(cause) => Err(interrupted(cause)),
            };
            if came > size {
                return (delta, Err(DeltaError::Costly));
            }
            if waiting.len() < PIECE && end.is_ok() {
                continue;
            }
            let piece = std::mem::take(&mut waiting);
            let taken;
            (delta.rebuilding, arriving, taken) = blocking({
                let mut rebuilding = delta.rebuilding;
                move || {
                    let taken = arriving.take(&piece, &mut rebuilding);
                    (rebuilding, arriving, taken)
                }
            })
            .await;
            let (missing, of) = (delta.rebuilding.missing(), delta.rebuilding.size().max(1));
            let share = u128::from(size) * u128::from(of - missing) / u128::from(of);
            moved(u64::try_from(share).unwrap_or(size));
            if let Err(error) = taken {
                return (delta, Err(error.into()));
            }
            if let (Err(error), false) = (end, arriving.is_complete()) {
                return (delta, Err(error.into()));
            }
        }
        (delta, Ok(()))
    }
}

/// Makes the layer a blob. What an earlier attempt fetched of the whole one needs no room any more.
fn finish(store: &Store, blob: Blob, rebuilding: Rebuilding) -> Result<(), DeltaError> {
    rebuilding.finish()?;
    if store.partial_size(&blob.digest) > 0 {
        store.partial(&blob.digest, blob.size)?.restart()?;
    }
    Ok(())
}

/// Says why a layer travels whole. That nothing here resembles it is nobody's fault.
fn tell(digest: &Digest, error: &DeltaError) {
    match error {
        DeltaError::NoBase | DeltaError::Strange { .. } => {
            tracing::debug!(%digest, reason = %error, "a layer travels whole");
        }
        _ => tracing::info!(%digest, reason = %error, "a layer travels whole"),
    }
}

fn path(repository: &Repository, digest: &Digest) -> String {
    format!("{repository}/_tombolo/chunks/{digest}")
}

#[cfg(test)]
mod tests;
