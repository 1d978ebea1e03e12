//! A client's connection: its requests one after the other, each with an answer that may begin before the request has ended.
//!
//! The connection's own task reads heads and writes answers; whoever takes a request's body reads it, from the same socket,
//! and so the reading side stands behind a lock that nobody ever waits for. It must not know what is answered, nor how long
//! anything may take.
//!
//! ```text
//! awaiting a head ─▶ answering (the body arrives meanwhile) ─▶ awaiting the next, or leaving
//!                                                          └▶ switched: the raw stream
//! ```

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version, response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Malformed;
use super::framing::{Decoder, Encoder, Framing};
use super::heads::{self, Onward, RequestHead};
use super::inbox::Inbox;
use super::outbox::Outbox;
use crate::body::BoxError;
use crate::stream::{Lookout, Stream};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's HTTP/1 connection.
pub(crate) struct Downstream {
    wire: Arc<Mutex<Wire>>,
    outbox: Outbox,
}

/// What the connection's task shares with whoever reads a request's body.
struct Wire {
    stream: Stream,
    inbox: Inbox,
    body: Decoder,
    /// What is still to be written of the invitation to send a body. `None`: there is none, or it is out.
    invitation: Option<&'static [u8]>,
    /// The stream may hold bytes back that it took, as TLS does when its socket is full.
    unflushed: bool,
    /// Whoever reads the body waits for the socket, as of the last look for the client's end, and so sees that.
    awaited: bool,
    /// Made when nobody reads what comes.
    lookout: Option<Lookout>,
    /// The connection's task, which looks for the client's end when whoever reads the body does not.
    task: Option<Waker>,
}

/// The body of a request that is still arriving.
pub(crate) struct Arriving {
    wire: Arc<Mutex<Wire>>,
    remaining: Option<u64>,
    ended: bool,
    /// The client waits to be invited.
    uninvited: bool,
}

/// An answer being sent.
pub(crate) struct Sending<B> {
    /// `None` once all of it is in the outbox.
    body: Option<B>,
    encoder: Encoder,
    takes_trailers: bool,
    onward: Onward,
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Next,
    Close,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the client closed the connection")]
    Left,
    #[error("{0}")]
    Socket(#[source] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Answer(BoxError),
}

impl Downstream {
    /// `early`: what has come already.
    pub(crate) fn new(stream: Stream, inbox: Inbox) -> Self {
        let wire = Wire {
            stream,
            inbox,
            body: Decoder::Done,
            invitation: None,
            unflushed: false,
            awaited: false,
            lookout: None,
            task: None,
        };
        Self { wire: Arc::new(Mutex::new(wire)), outbox: Outbox::default() }
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    /// The next request. `None`: the client asks for nothing more.
    pub(crate) fn poll_request(&self, cx: &mut Context<'_>) -> Poll<Result<Option<RequestHead>, Broken>> {
        let wire = &mut *self.wire();
        loop {
            if !wire.inbox.bytes.is_empty()
                && let Some(head) = heads::take_request(&mut wire.inbox.bytes)?
            {
                wire.body = Decoder::new(head.framing);
                wire.awaited = false;
                return Poll::Ready(Ok(Some(head)));
            }
            wire.lookout = None;
            match ready!(wire.inbox.poll_fill(Pin::new(&mut wire.stream), cx)) {
                Ok(0) if wire.inbox.bytes.is_empty() => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(Broken::Left)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Broken::Socket(error))),
            }
        }
    }

    /// Whether a request has begun to arrive.
    pub(crate) fn has_heard(&self) -> bool {
        !self.wire().inbox.bytes.is_empty()
    }

    /// The body of the request whose head was just taken.
    pub(crate) fn arriving(&self, head: &RequestHead) -> Option<Arriving> {
        let remaining = match head.framing {
            Framing::Empty => return None,
            Framing::Length(bytes) => Some(bytes),
            Framing::Chunked | Framing::UntilClose => None,
        };
        let wire = Arc::clone(&self.wire);
        Some(Arriving { wire, remaining, ended: false, uninvited: head.expects_continue })
    }

    /// Ready when the client has left, whether or not what it has sent was read.
    pub(crate) fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        let wire = &mut *self.wire();
        if !wire.body.is_done() {
            match &mut wire.task {
                Some(task) => task.clone_from(cx.waker()),
                None => wire.task = Some(cx.waker().clone()),
            }
        }
        if wire.body.remaining() == Some(wire.inbox.bytes.len() as u64) {
            // All has come that it has to send for now.
            match ready!(wire.inbox.poll_fill(Pin::new(&mut wire.stream), cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                // The next request, which has time.
                Ok(_) => {}
            }
        } else if std::mem::take(&mut wire.awaited) && Arc::strong_count(&self.wire) > 1 {
            return Poll::Pending;
        }
        wire.poll_end(cx)
    }

    /// Begin to send an answer to a request of this head. `last`: no other request is served after it.
    pub(crate) fn begin<B: Body>(
        &mut self,
        parts: response::Parts,
        body: B,
        asked: &Asked,
        last: bool,
    ) -> Sending<B> {
        let bodyless = asked.method == Method::HEAD || heads::is_bodyless(parts.status);
        let framing = match body.size_hint().exact() {
            Some(0) => Framing::Empty,
            Some(bytes) => Framing::Length(bytes),
            None if asked.version == Version::HTTP_11 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        let framing = (!bodyless).then_some(framing);
        let keep = asked.keep && !last && framing != Some(Framing::UntilClose) && !self.is_unread();
        let onward = match (keep, asked.version) {
            _ if parts.status == StatusCode::SWITCHING_PROTOCOLS => Onward::Switched,
            (true, Version::HTTP_11) => Onward::Keep,
            (true, _) => Onward::KeepSaid,
            (false, _) => Onward::Close,
        };
        let invitation = self.wire().invitation.take();
        if let Some(invitation) = invitation.filter(|rest| rest.len() < CONTINUE.len()) {
            self.outbox.text().extend_from_slice(invitation);
        }
        heads::put_answer(parts.status, &parts.headers, framing, onward, self.outbox.text());
        let body = (!bodyless && framing != Some(Framing::Empty)).then_some(body);
        let encoder = Encoder::new(framing.unwrap_or(Framing::Empty));
        Sending { body, encoder, takes_trailers: asked.takes_trailers, onward }
    }

    /// Whether the request has more body to come that nobody reads. What is here of it is thrown away.
    fn is_unread(&self) -> bool {
        let mut wire = self.wire();
        !wire.body.is_done() && Arc::strong_count(&self.wire) == 1 && !wire.skip_arrived()
    }

    /// Send what there is of an answer. Ready at its end.
    pub(crate) fn poll_send<B>(
        &mut self,
        sending: &mut Sending<B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome, Broken>>
    where
        B: Body<Data = Bytes, Error = BoxError> + Unpin,
    {
        loop {
            sending.gather(&mut self.outbox, cx)?;
            let moved = {
                let wire = &mut *lock(&self.wire);
                let written = !self.outbox.is_empty();
                if written {
                    wire.unflushed = true;
                    let sent = ready!(self.outbox.poll_send(Pin::new(&mut wire.stream), cx));
                    sent.map_err(Broken::Socket)?;
                }
                ready!(wire.poll_flush(cx)).map_err(Broken::Socket)?;
                written
            };
            if !moved && sending.body.is_some() {
                return Poll::Pending;
            }
            if sending.body.is_none() && self.outbox.is_empty() {
                self.outbox.clear();
                let keep = matches!(sending.onward, Onward::Keep | Onward::KeepSaid) && !self.is_unread();
                let mut wire = self.wire();
                wire.inbox.rest();
                let next = keep && wire.body.is_done();
                return Poll::Ready(Ok(if next { Outcome::Next } else { Outcome::Close }));
            }
        }
    }

    /// Send some last bytes, say that nothing more comes, and let the client read it all. What it still sends is thrown away
    /// until it ends, however much it is: closing a connection with unread bytes would take the answer away from its client.
    pub(crate) async fn leave(self, words: &[u8]) -> io::Result<()> {
        let Some(mut wire) = Arc::into_inner(self.wire).and_then(|wire| wire.into_inner().ok()) else {
            return Ok(());
        };
        wire.stream.write_all(words).await?;
        wire.stream.shutdown().await?;
        loop {
            wire.inbox.bytes.clear();
            let read =
                std::future::poll_fn(|cx| wire.inbox.poll_fill(Pin::new(&mut wire.stream), cx)).await?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// After an answer that switches protocols: the raw stream, and what has come on it. `None` if its body is still read.
    pub(crate) fn into_switched(self) -> Option<(Stream, BytesMut)> {
        let wire = Arc::into_inner(self.wire)?.into_inner().ok()?;
        Some((wire.stream, wire.inbox.bytes))
    }
}

/// What an answer has to know of its request.
pub(crate) struct Asked {
    method: Method,
    version: Version,
    keep: bool,
    takes_trailers: bool,
}

impl RequestHead {
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            method: self.request.method().clone(),
            version: self.request.version(),
            keep: self.keep,
            takes_trailers: self.takes_trailers,
        }
    }
}

impl<B> Sending<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    /// Put into the outbox what there is of the body and fits.
    fn gather(&mut self, outbox: &mut Outbox, cx: &mut Context<'_>) -> Result<(), Broken> {
        while let Some(body) = &mut self.body
            && outbox.has_room()
        {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { break };
            let ended = match frame {
                Some(frame) => {
                    let frame = frame.map_err(Broken::Answer)?;
                    if frame.is_data() || self.takes_trailers {
                        self.encoder.encode(frame, outbox).map_err(|misfit| Broken::Answer(misfit.into()))?;
                    }
                    self.encoder.is_full() || body.is_end_stream()
                }
                None => true,
            };
            if ended {
                self.encoder.end(outbox).map_err(|misfit| Broken::Answer(misfit.into()))?;
                self.body = None;
            }
        }
        Ok(())
    }
}

impl Wire {
    /// Throw away what has come of a body that nobody reads. Returns whether that was all of it.
    fn skip_arrived(&mut self) -> bool {
        while !self.body.is_done() {
            match self.body.decode(&mut self.inbox.bytes) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        self.body.is_done()
    }

    fn poll_invite(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(invitation) = &mut self.invitation else { return Poll::Ready(Ok(())) };
        while !invitation.is_empty() {
            self.unflushed = true;
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, invitation))?;
            *invitation = &invitation[count..];
        }
        ready!(self.poll_flush(cx))?;
        self.invitation = None;
        Poll::Ready(Ok(()))
    }

    /// Send what the stream holds back, which it does not do of itself.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Broken>> {
        // What does not go out now goes before the answer.
        if let Poll::Ready(Err(error)) = self.poll_invite(cx) {
            return Poll::Ready(Err(Broken::Socket(error)));
        }
        loop {
            if let Some(frame) = self.body.decode(&mut self.inbox.bytes)? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if self.body.is_done() {
                return Poll::Ready(Ok(None));
            }
            let filled = self.inbox.poll_fill(Pin::new(&mut self.stream), cx);
            self.awaited = filled.is_pending();
            match ready!(filled) {
                Ok(0) => return Poll::Ready(Err(Broken::Left)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Broken::Socket(error))),
            }
        }
    }

    /// Ready when the client sends no more, without reading what it has sent.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.lookout.is_none() {
            match Lookout::new(&self.stream) {
                Ok(lookout) => self.lookout = Some(lookout),
                Err(error) => tracing::debug!(%error, "cannot see whether a client leaves"),
            }
        }
        self.lookout.as_ref().map_or(Poll::Pending, |lookout| lookout.poll_end(cx))
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let mut wire = lock(&this.wire);
        if std::mem::take(&mut this.uninvited) && wire.inbox.bytes.is_empty() {
            wire.invitation = Some(CONTINUE);
        }
        let frame = ready!(wire.poll_frame(cx));
        this.ended = !matches!(frame, Ok(Some(_))) || wire.body.is_done();
        this.remaining = wire.body.remaining();
        // Another task reads: from now on it may be this one's turn to see the client's end.
        if let Some(task) = wire.task.take_if(|task| this.ended || !task.will_wake(cx.waker())) {
            task.wake();
        }
        Poll::Ready(frame.map_err(BoxError::from).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().expect("no panic under this lock")
}
