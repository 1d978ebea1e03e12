//! The autoscaler of one revision: its windows, its decisions and its way to zero, put together for a node. Takes samples and
//! times, gives wanted numbers; must not know the revision's name, instances or requests.
//!
//! On a node the router is always in the path of every request, so no proof of that is waited for: the grace period of a
//! cluster is zero here.

use tombolo_api::desired::INSTANCES_PER_REVISION_MAX;

use super::bounds::Bounds;
use super::decide::{Decider, Instances, activation_scale, most};
use super::metrics::Metrics;
use super::mode::Mode;
use super::parameters::{Metric, Parameters, Reaction};
use super::zero::{self, Activity, Idle, Situation};
use crate::actual::Moment;

/// What was measured of a revision since the last sample, held requests included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests at a time, averaged over the time since the last sample.
    pub average_concurrency: f64,
    pub requests_per_second: f64,
}

/// What is known of a revision's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Instances that take requests.
    pub ready: u32,
    /// A route leads to the revision.
    pub reachable: bool,
}

/// What is wanted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Started instances, within the revision's bounds; 0 when it may go to zero.
    pub want: u32,
    /// Of the metric, what the ready instances can take beyond the asked spare capacity; negative: less than asked.
    pub excess_burst_capacity: i32,
    pub panicking: bool,
    pub activity: Activity,
}

impl Decision {
    pub fn mode(&self) -> Mode {
        Mode::of(Some(self.want), self.excess_burst_capacity)
    }
}

/// Feed it a [`Sample`] every [`super::SAMPLE_MS`] and ask it every [`super::TICK_MS`].
#[derive(Clone, Debug, PartialEq)]
pub struct Scaler {
    parameters: Parameters,
    metrics: Metrics,
    decider: Decider,
    activity: Activity,
    reached_initial: bool,
    /// Before bounds; what is ready, before anything was decided.
    desired: u32,
    want: u32,
    excess_burst_capacity: i32,
    /// What requests that were counted ahead of their sample added to the metric.
    counted_ahead: f64,
}

impl Scaler {
    /// For a revision of which `ready` instances take requests. `reached_initial`: it had its initial number before, so it
    /// is not started anew; an agent that restarts keeps what is there.
    pub fn new(parameters: Parameters, ready: u32, reached_initial: bool, now: Moment) -> Self {
        let parameters = on_a_node(parameters);
        let bounds = Bounds::of(&parameters.range, true, reached_initial);
        let (activity, want) = match (reached_initial, ready) {
            (false, _) if bounds.active_threshold() > 0 => {
                (Activity::Activating { since: now }, bounds.at_most(bounds.active_threshold()))
            }
            (true, 1..) => (Activity::Active { since: now }, ready),
            _ => (Activity::Inactive { since: now, why: Idle::NoTraffic }, ready),
        };
        Self {
            decider: Decider::new(&parameters, ready, now),
            metrics: Metrics::new(&parameters),
            activity,
            reached_initial,
            desired: ready,
            want,
            excess_burst_capacity: 0,
            counted_ahead: 0.0,
            parameters,
        }
    }

    /// Follows changed parameters and keeps what was measured and decided.
    pub fn reconfigure(&mut self, parameters: Parameters, now: Moment) {
        let parameters = on_a_node(parameters);
        if (parameters.metric, parameters.aggregation)
            == (self.parameters.metric, self.parameters.aggregation)
        {
            self.metrics.resize(&parameters, now);
        } else {
            self.metrics = Metrics::new(&parameters);
        }
        self.parameters = parameters;
    }

    /// A silent second is a sample too: without samples the windows would keep their last average.
    pub fn record(&mut self, now: Moment, sample: Sample) {
        let value = match self.parameters.metric {
            Metric::Concurrency => sample.average_concurrency,
            Metric::Rps => sample.requests_per_second,
        };
        // What is not a number would make every later average one.
        let value = if value.is_finite() { value.max(0.0) } else { 0.0 };
        self.metrics.record(now, (value - self.counted_ahead).max(0.0));
        self.counted_ahead = 0.0;
    }

    /// Decides anew.
    pub fn decide(&mut self, now: Moment, observed: Observed) -> Decision {
        let Observed { ready, reachable } = observed;
        let averages = self.metrics.averages(&self.parameters, now);
        let instances = Instances { ready: Some(ready), reachable };
        if let Some(verdict) = self.decider.decide(&self.parameters, instances, averages, now) {
            self.desired = verdict.desired;
            self.excess_burst_capacity = verdict.excess_burst_capacity;
        }
        let bounds = Bounds::of(&self.parameters.range, reachable, self.reached_initial);
        let situation = Situation {
            desired: bounds.apply(Some(self.desired), self.activity.is_activating()),
            activity: self.activity,
            reachable,
            proxied_ms: Some(0),
        };
        let step = zero::step(&self.parameters, situation, now, || true);
        if step.apply {
            self.want = step.want.unwrap_or(self.want);
        }
        let threshold = bounds.active_threshold();
        let next = self.activity.next(step.want, ready, threshold, now);
        // Knative forgets at its next look why it gave up; here it is told until an instance is tried again.
        let stays_given_up = self.activity.is_timed_out() && next.is_inactive() && ready < threshold;
        if !stays_given_up {
            self.activity = next;
        }
        self.reached_initial |= ready >= threshold;
        self.decision()
    }

    /// A request waits and there is no instance: one is wanted at once. With instances wanted already it changes nothing.
    pub fn poke(&mut self, now: Moment) -> Decision {
        if self.want == 0 {
            self.wake(1, now);
        }
        self.decision()
    }

    /// `demand` requests are here, waiting ones included: for a revision that reacts fast, as soon as they are more than
    /// [`Self::calm_up_to`]. `None`: nothing
    /// changes. Never lowers; what it raises stays for a stable window, as after a panic, unless it is the first instance.
    pub fn decide_now(&mut self, now: Moment, demand: u32, observed: Observed) -> Option<Decision> {
        if self.parameters.reaction != Reaction::Fast || demand == 0 {
            return None;
        }
        let aim = match self.parameters.metric {
            Metric::Concurrency => (f64::from(demand) / self.parameters.target_value).ceil(),
            // How many requests a second these are, only time tells.
            Metric::Rps => 1.0,
        };
        let aim = aim.min(most(&self.parameters, observed.ready)) as u32;
        let want = self.within(aim);
        if want <= self.want {
            return None;
        }
        if want > 1 {
            self.decider.raise(want, now);
        }
        if self.want == 0 {
            self.wake(aim, now);
        } else {
            (self.desired, self.want) = (want, want);
        }
        Some(self.decision())
    }

    /// So many requests may be here before [`Self::decide_now`] wants more for one further; `None`: it would not, however many.
    pub fn calm_up_to(&self, observed: Observed) -> Option<u32> {
        let parameters = &self.parameters;
        let most = match parameters.metric {
            Metric::Concurrency => most(parameters, observed.ready) as u32,
            Metric::Rps => 1,
        };
        if parameters.reaction != Reaction::Fast || self.within(most) <= self.want {
            return None;
        }
        if self.within(1) > self.want {
            return Some(0);
        }
        let calm = (f64::from(self.want) * parameters.target_value) as u32;
        // The product may be rounded below what the division of `decide_now` makes of it.
        let wants_more =
            (f64::from(calm.saturating_add(1)) / parameters.target_value).ceil() as u32 > self.want;
        Some(if wants_more { calm } else { calm.saturating_add(1) })
    }

    /// At zero instances, with nothing to wait for: until the next request, or a change of its reachability or bounds, it
    /// needs neither samples nor ticks.
    pub fn is_at_rest(&self) -> bool {
        self.want == 0 && self.activity.is_inactive()
    }

    /// What was decided last.
    pub fn decision(&self) -> Decision {
        Decision {
            want: self.want,
            excess_burst_capacity: self.excess_burst_capacity,
            panicking: self.decider.is_panicking(),
            activity: self.activity,
        }
    }

    /// From zero to `aim`. The request that woke it counts now, and not again in the sample that it will be part of.
    fn wake(&mut self, aim: u32, now: Moment) {
        let want = self.within(aim);
        self.metrics.record(now, 1.0);
        self.counted_ahead += 1.0;
        (self.desired, self.want) = (want, want);
        self.activity = self.activity.activating(now);
    }

    fn within(&self, aim: u32) -> u32 {
        let bounds = Bounds::of(&self.parameters.range, false, self.reached_initial);
        bounds.at_most(aim.max(activation_scale(&self.parameters)).max(1))
    }
}

/// What becomes of parameters here. A least or initial number that the node never gives would be waited for without end.
fn on_a_node(mut parameters: Parameters) -> Parameters {
    parameters.to_zero.grace_period_ms = 0;
    let range = &mut parameters.range;
    let most = if range.max == 0 { u32::MAX } else { range.max }.min(INSTANCES_PER_REVISION_MAX);
    range.min = range.min.min(most);
    range.initial = range.initial.min(most);
    parameters
}

#[cfg(test)]
mod tests;
