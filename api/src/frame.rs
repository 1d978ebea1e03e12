//! How content travels in MQTT messages of bounded size.
//!
//! A payload is one byte that says the form, then the content:
//! `0` the content itself, `1` a JSON [`ChunkList`] whose chunks are fetched by digest from `blob/{hex}` topics, each an
//! inline frame. Content up to [`INLINE_MAX`] goes inline; a larger manifest thus costs a node that holds it already one
//! small message, because the list names the digest of the whole.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Largest content of one message. Far below every broker's packet limit, and 128 KiB with room for headers.
pub const CHUNK_MAX: usize = 120 * 1024;

/// Largest content sent inline; beyond it a list of chunks goes first, so that what is already held is not sent again.
pub const INLINE_MAX: usize = 16 * 1024;

/// Largest content as a whole: bounds what a node will assemble in memory. 10,000 objects' manifest is under 3 MB.
pub const CONTENT_MAX: u64 = 16 * 1024 * 1024;

/// Largest MQTT packet either side accepts, bytes.
pub const PACKET_MAX: usize = 128 * 1024;

/// Content cut in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkList {
    /// Digest of the whole content.
    pub digest: Digest,
    /// Size of the whole content, bytes.
    pub size: u64,
    /// Digests of the pieces, in order.
    pub chunks: Vec<Digest>,
}

/// A payload taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Inline(&'a [u8]),
    Chunks(ChunkList),
}

/// Why a payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("empty payload")]
    Empty,
    #[error("unknown frame form {0}: this program is older than its peer, update it")]
    UnknownForm(u8),
    #[error("malformed chunk list")]
    Malformed(#[source] serde_json::Error),
    #[error("chunk list of {chunks} chunks for {size} bytes is beyond the limits")]
    TooLarge { chunks: usize, size: u64 },
}

/// A framed content: the payload to publish under its own topic, and the chunks to publish under theirs before it.
#[derive(Clone, Debug)]
pub struct Framed {
    pub payload: Vec<u8>,
    pub chunks: Vec<(Digest, Vec<u8>)>,
}

/// Frames `content` for publication.
pub fn encode(content: &[u8]) -> Framed {
    encode_with(content, INLINE_MAX)
}

/// Frames one blob: inline as long as it fits one message, for it is only asked for when it is missing.
pub fn encode_blob(content: &[u8]) -> Framed {
    encode_with(content, CHUNK_MAX)
}

fn encode_with(content: &[u8], inline_max: usize) -> Framed {
    if content.len() <= inline_max {
        return Framed { payload: inline(content), chunks: Vec::new() };
    }
    let chunks: Vec<_> = content.chunks(CHUNK_MAX).map(|chunk| (Digest::of(chunk), inline(chunk))).collect();
    let list = ChunkList {
        digest: Digest::of(content),
        size: content.len() as u64,
        chunks: chunks.iter().map(|(digest, _)| *digest).collect(),
    };
    let mut payload = vec![1];
    payload.extend(serde_json::to_vec(&list).expect("a chunk list is plain data"));
    Framed { payload, chunks }
}

fn inline(content: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(content.len() + 1);
    payload.push(0);
    payload.extend_from_slice(content);
    payload
}

/// Reads a payload.
pub fn decode(payload: &[u8]) -> Result<Frame<'_>, FrameError> {
    match payload.split_first() {
        None => Err(FrameError::Empty),
        Some((0, content)) => Ok(Frame::Inline(content)),
        Some((1, list)) => {
            let list: ChunkList = serde_json::from_slice(list).map_err(FrameError::Malformed)?;
            let most = list.chunks.len() as u64 * CHUNK_MAX as u64;
            if list.size > CONTENT_MAX || list.size > most || list.chunks.len() as u64 > CONTENT_MAX / 1024 {
                return Err(FrameError::TooLarge { chunks: list.chunks.len(), size: list.size });
            }
            Ok(Frame::Chunks(list))
        }
        Some((form, _)) => Err(FrameError::UnknownForm(*form)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_content_is_inline() {
        let framed = encode(b"abc");
        assert_eq!(decode(&framed.payload).unwrap(), Frame::Inline(b"abc"));
        assert!(framed.chunks.is_empty());
    }

    #[test]
    fn large_content_comes_back_from_its_chunks() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let framed = encode(&content);
        assert!(framed.payload.len() < 1024);
        let Frame::Chunks(list) = decode(&framed.payload).unwrap() else { panic!("not a list") };
        let mut whole = Vec::new();
        for (want, (digest, payload)) in list.chunks.iter().zip(&framed.chunks) {
            assert_eq!(want, digest);
            assert!(payload.len() <= PACKET_MAX - 1024);
            let Frame::Inline(chunk) = decode(payload).unwrap() else { panic!("not inline") };
            whole.extend_from_slice(chunk);
        }
        assert_eq!(Digest::of(&whole), list.digest);
        assert_eq!(whole, content);
    }

    #[test]
    fn hostile_payloads_are_refused() {
        assert!(matches!(decode(b""), Err(FrameError::Empty)));
        assert!(matches!(decode(b"\x07x"), Err(FrameError::UnknownForm(7))));
        assert!(matches!(decode(b"\x01{"), Err(FrameError::Malformed(_))));
        let list = format!("\x01{{\"digest\":\"{}\",\"size\":99999999999,\"chunks\":[]}}", Digest::of(b""));
        assert!(matches!(decode(list.as_bytes()), Err(FrameError::TooLarge { .. })));
    }
}
