//! A metric over a time: a ring of buckets that forgets what is older than its window, and the average of what it holds,
//! linear or weighted. Knows samples and times only; must not know what is measured or decided.

use super::parameters::Aggregation;
use crate::actual::Moment;

/// The share of the weight that is older than a weighted window: how fast old samples fade follows from it.
const LEFT_OVER: f64 = 0.0001;

/// A weighted window's newest bucket has at least this share, however many buckets there are.
const SMOOTHING_MIN: f64 = 0.2;

/// Linear averages are rounded to this fraction, so that what a sum of floats leaves over is not a request.
const PRECISION: f64 = 1e6;

/// The newest samples of one metric. Takes no memory before the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    aggregation: Aggregation,
    window_ms: u64,
    granularity_ms: u64,
    /// A ring, by the bucket's number since the clock's start. Empty before the first sample.
    buckets: Vec<f64>,
    /// Sum of the buckets.
    total: f64,
    written: Option<Written>,
}

/// Starts of buckets.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Written {
    /// `None`: nothing is left of what was written.
    first: Option<Moment>,
    last: Moment,
}

impl Window {
    /// Both lengths are above 0.
    pub fn new(aggregation: Aggregation, window_ms: u64, granularity_ms: u64) -> Self {
        Self { aggregation, window_ms, granularity_ms, buckets: Vec::new(), total: 0.0, written: None }
    }

    /// Adds to what the second (or what else a bucket spans) of `at` already has. What is older than the window is dropped.
    pub fn record(&mut self, at: Moment, value: f64) {
        let bucket = self.start(at);
        if self.buckets.is_empty() {
            self.buckets = vec![0.0; self.bucket_count()];
        }
        match self.written {
            Some(written) if bucket.after(self.window_ms) <= written.last => return,
            Some(written) if bucket <= written.last => {
                let first = written.first.map_or(bucket, |first| first.min(bucket));
                self.written = Some(Written { first: Some(first), ..written });
            }
            Some(written) if bucket.since(written.last) < self.window_ms => {
                self.written = Some(Written { first: written.first.or(Some(bucket)), last: bucket });
                for number in self.number(written.last) + 1..=self.number(bucket) {
                    let index = self.index(number);
                    self.total -= self.buckets[index];
                    self.buckets[index] = 0.0;
                }
            }
            // Nothing for a whole window: this is a new beginning.
            _ => {
                self.buckets.fill(0.0);
                self.total = 0.0;
                self.written = Some(Written { first: Some(bucket), last: bucket });
            }
        }
        let index = self.index(self.number(bucket));
        self.buckets[index] += value;
        self.total += value;
    }

    /// Whether there is nothing in the window that ends at `now`.
    pub fn is_empty(&self, now: Moment) -> bool {
        self.written.is_none_or(|written| self.start(now).since(written.last) > self.window_ms)
    }

    /// The average of the window that ends at `now`; 0 if it is empty.
    pub fn average(&self, now: Moment) -> f64 {
        let Some(written) = self.written else { return 0.0 };
        let silent = self.start(now).since(written.last);
        if silent > self.window_ms {
            return 0.0;
        }
        match self.aggregation {
            Aggregation::Linear if silent == self.window_ms => 0.0,
            Aggregation::Linear => self.linear(written, silent),
            Aggregation::WeightedExponential => self.weighted(written, silent),
        }
    }

    /// Of the buckets that are still in the window and have been written to or passed over.
    fn linear(&self, written: Written, silent_ms: u64) -> f64 {
        let last = self.number(written.last);
        let silent = silent_ms / self.granularity_ms;
        let mut total = self.total;
        for number in last + 1..=last + silent {
            total -= self.buckets[self.index(number)];
        }
        let Some(first) = written.first else { return 0.0 };
        let span = written.last.since(first) / self.granularity_ms + 1;
        let count = span.min(self.buckets.len() as u64 - silent);
        (total / count as f64 * PRECISION).floor() / PRECISION
    }

    fn weighted(&self, written: Written, silent_ms: u64) -> f64 {
        let count = self.buckets.len() as u64;
        let silent = silent_ms / self.granularity_ms;
        let smoothing = smoothing(self.buckets.len());
        let mut weight = smoothing * (1.0 - smoothing).powf(silent as f64);
        // A full turn ahead, so that there is something to go back from.
        let newest = self.number(written.last) + count;
        let mut average = 0.0;
        for age in 0..count.saturating_sub(silent) {
            average += self.buckets[self.index(newest - age)] * weight;
            weight *= 1.0 - smoothing;
        }
        average
    }

    /// Changes the length and keeps the newest samples. From then on the whole window counts as written, as in Knative.
    pub fn resize(&mut self, window_ms: u64, now: Moment) {
        if window_ms == self.window_ms {
            return;
        }
        let Some(written) = self.written else {
            self.window_ms = window_ms;
            return;
        };
        let fresh = now.since(written.last) <= self.window_ms;
        self.window_ms = window_ms;
        let old =
            std::mem::replace(&mut self.buckets, vec![0.0; window_ms.div_ceil(self.granularity_ms) as usize]);
        self.total = 0.0;
        if !fresh {
            self.written = Some(Written { first: None, ..written });
            return;
        }
        let (newest, length) = (self.number(written.last), old.len() as u64);
        for number in newest.saturating_sub(length.min(self.buckets.len() as u64) - 1)..=newest {
            let index = self.index(number);
            self.buckets[index] = old[(number % length) as usize];
            self.total += self.buckets[index];
        }
        let first = written.last.0.saturating_sub((length - 1) * self.granularity_ms);
        self.written = Some(Written { first: Some(Moment(first)), ..written });
    }

    fn bucket_count(&self) -> usize {
        self.window_ms.div_ceil(self.granularity_ms) as usize
    }

    fn start(&self, at: Moment) -> Moment {
        Moment(at.0 - at.0 % self.granularity_ms)
    }

    fn number(&self, at: Moment) -> u64 {
        at.0 / self.granularity_ms
    }

    fn index(&self, number: u64) -> usize {
        (number % self.buckets.len() as u64) as usize
    }
}

/// The newest bucket's share of a weighted window of `count` buckets.
fn smoothing(count: usize) -> f64 {
    (1.0 - LEFT_OVER.powf(1.0 / count as f64)).max(SMOOTHING_MIN)
}
