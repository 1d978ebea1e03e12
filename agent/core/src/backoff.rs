//! How long to wait before trying again: exponential, with full jitter where many may try at once. Pure: the random number
//! comes in as an argument.

/// A sequence of delays that double from `first_ms` up to `most_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first_ms: u64,
    pub most_ms: u64,
}

/// Between attempts to reach the hub. A thousand nodes that lost it together come back spread over these times; a minute at
/// most keeps a returned link from lying idle.
pub const RECONNECT: Backoff = Backoff { first_ms: 500, most_ms: 60_000 };

/// Between attempts to have an image. A registry that is back is noticed within a minute.
const IMAGE: Backoff = Backoff { first_ms: 500, most_ms: 60_000 };

/// Between attempts to start a program that ends by itself: as the kubelet's, but beginning at one second, since a node at
/// the edge has nobody else to answer meanwhile.
const CRASH: Backoff = Backoff { first_ms: 1_000, most_ms: 300_000 };

/// How long to wait after an image could not be had for the `attempts`th time.
pub fn image_retry_ms(attempts: u32) -> u64 {
    IMAGE.ceiling_ms(attempts)
}

/// How long to wait after the `recent`th end in a row. A program that had been serving is started again at once the first
/// time: its end may have had a passing cause.
pub fn crash_retry_ms(recent: u32, was_ready: bool) -> u64 {
    CRASH.ceiling_ms(if was_ready { recent.saturating_sub(1) } else { recent })
}

impl Backoff {
    /// The longest delay after `failures` failures in a row: nothing after none, then `first_ms`, twice that, …
    pub fn ceiling_ms(&self, failures: u32) -> u64 {
        let Some(doublings) = failures.checked_sub(1) else { return 0 };
        let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
        self.first_ms.saturating_mul(factor).min(self.most_ms)
    }

    /// A delay between nothing and [`Self::ceiling_ms`], evenly spread as `random` is.
    pub fn jittered_ms(&self, failures: u32, random: u64) -> u64 {
        random % (self.ceiling_ms(failures) + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_up_to_its_bound() {
        let backoff = Backoff { first_ms: 500, most_ms: 60_000 };
        for (failures, ceiling) in [
            (0, 0),
            (1, 500),
            (2, 1000),
            (3, 2000),
            (7, 32_000),
            (8, 60_000),
            (64, 60_000),
            (65, 60_000),
            (u32::MAX, 60_000),
        ] {
            assert_eq!(backoff.ceiling_ms(failures), ceiling, "{failures} failures");
        }
    }

    #[test]
    fn a_served_program_is_restarted_at_once_a_broken_one_waits() {
        assert_eq!(crash_retry_ms(1, true), 0);
        assert_eq!(crash_retry_ms(2, true), 1_000);
        assert_eq!(crash_retry_ms(1, false), 1_000);
        assert_eq!(crash_retry_ms(99, false), 300_000);
        assert_eq!((image_retry_ms(1), image_retry_ms(99)), (500, 60_000));
    }

    proptest! {
        #[test]
        fn jitter_stays_below_the_ceiling(failures in 0u32..100, random: u64) {
            let delay = RECONNECT.jittered_ms(failures, random);
            prop_assert!(delay <= RECONNECT.ceiling_ms(failures));
        }

        #[test]
        fn jitter_reaches_the_whole_range(failures in 1u32..100) {
            let ceiling = RECONNECT.ceiling_ms(failures);
            prop_assert_eq!(RECONNECT.jittered_ms(failures, ceiling), ceiling);
            prop_assert_eq!(RECONNECT.jittered_ms(failures, 0), 0);
        }
    }
}
