//! The uncompressed bytes of a layer blob, counted, bounded and hashed.
//!
//! The compression is told from the first bytes, not from what a manifest claims. Must not know what an archive is.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

use super::{Limits, UnpackError};
use crate::store::failed;

const READ_BUFFER: usize = 128 * 1024;
/// Bytes that come out between two looks at the room that is left.
const LOOK_EVERY: u64 = 4 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The window that a decoder keeps in memory; the format's own recommendation for what every decoder takes is 8 MiB.
const ZSTD_WINDOW: u64 = 32 << 20;

/// The uncompressed content of a layer, hashed.
pub(crate) struct Stream {
    content: Content,
    hasher: Sha256,
}

/// The uncompressed content of a layer.
pub(crate) struct Content {
    decoder: Decoder,
    compressed: Arc<AtomicU64>,
    bytes: u64,
    looked_at: u64,
    limits: Limits,
}

type Source = BufReader<Counting>;

enum Decoder {
    Plain(Source),
    Gzip(Box<MultiGzDecoder<Source>>),
    Zstd(Frames),
}

/// Several zstd frames, with skippable ones between them, read as one stream.
enum Frames {
    Between(Source),
    In(Box<StreamingDecoder<Source, ruzstd::decoding::FrameDecoder>>),
    Moving,
}

/// Counts what is read from the blob.
struct Counting {
    blob: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
}

/// A limit was passed; carried through `io::Error` so that any reader in between hands it on.
#[derive(Debug, thiserror::Error)]
enum Overrun {
    #[error("too many bytes")]
    Bytes(u64),
    #[error("compression ratio too high")]
    Ratio(u64),
}

impl Stream {
    pub(crate) fn new(blob: impl Read + Send + 'static, limits: &Limits) -> Result<Self, UnpackError> {
        Ok(Self { content: Content::new(blob, limits)?, hasher: Sha256::new() })
    }

    /// The digest of everything read.
    pub(crate) fn digest(self) -> Digest {
        Digest::from_bytes(self.hasher.finalize().into())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl Content {
    pub(crate) fn new(blob: impl Read + Send + 'static, limits: &Limits) -> Result<Self, UnpackError> {
        let compressed = Arc::new(AtomicU64::new(0));
        let counting = Counting { blob: Box::new(blob), count: compressed.clone() };
        let mut source = BufReader::with_capacity(READ_BUFFER, counting);
        let start = source.fill_buf().map_err(failed("read", Path::new("the layer")))?;
        let decoder = if start.starts_with(&GZIP) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(source)))
        } else if start.starts_with(&ZSTD) || is_skippable(start) {
            Decoder::Zstd(Frames::Between(source))
        } else {
            Decoder::Plain(source)
        };
        Ok(Self { decoder, compressed, bytes: 0, looked_at: 0, limits: limits.clone() })
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Plain(source) => source.read(buffer)?,
            Decoder::Gzip(decoder) => decoder.read(buffer)?,
            Decoder::Zstd(frames) => frames.read(buffer)?,
        };
        self.bytes += count as u64;
        if self.bytes > self.limits.bytes {
            return Err(io::Error::other(Overrun::Bytes(self.limits.bytes)));
        }
        if self.bytes - self.looked_at >= LOOK_EVERY {
            self.looked_at = self.bytes;
            if !(self.limits.room.0)() {
                // Told as the disk itself would tell it.
                return Err(rustix::io::Errno::NOSPC.into());
            }
        }
        let allowed = self.compressed.load(Ordering::Relaxed).saturating_mul(self.limits.ratio);
        if self.bytes > self.limits.ratio_from && self.bytes > allowed {
            return Err(io::Error::other(Overrun::Ratio(self.limits.ratio)));
        }
        Ok(count)
    }
}

impl Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Self::Moving) {
                Self::Between(mut source) => {
                    if !skip_to_frame(&mut source)? {
                        *self = Self::Between(source);
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new_with_max_window_size(source, ZSTD_WINDOW)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                    *self = Self::In(Box::new(decoder));
                }
                Self::In(mut decoder) => match decoder.read(buffer)? {
                    0 => *self = Self::Between(decoder.into_inner()),
                    count => {
                        *self = Self::In(decoder);
                        return Ok(count);
                    }
                },
                Self::Moving => return Err(io::Error::other("read after an error")),
            }
        }
    }
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Says what an error of [`Stream`] or [`Content`] means, met while reading `place`.
pub(crate) fn stream_error(error: io::Error, place: &str) -> UnpackError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Overrun>()) {
        Some(Overrun::Bytes(limit)) => return UnpackError::TooManyBytes(*limit),
        Some(Overrun::Ratio(limit)) => return UnpackError::Ratio(*limit),
        None => {}
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => UnpackError::Truncated(place.into()),
        _ if error.raw_os_error().is_some() => {
            UnpackError::Write { path: "the layer's blob".into(), source: error }
        }
        _ => UnpackError::Malformed(format!("{error}, at {place}")),
    }
}

/// Passes skippable frames. `false` at the end of the blob.
fn skip_to_frame(source: &mut Source) -> io::Result<bool> {
    loop {
        let start = source.fill_buf()?;
        if start.is_empty() {
            return Ok(false);
        }
        let mut header = [0; 8];
        if start.len() >= 8 {
            header.copy_from_slice(&start[..8]);
        } else if !start.starts_with(&ZSTD) {
            // A header split over two reads happens only at the end of a buffer: take the slow way.
            let rest = start.to_vec();
            source.consume(rest.len());
            header[..rest.len()].copy_from_slice(&rest);
            source.read_exact(&mut header[rest.len()..])?;
            if !is_skippable(&header) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "zstd frame header split by the end"));
            }
            skip(source, &header)?;
            continue;
        }
        if !is_skippable(&header) {
            return Ok(true);
        }
        source.consume(8);
        skip(source, &header)?;
    }
}

fn skip(source: &mut Source, header: &[u8; 8]) -> io::Result<()> {
    let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    match io::copy(&mut source.take(length.into()), &mut io::sink())? {
        copied if copied == u64::from(length) => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn is_skippable(start: &[u8]) -> bool {
    start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]
}
