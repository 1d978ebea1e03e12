//! How one revision scales: its annotations on top of the node's defaults, resolved to the numbers that decisions are made
//! with. Knows Knative's names and ranges; must not know what is measured or what runs.

use std::collections::BTreeMap;
use std::str::FromStr;

use tombolo_api::duration;
use tombolo_api::serving::keys;

use crate::annotations::Scale;

/// Least value that is aimed at, whatever is asked: Knative's bound, so that nothing is divided by zero.
pub const TARGET_MIN: f64 = 0.01;

/// Stable windows may be this long, milliseconds: Knative's range, and the bound of a window's memory.
pub const WINDOW_MIN_MS: u64 = 6_000;
pub const WINDOW_MAX_MS: u64 = 3_600_000;

/// What a revision that is being activated gets on top of its progress deadline before it is given up, milliseconds. Knative's.
const ACTIVATION_BUFFER_MS: u64 = 30_000;

/// Percent of the target number of requests a second that is aimed at, unless annotated. Knative's.
const RPS_UTILIZATION_PERCENT: f64 = 70.0;

/// What applies where a revision says nothing: Knative's `config-autoscaler`, with its values as defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Requests at a time in one instance without a limit of its own.
    pub concurrency_target: f64,
    /// How much of the concurrency is aimed at, percent.
    pub concurrency_utilization_percent: f64,
    pub rps_target: f64,
    pub target_burst_capacity: f64,
    pub stable_window_ms: u64,
    pub panic_window_percent: f64,
    pub panic_threshold_percent: f64,
    pub max_scale_up_rate: f64,
    pub max_scale_down_rate: f64,
    pub scale_down_delay_ms: u64,
    pub min_scale: u32,
    /// 0: no bound.
    pub max_scale: u32,
    pub initial_scale: u32,
    pub allow_zero_initial_scale: bool,
    pub enable_scale_to_zero: bool,
    pub grace_period_ms: u64,
    pub retention_ms: u64,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            concurrency_target: 100.0,
            concurrency_utilization_percent: 70.0,
            rps_target: 200.0,
            target_burst_capacity: 211.0,
            stable_window_ms: 60_000,
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_down_delay_ms: 0,
            min_scale: 0,
            max_scale: 0,
            initial_scale: 1,
            allow_zero_initial_scale: false,
            enable_scale_to_zero: true,
            grace_period_ms: 30_000,
            retention_ms: 0,
        }
    }
}

/// What is measured and aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests at a time.
    Concurrency,
    /// Requests a second.
    Rps,
}

/// How the samples of a window become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    Linear,
    /// Later samples count more.
    WeightedExponential,
}

/// When a decision may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Every [`super::TICK_MS`], as Knative does.
    Tick,
    /// At every request as well, upwards only.
    Fast,
}

/// The asked bounds of the number of instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleRange {
    pub min: u32,
    /// 0: no bound.
    pub max: u32,
    /// Instances of a new revision, before any metric.
    pub initial: u32,
}

/// When a revision may go to zero instances, and when an activation has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToZero {
    pub enabled: bool,
    /// The activator must have been in the path for this long.
    pub grace_period_ms: u64,
    /// The last instance is kept for this long.
    pub retention_ms: u64,
    pub activation_timeout_ms: u64,
}

/// Everything a revision's scaling depends on besides what is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    pub metric: Metric,
    pub aggregation: Aggregation,
    /// Of the metric, what one instance is meant to have. At least [`TARGET_MIN`].
    pub target_value: f64,
    /// Of the metric, what one instance can take.
    pub total_value: f64,
    pub stable_window_ms: u64,
    /// Whole seconds, at least one.
    pub panic_window_ms: u64,
    /// How many times the ready instances must be wanted to start a panic.
    pub panic_threshold: f64,
    pub max_scale_up_rate: f64,
    pub max_scale_down_rate: f64,
    /// -1: without bound; 0: none.
    pub target_burst_capacity: f64,
    pub scale_down_delay_ms: u64,
    /// Smallest number of instances above zero; 0 and 1 mean nothing.
    pub activation_scale: u32,
    pub range: ScaleRange,
    pub to_zero: ToZero,
    pub reaction: Reaction,
}

impl Parameters {
    /// What a revision with these annotations and this `containerConcurrency` scales by. The hub has validated the annotations:
    /// what is out of its range here is as if absent.
    pub fn of(annotations: &BTreeMap<String, String>, concurrency: u32, defaults: &Defaults) -> Self {
        let (read, scale) = (Annotated(annotations), Scale::of(annotations));
        let metric = match read.text("metric") {
            Some("rps") => Metric::Rps,
            _ => Metric::Concurrency,
        };
        let (target_value, total_value) = target(&read, metric, concurrency, defaults);
        let stable_window_ms = read
            .duration_ms("window")
            .filter(|ms| (WINDOW_MIN_MS..=WINDOW_MAX_MS).contains(ms))
            .unwrap_or(defaults.stable_window_ms);
        let percent = read.percent("panic-window-percentage", 1.0, 100.0);
        let threshold = read.percent("panic-threshold-percentage", 110.0, 1000.0);
        let burst = read.number::<f64>("target-burst-capacity").filter(|burst| {
            // Not a number is allowed by the hub, as by Knative, and means nothing.
            burst.is_finite() && (*burst >= 0.0 || *burst == -1.0)
        });
        Self {
            metric,
            aggregation: match read.text("metric-aggregation-algorithm") {
                Some("weighted-exponential" | "weightedExponential") => Aggregation::WeightedExponential,
                _ => Aggregation::Linear,
            },
            target_value,
            total_value,
            stable_window_ms,
            panic_window_ms: panic_window_ms(
                stable_window_ms,
                percent.unwrap_or(defaults.panic_window_percent),
            ),
            panic_threshold: threshold.unwrap_or(defaults.panic_threshold_percent) / 100.0,
            max_scale_up_rate: defaults.max_scale_up_rate,
            max_scale_down_rate: defaults.max_scale_down_rate,
            target_burst_capacity: burst.unwrap_or(defaults.target_burst_capacity),
            scale_down_delay_ms: read.up_to_an_hour("scale-down-delay", defaults.scale_down_delay_ms),
            activation_scale: scale.activation,
            range: range(&read, defaults),
            to_zero: ToZero {
                enabled: defaults.enable_scale_to_zero,
                grace_period_ms: defaults.grace_period_ms,
                retention_ms: read.up_to_an_hour("scale-to-zero-pod-retention-period", defaults.retention_ms),
                activation_timeout_ms: scale.progress_deadline_ms.saturating_add(ACTIVATION_BUFFER_MS),
            },
            reaction: match annotations.get(keys::REACTION).map(String::as_str) {
                Some("fast") => Reaction::Fast,
                _ => Reaction::Tick,
            },
        }
    }

    /// Whether all requests go through the activator whatever there is to spare, so that having no samples means no requests.
    pub fn always_through_activator(&self) -> bool {
        self.target_burst_capacity == -1.0
    }
}

fn target(read: &Annotated, metric: Metric, concurrency: u32, defaults: &Defaults) -> (f64, f64) {
    let limit = (concurrency > 0).then_some(f64::from(concurrency));
    let (mut total, mut utilization_percent) = match metric {
        Metric::Rps => (defaults.rps_target, RPS_UTILIZATION_PERCENT),
        Metric::Concurrency => {
            (limit.unwrap_or(defaults.concurrency_target), defaults.concurrency_utilization_percent)
        }
    };
    if let Some(asked) = read.number::<f64>("target").filter(|x| x.is_finite() && *x >= TARGET_MIN) {
        total = match (metric, limit) {
            // An instance that takes ten requests at a time is not aimed at with twenty.
            (Metric::Concurrency, Some(limit)) => asked.min(limit),
            _ => asked,
        };
    }
    if let Some(asked) = read.percent("target-utilization-percentage", 1.0, 100.0) {
        utilization_percent = asked;
    }
    ((total * (utilization_percent / 100.0)).max(TARGET_MIN), total)
}

fn panic_window_ms(stable_window_ms: u64, percent: f64) -> u64 {
    let seconds = (stable_window_ms as f64 * percent / 100.0 / 1000.0).round();
    (seconds as u64).max(1) * 1000
}

fn range(read: &Annotated, defaults: &Defaults) -> ScaleRange {
    let initial = read.number("initial-scale").filter(|n| *n > 0 || defaults.allow_zero_initial_scale);
    ScaleRange {
        min: read.number("min-scale").unwrap_or(defaults.min_scale),
        max: read.number("max-scale").unwrap_or(defaults.max_scale),
        initial: initial.unwrap_or(defaults.initial_scale),
    }
}

/// Annotations of the autoscaling group, by their names within it; the old camelCase names are fall-backs.
struct Annotated<'a>(&'a BTreeMap<String, String>);

impl Annotated<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        let named = |name: &str| self.0.get(&format!("{}/{name}", keys::AUTOSCALING));
        named(name).or_else(|| named(&camel_case(name))).map(String::as_str)
    }

    fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    fn percent(&self, name: &str, low: f64, high: f64) -> Option<f64> {
        self.number(name).filter(|percent| (low..=high).contains(percent))
    }

    fn duration_ms(&self, name: &str) -> Option<u64> {
        duration::millis(self.text(name)?)
    }

    fn up_to_an_hour(&self, name: &str, default_ms: u64) -> u64 {
        self.duration_ms(name).filter(|ms| *ms <= WINDOW_MAX_MS).unwrap_or(default_ms)
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('-');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Parameters {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Parameters::of(&annotations, 0, &Defaults::default())
    }

    #[test]
    fn old_names_are_fallbacks() {
        let old = ("autoscaling.knative.dev/scaleToZeroPodRetentionPeriod", "7s");
        let new = ("autoscaling.knative.dev/scale-to-zero-pod-retention-period", "9s");
        assert_eq!(of(&[old]).to_zero.retention_ms, 7_000);
        assert_eq!(of(&[old, new]).to_zero.retention_ms, 9_000);
    }

    #[test]
    fn what_is_out_of_range_is_as_if_absent() {
        let none = of(&[]);
        for (name, value) in [
            ("window", "5s"),
            ("window", "2h"),
            ("window", "soon"),
            ("target", "0"),
            ("target", "NaN"),
            ("target", "inf"),
            ("target-burst-capacity", "NaN"),
            ("target-burst-capacity", "-2"),
            ("target-utilization-percentage", "0"),
            ("panic-window-percentage", "101"),
            ("panic-threshold-percentage", "100"),
            ("scale-down-delay", "61m"),
            ("min-scale", "-1"),
            ("initial-scale", "0"),
            ("metric", "memory"),
        ] {
            assert_eq!(of(&[(&format!("autoscaling.knative.dev/{name}"), value)]), none, "{name}={value}");
        }
    }

    #[test]
    fn a_revision_reacts_fast_only_if_it_says_so() {
        assert_eq!(of(&[]).reaction, Reaction::Tick);
        assert_eq!(of(&[("tombolo.dev/reaction", "fast")]).reaction, Reaction::Fast);
    }
}
