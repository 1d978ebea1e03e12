//! Bytes that have come from a socket and were not taken yet.
//!
//! It must not know what the bytes mean.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// First size of a read, bytes: the head of a request or a small answer with its head.
const READ_MIN: usize = 8 * 1024;

/// Largest size of a read, bytes. Reads grow to it while they are filled: a large body needs fewer of them.
const READ_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) bytes: BytesMut,
    /// Size of the next read.
    read: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), read: READ_MIN }
    }
}

impl Inbox {
    /// Read once. 0: the peer sends no more.
    pub(crate) fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() - self.bytes.len() < self.read / 2 {
            self.bytes.reserve(self.read);
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let filled = poll_read_buf(stream, cx, &mut self.bytes);
        if let Poll::Ready(Ok(count)) = filled {
            if count == room {
                self.read = (self.read * 2).min(READ_MAX);
            } else if count < self.read / 4 {
                self.read = (self.read / 2).max(READ_MIN);
            }
        }
        filled
    }

    /// Give back room that only large bodies need.
    pub(crate) fn rest(&mut self) {
        if self.bytes.is_empty() {
            if self.bytes.capacity() > 2 * READ_MIN {
                self.bytes = BytesMut::new();
            }
            self.read = READ_MIN;
        }
    }
}
