//! A connection to an instance: one request at a time goes out, and its answer comes in, possibly at once.
//!
//! It has no task of its own: whoever uses it drives it, which saves two task switches for each request, and an idle one
//! costs a buffer. It must not know which request is worth repeating.
//!
//! ```text
//! idle ─begin─▶ sending, awaiting the head ─▶ receiving the body ─▶ idle again, or closed
//!                                          └▶ switched: the raw stream
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::net::TcpStream;

use super::framing::{Decoder, Encoder, Framing, Misfit};
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::{Malformed, heads};
use crate::body::{BoxError, Gate, RequestBody};

/// Why an exchange cannot be completed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the connection was closed before the answer was complete")]
    Closed,
    #[error("{0}")]
    Socket(#[source] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Of the request; the client's fault.
    #[error("{0}")]
    Request(BoxError),
    #[error("{0}")]
    Misfit(#[from] Misfit),
}

impl Fault {
    /// Another connection would not help.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Closed | Self::Socket(_))
    }

    /// What the instance sent is not HTTP.
    pub(crate) fn is_malformed(&self) -> bool {
        matches!(self, Self::Malformed(_))
    }
}

/// An HTTP/1 connection to an instance.
pub(crate) struct Upstream {
    stream: TcpStream,
    inbox: Inbox,
    outbox: Outbox,
    upload: Option<Upload>,
    /// Frames that went into the outbox while the socket had taken nothing: they can be put back.
    taken: Vec<Frame<Bytes>>,
    method: Method,
    gate: Option<Arc<Gate>>,
    answer: Decoder,
    /// Something has come since the request began.
    heard: bool,
    /// It may serve another request after this one.
    keep: bool,
}

/// A request's body on its way.
struct Upload {
    body: RequestBody,
    encoder: Encoder,
    /// All of it is in the outbox.
    ended: bool,
}

impl Upstream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            upload: None,
            taken: Vec::new(),
            method: Method::GET,
            gate: None,
            answer: Decoder::Done,
            heard: false,
            keep: true,
        }
    }

    /// Whether nothing has come since the last answer: neither the end nor something nobody asked for.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the instance has sent anything since the request began.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard
    }

    /// Whether the exchange is over and another one may begin.
    pub(crate) fn is_free(&self) -> bool {
        let over = self.answer.is_done() && self.upload.is_none();
        over && self.keep && self.outbox.is_empty() && self.inbox.bytes.is_empty()
    }

    /// Give back memory that an idle connection does not need.
    pub(crate) fn rest(&mut self) {
        self.inbox.rest();
        self.outbox.clear();
    }

    /// Begin an exchange, and take the request's body. `gate`: opened when the instance says that it wants the body.
    pub(crate) fn begin(&mut self, request: &mut Request<RequestBody>, gate: Option<Arc<Gate>>) {
        let framing = match request.body().size_hint().exact() {
            _ if request.body().is_empty() => Framing::Empty,
            Some(0) => Framing::Empty,
            Some(bytes) => Framing::Length(bytes),
            None => Framing::Chunked,
        };
        self.outbox.begin();
        heads::put_request(request, framing, self.outbox.text());
        self.method.clone_from(request.method());
        let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
        self.upload =
            (!body.is_empty()).then(|| Upload { body, encoder: Encoder::new(framing), ended: false });
        self.gate = gate;
        self.heard = false;
        self.keep = true;
    }

    /// After a fault: the body as it was, if the instance cannot have seen any of the request.
    pub(crate) fn take_unsent(&mut self) -> Option<RequestBody> {
        if self.outbox.is_touched() {
            return None;
        }
        Some(match self.upload.take() {
            Some(Upload { mut body, .. }) => {
                body.put_back(std::mem::take(&mut self.taken));
                body
            }
            None => RequestBody::Empty,
        })
    }

    /// Send what can be sent, and read up to the head of the answer. Interim answers are not told on.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Fault>> {
        self.send(cx)?;
        loop {
            if !self.inbox.bytes.is_empty()
                && let Some(head) = heads::take_answer(&mut self.inbox.bytes, &self.method)?
            {
                let status = head.response.status();
                if status == StatusCode::CONTINUE
                    && let Some(gate) = self.gate.take()
                {
                    gate.open();
                    self.send(cx)?;
                }
                if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                    continue;
                }
                self.answer = Decoder::new(head.framing);
                self.keep &= head.keep;
                return Poll::Ready(Ok(head.response));
            }
            ready!(self.poll_fill(cx))?;
        }
    }

    /// The next piece of the answer's body, `None` at its end. The request goes on meanwhile.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.upload.is_some() || !self.outbox.is_empty() {
            self.send(cx)?;
        }
        loop {
            if let Some(frame) = self.answer.decode(&mut self.inbox.bytes).map_err(Fault::from)? {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.answer.is_done() {
                return Poll::Ready(None);
            }
            match ready!(self.poll_fill(cx)) {
                Ok(()) => {}
                Err(Fault::Closed) if self.answer.close() => return Poll::Ready(None),
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
        }
    }

    /// Whether the answer's body has come to its end.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.answer.is_done()
    }

    /// What is still to come of the answer's body.
    pub(crate) fn size_hint(&self) -> SizeHint {
        self.answer.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// After the head of an answer that switches protocols: the raw stream, and what came with the head.
    pub(crate) fn into_switched(self) -> (TcpStream, BytesMut) {
        (self.stream, self.inbox.bytes)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match ready!(self.inbox.poll_fill(Pin::new(&mut self.stream), cx)) {
            Ok(0) => {
                self.keep = false;
                Poll::Ready(Err(Fault::Closed))
            }
            Ok(_) => {
                self.heard = true;
                Poll::Ready(Ok(()))
            }
            Err(error) => Poll::Ready(Err(Fault::Socket(error))),
        }
    }

    /// Send what can be sent of the request.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        loop {
            self.gather(cx)?;
            if self.outbox.is_empty() {
                return Ok(());
            }
            match self.outbox.poll_send(Pin::new(&mut self.stream), cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {
                    self.taken.clear();
                    if self.upload.as_ref().is_none_or(|upload| upload.ended) {
                        self.upload = None;
                        return Ok(());
                    }
                }
                Poll::Ready(Err(error)) if !self.outbox.is_touched() => return Err(Fault::Socket(error)),
                Poll::Ready(Err(_)) => {
                    // It wants no more of the request, and may have said why.
                    self.upload = None;
                    self.outbox.clear();
                    self.keep = false;
                }
            }
        }
    }

    /// Put into the outbox what there is of the request's body and fits.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while let Some(Upload { body, encoder, ended: ended @ false }) = &mut self.upload
            && self.outbox.has_room()
        {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { break };
            *ended = match frame {
                Some(frame) => {
                    let frame = frame.map_err(Fault::Request)?;
                    if !self.outbox.is_touched() {
                        self.taken.push(copy(&frame));
                    }
                    encoder.encode(frame, &mut self.outbox)?;
                    encoder.is_full() || body.is_end_stream()
                }
                None => true,
            };
            if *ended {
                encoder.end(&mut self.outbox)?;
            }
        }
        Ok(())
    }
}

fn copy(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, trailers) => Frame::trailers(trailers.cloned().unwrap_or_default()),
    }
}
