//! The clock that cores are told the time by: milliseconds since a moment an hour before this agent's start, so that what
//! was before has a place too.

use std::time::{Duration, Instant};

use tombolo_agent_core::actual::Moment;

const BEFORE_START: Duration = Duration::from_secs(3600);

/// Where moments are counted from. All of one agent count from the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now(self) -> Moment {
        self.moment(Instant::now())
    }

    pub(crate) fn moment(self, instant: Instant) -> Moment {
        let since = (instant + BEFORE_START).saturating_duration_since(self.start);
        Moment(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
