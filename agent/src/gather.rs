//! Contents that come in pieces, by digest, in any order: what is still to be asked for, and what is complete. Pure: knows
//! neither the link nor time.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::Digest;
use tombolo_api::frame::{self, ChunkList, Frame};

/// Blobs asked for at a time: bounds what is in flight to about 2 MB, and is enough to fill a slow link.
const WINDOW: usize = 16;

/// Contents of one manifest, under way.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// Contents that are wanted and not complete.
    wanted: BTreeSet<Digest>,
    /// How wanted contents that are cut in pieces are put together.
    lists: BTreeMap<Digest, ChunkList>,
    pieces: BTreeMap<Digest, Vec<u8>>,
    complete: BTreeMap<Digest, Vec<u8>>,
}

/// Why a blob is not what its topic says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatherError {
    #[error("the blob {0} has other content than its name says")]
    Mismatch(Digest),
    #[error("the blob {digest} cannot be read: {reason}")]
    Frame { digest: Digest, reason: String },
}

impl Gather {
    pub(crate) fn new(wanted: impl IntoIterator<Item = Digest>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// Contents whose pieces are known already.
    pub(crate) fn of_list(list: ChunkList) -> Self {
        let mut gather = Self::new([list.digest]);
        gather.lists.insert(list.digest, list);
        gather
    }

    /// The blobs to ask for now.
    pub(crate) fn missing(&self) -> BTreeSet<Digest> {
        let mut missing = BTreeSet::new();
        for digest in &self.wanted {
            match self.lists.get(digest) {
                None => drop(missing.insert(*digest)),
                Some(list) => {
                    missing.extend(list.chunks.iter().filter(|chunk| !self.pieces.contains_key(*chunk)))
                }
            }
            if missing.len() >= WINDOW {
                break;
            }
        }
        missing.into_iter().take(WINDOW).collect()
    }

    /// Takes the blob `digest`; one nobody asked for is ignored.
    pub(crate) fn take(&mut self, digest: &Digest, payload: &[u8]) -> Result<(), GatherError> {
        let unreadable = |reason: String| GatherError::Frame { digest: *digest, reason };
        match frame::decode(payload).map_err(|error| unreadable(error.to_string()))? {
            Frame::Inline(content) => {
                if Digest::of(content) != *digest {
                    return Err(GatherError::Mismatch(*digest));
                }
                if self.wanted.remove(digest) {
                    self.complete.insert(*digest, content.to_vec());
                } else if self.lists.values().any(|list| list.chunks.contains(digest)) {
                    self.pieces.insert(*digest, content.to_vec());
                }
            }
            Frame::Chunks(list) if list.digest == *digest && self.wanted.contains(digest) => {
                self.lists.insert(*digest, list);
            }
            Frame::Chunks(_) if !self.wanted.contains(digest) => {}
            Frame::Chunks(_) => return Err(GatherError::Mismatch(*digest)),
        }
        self.join()
    }

    /// All contents, once none is missing.
    pub(crate) fn finish(&mut self) -> Option<BTreeMap<Digest, Vec<u8>>> {
        self.wanted.is_empty().then(|| std::mem::take(&mut self.complete))
    }

    /// Puts together what has all its pieces.
    fn join(&mut self) -> Result<(), GatherError> {
        let ready = |list: &&ChunkList| list.chunks.iter().all(|chunk| self.pieces.contains_key(chunk));
        let Some(list) = self.lists.values().find(ready).cloned() else { return Ok(()) };
        let content: Vec<u8> = list.chunks.iter().flat_map(|chunk| &self.pieces[chunk]).copied().collect();
        self.lists.remove(&list.digest);
        let shared: BTreeSet<_> = self.lists.values().flat_map(|list| list.chunks.iter().copied()).collect();
        self.pieces.retain(|piece, _| shared.contains(piece));
        if Digest::of(&content) != list.digest {
            return Err(GatherError::Mismatch(list.digest));
        }
        self.wanted.remove(&list.digest);
        self.complete.insert(list.digest, content);
        self.join()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(size: u32, seed: u8) -> Vec<u8> {
        (0..size).map(|i| (i % 251) as u8 ^ seed).collect()
    }

    #[test]
    fn small_and_large_contents_come_together_in_any_order() {
        let (small, large) = (content(100, 1), content(300_000, 2));
        let digests = [Digest::of(&small), Digest::of(&large)];
        let framed = frame::encode_blob(&large);
        let mut blobs =
            BTreeMap::from([(digests[0], frame::encode_blob(&small).payload), (digests[1], framed.payload)]);
        blobs.extend(framed.chunks);
        let mut gather = Gather::new(digests);
        let mut asked = 0;
        while !gather.wanted.is_empty() {
            let missing = gather.missing();
            assert!(!missing.is_empty());
            for digest in missing.iter().rev() {
                gather.take(digest, &blobs[digest]).unwrap();
                asked += 1;
            }
        }
        assert_eq!(asked, blobs.len());
        assert_eq!(gather.finish().unwrap(), [(digests[0], small), (digests[1], large)].into());
    }

    #[test]
    fn few_are_asked_for_at_a_time() {
        let all: Vec<_> = (0..100u8).map(|i| Digest::of(&[i])).collect();
        let mut gather = Gather::new(all.clone());
        assert_eq!(gather.missing().len(), WINDOW);
        for (i, digest) in all.iter().enumerate() {
            gather.take(digest, &frame::encode_blob(&[i as u8]).payload).unwrap();
        }
        assert_eq!(gather.finish().unwrap().len(), 100);
    }

    #[test]
    fn other_content_than_asked_for_is_refused() {
        let wanted = Digest::of(b"a");
        let mut gather = Gather::new([wanted]);
        assert!(matches!(
            gather.take(&wanted, &frame::encode_blob(b"b").payload),
            Err(GatherError::Mismatch(_))
        ));
        assert!(matches!(gather.take(&wanted, b""), Err(GatherError::Frame { .. })));
        let list = frame::encode_blob(&content(300_000, 3)).payload;
        assert!(matches!(gather.take(&wanted, &list), Err(GatherError::Mismatch(_))));
        gather.take(&Digest::of(b"unasked"), &frame::encode_blob(b"unasked").payload).unwrap();
        assert_eq!(gather.missing(), [wanted].into());
    }
}
