//! One decision: from the averages of a metric and what is ready to how many instances are wanted, and when to panic. What is
//! allowed besides (bounds, zero) comes after it, in `bounds` and `zero`.

use super::delay::DelayWindow;
use super::metrics::Averages;
use super::parameters::Parameters;
use crate::actual::Moment;

/// What is remembered from one decision to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Decider {
    /// When the panic threshold was last crossed; `None` outside of a panic.
    panic_since: Option<Moment>,
    /// The largest number wanted in this panic.
    panic_max: u32,
    delay: Option<DelayWindow>,
}

/// What is known of the instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instances {
    /// `None`: it could not be found out, so nothing is decided.
    pub ready: Option<u32>,
    /// A route leads to the revision.
    pub reachable: bool,
}

/// A decision, before bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub desired: u32,
    /// Of the metric, what the ready instances could still take beyond the asked spare capacity; -1 if all of it is asked.
    pub excess_burst_capacity: i32,
}

impl Decider {
    /// With more than one instance ready it begins in a panic: what was measured before is lost, and what runs must not be
    /// stopped for that.
    pub fn new(parameters: &Parameters, ready: u32, now: Moment) -> Self {
        let delay_ms = parameters.scale_down_delay_ms;
        Self {
            panic_since: (ready > 1).then_some(now),
            panic_max: ready,
            delay: (delay_ms > 0).then(|| DelayWindow::new(delay_ms)),
        }
    }

    /// `None`: nothing can be decided, what was decided before stays.
    pub fn decide(
        &mut self,
        parameters: &Parameters,
        instances: Instances,
        averages: Option<Averages>,
        now: Moment,
    ) -> Option<Verdict> {
        let (ready, averages) = (instances.ready?, averages?);
        let stable = wanted(averages.stable, parameters, ready, instances.reachable);
        let panic = wanted(averages.panic, parameters, ready, instances.reachable);
        let crossed = (averages.panic / parameters.target_value).ceil() / at_least_one(ready)
            >= parameters.panic_threshold;
        self.update_panic(crossed, parameters.stable_window_ms, now);
        let mut desired = stable;
        if self.is_panicking() {
            self.panic_max = self.panic_max.max(stable).max(panic);
            desired = self.panic_max;
        }
        if instances.reachable
            && let Some(delay) = &mut self.delay
        {
            desired = delay.record(now, desired);
        }
        Some(Verdict { desired, excess_burst_capacity: excess(parameters, ready, averages.panic) })
    }

    /// `desired` was decided outside of a tick: it is kept as if a panic had wanted it, so that the next tick, whose
    /// averages lag behind, does not take it back.
    pub fn raise(&mut self, desired: u32, now: Moment) {
        self.panic_since = Some(now);
        self.panic_max = self.panic_max.max(desired);
    }

    pub fn is_panicking(&self) -> bool {
        self.panic_since.is_some()
    }

    /// When the threshold was last crossed, and the largest number wanted in this panic.
    pub fn panic(&self) -> (Option<Moment>, u32) {
        (self.panic_since, self.panic_max)
    }

    fn update_panic(&mut self, crossed: bool, stable_window_ms: u64, now: Moment) {
        if crossed {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(|since| since.after(stable_window_ms) < now) {
            self.panic_since = None;
            self.panic_max = 0;
        }
    }
}

/// The most instances that `ready` ones may become in one step.
pub fn most(parameters: &Parameters, ready: u32) -> f64 {
    (parameters.max_scale_up_rate * at_least_one(ready)).ceil()
}

/// How many instances `average` wants. Floats become integers saturating: a huge average wants the most, not a negative number.
fn wanted(average: f64, parameters: &Parameters, ready: u32, reachable: bool) -> u32 {
    let raw = (average / parameters.target_value).ceil();
    let least = if reachable { (at_least_one(ready) / parameters.max_scale_down_rate).floor() } else { 0.0 };
    let within = raw.max(least).min(most(parameters, ready)) as u32;
    // After the rate, so it may exceed it.
    if raw > 0.0 { within.max(activation_scale(parameters)) } else { within }
}

/// The least above zero that is more than one; 0 if there is none.
pub fn activation_scale(parameters: &Parameters) -> u32 {
    if parameters.activation_scale > 1 { parameters.activation_scale } else { 0 }
}

fn excess(parameters: &Parameters, ready: u32, panic: f64) -> i32 {
    let burst = parameters.target_burst_capacity;
    if burst == 0.0 {
        0
    } else if burst < 0.0 {
        -1
    } else {
        (f64::from(ready) * parameters.total_value - burst - panic).floor() as i32
    }
}

fn at_least_one(ready: u32) -> f64 {
    f64::from(ready.max(1))
}
