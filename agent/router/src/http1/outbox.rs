//! Bytes on their way into a socket: small things are written together, large ones from where they lie.
//!
//! It must not know what the bytes mean.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// A piece up to this size is copied beside the others, bytes: a copy of 4 KiB costs less than one more piece for the kernel.
const COPIED_MAX: usize = 4 * 1024;

/// As many bytes of small pieces are gathered before they are sent.
const GATHERED_MAX: usize = 16 * 1024;

/// What an idle connection keeps of its buffer, bytes.
const KEPT_MAX: usize = 8 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    front: Vec<u8>,
    /// Bytes of `front` that were sent.
    sent: usize,
    /// Comes after `front`.
    large: Bytes,
    /// Comes after `large`, and is empty without it.
    back: Vec<u8>,
    /// Whether the socket has taken any byte since [`Outbox::begin`].
    touched: bool,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.front.len() && self.large.is_empty() && self.back.is_empty()
    }

    /// Whether another piece may be put in.
    pub(crate) fn has_room(&self) -> bool {
        self.large.is_empty() && self.front.len() < GATHERED_MAX
    }

    /// Where small things are written.
    pub(crate) fn text(&mut self) -> &mut Vec<u8> {
        if self.large.is_empty() { &mut self.front } else { &mut self.back }
    }

    /// Add a piece, for which there must be [room](Self::has_room).
    pub(crate) fn put(&mut self, data: Bytes) {
        if data.len() <= COPIED_MAX || !self.large.is_empty() {
            self.text().extend_from_slice(&data);
        } else {
            self.large = data;
        }
    }

    /// Forget what was not sent, and most of the room it took.
    pub(crate) fn clear(&mut self) {
        self.large = Bytes::new();
        self.sent = 0;
        for small in [&mut self.front, &mut self.back] {
            small.clear();
            small.shrink_to(KEPT_MAX);
        }
    }

    /// A new message starts.
    pub(crate) fn begin(&mut self) {
        self.touched = false;
    }

    /// Whether the socket has taken any byte of the message.
    pub(crate) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Send it all.
    pub(crate) fn poll_send<S: AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let small = &self.front[self.sent..];
            let written = if self.large.is_empty() {
                ready!(stream.as_mut().poll_write(cx, small))
            } else {
                let slices = [IoSlice::new(small), IoSlice::new(&self.large), IoSlice::new(&self.back)];
                let first = usize::from(small.is_empty());
                ready!(stream.as_mut().poll_write_vectored(cx, &slices[first..]))
            };
            match written {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.touched = true;
                    self.advance(count);
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut count: usize) {
        let small = count.min(self.front.len() - self.sent);
        self.sent += small;
        count -= small;
        let large = count.min(self.large.len());
        self.large.advance(large);
        count -= large;
        if self.sent == self.front.len() {
            self.front.clear();
            self.sent = 0;
            if self.large.is_empty() {
                // What followed is the front now.
                std::mem::swap(&mut self.front, &mut self.back);
                self.sent = count;
                if self.sent == self.front.len() {
                    self.front.clear();
                    self.sent = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time.
    struct Narrow {
        taken: Vec<u8>,
        width: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.width);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let joined = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<_>>();
            self.poll_write(cx, &joined)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn everything_is_sent_once_and_in_order(
            sizes in vec(prop_oneof![0_usize..40, COPIED_MAX - 1..COPIED_MAX + 3], 1..8),
            width in 1_usize..9000,
        ) {
            let (mut out, mut expected) = (Outbox::default(), Vec::new());
            let mut narrow = Narrow { taken: Vec::new(), width };
            let mut cx = Context::from_waker(std::task::Waker::noop());
            for (number, size) in sizes.into_iter().enumerate() {
                if !out.has_room() {
                    prop_assert!(out.poll_send(Pin::new(&mut narrow), &mut cx).is_ready());
                }
                let piece = vec![number as u8; size];
                out.text().push(b'[');
                out.put(Bytes::from(piece.clone()));
                out.text().push(b']');
                expected.extend([&b"["[..], &piece, b"]"].concat());
            }
            prop_assert!(out.poll_send(Pin::new(&mut narrow), &mut cx).is_ready());
            prop_assert!(out.is_empty());
            prop_assert_eq!(narrow.taken, expected);
        }
    }
}
