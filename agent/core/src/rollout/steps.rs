//! Knative's stepping: how the share of a configuration moves from one revision to the next, in equal steps of whole percent.
//!
//! Times are nanoseconds on a clock of the caller's. Knows neither health nor what is on the node.
//!
//! ```text
//!            new goal                 ready()                    step(), when due
//!  Settled ───────────▶ Started ───────────────────▶ Stepping ────────────────────┐
//!     ▲    1 % to it       ▲  size and period known     │  ▲  more to the goal    │
//!     │                    └──────── new goal ──────────┘  └──────────────────────┤
//!     └────────────────────────── goal has it all ────────────────────────────────┘
//! ```

use serde::{Deserialize, Serialize};

const NANOS_PER_S: f64 = 1e9;

/// What every shift begins with, percent.
const FIRST_PERCENT: u8 = 1;

/// Part of a configuration's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Share {
    pub revision: String,
    /// Of all requests of the route, not of the configuration's.
    pub percent: u8,
}

/// How far the share of one configuration has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shift {
    /// What the configuration has in all.
    pub percent: u8,
    /// Who has it, the oldest first, none with 0; the last is the goal. Empty only at 0 percent.
    pub shares: Vec<Share>,
    pub pace: Pace,
}

/// How fast a shift goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pace {
    /// Nothing moves.
    #[default]
    Settled,
    /// The first percent was given; the routes do not say so yet.
    #[serde(rename_all = "camelCase")]
    Started { at_ns: i64 },
    #[serde(rename_all = "camelCase")]
    Stepping { started_ns: i64, next_ns: i64, period_ns: i64, size_percent: u8 },
}

impl Shift {
    /// All to one revision.
    pub fn settled(revision: &str, percent: u8) -> Self {
        let share = Share { revision: revision.to_owned(), percent };
        let shares = if percent == 0 { Vec::new() } else { vec![share] };
        Self { percent, shares, pace: Pace::Settled }
    }

    /// Whether one that was read back can be gone on with. If not, the goal should get all at once.
    pub fn is_valid(&self) -> bool {
        let size = match self.pace {
            Pace::Stepping { size_percent, .. } => size_percent,
            Pace::Settled | Pace::Started { .. } => 0,
        };
        let sum: u32 = self.shares.iter().map(|share| u32::from(share.percent)).sum();
        self.percent <= 100 && size <= self.percent && sum == u32::from(self.percent)
    }

    /// Whether nothing is left to move.
    pub fn is_done(&self) -> bool {
        self.shares.len() < 2
    }

    /// Who should have it all in the end.
    pub fn goal(&self) -> Option<&str> {
        self.shares.last().map(|share| share.revision.as_str())
    }

    /// When [`Shift::step`] will change something.
    pub fn next_ns(&self) -> Option<i64> {
        match self.pace {
            Pace::Stepping { next_ns, .. } => Some(next_ns),
            Pace::Settled | Pace::Started { .. } => None,
        }
    }

    /// The state after `self` that has `percent` in all and `goal` as its goal: begins, goes on with or finishes a shift.
    ///
    /// A goal that comes while another is being moved to starts anew from there. Shares that hardly are, 0 and 1 percent, go to
    /// the goal at once. One step at most is made, however late it is.
    #[must_use]
    pub fn step(mut self, goal: &str, percent: u8, now_ns: i64) -> Self {
        if percent <= FIRST_PERCENT {
            return Self::settled(goal, percent);
        }
        let had = self.shares.len();
        self.resize(percent);
        match self.goal() {
            None => Self::settled(goal, percent),
            Some(last) if last != goal => self.start(goal, now_ns),
            Some(_) if had < 2 || self.is_done() => Self::settled(goal, percent),
            Some(_) => {
                if self.next_ns().is_some_and(|next_ns| next_ns <= now_ns) {
                    self.advance(now_ns);
                }
                self
            }
        }
    }

    /// Says that requests are sent as `shares` has it: what that took since the shift started is the least a step may take.
    /// With it `duration_s` is cut into steps.
    pub fn ready(&mut self, duration_s: f64, now_ns: i64) {
        let Pace::Started { at_ns } = self.pace else { return };
        let took_s = (now_ns.saturating_sub(at_ns) as f64 / NANOS_PER_S).ceil().max(1.0);
        // The first percent is moved already and took that long; when nothing is left, one step of a second does the rest.
        let left_s = (duration_s - took_s).max(1.0);
        let left_percent = f64::from(self.percent.saturating_sub(FIRST_PERCENT).max(1));
        let steps = (left_s / took_s).max(1.0).min(left_percent);
        let period_ns = left_s / steps * NANOS_PER_S;
        self.pace = Pace::Stepping {
            started_ns: at_ns,
            next_ns: (now_ns as f64 + period_ns) as i64,
            period_ns: period_ns as i64,
            // Rounded, so that the whole takes a bit shorter or longer than asked for.
            size_percent: (left_percent / steps).round() as u8,
        };
    }

    /// Whether the next step is the last.
    pub fn is_last_step(&self) -> bool {
        let Pace::Stepping { size_percent, .. } = self.pace else { return false };
        let goal = self.shares.last().map_or(0, |share| share.percent);
        goal.saturating_add(size_percent) >= self.percent
    }

    /// Makes the shares sum to `percent`: the goal gets what is added, the oldest lose what is taken.
    pub fn resize(&mut self, percent: u8) {
        let mut lost = self.percent.saturating_sub(percent);
        let won = percent.saturating_sub(self.percent);
        self.percent = percent;
        self.shares.retain_mut(|share| {
            let taken = lost.min(share.percent);
            lost -= taken;
            share.percent -= taken;
            share.percent > 0
        });
        if let Some(goal) = self.shares.last_mut() {
            goal.percent += won;
        }
    }

    /// Takes all from those that must not be kept; the newest that stays gets it. Without its goal nothing moves any more.
    pub fn keep(&mut self, keep: impl Fn(&str) -> bool) {
        if self.shares.iter().all(|share| keep(&share.revision)) {
            return;
        }
        if self.goal().is_some_and(|goal| !keep(goal)) {
            self.pace = Pace::Settled;
        }
        self.shares.retain(|share| keep(&share.revision));
        let kept: u8 = self.shares.iter().map(|share| share.percent).sum();
        match self.shares.last_mut() {
            Some(newest) => newest.percent += self.percent - kept,
            None => *self = Self::default(),
        }
    }

    /// Takes all from the goal and gives it to the others as they share now; returns the goal's name. Nothing moves any more.
    pub fn withdraw(&mut self) -> Option<String> {
        if self.is_done() {
            return None;
        }
        let goal = self.shares.pop()?;
        self.shares = apportion(&self.shares, self.percent);
        self.pace = Pace::Settled;
        Some(goal.revision)
    }

    /// Takes the first percent for `goal` from the newest.
    fn start(mut self, goal: &str, now_ns: i64) -> Self {
        if let Some(newest) = self.shares.last_mut() {
            newest.percent -= FIRST_PERCENT;
        }
        self.shares.retain(|share| share.percent > 0);
        self.shares.push(Share { revision: goal.to_owned(), percent: FIRST_PERCENT });
        self.pace = Pace::Started { at_ns: now_ns };
        self
    }

    /// Gives the goal one step more, from the newest of the others.
    fn advance(&mut self, now_ns: i64) {
        let Pace::Stepping { started_ns, period_ns, size_percent, .. } = self.pace else { return };
        let Some(mut goal) = self.shares.pop() else { return };
        let mut wanted = size_percent;
        while let Some(newest) = self.shares.last_mut() {
            if newest.percent > wanted {
                newest.percent -= wanted;
                goal.percent += wanted;
                break;
            }
            wanted -= newest.percent;
            goal.percent += newest.percent;
            self.shares.pop();
        }
        self.shares.push(goal);
        self.pace = if self.is_done() {
            Pace::Settled
        } else {
            Pace::Stepping { started_ns, next_ns: now_ns.saturating_add(period_ns), period_ns, size_percent }
        };
    }
}

/// `shares` scaled to sum to `percent`, in whole percent by the largest remainders, older ones first; those left with 0 are not
/// in it.
pub fn apportion(shares: &[Share], percent: u8) -> Vec<Share> {
    let sum: u32 = shares.iter().map(|share| u32::from(share.percent)).sum();
    if sum == 0 {
        return Vec::new();
    }
    let scaled = |share: &Share| u32::from(share.percent) * u32::from(percent);
    let mut parts: Vec<u32> = shares.iter().map(|share| scaled(share) / sum).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(scaled(&shares[at]) % sum));
    let missing = u32::from(percent) - parts.iter().sum::<u32>();
    for &at in order.iter().take(missing as usize) {
        parts[at] += 1;
    }
    let parts = shares.iter().zip(parts).map(|(share, part)| Share {
        revision: share.revision.clone(),
        percent: u8::try_from(part).expect("a part is at most the whole"),
    });
    parts.filter(|share| share.percent > 0).collect()
}
