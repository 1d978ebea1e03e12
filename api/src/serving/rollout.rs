//! How the annotations of a Service or Route say that traffic moves to a new Revision: how long it takes, and what undoes it.

use std::collections::BTreeMap;

use super::keys::{
    GATE_MAX_ERROR_PERCENT, GATE_MAX_LATENCY_PERCENT, GATE_MIN_REQUESTS, HEALTH_GATE, ROLLOUT_DURATION,
};
use crate::desired::{HealthGate, RolloutSpec};
use crate::duration;

const SECOND: i64 = 1_000_000_000;

/// A number of the health gate: its key, its bounds, and what counts where it is absent.
#[derive(Clone, Copy, Debug)]
pub struct GateNumber {
    pub key: &'static str,
    pub min: u32,
    pub max: u32,
    pub default: u32,
}

pub const MAX_ERROR_PERCENT: GateNumber =
    GateNumber { key: GATE_MAX_ERROR_PERCENT, min: 0, max: 100, default: 5 };
/// The next revision starts colder than the one before it, so a little slower is no reason to go back.
pub const MAX_LATENCY_PERCENT: GateNumber =
    GateNumber { key: GATE_MAX_LATENCY_PERCENT, min: 100, max: 100_000, default: 200 };
/// Below this a single bad answer would decide.
pub const MIN_REQUESTS: GateNumber =
    GateNumber { key: GATE_MIN_REQUESTS, min: 1, max: 1_000_000, default: 20 };

pub const GATE_NUMBERS: [GateNumber; 3] = [MAX_ERROR_PERCENT, MAX_LATENCY_PERCENT, MIN_REQUESTS];

impl GateNumber {
    /// The number in `text`, if it is one within the bounds.
    pub fn parse(&self, text: &str) -> Option<u32> {
        text.parse().ok().filter(|number| (self.min..=self.max).contains(number))
    }

    fn of(&self, annotations: &BTreeMap<String, String>) -> u32 {
        annotations.get(self.key).and_then(|text| self.parse(text)).unwrap_or(self.default)
    }
}

/// The rollout of a route with these annotations, which admission has checked; `None` where traffic moves at once.
pub fn spec(annotations: &BTreeMap<String, String>) -> Option<RolloutSpec> {
    let nanos = annotations.get(ROLLOUT_DURATION).and_then(|text| duration::nanos(text))?;
    let duration_s = u64::try_from(nanos / SECOND).ok().filter(|seconds| *seconds > 0)?;
    let gated = annotations.get(HEALTH_GATE).is_none_or(|value| value != "off");
    let gate = gated.then(|| HealthGate {
        max_error_percent: u8::try_from(MAX_ERROR_PERCENT.of(annotations)).unwrap_or(100),
        max_latency_percent: MAX_LATENCY_PERCENT.of(annotations),
        min_requests: MIN_REQUESTS.of(annotations),
    });
    Some(RolloutSpec { duration_s, gate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_makes_a_rollout_and_the_gate_is_on_unless_it_is_switched_off() {
        let usual = HealthGate { max_error_percent: 5, max_latency_percent: 200, min_requests: 20 };
        let other = HealthGate { max_error_percent: 1, max_latency_percent: 150, min_requests: 7 };
        let numbers =
            [(GATE_MAX_ERROR_PERCENT, "1"), (GATE_MAX_LATENCY_PERCENT, "150"), (GATE_MIN_REQUESTS, "7")];
        let after = |duration_s, gate| Some(RolloutSpec { duration_s, gate });
        for (pairs, expected) in [
            (&[][..], None),
            (&[(ROLLOUT_DURATION, "0s")], None),
            (&[(ROLLOUT_DURATION, "")], None),
            (&[(HEALTH_GATE, "on")], None),
            (&[(ROLLOUT_DURATION, "2m")], after(120, Some(usual))),
            (&[(ROLLOUT_DURATION, "1s"), (HEALTH_GATE, "off")], after(1, None)),
            (&[&[(ROLLOUT_DURATION, "1s")], &numbers[..]].concat(), after(1, Some(other))),
        ] {
            let annotations =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(spec(&annotations), expected, "{pairs:?}");
        }
    }
}
