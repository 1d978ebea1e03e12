//! What a decision is held to: least, most and initial number of instances. Knows no metric and no time.

use super::parameters::ScaleRange;

/// The bounds that hold for a revision now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub min: u32,
    /// 0: no bound.
    pub max: u32,
    pub initial: u32,
    pub reachable: bool,
    /// The initial number was reached once; from then on it means nothing.
    pub reached_initial: bool,
}

impl Bounds {
    /// A revision that no route leads to needs no least and no initial number.
    pub fn of(range: &ScaleRange, reachable: bool, reached_initial: bool) -> Self {
        let min = if reachable { range.min } else { 0 };
        Self { min, max: range.max, initial: range.initial, reachable, reached_initial }
    }

    /// `desired` within the bounds; where they contradict each other, the least wins. `None` is an unknown number: it stays
    /// so, but while the revision is being activated it is the least.
    pub fn apply(&self, desired: Option<u32>, activating: bool) -> Option<u32> {
        let least = self.least();
        match desired {
            None => activating.then_some(least),
            Some(desired) if desired < least => Some(least),
            Some(desired) => Some(self.at_most(desired)),
        }
    }

    /// `desired`, but no more than the most.
    pub fn at_most(&self, desired: u32) -> u32 {
        if self.max == 0 { desired } else { desired.min(self.max) }
    }

    /// So many instances must be ready for the revision to be active.
    pub fn active_threshold(&self) -> u32 {
        if self.reached_initial { self.min.max(1) } else { self.min.max(self.initial) }
    }

    fn least(&self) -> u32 {
        let initially = self.reachable && self.initial > 1 && !self.reached_initial;
        if initially { self.min.max(self.initial) } else { self.min }
    }
}
