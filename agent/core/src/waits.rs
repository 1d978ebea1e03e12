//! How long requests have been waiting for the head of an answer, counted in steps of time.
//!
//! Knows no clock: whoever counts says how many steps ago each was sent.

/// Length of a step, milliseconds.
pub const STEP_MS: u64 = 2_000;

/// Steps that are told apart. Whoever waits for longer, more than four minutes, is counted as if it had just begun.
pub const STEPS: usize = 128;

/// Requests of the moment that were sent to an instance and have no head of an answer yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// By the step they were sent in: the present one, the one before, and so on.
    sent: Vec<u32>,
}

impl Waits {
    /// `sent[i]` were sent `i` steps ago.
    pub fn new(mut sent: Vec<u32>) -> Self {
        let len = sent.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        sent.truncate(len);
        Self { sent }
    }

    /// How many surely wait for `least_ms` or longer and were surely sent in the last `span_ms`.
    pub fn longer_than(&self, least_ms: u64, span_ms: u64) -> u64 {
        // One of `i` steps ago was sent between `i - 1` and `i + 1` lengths of a step ago.
        let (first, end) = (least_ms.div_ceil(STEP_MS).saturating_add(1), span_ms / STEP_MS);
        let steps = (0u64..).zip(&self.sent).filter(|(ago, _)| (first..end).contains(ago));
        steps.map(|(_, count)| u64::from(*count)).sum()
    }

    /// Counts those of `more` too.
    pub fn add(&mut self, more: &Self) {
        if self.sent.len() < more.sent.len() {
            self.sent.resize(more.sent.len(), 0);
        }
        for (count, more) in self.sent.iter_mut().zip(&more.sent) {
            *count = count.saturating_add(*more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_count_that_surely_wait_long_enough_and_are_of_the_span() {
        let waits = Waits::new(vec![1, 2, 4, 8, 16, 0, 0]);
        assert_eq!(waits.longer_than(0, u64::MAX), 30, "those of the present step may have come just now");
        assert_eq!(waits.longer_than(2_000, u64::MAX), 28);
        assert_eq!(waits.longer_than(2_001, u64::MAX), 24);
        assert_eq!(waits.longer_than(2_000, 9_999), 12, "the last are sent up to 10 s ago");
        assert_eq!(waits.longer_than(2_000, 10_000), 28);
        assert_eq!(waits.longer_than(u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn two_are_added_step_by_step() {
        let mut waits = Waits::default();
        waits.add(&Waits::new(vec![0, 0, 3]));
        waits.add(&Waits::new(vec![0, 1]));
        assert_eq!(waits, Waits::new(vec![0, 1, 3]));
        assert_eq!(Waits::new(vec![0, 0]), Waits::default());
    }
}
