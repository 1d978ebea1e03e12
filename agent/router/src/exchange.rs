//! One request: an instance is found for it or it waits for one, it is sent, and the instance's answer is passed on.
//!
//! Runs in the task of the client's connection, and drives the connection to the instance itself. It is cancelled by being
//! dropped, which happens when the client leaves. It must not know how hosts lead to revisions.

use std::future::{Future, pending, poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body;

use crate::answer::Answer;
use crate::body::{ClientBody, Gate, Progress, RequestBody};
use crate::deadline::{Limit, Limits};
use crate::grpc;
use crate::headers::{self, Found, Hop};
use crate::instance::Instance;
use crate::reply::{Reply, Source};
use crate::revision::{Admission, Denial, Release, Slot, Waiter};
use crate::sample::Refused;
use crate::session::{Open, Routed};
use crate::tunnel::Tunnel;

mod send;

use send::Sent;

/// How often a request is given to an instance again of which that instance has seen nothing.
const RETRIES_MAX: u32 = 3;

/// Pause before a request is given to the very instance that just refused it: the table may be about to change.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// How often a request is drawn again whose revision left the table before it was sent. Each time takes another table, and so this
/// is many route changes in the time that a request may take.
const REDRAWS_MAX: u32 = 16;

/// How long a request is held when its revision has no limit: the largest `timeoutSeconds` there is.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// One request of one client.
struct Exchange {
    routed: Routed,
    open: Open,
    start: Instant,
    limits: Limits,
    /// As the instance gets it. `None` once an instance may have seen something of it.
    request: Option<Request<RequestBody>>,
    /// The client asked to switch protocols.
    upgrade: bool,
    /// Closed until the instance wants the body, if the client asked.
    gate: Option<Arc<Gate>>,
    upload: Option<Arc<Progress>>,
    /// It waited for a first instance.
    release: Option<Release>,
}

/// An answer whose head has come, and what its request occupies.
struct Answered {
    response: Response<Source>,
    slot: Slot,
}

/// Answer a request. What outlives a wait stands in one place, the exchange, so that the future is small.
pub(crate) fn serve(
    open: Open,
    routed: Result<Routed, Answer>,
    request: Request<ClientBody>,
) -> impl Future<Output = Response<Reply>> + use<> {
    let is_call = open.is_call;
    match routed.and_then(|routed| Exchange::prepare(open, routed, request)) {
        Err(answer) => Either::Left(ready(own(answer, is_call))),
        Ok(mut exchange) => Either::Right(async move {
            match exchange.run().await {
                Ok(answered) => exchange.answer(answered),
                Err(answer) => exchange.refuse(answer),
            }
        }),
    }
}

impl Exchange {
    /// Turn what the client sent into what the instance gets.
    fn prepare(mut open: Open, routed: Routed, mut request: Request<ClientBody>) -> Result<Self, Answer> {
        let start = Instant::now();
        let backend = &routed.target.backend;
        let found = Found::in_headers(request.headers());
        if let Some(probe) = found.probe(request.headers()) {
            return Err(Answer::to_probe(probe, &routed.revision.key, backend));
        }
        let own_ms = if open.is_call { grpc::timeout_ms(request.headers()) } else { None };
        let limits = Limits::new(start, backend, own_ms);
        let to_http2 = backend.h2c;
        let version = request.version();
        let (authority, forwarded) = (&routed.authority, &routed.forwarded);
        let hop = Hop { client: &open.session.client, authority, forwarded };
        let wish = headers::prepare_request(request.headers_mut(), found, version, to_http2, hop);
        if routed.default_route.is_some() {
            headers::set_default_route(request.headers_mut(), routed.default_route);
        }
        let upgrade = wish.upgrade.is_some();
        let gate = (wish.expects_continue && !request.body().is_end_stream()).then(Arc::<Gate>::default);
        let (mut parts, incoming) = request.into_parts();
        parts.version = if to_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        parts.uri = target(parts.uri, to_http2.then_some(authority))?;
        parts.extensions.clear();
        let body = RequestBody::new(incoming, start, gate.clone());
        let upload = body.progress();
        let request = Request::from_parts(parts, body);
        open.visit(&routed.revision, start);
        Ok(Self { routed, open, start, limits, request: Some(request), upgrade, gate, upload, release: None })
    }

    async fn run(&mut self) -> Result<Answered, Answer> {
        let mut retries = 0;
        let mut failed: Option<Arc<Instance>> = None;
        loop {
            let slot = self.admit(failed.as_ref()).await?;
            if failed.is_some_and(|failed| Arc::ptr_eq(&failed, &slot.instance)) {
                Box::pin(tokio::time::sleep(RETRY_PAUSE)).await;
            }
            self.open.sent(Instant::now());
            match self.send(&slot.instance).await {
                Sent::Answered(response) => {
                    if let Some(release) = &self.release {
                        self.routed.revision.answered(release);
                    }
                    return Ok(Answered { response, slot });
                }
                Sent::Nothing(_) if retries < RETRIES_MAX => {
                    self.open.returned();
                    retries += 1;
                    failed = Some(Arc::clone(&slot.instance));
                }
                Sent::Nothing(answer) | Sent::Lost(answer) => return Err(answer),
            }
        }
    }

    /// Find an instance, or wait for one: of the revision it was drawn for, or if that left the table, of what the host leads to
    /// by then.
    async fn admit(&mut self, avoid: Option<&Arc<Instance>>) -> Result<Slot, Answer> {
        let mut redraws = 0;
        loop {
            let Routed { revision, target, .. } = &self.routed;
            let bytes = || self.request.as_ref().map_or(0, held_bytes);
            let denial = match revision.admit(target, avoid, bytes) {
                Admission::Go(slot) => {
                    self.release = slot.release();
                    return Ok(slot);
                }
                Admission::Denied(denial) => denial,
                Admission::Wait(waiter) => match Box::pin(self.wait(waiter)).await? {
                    Ok(slot) => return Ok(slot),
                    Err(denial) => denial,
                },
            };
            let revision = &self.routed.revision;
            match denial {
                Denial::Refused(refusal) => return Err(Answer::refused(&revision.key, refusal)),
                Denial::Removed if redraws < REDRAWS_MAX => self.redraw()?,
                Denial::Removed => {
                    revision.tally.refused(Refused::Unavailable);
                    return Err(Answer::removed(&revision.key));
                }
            }
            redraws += 1;
        }
    }

    /// Draw again, by the table in force. Nothing of the request was sent yet.
    fn redraw(&mut self) -> Result<(), Answer> {
        let request = self.request.as_mut().expect("what was not sent is there");
        self.routed = self.open.session.reroute(&self.routed)?;
        let backend = &self.routed.target.backend;
        let own_ms = if self.open.is_call { grpc::timeout_ms(request.headers()) } else { None };
        self.limits = Limits::new(self.start, backend, own_ms);
        let (headers, default_route) = (request.headers_mut(), self.routed.default_route);
        headers::set_default_route(headers, default_route);
        let to_http2 = backend.h2c;
        if to_http2 != (request.version() == Version::HTTP_2) {
            let authority = &self.routed.authority;
            headers::change_protocol(request.headers_mut(), to_http2, authority);
            *request.version_mut() = if to_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
            *request.uri_mut() = target(request.uri().clone(), to_http2.then_some(authority))?;
            self.upgrade &= !to_http2;
            // HTTP/2 asks nobody whether the body is wanted.
            if let Some(gate) = self.gate.take_if(|_| to_http2) {
                gate.open();
            }
        }
        self.open.visit(&self.routed.revision, Instant::now());
        Ok(())
    }

    /// Wait for the turn; or it turns out that there will be none.
    async fn wait(&mut self, mut waiter: Waiter) -> Result<Result<Slot, Denial>, Answer> {
        let end = self.limits.total().unwrap_or(self.start + HOLD_MAX);
        let granted = pin!(waiter.granted());
        let reading = pin!(async {
            if let Some(request) = &mut self.request
                && !request.body_mut().read_ahead().await
            {
                return;
            }
            pending().await
        });
        let turn = within(&mut self.open, Some(end), select(granted, reading)).await;
        match turn {
            Some(Either::Left((Ok((slot, release)), _))) => {
                self.release = release;
                Ok(Ok(slot))
            }
            Some(Either::Left((Err(denial), _))) => Ok(Err(denial)),
            Some(Either::Right(((), _))) => Err(broken_body()),
            None => {
                self.routed.revision.tally.refused(Refused::ActivationTimeout);
                let limit_ms = end.saturating_duration_since(self.start).as_millis() as u64;
                let awaits = self.routed.revision.awaits();
                Err(Answer::activation_timeout(&self.routed.revision.key, limit_ms, awaits.as_ref()))
            }
        }
    }

    /// Give the router's own answer.
    fn refuse(mut self, answer: Answer) -> Response<Reply> {
        let now = Instant::now();
        self.open.answered(answer.status(), self.start, now);
        if answer.status().is_client_error() {
            self.routed.revision.tally.faults_of_clients.add(now.saturating_duration_since(self.start));
        }
        own(answer, self.open.is_call)
    }

    /// Pass an instance's answer on.
    fn answer(mut self, answered: Answered) -> Response<Reply> {
        let Answered { mut response, slot } = answered;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        headers::prepare_answer(response.status(), response.headers_mut());
        if switched {
            return self.switch(Answered { response, slot });
        }
        let now = Instant::now();
        if self.open.is_call {
            self.open.call_answered(&response, self.start, now);
        } else {
            self.open.answered(response.status(), self.start, now);
        }
        let (mut parts, source) = response.into_parts();
        parts.version = if self.open.is_multiplexed() { Version::HTTP_2 } else { Version::HTTP_11 };
        let reply = Reply::new(source, (slot, self.open), self.limits, self.upload, now);
        Response::from_parts(parts, reply)
    }

    /// The instance has switched protocols: the client's connection does too, once it has got this answer.
    fn switch(mut self, answered: Answered) -> Response<Reply> {
        let (parts, source) = answered.response.into_parts();
        let (true, Source::Http1(instance)) = (self.upgrade, source) else {
            let what = "it switched protocols without being asked to";
            let answer = Answer::lost(&self.routed.revision.key, &what);
            return self.refuse(answer);
        };
        self.open.answered(parts.status, self.start, Instant::now());
        let (stream, early) = instance.into_switched();
        let (slot, idle_ms) = (answered.slot, self.limits.idle_ms);
        let tunnel = Tunnel { instance: stream, early, slot, open: self.open, idle_ms };
        Response::from_parts(parts, Reply::Switched(Box::new(tunnel)))
    }

    fn late(&self, limit: Limit) -> Answer {
        // A gRPC client may say for as long as it likes that there is more to come.
        let waits_for_client =
            !self.open.is_call && self.upload.as_ref().is_some_and(|upload| upload.waits_for_client());
        let (reason, what, limit_ms) = match limit {
            Limit::Total => ("RequestTimeout", "did not answer", self.limits.total_ms),
            Limit::FirstByte => {
                ("ResponseStartTimeout", "did not begin to answer", self.limits.first_byte_ms)
            }
            Limit::Idle => ("IdleTimeout", "had nothing to receive or send", self.limits.idle_ms),
        };
        if waits_for_client {
            return Answer::slow_body(limit_ms);
        }
        Answer::late(&self.routed.revision.key, reason, what, limit_ms)
    }
}

/// The future's result, or `None` if `end` comes first.
async fn within<T>(open: &mut Open, end: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match (future.as_mut().poll(cx), end) {
        (Poll::Ready(result), _) => Poll::Ready(Some(result)),
        (Poll::Pending, Some(end)) => open.poll_passed(end, cx).map(|()| None),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

/// The request target as the instance gets it. `authority`: for HTTP/2, whose target is absolute.
fn target(uri: Uri, authority: Option<&HeaderValue>) -> Result<Uri, Answer> {
    if authority.is_none() && uri.authority().is_none() {
        return Ok(uri);
    }
    let path = uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    match authority {
        None => Ok(Uri::from(path)),
        Some(authority) => {
            let uri =
                Uri::builder().scheme(Scheme::HTTP).authority(authority.as_bytes()).path_and_query(path);
            uri.build().map_err(|_| Answer::bad_request("the request's target is malformed"))
        }
    }
}

/// What a request takes of memory while it is held: its head, and what may be read of its body.
fn held_bytes(request: &Request<RequestBody>) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    fields.sum::<usize>() + target + request.body().held_max() as usize
}

fn broken_body() -> Answer {
    Answer::bad_request("the request's body is malformed or was not sent to its end")
}

fn own(answer: Answer, is_call: bool) -> Response<Reply> {
    if is_call {
        return answer.into_grpc().map(|_| Reply::Whole(None));
    }
    answer.into_response().map(|text| Reply::Whole(Some(text)))
}
