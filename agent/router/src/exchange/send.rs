//! Sending one request to one instance, up to the head of its answer.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::{Exchange, within};
use crate::answer::Answer;
use crate::body::RequestBody;
use crate::deadline::Limit;
use crate::instance::{ConnectError, Connection, Instance};

/// From this idle time on the instance may be closing a connection just when it is used again: programs close after a
/// second or more. A request that may be repeated is then copied before it is sent, which below this costs nothing.
const SUSPECT_AFTER: Duration = Duration::from_millis(500);

/// How long an instance may be silent about `Expect: 100-continue` before it gets the body all the same, as with curl.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What became of sending a request.
pub(super) enum Sent {
    /// With the connection it came on, if that is HTTP/1.
    Answered(Response<Incoming>, Option<Connection>),
    /// The instance has seen nothing of it, and it may be sent again. With the answer to give if it is not.
    Nothing(Answer),
    Lost(Answer),
}

/// Why there is no head of an answer.
enum Silence {
    Late(Limit),
    Failed(Box<TrySendError<Request<RequestBody>>>),
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
        let mut pooled = poll_fn(|cx| Poll::Ready(instance.checkout(Instant::now(), cx))).await;
        loop {
            let (mut connection, idle) = match pooled.take() {
                Some((connection, idle)) => (connection, Some(idle)),
                None => {
                    let dialer = self.open.session.dialer.clone();
                    // Boxed, as is every rare wait, to keep the future of a request small.
                    let connecting = Box::pin(instance.connect(&dialer));
                    match within(&mut self.open, self.limits.total(), connecting).await {
                        Some(Ok(connection)) => (connection, None),
                        Some(Err(error)) => return Sent::Nothing(self.unreachable(&error)),
                        None => return Sent::Lost(self.late(Limit::Total)),
                    }
                }
            };
            let request = self.request.take().expect("what was not sent is there");
            if idle.is_some_and(|idle| idle >= SUSPECT_AFTER) {
                self.request = repeatable(&request);
            }
            let answering = connection.sender.try_send_request(request);
            let error = match self.await_head(Some(&mut connection), answering).await {
                Ok(response) => return Sent::Answered(response, Some(connection)),
                Err(Silence::Late(limit)) => return Sent::Lost(self.late(limit)),
                Err(Silence::Failed(error)) => self.recover(*error),
            };
            match self.request {
                // The pooled connection was dead already: once more, on a new one.
                Some(_) if idle.is_some() => {}
                Some(_) => return Sent::Nothing(self.lost(&error)),
                None => return Sent::Lost(self.lost(&error)),
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
        let answering = sender.try_send_request(request);
        match self.await_head(None, answering).await {
            Ok(response) => Sent::Answered(response, None),
            Err(Silence::Late(limit)) => Sent::Lost(self.late(limit)),
            Err(Silence::Failed(error)) => {
                let error = self.recover(*error);
                let answer = self.lost(&error);
                if self.request.is_some() { Sent::Nothing(answer) } else { Sent::Lost(answer) }
            }
        }
    }

    /// After a failure: keep the request if it may be sent again.
    fn recover(&mut self, mut error: TrySendError<Request<RequestBody>>) -> hyper::Error {
        match error.take_message() {
            Some(unsent) => self.request = Some(unsent),
            // An instance that answers nonsense has seen the request.
            None if error.error().is_parse() => self.request = None,
            None => {}
        }
        error.into_error()
    }

    /// Drive the exchange until the answer begins. `connection`: HTTP/1, which nobody else drives.
    async fn await_head(
        &mut self,
        mut connection: Option<&mut Connection>,
        answering: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
    ) -> Result<Response<Incoming>, Silence> {
        let mut answering = pin!(answering);
        let sent = Instant::now();
        poll_fn(|cx| {
            if let Some(connection) = &mut connection {
                connection.drive(cx);
            }
            if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(|error| Silence::Failed(Box::new(error))));
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

    fn lost(&self, error: &hyper::Error) -> Answer {
        if self.upload.as_ref().is_some_and(|upload| upload.is_broken()) {
            return Answer::bad_request("the request's body is malformed or was not sent to its end");
        }
        let revision = &self.routed.revision.key;
        if error.is_parse() { Answer::malformed(revision, error) } else { Answer::lost(revision, error) }
    }
}

/// A copy of a request that does no more when it is received twice (RFC 9110, 9.2.2) and has no body.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
