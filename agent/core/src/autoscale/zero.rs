//! To zero instances and back: whether a revision is active, being activated or inactive, and when a decision for zero may be
//! carried out. Knows numbers of instances and times; must not know how they were decided.
//!
//! ```text
//! Activating ─ ready ─▶ Active ─ zero wanted for a stable window ─▶ Inactive ─ grace, retention ─▶ no instance
//!     ▲ │                  │ too few ready                            │ instances wanted
//!     │ └─ timed out ──────┼─────────────────────────────────────────▶│
//!     └────────────────────┴──────────────────────────────────────────┘
//! ```

use super::parameters::Parameters;
use crate::actual::Moment;

/// How soon a revision that was just marked inactive is looked at again, milliseconds. Knative's.
const INACTIVE_RECHECK_MS: u64 = 3_000;

/// Whether a revision takes requests: Knative's `Active` condition, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    Activating { since: Moment },
    Active { since: Moment },
    Inactive { since: Moment, why: Idle },
}

/// Why a revision is inactive, a reason of its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    NoTraffic,
    /// It did not become ready in time.
    TimedOut,
}

/// What a way to zero depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// After bounds; `None`: unknown.
    pub desired: Option<u32>,
    pub activity: Activity,
    pub reachable: bool,
    /// For how long all requests have gone through the activator, `None` if they do not.
    pub proxied_ms: Option<u64>,
}

/// What to do with a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub want: Option<u32>,
    /// Carry `want` out. If not, what runs stays.
    pub apply: bool,
    /// Time alone changes the answer in this many milliseconds.
    pub recheck_ms: Option<u64>,
}

impl Step {
    fn apply(want: u32) -> Self {
        Self { want: Some(want), apply: true, recheck_ms: None }
    }

    fn hold(want: Option<u32>, recheck_ms: Option<u64>) -> Self {
        Self { want, apply: false, recheck_ms }
    }
}

/// What becomes of `situation.desired`. `probe` tells whether the activator is in the path; asked only when it matters.
pub fn step(
    parameters: &Parameters,
    situation: Situation,
    now: Moment,
    probe: impl FnOnce() -> bool,
) -> Step {
    match situation.desired {
        None => return Step::hold(None, None),
        Some(0) => {}
        Some(desired) => return Step::apply(desired),
    }
    if !parameters.to_zero.enabled {
        return Step::apply(1);
    }
    match situation.activity {
        Activity::Activating { since } => {
            let timeout_ms = parameters.to_zero.activation_timeout_ms;
            if since.after(timeout_ms) < now { Step::apply(0) } else { Step::hold(None, Some(timeout_ms)) }
        }
        Activity::Active { since } => {
            let (active_ms, window_ms) = (now.since(since), parameters.stable_window_ms);
            if active_ms >= window_ms {
                // Nothing else changes if the activator is in the path already.
                Step::hold(Some(0), (situation.proxied_ms.is_some()).then_some(INACTIVE_RECHECK_MS))
            } else {
                Step { recheck_ms: Some(window_ms - active_ms), ..Step::apply(1) }
            }
        }
        Activity::Inactive { since, .. } => {
            if parameters.always_through_activator() || probe() {
                from_inactive(parameters, situation, now.since(since))
            } else {
                Step::hold(Some(0), None)
            }
        }
    }
}

fn from_inactive(parameters: &Parameters, situation: Situation, inactive_ms: u64) -> Step {
    let grace_ms = parameters.to_zero.grace_period_ms;
    let retention_ms = if situation.reachable { parameters.to_zero.retention_ms } else { 0 };
    if inactive_ms >= grace_ms.max(retention_ms) {
        Step::apply(0)
    } else if inactive_ms < retention_ms {
        Step::hold(Some(0), Some(retention_ms - inactive_ms))
    } else {
        match grace_ms.saturating_sub(situation.proxied_ms.unwrap_or(0)) {
            0 => Step::apply(0),
            left_ms => Step::hold(Some(0), Some(left_ms)),
        }
    }
}

impl Activity {
    pub fn is_activating(self) -> bool {
        matches!(self, Self::Activating { .. })
    }

    pub fn is_inactive(self) -> bool {
        matches!(self, Self::Inactive { .. })
    }

    pub fn is_timed_out(self) -> bool {
        matches!(self, Self::Inactive { why: Idle::TimedOut, .. })
    }

    /// What it is after a step that wants `want` instances (`None`: unknown), with `ready` ready where `threshold` make a
    /// revision active.
    pub fn next(self, want: Option<u32>, ready: u32, threshold: u32, now: Moment) -> Self {
        let wanted = want.is_some_and(|want| want > 0);
        if want == Some(0) || threshold == 0 {
            let timed_out = self.is_activating() && threshold > 0;
            self.inactive(if timed_out { Idle::TimedOut } else { Idle::NoTraffic }, now)
        } else if ready >= threshold {
            if wanted || !self.is_inactive() { self.active(now) } else { self }
        } else if wanted || !self.is_inactive() {
            self.activating(now)
        } else {
            self.inactive(Idle::NoTraffic, now)
        }
    }

    pub fn activating(self, now: Moment) -> Self {
        if self.is_activating() { self } else { Self::Activating { since: now } }
    }

    fn active(self, now: Moment) -> Self {
        if matches!(self, Self::Active { .. }) { self } else { Self::Active { since: now } }
    }

    fn inactive(self, why: Idle, now: Moment) -> Self {
        match self {
            Self::Inactive { since, .. } => Self::Inactive { since, why },
            _ => Self::Inactive { since: now, why },
        }
    }
}
