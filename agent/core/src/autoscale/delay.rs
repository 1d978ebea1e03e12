//! The scale-down delay: the largest number decided within a time. Knows numbers and times only.

use std::collections::VecDeque;

use super::TICK_MS;
use crate::actual::Moment;

/// The largest of the numbers recorded in the newest slots of [`TICK_MS`], the current one included.
#[derive(Clone, Debug, PartialEq)]
pub struct DelayWindow {
    slots: u64,
    /// Slot and number: slots rise, numbers fall. At most one entry a slot.
    maxima: VecDeque<(u64, u32)>,
}

impl DelayWindow {
    pub fn new(delay_ms: u64) -> Self {
        Self { slots: delay_ms.div_ceil(TICK_MS).max(1), maxima: VecDeque::new() }
    }

    /// Records `value` and says what is the largest now.
    pub fn record(&mut self, at: Moment, value: u32) -> u32 {
        let slot = at.0 / TICK_MS;
        while self.maxima.back().is_some_and(|(_, smaller)| *smaller < value) {
            self.maxima.pop_back();
        }
        while self.maxima.front().is_some_and(|(old, _)| old + self.slots <= slot) {
            self.maxima.pop_front();
        }
        if self.maxima.back().is_none_or(|(newest, _)| *newest < slot) {
            self.maxima.push_back((slot, value));
        }
        self.maxima.front().map_or(value, |(_, largest)| *largest)
    }
}
