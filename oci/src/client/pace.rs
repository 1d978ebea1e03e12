//! How fast images may come: one budget of bytes a second that all downloads of a node share, steady, and a gate that ends
//! downloads where they are. Must not know why a download is paused.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::TransferError;

/// What may come at once after a pause: little enough that a link is never filled for longer than this.
const BURST: Duration = Duration::from_millis(250);

/// What is asked for at once, as time at the budget's rate, and at least: a link brings what is asked for as fast as it can, and what
/// waits in the kernel when a download is paused is lost.
const STRETCH_S: u64 = 4;
const STRETCH_MIN: u64 = 256 * 1024;

/// Longest sleep in one piece: a download that waits for its turn says now and then that it lives, and hears that it should stop.
const NAP: Duration = Duration::from_secs(1);

/// The budget of all downloads that share it. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    bucket: Option<Arc<Bucket>>,
    gates: Vec<Gate>,
}

/// Ends the downloads that were given it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicBool>);

#[derive(Debug)]
struct Bucket {
    bytes_per_s: NonZeroU64,
    /// When what was taken so far has come at that rate.
    paid_until: Mutex<Option<Instant>>,
}

impl Gate {
    /// From now on nothing more is received: downloads end with what they have.
    pub fn close(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Pace {
    /// `None`: as fast as the link is.
    pub fn new(bytes_per_s: Option<NonZeroU64>) -> Self {
        let bucket = bytes_per_s.map(|bytes_per_s| Bucket { bytes_per_s, paid_until: Mutex::default() });
        Self { bucket: bucket.map(Arc::new), gates: Vec::new() }
    }

    /// The same budget, for downloads that `gate` ends too.
    pub fn behind(&self, gate: &Gate) -> Self {
        let mut pace = self.clone();
        pace.gates.push(gate.clone());
        pace
    }

    /// Whether a gate of it was closed.
    pub fn is_closed(&self) -> bool {
        self.gates.iter().any(|gate| gate.0.load(Ordering::Relaxed))
    }

    /// How many bytes may be asked for at once; `None`: all of them.
    pub(super) fn stretch(&self) -> Option<u64> {
        let bucket = self.bucket.as_ref()?;
        Some(bucket.bytes_per_s.get().saturating_mul(STRETCH_S).max(STRETCH_MIN))
    }

    /// Waits until `bytes` that came may be read on from; `beat` is called while it waits.
    pub(super) async fn take(&self, bytes: usize, beat: impl Fn()) -> Result<(), TransferError> {
        let until = self.bucket.as_ref().map(|bucket| bucket.take(bytes as u64, Instant::now()));
        loop {
            if self.is_closed() {
                return Err(TransferError::Paused);
            }
            let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            beat();
            tokio::time::sleep(left.min(NAP)).await;
        }
    }
}

impl Bucket {
    /// When `bytes` have been paid for that are taken at `now`.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.get() as f64);
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        // Time without downloads is not saved up.
        let from = paid_until.map_or(now, |paid| paid.max(now));
        let until = from + cost;
        *paid_until = Some(until);
        until.checked_sub(BURST).unwrap_or(until)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn rate(bytes_per_s: u64) -> Pace {
        Pace::new(NonZeroU64::new(bytes_per_s))
    }

    #[tokio::test(start_paused = true)]
    async fn all_downloads_together_keep_the_rate_in_every_second() {
        let pace = rate(100_000);
        let taken = Arc::<Mutex<Vec<(Duration, usize)>>>::default();
        let begun = Instant::now();
        let download = |size: usize| {
            let (pace, taken) = (pace.clone(), taken.clone());
            tokio::spawn(async move {
                while begun.elapsed() < Duration::from_secs(20) {
                    pace.take(size, || ()).await.unwrap();
                    taken.lock().unwrap().push((begun.elapsed(), size));
                }
            })
        };
        for task in [download(1_000), download(8_192), download(16_384)] {
            task.await.unwrap();
        }
        let taken = taken.lock().unwrap();
        for second in 0..19 {
            let within = |at: &Duration| (second..second + 1).contains(&at.as_secs());
            let bytes: usize = taken.iter().filter(|(at, _)| within(at)).map(|(_, size)| size).sum();
            // A burst at the start, and a piece of each on either side.
            assert!((75_000..=151_000).contains(&bytes), "{bytes} bytes in second {second}");
        }
        let all: usize = taken.iter().map(|(_, size)| size).sum();
        assert!((1_950_000..=2_080_000).contains(&all), "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_nothing_up() {
        let pace = rate(1_000);
        pace.take(1_000, || ()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        for _ in 0..10 {
            pace.take(1_000, || ()).await.unwrap();
        }
        assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_ends_those_behind_it_even_while_they_wait() {
        let (gate, pace) = (Gate::default(), rate(10));
        let (behind, beats) = (pace.behind(&gate), AtomicU64::new(0));
        let beat = || {
            beats.fetch_add(1, Ordering::Relaxed);
        };
        let close = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            gate.close();
        };
        let begun = Instant::now();
        let (taken, ()) = tokio::join!(behind.take(10_000, beat), close);
        assert!(matches!(taken, Err(TransferError::Paused)));
        assert!(begun.elapsed() <= Duration::from_secs(31), "{:?}", begun.elapsed());
        assert!(beats.load(Ordering::Relaxed) >= 29);
        let free = Pace::default();
        free.take(usize::MAX, || ()).await.unwrap();
        rate(10).take(1, || ()).await.unwrap();
    }
}
