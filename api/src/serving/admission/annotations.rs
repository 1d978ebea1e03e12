//! Values of the annotations that Knative gives a meaning to. Knows nothing of specs.

use std::collections::BTreeMap;
use std::fmt;

use super::field_error::FieldErrors;
use crate::duration;
use crate::quantity::Quantity;
use crate::serving::keys::{AUTOSCALING, PROGRESS_DEADLINE, ROLLOUT_DURATION};

type Annotations = BTreeMap<String, String>;

pub(super) const KPA: &str = "kpa.autoscaling.knative.dev";
pub(super) const HPA: &str = "hpa.autoscaling.knative.dev";

pub(super) const CLASS_KEY: &str = "autoscaling.knative.dev/class";

const SECOND: i64 = 1_000_000_000;
const WINDOW_MIN: i64 = 6 * SECOND;
const WINDOW_MAX: i64 = 3600 * SECOND;

/// An annotation may go by an older name too; the first one present counts.
struct Key(&'static [&'static str]);

const MIN_SCALE: Key = Key(&["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"]);
const MAX_SCALE: Key = Key(&["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"]);
const INITIAL_SCALE: Key =
    Key(&["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"]);
const ACTIVATION_SCALE: Key =
    Key(&["autoscaling.knative.dev/activation-scale", "autoscaling.knative.dev/activationScale"]);
const CLASS: Key = Key(&[CLASS_KEY]);
const METRIC: Key = Key(&["autoscaling.knative.dev/metric"]);
const ALGORITHM: Key = Key(&[
    "autoscaling.knative.dev/metric-aggregation-algorithm",
    "autoscaling.knative.dev/metricAggregationAlgorithm",
]);
const TARGET: Key = Key(&["autoscaling.knative.dev/target"]);
const UTILIZATION: Key = Key(&[
    "autoscaling.knative.dev/target-utilization-percentage",
    "autoscaling.knative.dev/targetUtilizationPercentage",
]);
const BURST: Key =
    Key(&["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"]);
const PANIC_WINDOW: Key = Key(&[
    "autoscaling.knative.dev/panic-window-percentage",
    "autoscaling.knative.dev/panicWindowPercentage",
]);
const PANIC_THRESHOLD: Key = Key(&[
    "autoscaling.knative.dev/panic-threshold-percentage",
    "autoscaling.knative.dev/panicThresholdPercentage",
]);
const WINDOW: Key = Key(&["autoscaling.knative.dev/window"]);
const SCALE_DOWN_DELAY: Key =
    Key(&["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"]);
const RETENTION: Key = Key(&[
    "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
    "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
]);
const SIDECAR_PERCENTAGE: Key = Key(&[
    "queue.sidecar.serving.knative.dev/resource-percentage",
    "queue.sidecar.serving.knative.dev/resourcePercentage",
]);
const SIDECAR_AMOUNTS: [Key; 6] = [
    Key(&["queue.sidecar.serving.knative.dev/cpu-resource-request"]),
    Key(&["queue.sidecar.serving.knative.dev/cpu-resource-limit"]),
    Key(&["queue.sidecar.serving.knative.dev/memory-resource-request"]),
    Key(&["queue.sidecar.serving.knative.dev/memory-resource-limit"]),
    Key(&["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request"]),
    Key(&["queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit"]),
];

impl Key {
    fn of<'a>(&self, annotations: &'a Annotations) -> Option<(&'static str, &'a str)> {
        self.0.iter().find_map(|key| annotations.get(*key).map(|value| (*key, value.as_str())))
    }
}

/// Annotations of a template: paths are relative to them.
pub(super) fn template(annotations: &Annotations) -> FieldErrors {
    class(annotations)
        .also(scale_bounds(annotations))
        .also(numbers(annotations))
        .also(window(annotations))
        .also(up_to_an_hour(annotations, &RETENTION, false))
        .also(up_to_an_hour(annotations, &SCALE_DOWN_DELAY, true))
        .also(metric(annotations))
        .also(algorithm(annotations))
        .also(initial_scale(annotations))
        .also(sidecar(annotations))
        .also(positive_duration(annotations, PROGRESS_DEADLINE, "progress-deadline"))
}

/// Annotations of a Service or Route: how long a new Revision takes over.
pub(super) fn rollout(annotations: &Annotations) -> FieldErrors {
    positive_duration(annotations, ROLLOUT_DURATION, "rollout-duration")
}

/// Autoscaling is a Revision's affair, so its annotations belong to the template.
pub(super) fn no_autoscaling(annotations: &Annotations) -> FieldErrors {
    let why = "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work";
    let misplaced = annotations.keys().filter(|key| key.starts_with(AUTOSCALING));
    misplaced.fold(FieldErrors::none(), |all, key| all.also(FieldErrors::invalid_key(key, "", why)))
}

fn class(annotations: &Annotations) -> FieldErrors {
    match CLASS.of(annotations) {
        Some((key, class)) if class.ends_with(AUTOSCALING) && class != KPA && class != HPA => {
            FieldErrors::invalid(class, key)
        }
        _ => FieldErrors::none(),
    }
}

/// A scale bound, 0 where there is none, and what is wrong with it.
fn scale(annotations: &Annotations, key: &Key) -> (i64, FieldErrors) {
    let Some((key, text)) = key.of(annotations) else { return (0, FieldErrors::none()) };
    let out_of_bounds = || FieldErrors::out_of_bounds(text, 0, i32::MAX, key);
    match text.parse::<i64>() {
        Ok(value) if (0..=i64::from(i32::MAX)).contains(&value) => (value, FieldErrors::none()),
        Ok(_) => (0, out_of_bounds()),
        Err(_) if is_integer(text) => (0, out_of_bounds()),
        Err(_) => (0, FieldErrors::invalid(text, key)),
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn scale_bounds(annotations: &Annotations) -> FieldErrors {
    let (min, mut errors) = scale(annotations, &MIN_SCALE);
    let (max, more) = scale(annotations, &MAX_SCALE);
    errors.add(more);
    if max != 0 && max < min {
        let message = format!("max-scale={max} is less than min-scale={min}");
        errors.add(FieldErrors::new(message, &[MAX_SCALE.0[0], MIN_SCALE.0[0]]));
    }
    let Some((key, text)) = ACTIVATION_SCALE.of(annotations) else { return errors };
    let wrong = match text.parse::<i32>().map(i64::from) {
        Err(_) => Some(FieldErrors::invalid(text, key)),
        Ok(value) if min > value => Some(FieldErrors::new(
            format!("min-scale={min} is greater than activation-scale={value}"),
            &[key],
        )),
        Ok(value) if max < value && max != 0 => {
            Some(FieldErrors::new(format!("max-scale={max} is less than activation-scale={value}"), &[key]))
        }
        Ok(value) if value < 2 => {
            Some(FieldErrors::new(format!("activation-scale={value} must be greater than 1"), &[key]))
        }
        Ok(_) => None,
    };
    errors.also(wrong.unwrap_or_default())
}

fn numbers(annotations: &Annotations) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (key, low, high) in
        [(&PANIC_WINDOW, 1.0, 100.0), (&PANIC_THRESHOLD, 110.0, 1000.0), (&UTILIZATION, 1.0, 100.0)]
    {
        let Some((key, text)) = key.of(annotations) else { continue };
        match text.parse::<f64>() {
            Err(_) => errors.add(FieldErrors::invalid(text, key)),
            Ok(value) if value < low || value > high => {
                errors.add(FieldErrors::out_of_bounds(text, low, high, key));
            }
            Ok(_) => {}
        }
    }
    if let Some((key, text)) = TARGET.of(annotations) {
        match text.parse::<f64>() {
            Err(_) => errors.add(FieldErrors::invalid(text, key)),
            Ok(value) if value < 0.01 => {
                errors.add(FieldErrors::new(format!("target {text} should be at least 0.01"), &[key]));
            }
            Ok(_) => {}
        }
    }
    if let Some((key, text)) = BURST.of(annotations)
        && !text.parse::<f64>().is_ok_and(|value| value >= 0.0 || value == -1.0 || value.is_nan())
    {
        errors.add(FieldErrors::invalid(text, key));
    }
    errors
}

fn window(annotations: &Annotations) -> FieldErrors {
    let Some((key, text)) = WINDOW.of(annotations) else { return FieldErrors::none() };
    match duration::nanos(text) {
        None => FieldErrors::invalid(text, key),
        Some(nanos) if !(WINDOW_MIN..=WINDOW_MAX).contains(&nanos) => {
            FieldErrors::out_of_bounds(text, "6s", "1h0m0s", key)
        }
        Some(nanos) if nanos % SECOND != 0 => too_precise(key),
        Some(_) => FieldErrors::none(),
    }
}

fn up_to_an_hour(annotations: &Annotations, key: &Key, whole_seconds: bool) -> FieldErrors {
    let Some((key, text)) = key.of(annotations) else { return FieldErrors::none() };
    match duration::nanos(text) {
        None => FieldErrors::invalid(text, key),
        Some(nanos) if !(0..=WINDOW_MAX).contains(&nanos) => {
            FieldErrors::out_of_bounds(text, "0s", "1h0m0s", key)
        }
        Some(nanos) if whole_seconds && nanos % SECOND != 0 => too_precise(key),
        Some(_) => FieldErrors::none(),
    }
}

fn too_precise(key: &str) -> FieldErrors {
    FieldErrors::new("must be specified with at most second precision", &[key])
}

fn metric(annotations: &Annotations) -> FieldErrors {
    let Some((key, metric)) = METRIC.of(annotations) else { return FieldErrors::none() };
    let known = match CLASS.of(annotations).map_or(KPA, |(_, class)| class) {
        KPA => matches!(metric, "concurrency" | "rps"),
        HPA => !metric.is_empty(),
        _ => true,
    };
    if known { FieldErrors::none() } else { FieldErrors::invalid(metric, key) }
}

fn algorithm(annotations: &Annotations) -> FieldErrors {
    let of_kpa = CLASS.of(annotations).is_some_and(|(_, class)| class == KPA);
    match ALGORITHM.of(annotations) {
        Some((key, name))
            if of_kpa && !matches!(name, "" | "linear" | "weighted-exponential" | "weightedExponential") =>
        {
            FieldErrors::invalid(name, key)
        }
        _ => FieldErrors::none(),
    }
}

fn initial_scale(annotations: &Annotations) -> FieldErrors {
    let Some((key, text)) = INITIAL_SCALE.of(annotations) else { return FieldErrors::none() };
    match text.parse::<i64>() {
        Err(_) => FieldErrors::invalid(text, key),
        Ok(..0) => FieldErrors::invalid(text, &format!("{key} must be greater than 0")),
        Ok(0) => FieldErrors::invalid(text, &format!("{key}=0 not allowed by cluster")),
        Ok(_) => FieldErrors::none(),
    }
}

fn sidecar(annotations: &Annotations) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for key in &SIDECAR_AMOUNTS {
        if let Some((key, text)) = key.of(annotations)
            && text.parse::<Quantity>().is_err()
        {
            errors.add(FieldErrors::invalid(text, key));
        }
    }
    if let Some((key, text)) = SIDECAR_PERCENTAGE.of(annotations) {
        match text.parse::<f64>() {
            Err(_) => errors.add(FieldErrors::invalid(text, "").via_key(key)),
            Ok(value) if !(0.1..=100.0).contains(&value) => {
                errors.add(FieldErrors::out_of_bounds(value, 0.1, 100, "").via_key(key));
            }
            Ok(_) => {}
        }
    }
    errors
}

fn positive_duration(annotations: &Annotations, key: &str, what: impl fmt::Display) -> FieldErrors {
    let text = annotations.get(key).map_or("", String::as_str);
    if text.is_empty() {
        return FieldErrors::none();
    }
    match duration::nanos(text) {
        None => FieldErrors::invalid(text, key),
        Some(nanos) if nanos % SECOND != 0 => {
            FieldErrors::new(format!("{what}={text} is not at second precision"), &[key])
        }
        Some(..0) => FieldErrors::new(format!("{what}={text} must be positive"), &[key]),
        Some(_) => FieldErrors::none(),
    }
}
