//! The request's body on its way to an instance.
//!
//! Counts nothing and decides nothing; it lets the exchange see whether the body moves, and keep it back.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http1::Arriving;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body up to this size is read while its request is held, and so there when it may be sent.
const READ_AHEAD_MAX: u64 = 8 * 1024;

/// What an HTTP/2 client may send of a body before it is read, bytes. It lies in the router's memory, one for each request.
pub(crate) const WINDOW: u32 = 64 * 1024;

/// What of a body is kept for an HTTP/2 client or instance that does not read it, bytes for each.
pub(crate) const SEND_BUFFER_MAX: usize = 64 * 1024;

/// A request's body as it comes from the client.
pub(crate) enum ClientBody {
    Empty,
    Http1(Arriving),
    Http2(Incoming),
}

/// A request's body.
pub(crate) enum RequestBody {
    Empty,
    Stream {
        incoming: ClientBody,
        ahead: VecDeque<Frame<Bytes>>,
        ended: bool,
        progress: Arc<Progress>,
        /// Closed until the instance says that it wants the body.
        gate: Option<Arc<Gate>>,
    },
}

/// What the exchange sees of the body.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    moved_ms: AtomicU64,
    broken: AtomicBool,
    /// The instance wants more than the client has sent.
    starved: AtomicBool,
}

impl Progress {
    fn new(start: Instant) -> Arc<Self> {
        let (broken, starved) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { start, moved_ms: AtomicU64::new(0), broken, starved })
    }

    /// When a byte of the body last passed.
    pub(crate) fn last_moved(&self) -> Instant {
        self.start + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    /// Whether the client did not send what it said it would.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether it is the client's turn.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.moved_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Keeps a body back. The client is told to send it (`100 Continue`) when it is first read, so a gate passes that question on.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_open() {
            self.waker.register(cx.waker());
            if !self.is_open() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

impl RequestBody {
    pub(crate) fn new(incoming: ClientBody, start: Instant, gate: Option<Arc<Gate>>) -> Self {
        if incoming.is_end_stream() {
            Self::Empty
        } else {
            let progress = Progress::new(start);
            Self::Stream { incoming, ahead: VecDeque::new(), ended: false, progress, gate }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(crate) fn progress(&self) -> Option<Arc<Progress>> {
        match self {
            Self::Empty => None,
            Self::Stream { progress, .. } => Some(Arc::clone(progress)),
        }
    }

    /// What may lie of it in memory while its request is held, bytes.
    pub(crate) fn held_max(&self) -> u64 {
        let most = match self {
            Self::Stream { incoming: ClientBody::Http2(_), .. } => u64::from(WINDOW),
            Self::Empty | Self::Stream { .. } => READ_AHEAD_MAX,
        };
        self.size_hint().upper().map_or(most, |size| size.min(most))
    }

    /// Undo that these frames were taken.
    pub(crate) fn put_back(&mut self, frames: Vec<Frame<Bytes>>) {
        if let Self::Stream { ahead, .. } = self {
            for frame in frames.into_iter().rev() {
                ahead.push_front(frame);
            }
        }
    }

    /// Read a small body into memory; at once done for another. Returns whether it may still be sent: `false` if it is
    /// malformed or its client has left.
    pub(crate) async fn read_ahead(&mut self) -> bool {
        let Self::Stream { incoming, ahead, ended, gate, .. } = self else { return true };
        if gate.is_some() || incoming.size_hint().upper().is_none_or(|size| size > READ_AHEAD_MAX) {
            return true;
        }
        while !*ended {
            match poll_fn(|cx| Pin::new(&mut *incoming).poll_frame(cx)).await {
                Some(Ok(frame)) => {
                    ahead.push_back(frame);
                    *ended = incoming.is_end_stream();
                }
                None => *ended = true,
                Some(Err(_)) => return false,
            }
        }
        true
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http1(arriving) => Pin::new(arriving).poll_frame(cx),
            Self::Http2(incoming) => {
                let frame = Pin::new(incoming).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(arriving) => arriving.is_end_stream(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(arriving) => arriving.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self::Stream { incoming, ahead, ended, progress, gate } = self.get_mut() else {
            return Poll::Ready(None);
        };
        if let Some(gate) = gate {
            ready!(gate.poll_open(cx));
        }
        let frame = match ahead.pop_front() {
            Some(frame) => Some(Ok(frame)),
            None if *ended => None,
            None => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                progress.starved.store(polled.is_pending(), Ordering::Relaxed);
                ready!(polled)
            }
        };
        progress.touch();
        *ended = *ended || frame.is_none() || incoming.is_end_stream();
        if let Some(Err(_)) = &frame {
            progress.broken.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { ahead, ended, .. } => *ended && ahead.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let Self::Stream { incoming, ahead, .. } = self else { return SizeHint::with_exact(0) };
        let mut hint = incoming.size_hint();
        let buffered = ahead.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum::<u64>();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + buffered);
        }
        hint.set_lower(hint.lower() + buffered);
        hint
    }
}
