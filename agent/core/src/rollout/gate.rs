//! The health gate: whether the next revision does so much worse than the former one that a rollout should be undone.
//!
//! Knows counts and limits, not shares, and of time only how long it has been counting.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::desired::HealthGate;
use tombolo_api::report::RolledBack;

use crate::waits::Waits;

/// Standard deviations of the one-sided 99 % bound.
///
/// A gate looks again and again while it counts, and each look may err. Simulated with equal error rates of 1 to 20 % and 25 looks
/// (300 rollouts a case): limits of 1 to 5 points undo up to 2 % of rollouts by chance, 9 % with a bound of 95 %; a limit of 0
/// undoes 8 %, and 27 % with 95 %.
const BOUND_DEVIATIONS: f64 = 2.326;

/// Least difference of the mean times to the first byte that counts, milliseconds: below it, machine and network decide.
const LATENCY_NOISE_MS: f64 = 5.0;

/// How many times the former revision's mean time to the first byte a request may wait before it counts as one without an answer.
const PATIENCE_MEANS: f64 = 5.0;

/// But so long it may always wait, milliseconds: a program may load something at its first request.
const PATIENCE_LEAST_MS: f64 = 10_000.0;

/// How many requests without an answer are enough to judge by when there has been no answer at all.
const SILENT_REQUESTS: u64 = 3;

/// From when on a step is not made while one waits, milliseconds: shorter, and it is on its way.
const DOUBT_LEAST_MS: f64 = 2_000.0;

/// What one revision answered since the agent started. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Health {
    pub answers: u64,
    /// Those of them with a 5xx status, ours for a broken instance included, or broken off: an answer is counted before it breaks.
    pub errors: u64,
    /// Sum of the times to the first byte, milliseconds, waiting for an instance left out: a cold start is no fault of the code.
    pub latency_sum_ms: f64,
    /// Requests at an instance whose client left before the head of an answer. Streams and tunnels have theirs at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub abandoned: u64,
    /// Of the moment: requests at an instance that wait for the head of an answer.
    #[serde(skip)]
    pub waiting: Waits,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Health {
    fn add(&mut self, more: &Self) {
        self.answers += more.answers;
        self.errors += more.errors;
        self.latency_sum_ms += more.latency_sum_ms;
        self.abandoned += more.abandoned;
        self.waiting.add(&more.waiting);
    }

    /// What was counted since it was `earlier`, all but `waiting`; everything if the counters began anew in between.
    fn since(&self, earlier: &Self) -> Self {
        let fell = self.answers < earlier.answers || self.errors < earlier.errors;
        if fell || self.abandoned < earlier.abandoned {
            return self.clone();
        }
        Self {
            answers: self.answers - earlier.answers,
            errors: self.errors - earlier.errors,
            latency_sum_ms: (self.latency_sum_ms - earlier.latency_sum_ms).max(0.0),
            abandoned: self.abandoned - earlier.abandoned,
            waiting: self.waiting.clone(),
        }
    }

    fn errors(&self) -> Part {
        Part { part: self.errors.min(self.answers), whole: self.answers }
    }

    fn mean_ms(&self) -> f64 {
        if self.answers == 0 { 0.0 } else { self.latency_sum_ms / self.answers as f64 }
    }
}

/// Some of all.
#[derive(Clone, Copy)]
struct Part {
    part: u64,
    whole: u64,
}

impl Part {
    fn share(self) -> f64 {
        if self.whole == 0 { 0.0 } else { self.part as f64 / self.whole as f64 }
    }

    /// The interval that the true share is in (Wilson's score interval), each side with the bound's certainty.
    fn bounds(self) -> (f64, f64) {
        if self.whole == 0 {
            return (0.0, 1.0);
        }
        let (n, share) = (self.whole as f64, self.share());
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

    /// Before a look: who waits is counted anew at each.
    pub(super) fn forget_waiting(&mut self) {
        (self.next.waiting, self.former.waiting) = Default::default();
    }

    /// Adds what `revision` answered since the last look.
    pub(super) fn count(&mut self, revision: &str, is_next: bool, health: Health) {
        let seen = match self.seen.get_mut(revision) {
            Some(seen) => seen,
            None => self.seen.entry(revision.to_owned()).or_default(),
        };
        let more = health.since(seen);
        *seen = health;
        if is_next { self.next.add(&more) } else { self.former.add(&more) }
    }

    /// Forgets what was counted, for the revision is not what it was.
    pub(super) fn restart(&mut self) {
        (self.next, self.former) = Default::default();
    }

    /// Whether the next revision was asked often enough to be judged.
    pub(super) fn is_judged(&self, gate: &HealthGate, counted_ms: u64) -> bool {
        self.unanswered(&self.next, counted_ms).whole >= least(gate)
    }

    /// Whether requests to the next revision wait for longer than usual, or more were given up than answered.
    pub(super) fn is_in_doubt(&self, gate: &HealthGate, counted_ms: u64) -> bool {
        let usual_ms = self.former.mean_ms() * f64::from(gate.max_latency_percent) / 100.0;
        let waiting = self.next.waiting.longer_than(usual_ms.max(DOUBT_LEAST_MS) as u64, counted_ms);
        waiting > 0 || self.next.abandoned > self.next.answers
    }

    /// Why the rollout to `next` must be undone, if it must. `counted_ms`: since it began, or since it was restarted.
    pub(super) fn verdict(
        &self,
        gate: &HealthGate,
        counted_ms: u64,
        next: &str,
        former: &str,
    ) -> Option<RolledBack> {
        let silent = || self.silence_verdict(gate, counted_ms, next, former);
        if self.next.answers < least(gate) {
            return silent();
        }
        self.errors_verdict(gate, next, former)
            .or_else(|| self.latency_verdict(gate, next, former))
            .or_else(silent)
    }

    /// How long a request may wait before it counts as one without an answer.
    fn patience_ms(&self) -> u64 {
        (self.former.mean_ms() * PATIENCE_MEANS).max(PATIENCE_LEAST_MS) as u64
    }

    /// Requests that were given up or wait for too long, of them and those that were answered. Whoever waits since before the
    /// counting is not in it: it may have been sent to what the revision was before.
    fn unanswered(&self, side: &Health, counted_ms: u64) -> Part {
        let part = side.abandoned + side.waiting.longer_than(self.patience_ms(), counted_ms);
        Part { part, whole: side.answers + part }
    }

    /// Clients leave every revision, and some requests wait for something to happen. So it must be above the limit, and more than
    /// double what it is at the former revision, each by the bound of its own interval: as the next one's requests grow more and
    /// more, those that wait are a greater part of all than at the former.
    fn silence_verdict(
        &self,
        gate: &HealthGate,
        counted_ms: u64,
        next: &str,
        former: &str,
    ) -> Option<RolledBack> {
        let part = self.unanswered(&self.next, counted_ms);
        let silent = self.next.answers == 0 && part.part >= SILENT_REQUESTS.min(least(gate));
        if !silent && part.whole < least(gate) {
            return None;
        }
        let former_part = self.unanswered(&self.former, counted_ms);
        let ((lowest, _), (_, highest)) = (part.bounds(), former_part.bounds());
        (lowest > 2.0 * highest + f64::from(gate.max_error_percent) / 100.0).then(|| RolledBack {
            reason: "NoAnswers".into(),
            message: format!(
                "{} of {} requests to {next} got no answer: {} given up by their clients, {} waiting for more than {} s; {} of {} to {former}",
                part.part,
                part.whole,
                self.next.abandoned,
                part.part - self.next.abandoned,
                self.patience_ms() / 1_000,
                former_part.part,
                former_part.whole,
            ),
        })
    }

    /// Errors count when the difference of the shares is above the limit with certainty, by the lower bound of its interval from
    /// the two shares' own (R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, method 10). One error in 20 is no such
    /// thing. A former revision that answered nothing is taken as faultless.
    fn errors_verdict(&self, gate: &HealthGate, next: &str, former: &str) -> Option<RolledBack> {
        let (share, (lowest, _)) = (self.next.errors().share(), self.next.errors().bounds());
        let certain = if self.former.answers == 0 {
            lowest
        } else {
            let (former, (_, highest)) = (self.former.errors().share(), self.former.errors().bounds());
            share - former - (share - lowest).hypot(highest - former)
        };
        (certain > f64::from(gate.max_error_percent) / 100.0).then(|| RolledBack {
            reason: "ErrorRateTooHigh".into(),
            message: format!(
                "{} of {} answers of {next} were 5xx errors or broken off ({:.1} %), {} of {} of {former} ({:.1} %): more than {} percentage points above",
                self.next.errors,
                self.next.answers,
                share * 100.0,
                self.former.errors,
                self.former.answers,
                self.former.errors().share() * 100.0,
                gate.max_error_percent,
            ),
        })
    }

    fn latency_verdict(&self, gate: &HealthGate, next: &str, former: &str) -> Option<RolledBack> {
        if self.former.answers < least(gate) {
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

/// How many requests are enough to judge by.
fn least(gate: &HealthGate) -> u64 {
    u64::from(gate.min_requests.max(1))
}
