//! What is counted of one revision, by atomics that many threads write and nobody locks.
//!
//! It must not know what is done with the numbers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tombolo_agent_core::waits::{STEP_MS, STEPS, Waits};

use crate::sample::{Histogram, LATENCY_BUCKETS, Refused};

/// Bits of [`Presence::weight`] that number its changes.
const CHANGE_BITS: u32 = 12;

/// Counters of a revision.
pub(crate) struct Tally {
    /// Zero of all times here.
    start: Instant,
    pub(crate) presence: Presence,
    /// By first digit of the status, from 1.
    pub(crate) answers: [AtomicU64; 5],
    /// Requests whose client left before the answer.
    pub(crate) abandoned: AtomicU64,
    /// Those of them that were at an instance.
    pub(crate) given_up: AtomicU64,
    pub(crate) awaiting: Awaiting,
    /// Answers, 5xx left out, that their instance did not bring to an end.
    pub(crate) broken: AtomicU64,
    pub(crate) latency: Times,
    /// Of `latency`, those that the router answered itself for what their clients did, or did not do.
    pub(crate) faults_of_clients: Times,
    pub(crate) cold_starts: Times,
    pub(crate) refused: [AtomicU64; Refused::ALL.len()],
    /// Milliseconds after `start`, plus one; 0: there was none.
    last_activity_ms: AtomicU64,
}

impl Tally {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            presence: Presence::default(),
            answers: Default::default(),
            abandoned: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            awaiting: Awaiting::default(),
            broken: AtomicU64::new(0),
            latency: Times::default(),
            faults_of_clients: Times::default(),
            cold_starts: Times::default(),
            refused: Default::default(),
            last_activity_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_micros() as u64
    }

    pub(crate) fn last_activity(&self) -> Option<Instant> {
        let after_ms = self.last_activity_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start + Duration::from_millis(after_ms))
    }

    pub(crate) fn touch(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start).as_millis() as u64 + 1;
        // Mostly the millisecond is known already, and the cache line need not be taken from other cores.
        if self.last_activity_ms.load(Ordering::Relaxed) < elapsed {
            self.last_activity_ms.fetch_max(elapsed, Ordering::Relaxed);
        }
    }

    pub(crate) fn answered(&self, status: http::StatusCode, took: Duration) {
        let digit = usize::from(status.as_u16() / 100);
        if let Some(count) = self.answers.get(digit.wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.latency.add(took);
    }

    pub(crate) fn refused(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Who is there, and for how long: requests from their arrival to the end of their answers, and the area under their number.
///
/// The area at a time `t` is the sum of all departures' times, less all arrivals', plus `t` for each that is there. `weight` holds
/// that sum, above the number of its changes: a reader that finds as many changes in it as there were arrivals and departures
/// has seen all three at one moment.
#[derive(Default)]
pub(crate) struct Presence {
    weight: AtomicU64,
    entered: AtomicU64,
    left: AtomicU64,
}

/// A [`Presence`] at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attendance {
    pub(crate) entered: u64,
    pub(crate) left: u64,
    /// Microseconds times requests, modulo [`crate::sample::AREA_MODULUS`].
    pub(crate) area_us: u64,
}

impl Presence {
    pub(crate) fn enter(&self, at_us: u64) {
        self.weight.fetch_add(1u64.wrapping_sub(at_us << CHANGE_BITS), Ordering::Relaxed);
        self.entered.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn leave(&self, at_us: u64) {
        self.weight.fetch_add(1u64.wrapping_add(at_us << CHANGE_BITS), Ordering::Relaxed);
        self.left.fetch_add(1, Ordering::Release);
    }

    /// How many are there, about: of two numbers read one after the other.
    pub(crate) fn count(&self) -> u64 {
        let left = self.left.load(Ordering::Acquire);
        self.entered.load(Ordering::Acquire).saturating_sub(left)
    }

    pub(crate) fn read(&self, now_us: u64) -> Attendance {
        loop {
            let left = self.left.load(Ordering::Acquire);
            let entered = self.entered.load(Ordering::Acquire);
            let changes = entered.wrapping_add(left);
            // Without its changes' own count nothing but times is left, if they are as many.
            let sum = self.weight.load(Ordering::Acquire).wrapping_sub(changes);
            if sum.trailing_zeros() >= CHANGE_BITS {
                let area = (sum >> CHANGE_BITS).wrapping_add((entered - left).wrapping_mul(now_us));
                return Attendance { entered, left, area_us: area % crate::sample::AREA_MODULUS };
            }
            // A change is being made, which takes nanoseconds unless its thread was interrupted.
            std::thread::yield_now();
        }
    }
}

/// Requests at an instance that wait for the head of an answer, by the step of time they were sent in, modulo their number.
pub(crate) struct Awaiting([AtomicU32; STEPS]);

/// The step that a request was sent in.
#[derive(Clone, Copy)]
pub(crate) struct SentIn(u8);

const _: () = assert!(STEPS <= 256);

impl Default for Awaiting {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Awaiting {
    fn step(at_us: u64) -> usize {
        (at_us / (STEP_MS * 1_000) % STEPS as u64) as usize
    }

    /// To be given to [`Awaiting::over`] once.
    pub(crate) fn begin(&self, at_us: u64) -> SentIn {
        let step = Self::step(at_us);
        self.0[step].fetch_add(1, Ordering::Relaxed);
        SentIn(step as u8)
    }

    pub(crate) fn over(&self, SentIn(step): SentIn) {
        self.0[usize::from(step)].fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, now_us: u64) -> Waits {
        let now = Self::step(now_us);
        let sent = (0..STEPS).map(|ago| self.0[(now + STEPS - ago) % STEPS].load(Ordering::Relaxed));
        Waits::new(sent.collect())
    }
}

/// Lengths of time: a count for each power of two, and their sum.
#[derive(Default)]
pub(crate) struct Times {
    counts: [AtomicU64; LATENCY_BUCKETS],
    sum_us: AtomicU64,
}

impl Times {
    pub(crate) fn add(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.counts[Histogram::bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Ordering::Relaxed)),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::AREA_MODULUS;

    #[test]
    fn the_area_is_the_integral_of_the_number() {
        let presence = Presence::default();
        let mut expected = 0;
        let (mut there, mut now) = (0u64, 0u64);
        let mut bits = 7u64;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let step = (bits >> 33) % 5000;
            expected += there * step;
            now += step;
            if there == 0 || bits >> 63 == 0 {
                presence.enter(now);
                there += 1;
            } else {
                presence.leave(now);
                there -= 1;
            }
            if bits.is_multiple_of(10) {
                let read = presence.read(now + 9);
                assert_eq!(read.entered - read.left, there);
                assert_eq!(read.area_us, (expected + there * 9) % AREA_MODULUS);
            }
        }
    }

    #[test]
    fn who_waits_is_known_by_when_it_was_sent() {
        let awaiting = Awaiting::default();
        let us = |seconds: u64| seconds * 1_000_000 + (1 << 40);
        let [first, second, third] = [0, 20, 21].map(|seconds| awaiting.begin(us(seconds)));
        let longer = |now, than_ms| awaiting.read(us(now)).longer_than(than_ms, u64::MAX);
        assert_eq!([0, 18, 30, 60].map(|than_s| longer(40, than_s * 1_000)), [3, 2, 1, 0], "surely");
        awaiting.over(second);
        assert_eq!(longer(40, 12_000), 2);
        awaiting.over(first);
        awaiting.over(third);
        assert_eq!(awaiting.read(us(40)), Waits::default());
    }

    #[test]
    fn a_reader_never_sees_half_a_change() {
        let presence = Presence::default();
        let clock = Instant::now();
        let now = || clock.elapsed().as_micros() as u64 + (1 << 40);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..100_000 {
                            presence.enter(now());
                            presence.leave(now());
                        }
                    })
                })
                .collect();
            let (mut last, mut last_at) = (presence.read(now()), now());
            while writers.iter().any(|writer| !writer.is_finished()) {
                let at = now();
                let read = presence.read(at);
                // Areas count modulo 2 to the 52.
                let grown = ((read.area_us.wrapping_sub(last.area_us) << CHANGE_BITS) as i64) >> CHANGE_BITS;
                // At most three were there; a thread may read the clock before `at` and count after it.
                let most = 3 * (at.saturating_sub(last_at) + 1_000_000) as i64;
                assert!((-3_000_000..most).contains(&grown), "{grown} {most}");
                (last, last_at) = (read, at);
            }
        });
        let end = presence.read(now());
        assert_eq!((end.entered, end.left), (300_000, 300_000));
    }
}
