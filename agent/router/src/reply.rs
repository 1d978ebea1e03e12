//! The answer's body on its way to the client.
//!
//! Holds what the request occupies, the slot at the instance and the connection to it, until the body has ended. It must not
//! know routes or retries.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::body::{BoxError, Progress};
use crate::deadline::Limits;
use crate::grpc;
use crate::http1::Upstream;
use crate::revision::Slot;
use crate::session::Open;
use crate::tunnel::Tunnel;

/// Pieces of an answer that wait for an HTTP/2 client; one is at most 64 KiB here.
const PIECES_AHEAD_MAX: usize = 2;

/// The body of an answer.
pub(crate) enum Reply {
    /// Nothing, or the router's own text.
    Whole(Option<Bytes>),
    /// Passed on by the task of the client's connection.
    Streamed(Streaming),
    /// Passed on by a task of its own: a stream of several on a connection is not polled while its client reads nothing.
    Piped { pieces: mpsc::Receiver<Piece>, ended: bool },
    /// Nothing, and then the connection is another one.
    Switched(Box<Tunnel>),
}

/// Where an instance's answer comes from.
pub(crate) enum Source {
    /// With the connection, which nobody else drives.
    Http1(Box<Upstream>),
    Http2(Incoming),
}

/// A body in progress, and what it occupies.
pub(crate) struct Streaming {
    /// `None` once the body has ended.
    source: Option<Source>,
    /// `None` once the body has ended.
    held: Option<(Slot, Open)>,
    limits: Limits,
    moved: Instant,
    upload: Option<Arc<Progress>>,
    /// The client was told that no more comes.
    told: bool,
}

pub(crate) enum Piece {
    Frame(Result<Frame<Bytes>, BoxError>),
    End,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the answer took too long")]
    Late,
    #[error("the answer was not complete")]
    Incomplete,
}

impl Reply {
    /// Pass on an instance's answer.
    pub(crate) fn new(
        source: Source,
        held: (Slot, Open),
        limits: Limits,
        upload: Option<Arc<Progress>>,
        now: Instant,
    ) -> Self {
        let multiplexed = held.1.is_multiplexed();
        let ended = source.is_end_stream();
        let (source, held) = (Some(source), Some(held));
        let mut streaming = Streaming { source, held, limits, moved: now, upload, told: false };
        if ended {
            streaming.end(now);
            return Self::Whole(None);
        }
        streaming.watch();
        if !multiplexed {
            return Self::Streamed(streaming);
        }
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD_MAX);
        tokio::spawn(streaming.pipe(sender));
        Self::Piped { pieces, ended: false }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Switched(_) => Poll::Ready(None),
            Self::Streamed(streaming) => streaming.poll_frame(cx),
            Self::Piped { ended: true, .. } => Poll::Ready(None),
            Self::Piped { pieces, ended } => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Frame(frame)) => Poll::Ready(Some(frame)),
                Some(Piece::End) => {
                    *ended = true;
                    Poll::Ready(None)
                }
                None => {
                    *ended = true;
                    Poll::Ready(Some(Err(Broken::Incomplete.into())))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(text) => text.is_none(),
            Self::Switched(_) => true,
            Self::Streamed(streaming) => streaming.source.as_ref().is_none_or(Source::is_end_stream),
            Self::Piped { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Switched(_) => SizeHint::with_exact(0),
            Self::Streamed(streaming) => {
                streaming.source.as_ref().map_or(SizeHint::with_exact(0), Source::size_hint)
            }
            // The answer's own Content-Length says it.
            Self::Piped { .. } => SizeHint::default(),
        }
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Http1(connection) => {
                connection.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
            }
            Self::Http2(incoming) => {
                let frame = Pin::new(incoming).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_end_stream(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(connection) => connection.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.told {
            return Poll::Ready(None);
        }
        let Some(source) = &mut self.source else { return Poll::Ready(None) };
        let Poll::Ready(frame) = source.poll_frame(cx) else {
            ready!(self.poll_late(cx));
            return Poll::Ready(Some(self.break_off(grpc::DEADLINE_EXCEEDED, Broken::Late.into())));
        };
        if let (Some(Ok(frame)), Some((_, open))) = (&frame, &mut self.held)
            && let Some(trailers) = frame.trailers_ref()
            && open.is_call
        {
            open.call_ended(grpc::told_outcome(trailers).unwrap_or(grpc::UNKNOWN));
        }
        match &frame {
            Some(Ok(_)) if !source.is_end_stream() => self.touch(),
            Some(Err(_)) => {}
            // All of it has arrived, and so the connection is free.
            Some(Ok(_)) | None => self.end(Instant::now()),
        }
        Poll::Ready(frame.map(|frame| {
            frame.or_else(|error| {
                self.count_broken();
                self.break_off(grpc::UNAVAILABLE, error)
            })
        }))
    }

    /// Close the connection: the exchange cannot be completed. A gRPC call is told so by trailers, which end it.
    fn break_off(&mut self, status: u8, error: BoxError) -> Result<Frame<Bytes>, BoxError> {
        // A client that leaves ends what it sends, and with that the exchange.
        let left = self.upload.as_ref().is_some_and(|upload| upload.is_broken());
        if let Some((_, open)) = &mut self.held {
            self.told = open.is_call;
            open.call_ended(if left { grpc::CANCELLED } else { status });
        }
        self.abandon();
        if !self.told {
            return Err(error);
        }
        Ok(Frame::trailers(grpc::outcome(status, grpc::message(&error.to_string()))))
    }

    /// The instance has broken off, unless it was for the request's body.
    fn count_broken(&self) {
        let by_client = self.upload.as_ref().is_some_and(|upload| upload.is_broken());
        if let Some((_, open)) = self.held.as_ref().filter(|_| !by_client) {
            open.broken();
        }
    }

    /// Ready when the answer has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let moved = self.moved();
        match (self.limits.streaming(moved), &mut self.held) {
            (Some((at, _)), Some((_, open))) => open.poll_passed(at, cx),
            _ => Poll::Pending,
        }
    }

    /// When a byte last passed, either way.
    fn moved(&self) -> Instant {
        self.upload.as_ref().map_or(self.moved, |upload| upload.last_moved().max(self.moved))
    }

    fn touch(&mut self) {
        if self.limits.watch_idle() {
            self.moved = Instant::now();
            self.watch();
        }
    }

    fn watch(&self) {
        if let (Some((at, _)), Some((_, open))) = (self.limits.streaming(self.moved), &self.held) {
            open.watch(at);
        }
    }

    /// Everything has arrived: leave the connection to the next request.
    fn end(&mut self, now: Instant) {
        let source = self.source.take();
        let Some((slot, mut open)) = self.held.take() else { return };
        // A call that ends without telling its outcome.
        open.call_ended(grpc::UNKNOWN);
        if open.is_whole() {
            slot.served();
        }
        if let Some(Source::Http1(connection)) = source {
            slot.instance.checkin(connection, now);
        }
    }

    /// The exchange cannot be completed: close the connection.
    fn abandon(&mut self) {
        self.source = None;
        self.held = None;
    }

    /// Pass the body on, waiting for its client no longer than the limits allow.
    async fn pipe(mut self, pieces: mpsc::Sender<Piece>) {
        loop {
            let place = tokio::select! {
                place = pieces.reserve() => place,
                () = poll_fn(|cx| self.poll_late(cx)) => return,
            };
            let Ok(place) = place else { return };
            let frame = tokio::select! {
                frame = poll_fn(|cx| self.poll_frame(cx)) => frame,
                () = pieces.closed() => return,
            };
            match frame {
                Some(frame) => place.send(Piece::Frame(frame)),
                None => {
                    place.send(Piece::End);
                    return;
                }
            }
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.abandon();
    }
}
