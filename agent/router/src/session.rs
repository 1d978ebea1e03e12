//! One client's connection: the route it took last, how many of its requests are open, and when it has to end.
//!
//! An HTTP/1 connection has one request at a time, which runs in the connection's own task and leaves its deadline here, so
//! that one timer serves all of them. It must not know instances or what is done with a request.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version};

use crate::answer::Answer;
use crate::body::ClientBody;
use crate::deadline::Watchdog;
use crate::dialer::Dialer;
use crate::exchange;
use crate::grpc;
use crate::headers::{self, Client};
use crate::reply::Reply;
use crate::revision::{Revision, Target};
use crate::table::{Draw, Host, Routes};
use crate::tally::SentIn;

mod serve;

/// Value of `deadline_ms` while there is none.
const NO_DEADLINE: u64 = u64::MAX;

/// A client's connection.
pub(crate) struct Session {
    pub(crate) dialer: Dialer,
    pub(crate) client: Client,
    routes: Arc<Routes>,
    start: Instant,
    /// How long the connection may be without a request.
    quiet_max: Duration,
    /// Requests between their arrival and the end of their answers.
    open: AtomicUsize,
    /// When `open` last became 0, milliseconds after `start`.
    free_since_ms: AtomicU64,
    /// Of the open HTTP/1 request, milliseconds after `start`.
    deadline_ms: AtomicU64,
    /// It speaks another protocol now.
    switched: AtomicBool,
}

/// A request of a session, from its arrival to the end of its answer.
pub(crate) struct Open {
    pub(crate) session: Arc<Session>,
    /// One of several requests of a connection watches its time itself.
    watchdog: Option<Watchdog>,
    /// Once it is known where it goes.
    visit: Option<Visit>,
    /// It is a gRPC call, whose failures are told in gRPC's way.
    pub(crate) is_call: bool,
}

/// A request's stay at a revision, to be counted.
struct Visit {
    revision: Arc<Revision>,
    answered: bool,
    /// It was answered with a 5xx, or its call ended with what counts as one.
    failed: bool,
    /// Of a call that has been answered and whose outcome is still to come: how long the answer took. Counted with the outcome.
    took: Option<Duration>,
    /// While it is at an instance that has not begun to answer.
    sent: Option<SentIn>,
}

impl Visit {
    /// Whether it counts as a success.
    fn is_whole(&self) -> bool {
        self.answered && !self.failed && self.took.is_none()
    }
}

/// Where a request goes.
pub(crate) struct Routed {
    pub(crate) revision: Arc<Revision>,
    pub(crate) target: Arc<Target>,
    pub(crate) authority: HeaderValue,
    /// This hop's element of `Forwarded`.
    pub(crate) forwarded: HeaderValue,
    /// What the program is told of how it was chosen, on hosts with tags.
    pub(crate) default_route: Option<bool>,
    /// What its headers chose, if anything.
    tag: Option<Arc<str>>,
}

impl Session {
    pub(crate) fn new(routes: Arc<Routes>, dialer: Dialer, client: Client, quiet_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            client,
            routes,
            start: Instant::now(),
            quiet_max,
            open: AtomicUsize::new(0),
            free_since_ms: AtomicU64::new(0),
            deadline_ms: AtomicU64::new(NO_DEADLINE),
            switched: AtomicBool::new(false),
        })
    }

    /// Whether the connection has switched protocols, and so does not end with a request.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.switched.load(Ordering::Relaxed)
    }

    /// Since when the connection is without a request; `None`: it has one.
    pub(crate) fn free_since(&self) -> Option<Instant> {
        (self.open.load(Ordering::Relaxed) == 0).then(|| self.at(self.free_since_ms.load(Ordering::Relaxed)))
    }

    /// Where a request goes whose revision left the table: to whatever its host, or the tag that its headers chose, leads to now.
    pub(crate) fn reroute(&self, former: &Routed) -> Result<Routed, Answer> {
        let Routed { authority, forwarded, tag, .. } = former;
        let host = self.routes.host(&headers::host_name(text(authority)));
        routed(host.as_deref(), authority.clone(), forwarded.clone(), |host| host.draw_again(tag.as_deref()))
    }

    /// When the connection is late unless something happens.
    fn next_look(&self) -> Instant {
        if let Some(since) = self.free_since() {
            return since + self.quiet_max;
        }
        match self.deadline_ms.load(Ordering::Relaxed) {
            NO_DEADLINE => Instant::now() + self.quiet_max,
            deadline_ms => self.at(deadline_ms),
        }
    }

    fn at(&self, after_ms: u64) -> Instant {
        self.start + Duration::from_millis(after_ms)
    }
}

impl Open {
    fn new(session: &Arc<Session>, request: &Request<ClientBody>) -> Self {
        session.open.fetch_add(1, Ordering::Relaxed);
        let multiplexed = request.version() == Version::HTTP_2;
        let watchdog = multiplexed.then(Watchdog::default);
        let is_call = multiplexed && grpc::is_call(request.headers());
        Self { session: Arc::clone(session), watchdog, visit: None, is_call }
    }

    /// Whether the connection has other requests at the same time.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.watchdog.is_some()
    }

    /// The request is one of this revision's from now on, and no longer of the one it may have been of, which only held it.
    pub(crate) fn visit(&mut self, revision: &Arc<Revision>, now: Instant) {
        if let Some(Visit { revision: former, .. }) = &self.visit {
            former.tally.presence.leave(former.tally.micros(now));
        }
        let tally = &revision.tally;
        tally.presence.enter(tally.micros(now));
        tally.touch(now);
        self.visit = Some(Visit {
            revision: Arc::clone(revision),
            answered: false,
            failed: false,
            took: None,
            sent: None,
        });
    }

    /// An instance gets it, and is to answer.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.returned();
        if let Some(Visit { revision, sent, .. }) = &mut self.visit {
            *sent = Some(revision.tally.awaiting.begin(revision.tally.micros(now)));
        }
    }

    /// No instance has it any more, or its answer begins. Whether one had it until now.
    pub(crate) fn returned(&mut self) -> bool {
        let Some(Visit { revision, sent, .. }) = &mut self.visit else { return false };
        sent.take().map(|sent| revision.tally.awaiting.over(sent)).is_some()
    }

    /// Its answer begins.
    pub(crate) fn answered(&mut self, status: StatusCode, start: Instant, now: Instant) {
        self.returned();
        if let Some(visit) = &mut self.visit {
            visit.answered = true;
            visit.failed = status.is_server_error();
            visit.revision.tally.answered(status, now.saturating_duration_since(start));
        }
    }

    /// Whether its answer is a success so far as is known.
    pub(crate) fn is_whole(&self) -> bool {
        self.visit.as_ref().is_some_and(Visit::is_whole)
    }

    /// Its answer, which has begun, will not come to its end, by the instance's fault. Without effect on a call, which tells that itself.
    pub(crate) fn broken(&self) {
        if let Some(visit) = self.visit.as_ref().filter(|visit| visit.is_whole()) {
            visit.revision.tally.broken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call's answer begins, which is how the call ended or will tell that in its trailers.
    pub(crate) fn call_answered<B>(&mut self, response: &Response<B>, start: Instant, now: Instant) {
        self.returned();
        match grpc::told_outcome(response.headers()) {
            // No answer of gRPC's own.
            _ if response.status() != StatusCode::OK => self.answered(response.status(), start, now),
            Some(outcome) => self.answered(grpc::counted_as(outcome), start, now),
            None => {
                if let Some(visit) = &mut self.visit {
                    visit.answered = true;
                    visit.took = Some(now.saturating_duration_since(start));
                }
            }
        }
    }

    /// A call has ended. Without effect on any other request, and on a call of which that was said.
    pub(crate) fn call_ended(&mut self, outcome: u8) {
        if let Some(visit) = &mut self.visit
            && let Some(took) = visit.took.take()
        {
            let status = grpc::counted_as(outcome);
            visit.failed = status.is_server_error();
            visit.revision.tally.answered(status, took);
        }
    }

    /// Ready when `at` has passed.
    pub(crate) fn poll_passed(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.watchdog {
            Some(watchdog) => watchdog.poll_passed(at, cx),
            None if Instant::now() >= at => Poll::Ready(()),
            None => {
                self.watch(at);
                Poll::Pending
            }
        }
    }

    /// Have an HTTP/1 connection ended if this request is still open at `at` and cannot be polled, as its client reads nothing.
    pub(crate) fn watch(&self, at: Instant) {
        if self.watchdog.is_none() {
            let after = at.saturating_duration_since(self.session.start);
            self.session.deadline_ms.store(after.as_millis() as u64 + 1, Ordering::Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // The client of a call did not wait for its end.
        self.call_ended(grpc::CANCELLED);
        let was_sent = self.returned();
        let (session, now) = (&self.session, Instant::now());
        if let Some(Visit { revision, answered, .. }) = &self.visit {
            let tally = &revision.tally;
            tally.touch(now);
            tally.presence.leave(tally.micros(now));
            if !answered {
                tally.abandoned.fetch_add(1, Ordering::Relaxed);
                tally.given_up.fetch_add(u64::from(was_sent), Ordering::Relaxed);
            }
        }
        session.deadline_ms.store(NO_DEADLINE, Ordering::Relaxed);
        let free_since = now.saturating_duration_since(session.start);
        session.free_since_ms.store(free_since.as_millis() as u64, Ordering::Relaxed);
        session.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a session's requests come in.
pub(crate) struct Entrance {
    session: Arc<Session>,
    known: RefCell<Option<Known>>,
}

/// The host the session asked for last.
struct Known {
    version: u64,
    authority: HeaderValue,
    forwarded: HeaderValue,
    host: Option<Arc<Host>>,
}

impl Entrance {
    pub(crate) fn new(session: &Arc<Session>) -> Self {
        Self { session: Arc::clone(session), known: RefCell::default() }
    }

    pub(crate) fn enter(
        &self,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<Reply>> + use<> {
        let open = Open::new(&self.session, &request);
        exchange::serve(open, self.route(&request), request)
    }

    fn route(&self, request: &Request<ClientBody>) -> Result<Routed, Answer> {
        if request.method() == Method::CONNECT {
            return Err(Answer::no_tunnel());
        }
        let (uri, headers) = (request.uri(), request.headers());
        let version = self.session.routes.version();
        let mut slot = self.known.borrow_mut();
        let known = match slot.take() {
            Some(known)
                if known.version == version && headers::has_authority(uri, headers, &known.authority) =>
            {
                known
            }
            _ => {
                let authority = headers::authority(uri, headers).map_err(Answer::bad_request)?;
                let forwarded = self.session.client.forwarded(&authority);
                let host = self.session.routes.host(&headers::host_name(text(&authority)));
                Known { version, authority, forwarded, host }
            }
        };
        let known = slot.insert(known);
        let (authority, forwarded) = (known.authority.clone(), known.forwarded.clone());
        routed(known.host.as_deref(), authority, forwarded, |host| host.draw(headers))
    }
}

fn routed<'a>(
    host: Option<&'a Host>,
    authority: HeaderValue,
    forwarded: HeaderValue,
    draw: impl FnOnce(&'a Host) -> Option<Draw<'a>>,
) -> Result<Routed, Answer> {
    let host = host.ok_or_else(|| Answer::unknown_host(text(&authority)))?;
    let Draw { share, default_route, tag } =
        draw(host).ok_or_else(|| Answer::revision_missing(text(&authority)))?;
    let (revision, target) = (Arc::clone(&share.revision), Arc::clone(&share.target));
    Ok(Routed { revision, target, authority, forwarded, default_route, tag })
}

fn text(authority: &HeaderValue) -> &str {
    authority.to_str().expect("a checked authority is ASCII")
}
