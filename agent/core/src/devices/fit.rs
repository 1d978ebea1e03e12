//! Whether what a container has of its devices is theirs: a device that is plugged again, or goes on under another id, is the same
//! device with another node.
//!
//! ```text
//! Fits ──returned, or its node is another──▶ Stale ─▶ Refitting ──done──▶ Fits
//!                                              ▲ ◀────failed───┘ │
//!                                              └──changed again──┘
//! ```

use super::LOST_GRACE_MS;
use crate::actual::Moment;

/// Between one attempt to give a container its devices anew and the next, milliseconds. A device that changes is several nodes, one
/// after the other, and its plugin may not have seen the last.
const RETRY_MS: u64 = 500;

/// How an instance's container and its devices fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    #[default]
    Fits,
    /// They are to be given anew.
    Stale {
        since: Moment,
        /// Not before.
        at: Moment,
        /// It was tried.
        failed: bool,
    },
    /// They are being given.
    Refitting {
        since: Moment,
        /// It was tried before.
        failed: bool,
        /// They have changed meanwhile.
        again: bool,
    },
}

impl Fit {
    /// A device has come back, or its node is another one.
    pub fn outdate(&mut self, now: Moment) {
        match self {
            Self::Fits => *self = Self::Stale { since: now, at: now, failed: false },
            Self::Stale { at, .. } => *at = now,
            Self::Refitting { again, .. } => *again = true,
        }
    }

    pub fn begin(&mut self, now: Moment) {
        let (since, failed) = match *self {
            Self::Stale { since, failed, .. } | Self::Refitting { since, failed, .. } => (since, failed),
            Self::Fits => (now, false),
        };
        *self = Self::Refitting { since, failed, again: false };
    }

    /// What came of it; an error, if the plugin was there and the container did not get them.
    pub fn end<E>(&mut self, result: Result<(), E>, now: Moment) {
        let Self::Refitting { since, again, .. } = *self else { return };
        *self = match (result, again) {
            (Ok(()), false) => Self::Fits,
            (Ok(()), true) => Self::Stale { since: now, at: now, failed: false },
            (Err(_), _) => Self::Stale { since, at: now.after(RETRY_MS), failed: true },
        };
    }

    /// The plugin is away, or was when it was asked: nothing is known of the devices, and nothing follows.
    pub fn await_plugin(&mut self, now: Moment) {
        match *self {
            Self::Stale { .. } => *self = Self::Stale { since: now, at: now.after(RETRY_MS), failed: false },
            Self::Refitting { .. } | Self::Fits => {}
        }
    }

    /// Whether they were to be given since their change, in vain.
    pub fn has_failed(&self) -> bool {
        matches!(self, Self::Stale { failed: true, .. } | Self::Refitting { failed: true, .. })
    }

    /// When they are to be given anew.
    pub fn due(&self) -> Option<Moment> {
        match self {
            Self::Stale { at, .. } => Some(*at),
            Self::Fits | Self::Refitting { .. } => None,
        }
    }

    /// When the container has been without them for so long that its instance ends.
    pub fn ends_at(&self) -> Option<Moment> {
        match self {
            Self::Stale { since, failed: true, .. } => Some(since.after(LOST_GRACE_MS)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(10_000);
    const FAILED: Result<(), ()> = Err(());

    #[test]
    fn what_changes_while_it_is_given_is_given_again() {
        let mut fit = Fit::Fits;
        fit.outdate(NOW);
        assert_eq!((fit.due(), fit.ends_at()), (Some(NOW), None));
        fit.begin(NOW);
        assert_eq!(fit.due(), None);
        fit.outdate(NOW.after(1));
        fit.end(Ok::<_, ()>(()), NOW.after(2));
        assert_eq!(fit.due(), Some(NOW.after(2)));
        fit.begin(NOW.after(2));
        fit.end(Ok::<_, ()>(()), NOW.after(3));
        assert_eq!(fit, Fit::Fits);
    }

    #[test]
    fn what_cannot_be_given_for_long_ends_the_instance_unless_the_plugin_is_away() {
        let mut fit = Fit::Fits;
        fit.outdate(NOW);
        for after in [0, 600, 1_200] {
            fit.begin(NOW.after(after));
            fit.end(FAILED, NOW.after(after));
            assert_eq!((fit.due(), fit.has_failed()), (Some(NOW.after(after + RETRY_MS)), true));
            assert_eq!(fit.ends_at(), Some(NOW.after(LOST_GRACE_MS)), "counted from the first");
        }
        fit.await_plugin(NOW.after(2_000));
        assert_eq!((fit.due(), fit.ends_at()), (Some(NOW.after(2_000 + RETRY_MS)), None));
        fit.begin(NOW.after(3_000));
        fit.end(FAILED, NOW.after(3_000));
        assert_eq!(fit.ends_at(), Some(NOW.after(2_000 + LOST_GRACE_MS)));
    }
}
