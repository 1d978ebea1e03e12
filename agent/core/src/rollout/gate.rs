//! The health gate: whether the next revision does so much worse than the former one that a rollout should be undone.
//!
//! Knows counts and limits, not shares and time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::HealthGate;
use tombolo_api::report::RolledBack;

/// Standard deviations of the one-sided 99 % bound.
///
/// A gate looks again and again while it counts, and each look may err. Simulated with equal error rates of 1 to 20 % and 25 looks
/// (300 rollouts a case): limits of 1 to 5 points undo up to 2 % of rollouts by chance, 9 % with a bound of 95 %; a limit of 0
/// undoes 8 %, and 27 % with 95 %.
const BOUND_DEVIATIONS: f64 = 2.326;

/// Least difference of the mean times to the first byte that counts, milliseconds: below it, machine and network decide.
const LATENCY_NOISE_MS: f64 = 5.0;

/// What one revision answered since the agent started. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    pub answers: u64,
    /// Those of them with a 5xx status, ours for a broken instance included.
    pub errors: u64,
    /// Sum of the times to the first byte, milliseconds, waiting for an instance left out: a cold start is no fault of the code.
    pub latency_sum_ms: f64,
}

impl Health {
    fn add(&mut self, more: Self) {
        self.answers += more.answers;
        self.errors += more.errors;
        self.latency_sum_ms += more.latency_sum_ms;
    }

    /// What was counted since it was `earlier`; everything if the counters began anew in between.
    fn since(self, earlier: Self) -> Self {
        if self.answers < earlier.answers || self.errors < earlier.errors {
            return self;
        }
        Self {
            answers: self.answers - earlier.answers,
            errors: self.errors - earlier.errors,
            latency_sum_ms: (self.latency_sum_ms - earlier.latency_sum_ms).max(0.0),
        }
    }

    fn error_share(self) -> f64 {
        if self.answers == 0 { 0.0 } else { self.errors as f64 / self.answers as f64 }
    }

    fn mean_ms(self) -> f64 {
        if self.answers == 0 { 0.0 } else { self.latency_sum_ms / self.answers as f64 }
    }

    /// The interval that the true share of errors is in (Wilson's score interval), each side with the bound's certainty.
    fn error_bounds(self) -> (f64, f64) {
        if self.answers == 0 {
            return (0.0, 1.0);
        }
        let (n, share) = (self.answers as f64, self.error_share());
        let square = BOUND_DEVIATIONS * BOUND_DEVIATIONS;
        let centre = share + square / (2.0 * n);
        let spread = BOUND_DEVIATIONS * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
        let scale = 1.0 + square / n;
        (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
    }
}

/// What the two sides of a rollout answered since it began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Watch {
    /// The revision that is moved to.
    pub(super) next: Health,
    /// All others together.
    pub(super) former: Health,
    /// The counters when last looked at. They begin at 0 with every start of the agent, so these are not stored.
    #[serde(skip)]
    seen: BTreeMap<String, Health>,
}

impl Watch {
    /// Counts from here on.
    pub(super) fn begin<'a>(counters: impl Iterator<Item = (&'a str, Health)>) -> Self {
        let seen = counters.map(|(revision, health)| (revision.to_owned(), health)).collect();
        Self { seen, ..Self::default() }
    }

    /// Adds what `revision` answered since the last look.
    pub(super) fn count(&mut self, revision: &str, is_next: bool, health: Health) {
        let seen = match self.seen.get_mut(revision) {
            Some(seen) => seen,
            None => self.seen.entry(revision.to_owned()).or_default(),
        };
        let more = health.since(*seen);
        *seen = health;
        if is_next { self.next.add(more) } else { self.former.add(more) }
    }

    /// Forgets what was counted, for the revision is not what it was.
    pub(super) fn restart(&mut self) {
        (self.next, self.former) = Default::default();
    }

    /// Whether the next revision answered often enough to be judged.
    pub(super) fn is_judged(&self, gate: &HealthGate) -> bool {
        self.next.answers >= u64::from(gate.min_requests.max(1))
    }

    /// Why the rollout to `next` must be undone, if it must.
    pub(super) fn verdict(&self, gate: &HealthGate, next: &str, former: &str) -> Option<RolledBack> {
        if !self.is_judged(gate) {
            return None;
        }
        self.errors_verdict(gate, next, former).or_else(|| self.latency_verdict(gate, next, former))
    }

    /// Errors count when the difference of the shares is above the limit with certainty, by the lower bound of its interval from
    /// the two shares' own (R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10). One error in 20 is no such
    /// thing. A former revision that answered nothing is taken as faultless.
    fn errors_verdict(&self, gate: &HealthGate, next: &str, former: &str) -> Option<RolledBack> {
        let (share, (lowest, _)) = (self.next.error_share(), self.next.error_bounds());
        let certain = if self.former.answers == 0 {
            lowest
        } else {
            let (former, (_, highest)) = (self.former.error_share(), self.former.error_bounds());
            share - former - (share - lowest).hypot(highest - former)
        };
        (certain > f64::from(gate.max_error_percent) / 100.0).then(|| RolledBack {
            reason: "ErrorRateTooHigh".into(),
            message: format!(
                "{} of {} answers of {next} were 5xx errors ({:.1} %), {} of {} of {former} ({:.1} %): more than {} percentage points above",
                self.next.errors,
                self.next.answers,
                share * 100.0,
                self.former.errors,
                self.former.answers,
                self.former.error_share() * 100.0,
                gate.max_error_percent,
            ),
        })
    }

    fn latency_verdict(&self, gate: &HealthGate, next: &str, former: &str) -> Option<RolledBack> {
        if self.former.answers < u64::from(gate.min_requests.max(1)) {
            return None;
        }
        let (next_ms, former_ms) = (self.next.mean_ms(), self.former.mean_ms());
        let slower = next_ms > former_ms * f64::from(gate.max_latency_percent) / 100.0;
        (slower && next_ms - former_ms > LATENCY_NOISE_MS).then(|| RolledBack {
            reason: "LatencyTooHigh".into(),
            message: format!(
                "{next} took {next_ms:.1} ms to the first byte in the mean of {} answers, {former} {former_ms:.1} ms of {}: more than {} %",
                self.next.answers, self.former.answers, gate.max_latency_percent,
            ),
        })
    }
}
