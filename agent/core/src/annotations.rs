//! The annotations that say how a revision scales, read with Knative's names and defaults. The hub has validated them; what
//! cannot be read here is as if absent.

use std::collections::BTreeMap;

/// Knative's default progress deadline, milliseconds (`config-deployment`, `progress-deadline`).
pub const PROGRESS_DEADLINE_MS: u64 = 600_000;

/// Bounds of a revision's scale, and how long it may take to become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub min: u32,
    /// `None`: no bound.
    pub max: Option<u32>,
    pub progress_deadline_ms: u64,
}

impl Scale {
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let number = |name: &str, old: &str| -> u32 {
            let key = |name: &str| format!("autoscaling.knative.dev/{name}");
            let text = annotations.get(&key(name)).or_else(|| annotations.get(&key(old)));
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let max = number("max-scale", "maxScale");
        let deadline =
            annotations.get("serving.knative.dev/progress-deadline").and_then(|text| go_duration_ms(text));
        Self {
            min: number("min-scale", "minScale"),
            max: (max > 0).then_some(max),
            progress_deadline_ms: deadline.filter(|ms| *ms > 0).unwrap_or(PROGRESS_DEADLINE_MS),
        }
    }
}

/// A duration as Go prints and reads it (`1h2m3.5s`, `250ms`), in whole milliseconds. `None` if it is not one.
pub fn go_duration_ms(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += value
            * match &rest[..unit] {
                "h" => 3_600_000.0,
                "m" => 60_000.0,
                "s" => 1_000.0,
                "ms" => 1.0,
                "us" | "µs" => 0.001,
                "ns" => 0.000_001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    (!text.is_empty() && total.is_finite() && total <= 1e15).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        for (text, ms) in
            [("0", 0), ("10s", 10_000), ("1h2m3.5s", 3_723_500), ("250ms", 250), ("1m0s", 60_000)]
        {
            assert_eq!(go_duration_ms(text), Some(ms), "{text}");
        }
        for bad in ["", "10", "s", "1x", "-1s", "1.2.3s"] {
            assert_eq!(go_duration_ms(bad), None, "{bad}");
        }
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
