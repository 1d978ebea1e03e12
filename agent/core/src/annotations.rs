//! The annotations that say how a revision scales, read with Knative's names and defaults. The hub has validated them; what
//! cannot be read here is as if absent.

use std::collections::BTreeMap;

use tombolo_api::desired::INSTANCES_PER_REVISION_MAX;
use tombolo_api::duration;
use tombolo_api::serving::keys;

/// Knative's default progress deadline, milliseconds (`config-deployment`, `progress-deadline`).
pub const PROGRESS_DEADLINE_MS: u64 = 600_000;

/// What an idle revision keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleTier {
    /// Nothing but its unpacked image.
    Cold,
    /// One instance that is made and not started.
    #[default]
    Primed,
    /// One instance that runs.
    Running,
    /// Its last instance, stopped where it was.
    Frozen,
    /// One instance, stopped where it was, with what it has on an accelerator moved to the host's memory and the accelerator free
    /// for others.
    Suspended,
}

/// How a revision takes the place of the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateStrategy {
    /// Nobody has said: overlap, but where the node can never have memory for both.
    #[default]
    Unsaid,
    /// The former one serves until this one is ready.
    Overlap,
    /// This one is made while the former one serves; then that one ends, and this one starts.
    HandOver,
    /// The former one is gone before this one is made.
    StopFirst,
    /// Stop first where there is no room for both.
    Auto,
}

/// Bounds of a revision's scale, what it keeps at zero, and how long it may take to become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub min: u32,
    /// `None`: no bound.
    pub max: Option<u32>,
    /// Instances that prove a new revision; at least 1.
    pub initial: u32,
    /// The fewest while requests come; 0: one.
    pub activation: u32,
    pub tier: IdleTier,
    pub strategy: UpdateStrategy,
    pub progress_deadline_ms: u64,
}

impl Scale {
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| annotations.get(key).map(String::as_str);
        let number = |key, old| -> u32 {
            text(key).or_else(|| text(old)).and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let max = number("autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale");
        let tier = match text(keys::IDLE_TIER) {
            Some("cold") => IdleTier::Cold,
            Some("running") => IdleTier::Running,
            Some("frozen") => IdleTier::Frozen,
            Some("suspended") => IdleTier::Suspended,
            _ => IdleTier::Primed,
        };
        let strategy = match text(keys::UPDATE_STRATEGY) {
            Some("hand-over") => UpdateStrategy::HandOver,
            Some("stop-first") => UpdateStrategy::StopFirst,
            Some("auto") => UpdateStrategy::Auto,
            Some("overlap") => UpdateStrategy::Overlap,
            _ => UpdateStrategy::Unsaid,
        };
        let deadline = text(keys::PROGRESS_DEADLINE).and_then(duration::millis);
        Self {
            min: number("autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"),
            max: (max > 0).then_some(max),
            initial: number("autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale")
                .max(1),
            activation: number(
                "autoscaling.knative.dev/activation-scale",
                "autoscaling.knative.dev/activationScale",
            ),
            tier,
            strategy,
            progress_deadline_ms: deadline.filter(|ms| *ms > 0).unwrap_or(PROGRESS_DEADLINE_MS),
        }
    }

    /// How many ready instances prove a revision, of which the node has room for `room`: the initial ones and the fewest that are to
    /// run, but no more than there may be. Of the fewest a node that has not the room for all proves it with those that it has.
    pub fn proof(&self, room: u32) -> u32 {
        let most = self.max.unwrap_or(u32::MAX).min(INSTANCES_PER_REVISION_MAX);
        self.initial.max(self.floor().min(room)).min(most)
    }

    /// The fewest instances that run, whatever the traffic.
    pub fn floor(&self) -> u32 {
        if self.tier == IdleTier::Running { self.min.max(1) } else { self.min }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_and_the_least_instances_prove_a_revision() {
        let proof = |pairs: &[(&str, &str)], room| {
            let pairs = pairs.iter();
            let annotations =
                pairs.map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), (*value).to_owned()));
            let scale = Scale::of(&annotations.collect());
            scale.proof(room)
        };
        let (least, initial) = (("min-scale", "4"), ("initial-scale", "2"));
        assert_eq!(proof(&[], u32::MAX), 1);
        assert_eq!(proof(&[initial], u32::MAX), 2);
        assert_eq!(proof(&[least, initial], u32::MAX), 4);
        assert_eq!(proof(&[least], 3), 3, "there is no room for more");
        assert_eq!(proof(&[least, initial], 1), 2);
        assert_eq!(proof(&[least, ("max-scale", "3")], u32::MAX), 3);
        assert_eq!(proof(&[("min-scale", "99")], u32::MAX), INSTANCES_PER_REVISION_MAX);
    }

    #[test]
    fn old_names_are_fallbacks() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), (*value).to_owned()))
                .collect()
        };
        assert_eq!(Scale::of(&annotations(&[("minScale", "2"), ("max-scale", "0")])).min, 2);
        assert_eq!(Scale::of(&annotations(&[("minScale", "2"), ("min-scale", "3")])).min, 3);
        assert_eq!(Scale::of(&annotations(&[("max-scale", "0")])).max, None);
        assert_eq!(Scale::of(&annotations(&[("max-scale", "4")])).max, Some(4));
    }
}
