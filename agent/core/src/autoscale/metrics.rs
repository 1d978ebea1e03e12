//! What is measured of one revision: its metric over the stable and over the panic window. Knows samples and times only.

use super::SAMPLE_MS;
use super::parameters::Parameters;
use super::window::Window;
use crate::actual::Moment;

/// The two windows of a revision's metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    stable: Window,
    panic: Window,
}

/// What decisions are made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Averages {
    pub stable: f64,
    pub panic: f64,
}

impl Metrics {
    pub fn new(parameters: &Parameters) -> Self {
        let window = |length_ms| Window::new(parameters.aggregation, length_ms, SAMPLE_MS);
        Self { stable: window(parameters.stable_window_ms), panic: window(parameters.panic_window_ms) }
    }

    pub fn record(&mut self, at: Moment, value: f64) {
        self.stable.record(at, value);
        self.panic.record(at, value);
    }

    /// `None`: nothing was recorded for longer than the stable window. Where every request is seen by the activator, that
    /// is no request.
    pub fn averages(&self, parameters: &Parameters, now: Moment) -> Option<Averages> {
        (parameters.always_through_activator() || !self.stable.is_empty(now))
            .then(|| Averages { stable: self.stable.average(now), panic: self.panic.average(now) })
    }

    /// Follows changed windows and keeps what fits.
    pub fn resize(&mut self, parameters: &Parameters, now: Moment) {
        self.stable.resize(parameters.stable_window_ms, now);
        self.panic.resize(parameters.panic_window_ms, now);
    }
}
