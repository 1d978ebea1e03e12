//! The router's counters as plain values: at a moment, and between two moments. For autoscaling, rollouts, reports.
//!
//! It must not know how they are counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tombolo_api::RevisionKey;

use crate::meter::Meter;

/// Upper bound of the first bucket of a [`Histogram`] is 2 to the power of this, microseconds: 64 µs.
const FIRST_BUCKET_LOG2_US: u32 = 6;

/// From 64 µs to 18 minutes, past the longest request.
pub(crate) const LATENCY_BUCKETS: usize = 25;

/// [`RevisionMeter::concurrency_us`] counts round and round; this is 142 years of one request.
pub(crate) const AREA_MODULUS: u64 = 1 << 52;

/// Why a request was refused or given up without having been at an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    RevisionQueueFull,
    RevisionBytesFull,
    NodeQueueFull,
    NodeBytesFull,
    /// The revision cannot serve, and it is known why.
    Unavailable,
    /// It was held for as long as it may take.
    ActivationTimeout,
}

impl Refused {
    pub const ALL: [Self; 6] = [
        Self::RevisionQueueFull,
        Self::RevisionBytesFull,
        Self::NodeQueueFull,
        Self::NodeBytesFull,
        Self::Unavailable,
        Self::ActivationTimeout,
    ];

    /// The word in the answer's `x-tombolo-reason`, and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::RevisionQueueFull => "RevisionQueueFull",
            Self::RevisionBytesFull => "RevisionBytesFull",
            Self::NodeQueueFull => "NodeQueueFull",
            Self::NodeBytesFull => "NodeBytesFull",
            Self::Unavailable => "Unavailable",
            Self::ActivationTimeout => "ActivationTimeout",
        }
    }
}

/// Lengths of time by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// `counts[i]`: how many were below [`Histogram::bound_us`]`(i)` and not below the bound before; longer ones are in the last.
    pub counts: [u64; LATENCY_BUCKETS],
    pub sum_us: u64,
}

impl Histogram {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bound of a bucket, microseconds. The last one has none in truth.
    pub fn bound_us(bucket: usize) -> u64 {
        1 << (FIRST_BUCKET_LOG2_US + bucket as u32)
    }

    pub(crate) fn bucket(us: u64) -> usize {
        let bits = u64::BITS - us.leading_zeros();
        (bits.saturating_sub(FIRST_BUCKET_LOG2_US) as usize).min(LATENCY_BUCKETS - 1)
    }

    pub fn mean_us(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum_us as f64 / count as f64)
    }

    /// The length that `share` (0 to 1) of them did not pass, about: linear within a bucket.
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let mut below = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (count, high) = (*count as f64, Self::bound_us(bucket) as f64);
            let low = if bucket == 0 { 0.0 } else { high / 2.0 };
            if below + count >= rank {
                return Some(low + (high - low) * ((rank - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        None
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|bucket| self.counts[bucket].saturating_sub(earlier.counts[bucket])),
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
        }
    }
}

/// One revision's counters at a moment. What is not said to be of the moment only grows, from `born` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionMeter {
    /// The moment.
    pub at: Instant,
    /// When counting began: anew if the revision left the node and came back.
    pub born: Instant,
    /// Of the moment: requests that are not held and whose answers have not ended, upgraded connections included.
    pub in_flight: usize,
    /// Of the moment: requests that wait for an instance.
    pub held: usize,
    /// Of the moment: bytes of the requests that wait.
    pub held_bytes: usize,
    /// Arrival or end of its latest request.
    pub last_activity: Option<Instant>,
    /// Requests that came.
    pub arrived: u64,
    /// Requests whose answer, or whose client, has ended.
    pub finished: u64,
    /// Requests in flight and held, times microseconds. See [`RevisionMeter::since`].
    pub concurrency_us: u64,
    /// Answers by first digit of their status, from 1; the router's own (503, 504, …) included.
    pub answers: [u64; 5],
    /// Requests whose client left before the answer.
    pub abandoned: u64,
    /// Those of them that were at an instance, and not held.
    pub given_up: u64,
    /// Answers that began as no 5xx, are among `answers`, and were broken off by their instance.
    pub broken: u64,
    /// From the request's arrival to the head of its answer, for `answers`.
    pub latency: Histogram,
    /// Of `latency`, those that the router answered itself (400, 408) for what their clients did, or did not do.
    pub faults_of_clients: Histogram,
    /// How long requests were held that came when no instance was ready and then got one.
    pub cold_starts: Histogram,
    /// By [`Refused`], in the order of [`Refused::ALL`].
    pub refused: [u64; Refused::ALL.len()],
}

impl RevisionMeter {
    /// Requests finished, one way or the other.
    pub fn requests(&self) -> u64 {
        self.answers.iter().sum::<u64>() + self.abandoned
    }

    /// Answers that failed: with a 5xx, the router's own included, or broken off by their instance.
    pub fn failed(&self) -> u64 {
        const SERVER_ERRORS: usize = 4;
        self.answers[SERVER_ERRORS] + self.broken
    }

    /// What happened between an earlier moment and this one, or since `born` if that was later.
    pub fn since(&self, earlier: &Self) -> RevisionSpan {
        let fresh;
        let earlier = if earlier.born == self.born {
            earlier
        } else {
            fresh = Self::new(self.born);
            &fresh
        };
        let elapsed = self.at.saturating_duration_since(earlier.at);
        let area = self.concurrency_us.wrapping_sub(earlier.concurrency_us) % AREA_MODULUS;
        // Just below the modulus: a request counted with a time a little past the moment.
        let area = if area > AREA_MODULUS / 2 { 0 } else { area };
        let concurrency = if elapsed.is_zero() {
            (self.in_flight + self.held) as f64
        } else {
            area as f64 / elapsed.as_micros().max(1) as f64
        };
        RevisionSpan {
            elapsed,
            concurrency,
            arrived: self.arrived.saturating_sub(earlier.arrived),
            finished: self.finished.saturating_sub(earlier.finished),
            answers: std::array::from_fn(|digit| self.answers[digit].saturating_sub(earlier.answers[digit])),
            abandoned: self.abandoned.saturating_sub(earlier.abandoned),
            broken: self.broken.saturating_sub(earlier.broken),
            latency: self.latency.since(&earlier.latency),
            cold_starts: self.cold_starts.since(&earlier.cold_starts),
            refused: std::array::from_fn(|why| self.refused[why].saturating_sub(earlier.refused[why])),
        }
    }

    /// One that has counted nothing.
    pub(crate) fn new(born: Instant) -> Self {
        Self {
            at: born,
            born,
            in_flight: 0,
            held: 0,
            held_bytes: 0,
            last_activity: None,
            arrived: 0,
            finished: 0,
            concurrency_us: 0,
            answers: [0; 5],
            abandoned: 0,
            given_up: 0,
            broken: 0,
            latency: Histogram::default(),
            faults_of_clients: Histogram::default(),
            cold_starts: Histogram::default(),
            refused: [0; Refused::ALL.len()],
        }
    }
}

/// What happened at a revision in a span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionSpan {
    pub elapsed: Duration,
    /// Requests in flight and held, averaged over the span, exactly.
    pub concurrency: f64,
    pub arrived: u64,
    pub finished: u64,
    /// As [`RevisionMeter::answers`], as is what follows.
    pub answers: [u64; 5],
    pub abandoned: u64,
    pub broken: u64,
    pub latency: Histogram,
    pub cold_starts: Histogram,
    pub refused: [u64; Refused::ALL.len()],
}

impl RevisionSpan {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.arrived as f64 / seconds } else { 0.0 }
    }
}

/// Remembers the last look at a meter. Each user has its own.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    last: BTreeMap<RevisionKey, RevisionMeter>,
}

impl Sampler {
    /// What happened since the last look, or since a revision's counting began.
    pub fn sample(
        &mut self,
        meter: &Meter,
        now: Instant,
    ) -> BTreeMap<RevisionKey, (RevisionMeter, RevisionSpan)> {
        let current = meter.snapshot_at(now);
        let spans = current.iter().map(|(key, revision)| {
            let span = match self.last.get(key) {
                Some(last) => revision.since(last),
                None => revision.since(&RevisionMeter::new(revision.born)),
            };
            (key.clone(), (revision.clone(), span))
        });
        let spans = spans.collect();
        self.last = current;
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        for (us, bound) in [(0, 64), (63, 64), (64, 128), (1000, 1024), (1024, 2048), (u64::MAX, 1 << 30)] {
            assert_eq!(Histogram::bound_us(Histogram::bucket(us)), bound, "{us}");
        }
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile_us(0.5), histogram.mean_us()), (None, None));
        histogram.counts[Histogram::bucket(100)] = 90;
        histogram.counts[Histogram::bucket(5000)] = 10;
        histogram.sum_us = 59_000;
        assert_eq!(histogram.mean_us(), Some(590.0));
        for (share, low, high) in
            [(0.0, 64.0, 64.0), (0.5, 64.0, 128.0), (0.95, 4096.0, 8192.0), (1.0, 8192.0, 8192.0)]
        {
            let quantile = histogram.quantile_us(share).unwrap();
            assert!((low..=high).contains(&quantile), "{share} {quantile}");
        }
    }

    #[test]
    fn spans_are_differences_and_start_anew_with_the_revision() {
        let born = Instant::now();
        let at = |seconds| born + Duration::from_secs(seconds);
        let mut first = RevisionMeter::new(born);
        first.arrived = 10;
        first.concurrency_us = AREA_MODULUS - 5;
        let mut second = RevisionMeter { at: at(2), ..first.clone() };
        second.arrived = 14;
        second.answers[1] = 3;
        second.concurrency_us = 2_999_995;
        let span = second.since(&first);
        assert_eq!((span.concurrency, span.arrived, span.rate()), (1.5, 4, 2.0));
        assert_eq!((span.answers, span.elapsed), ([0, 3, 0, 0, 0], Duration::from_secs(2)));

        // A request that entered a little after the moment of the second look.
        let third = RevisionMeter { at: at(3), concurrency_us: 2_999_000, ..second.clone() };
        assert_eq!(third.since(&second).concurrency, 0.0);

        let reborn =
            RevisionMeter { at: at(5), arrived: 1, concurrency_us: 1_000_000, ..RevisionMeter::new(at(4)) };
        let span = reborn.since(&second);
        assert_eq!((span.concurrency, span.arrived, span.elapsed), (1.0, 1, Duration::from_secs(1)));
    }
}
