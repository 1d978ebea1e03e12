//! Sending one request to one instance, up to the head of its answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::client::conn::TrySendError;

use super::{Exchange, broken_body, within};
use crate::answer::Answer;
use crate::body::RequestBody;
use crate::deadline::Limit;
use crate::instance::{ConnectError, Instance};
use crate::reply::Source;

/// How long an instance may be silent about `Expect: 100-continue` before it gets the body all the same, as with curl.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What became of sending a request.
pub(super) enum Sent {
    Answered(Response<Source>),
    /// The instance has seen nothing of it, and it may be sent again. With the answer to give if it is not.
    Nothing(Answer),
    Lost(Answer),
}

/// Why there is no head of an answer.
enum Silence<E> {
    Late(Limit),
    Failed(E),
}

impl Exchange {
    /// Send the request, which must be there.
    pub(super) async fn send(&mut self, instance: &Arc<Instance>) -> Sent {
        if self.routed.target.backend.h2c {
            self.send_http2(instance).await
        } else {
            self.send_http1(instance).await
        }
    }

    async fn send_http1(&mut self, instance: &Instance) -> Sent {
        let mut pooled = instance.checkout(Instant::now());
        loop {
            let (mut connection, reused) = match pooled.take() {
                Some(connection) => (connection, true),
                None => {
                    let dialer = self.open.session.dialer.clone();
                    // Boxed, as is every rare wait, to keep the future of a request small.
                    let connecting = Box::pin(instance.connect(&dialer));
                    match within(&mut self.open, self.limits.total(), connecting).await {
                        Some(Ok(connection)) => (connection, false),
                        Some(Err(error)) => return Sent::Nothing(self.unreachable(&error)),
                        None => return Sent::Lost(self.late(Limit::Total)),
                    }
                }
            };
            let request = self.request.as_mut().expect("what was not sent is there");
            let repeatable = request.method().is_idempotent() && request.body().is_empty();
            connection.begin(request, self.gate.clone());
            let fault = match self.await_head(|cx| connection.poll_head(cx)).await {
                Ok(response) => return Sent::Answered(response.map(|()| Source::Http1(connection))),
                Err(Silence::Late(limit)) => return Sent::Lost(self.late(limit)),
                Err(Silence::Failed(fault)) => fault,
            };
            if fault.is_final() {
                return Sent::Lost(self.lost(&fault, fault.is_malformed()));
            }
            match (connection.take_unsent(), &mut self.request) {
                (Some(body), Some(request)) => *request.body_mut() = body,
                // The instance may have closed the connection just when it was used again, and a program says of no request
                // that it was not read. This one does no more when it is received twice (RFC 9110, 9.2.2).
                (None, Some(_)) if repeatable && reused && !connection.has_heard() => {}
                _ => return Sent::Lost(self.lost(&fault, false)),
            }
            // A pooled connection was dead already: once more, on a new one.
            if !reused {
                return Sent::Nothing(self.lost(&fault, false));
            }
        }
    }

    async fn send_http2(&mut self, instance: &Instance) -> Sent {
        let mut sender = match instance.open_multiplexed() {
            Some(sender) => sender,
            None => {
                let dialer = self.open.session.dialer.clone();
                let connecting = Box::pin(instance.multiplexed(&dialer));
                match within(&mut self.open, self.limits.total(), connecting).await {
                    Some(Ok(sender)) => sender,
                    Some(Err(error)) => return Sent::Nothing(self.unreachable(&error)),
                    None => return Sent::Lost(self.late(Limit::Total)),
                }
            }
        };
        let request = self.request.take().expect("what was not sent is there");
        let mut answering = pin!(sender.try_send_request(request));
        match self.await_head(|cx| answering.as_mut().poll(cx)).await {
            Ok(response) => Sent::Answered(response.map(Source::Http2)),
            Err(Silence::Late(limit)) => Sent::Lost(self.late(limit)),
            Err(Silence::Failed(error)) => self.recover(error),
        }
    }

    /// After a failure: keep the request if it may be sent again.
    fn recover(&mut self, mut error: TrySendError<Request<RequestBody>>) -> Sent {
        self.request = error.take_message();
        let error = error.into_error();
        let answer = self.lost(&error, error.is_parse());
        if self.request.is_some() { Sent::Nothing(answer) } else { Sent::Lost(answer) }
    }

    /// Drive the exchange until the answer begins.
    async fn await_head<T, E>(
        &mut self,
        mut poll_head: impl FnMut(&mut Context<'_>) -> Poll<Result<T, E>>,
    ) -> Result<T, Silence<E>> {
        let sent = Instant::now();
        poll_fn(|cx| {
            if let Poll::Ready(answer) = poll_head(cx) {
                return Poll::Ready(answer.map_err(Silence::Failed));
            }
            let moved = self.upload.as_ref().map_or(sent, |upload| upload.last_moved().max(sent));
            let limit = self.limits.awaiting(sent, moved);
            if let Some(gate) = self.gate.as_ref().filter(|gate| !gate.is_open()) {
                let at = limit.map_or(sent + CONTINUE_WAIT, |(at, _)| at.min(sent + CONTINUE_WAIT));
                ready!(self.open.poll_passed(at, cx));
                gate.open();
            }
            let Some((at, limit)) = limit else { return Poll::Pending };
            self.open.poll_passed(at, cx).map(|()| Err(Silence::Late(limit)))
        })
        .await
    }

    fn unreachable(&self, error: &ConnectError) -> Answer {
        Answer::unreachable(&self.routed.revision.key, error)
    }

    fn lost(&self, error: &dyn std::error::Error, malformed: bool) -> Answer {
        if self.upload.as_ref().is_some_and(|upload| upload.is_broken()) {
            return broken_body();
        }
        let revision = &self.routed.revision.key;
        if malformed { Answer::malformed(revision, &error) } else { Answer::lost(revision, &error) }
    }
}
