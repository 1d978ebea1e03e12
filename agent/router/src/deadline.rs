//! The time limits of one request, and a timer that costs nothing when limits are far.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use tombolo_agent_core::routes::Backend;

/// When a request has taken too long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    start: Instant,
    pub(crate) total_ms: u64,
    pub(crate) first_byte_ms: u64,
    pub(crate) idle_ms: u64,
}

/// Which limit a request has hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Total,
    FirstByte,
    Idle,
}

impl Limits {
    /// `own_ms`: what the request itself allows.
    pub(crate) fn new(start: Instant, backend: &Backend, own_ms: Option<u64>) -> Self {
        let total_ms = match (backend.timeout_ms, own_ms) {
            (0, own_ms) => own_ms.unwrap_or(0),
            (total_ms, own_ms) => own_ms.map_or(total_ms, |own_ms| own_ms.min(total_ms)),
        };
        Self {
            start,
            total_ms,
            first_byte_ms: backend.response_start_timeout_ms,
            idle_ms: backend.idle_timeout_ms,
        }
    }

    /// The end of the whole request.
    pub(crate) fn total(&self) -> Option<Instant> {
        after(self.start, self.total_ms)
    }

    /// Whether it matters when a byte last passed.
    pub(crate) fn watch_idle(&self) -> bool {
        self.idle_ms > 0
    }

    /// The next limit of a request that was sent to an instance at `sent` and has no answer yet.
    pub(crate) fn awaiting(&self, sent: Instant, moved: Instant) -> Option<(Instant, Limit)> {
        let first_byte = after(sent, self.first_byte_ms).map(|at| (at, Limit::FirstByte));
        first_byte.into_iter().chain(self.streaming(moved)).min_by_key(|(at, _)| *at)
    }

    /// The next limit of a request whose answer has begun. `moved`: when a byte last passed, either way.
    pub(crate) fn streaming(&self, moved: Instant) -> Option<(Instant, Limit)> {
        let total = self.total().map(|at| (at, Limit::Total));
        let idle = after(moved, self.idle_ms).map(|at| (at, Limit::Idle));
        total.into_iter().chain(idle).min_by_key(|(at, _)| *at)
    }
}

fn after(start: Instant, limit_ms: u64) -> Option<Instant> {
    (limit_ms > 0).then(|| start + Duration::from_millis(limit_ms))
}

/// A timer that outlives the requests it watches. Moving it earlier costs a timer operation, later costs none until it
/// fires; as requests mostly have the same limits, it is moved once in the length of a limit and not once a request.
#[derive(Default)]
pub(crate) struct Watchdog(Option<Pin<Box<Sleep>>>);

impl Watchdog {
    /// Ready when `at` has passed.
    pub(crate) fn poll_passed(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if sleep.deadline() > at.into() {
            sleep.as_mut().reset(at.into());
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at.into());
        }
    }
}
