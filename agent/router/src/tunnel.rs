//! A connection that has switched protocols: bytes, both ways, until both sides have ended.
//!
//! Counts as a request in flight for as long as it lasts, and has to end some time after its instance was told to leave. It must
//! not know what is spoken.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use crate::revision::Slot;
use crate::session::Open;
use crate::stream::{Early, Stream};

/// Buffer for each direction.
const BUFFER_BYTES: usize = 16 * 1024;

/// A connection to an instance that has switched protocols.
pub(crate) struct Tunnel {
    pub(crate) instance: TcpStream,
    /// What came with the instance's answer, of the new protocol already.
    pub(crate) early: BytesMut,
    pub(crate) slot: Slot,
    pub(crate) open: Open,
    /// Longest silence, milliseconds; 0: no limit. A tunnel has no limit of its whole length.
    pub(crate) idle_ms: u64,
}

impl Tunnel {
    /// Carry bytes. `client`: its connection, and what it has sent already.
    pub(crate) async fn run(self, client: (Stream, BytesMut)) {
        let Self { instance, early, slot, open, idle_ms } = self;
        tokio::select! {
            () = carry(client, (instance, early), idle_ms) => {}
            () = slot.overstayed() => tracing::debug!("tunnel was closed: its instance leaves"),
        }
        drop((slot, open));
    }
}

async fn carry(client: (Stream, BytesMut), (instance, early): (TcpStream, BytesMut), idle_ms: u64) {
    let heard = Heard { start: Instant::now(), at_ms: AtomicU64::new(0) };
    let client = Early { stream: client.0, early: client.1 };
    let instance = Early { stream: instance, early };
    let mut client = Listening { stream: client, heard: &heard };
    let mut instance = Listening { stream: instance, heard: &heard };
    let copy = copy_bidirectional_with_sizes(&mut client, &mut instance, BUFFER_BYTES, BUFFER_BYTES);
    tokio::select! {
        copied = copy => if let Err(error) = copied {
            tracing::debug!(%error, "tunnel broke");
        },
        () = heard.silence(idle_ms) => tracing::debug!(idle_ms, "tunnel was silent for too long"),
    }
}

/// When a byte last came, from either side.
struct Heard {
    start: Instant,
    at_ms: AtomicU64,
}

impl Heard {
    /// Ends after `idle_ms` without a byte; never if that is 0.
    async fn silence(&self, idle_ms: u64) {
        if idle_ms == 0 {
            return std::future::pending().await;
        }
        loop {
            let at = self.start + Duration::from_millis(self.at_ms.load(Ordering::Relaxed) + idle_ms);
            if Instant::now() >= at {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

struct Listening<'a, S> {
    stream: S,
    heard: &'a Heard,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.heard.at_ms.store(self.heard.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
