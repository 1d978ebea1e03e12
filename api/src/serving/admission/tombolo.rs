//! Tombolo's own annotations: which there are, where each belongs, and what may stand in it.

use std::collections::BTreeMap;

use super::field_error::FieldErrors;
use crate::serving::keys::{
    GATE_MAX_ERROR_PERCENT, GATE_MAX_LATENCY_PERCENT, GATE_MIN_REQUESTS, HEALTH_GATE, IDLE_TIER,
    MEMORY_OVERUSE, MEMORY_OVERUSE_GRACE, PRELOAD, PULL, REACTION, STEERING, TOMBOLO_PREFIX, UPDATE_STRATEGY,
};
use crate::serving::{TrafficTarget, rollout, steering};
use crate::{Digest, duration};

type Annotations = BTreeMap<String, String>;

/// Keys of a Revision's template, and their values.
const OF_TEMPLATES: [(&str, &[&str]); 5] = [
    (IDLE_TIER, &["cold", "primed", "running", "frozen", "suspended"]),
    (MEMORY_OVERUSE, &["stop", "warn", "off"]),
    (PULL, &["now", "in-hours"]),
    (REACTION, &["fast", "knative"]),
    (UPDATE_STRATEGY, &["overlap", "hand-over", "stop-first", "auto"]),
];

/// Longest time that an instance may hold more memory than it declared, milliseconds: who waits for that long has another policy.
const GRACE_MAX_MS: u64 = 3_600_000;

/// Keys of a Service or a Route.
const OF_ROUTES: [&str; 5] =
    [STEERING, HEALTH_GATE, GATE_MAX_ERROR_PERCENT, GATE_MAX_LATENCY_PERCENT, GATE_MIN_REQUESTS];

/// Annotations of a template; paths are relative to them.
pub(super) fn template(annotations: &Annotations) -> FieldErrors {
    let mut errors =
        known(annotations, &of_templates(), "it belongs in the metadata of the Service or Route itself");
    for (key, values) in OF_TEMPLATES {
        errors.add(one_of(annotations, key, values));
    }
    if let Some(text) = annotations.get(MEMORY_OVERUSE_GRACE)
        && duration::millis(text).is_none_or(|ms| ms > GRACE_MAX_MS)
    {
        let why = "must be a duration from 0s to 1h";
        errors.add(FieldErrors::invalid_because(format!("{text:?}"), MEMORY_OVERUSE_GRACE, why));
    }
    if let Some(text) = annotations.get(PRELOAD)
        && !text.split([',', ' ']).filter(|name| !name.is_empty()).all(names_digest)
    {
        let why = "must be images by digest (HOST/NAME@sha256:…), separated by commas: `tombolo get revision -o yaml` shows them";
        errors.add(FieldErrors::invalid_because(format!("{text:?}"), PRELOAD, why));
    }
    errors
}

fn names_digest(image: &str) -> bool {
    image.rsplit_once('@').is_some_and(|(name, digest)| !name.is_empty() && digest.parse::<Digest>().is_ok())
}

/// All keys of a template.
fn of_templates() -> Vec<&'static str> {
    let mut keys: Vec<_> = OF_TEMPLATES.map(|(key, _)| key).into();
    keys.extend([MEMORY_OVERUSE_GRACE, PRELOAD]);
    keys
}

/// Annotations of a Service or Route with this traffic; paths are relative to them.
pub(super) fn route(annotations: &Annotations, traffic: &[TrafficTarget]) -> FieldErrors {
    let mut errors = inherited(annotations).also(one_of(annotations, HEALTH_GATE, &["on", "off"]));
    for number in rollout::GATE_NUMBERS {
        let Some(text) = annotations.get(number.key) else { continue };
        if number.parse(text).is_none() {
            let why = format!("must be a whole number from {} to {}", number.min, number.max);
            errors.add(FieldErrors::invalid_because(text, number.key, why));
        }
    }
    if let Some(text) = annotations.get(STEERING) {
        errors.add(steered(text, traffic).via(STEERING));
    }
    errors
}

/// Annotations of a Configuration, which has those of its Service; paths are relative to them.
pub(super) fn inherited(annotations: &Annotations) -> FieldErrors {
    known(annotations, &OF_ROUTES, "it belongs under \"spec.template.metadata.annotations\"")
}

/// Complains of every key of ours that is not among `here`.
fn known(annotations: &Annotations, here: &[&str], elsewhere: &str) -> FieldErrors {
    let all = || of_templates().into_iter().chain(OF_ROUTES);
    let ours = annotations.keys().map(String::as_str).filter(|key| key.starts_with(TOMBOLO_PREFIX));
    ours.filter(|key| !here.contains(key)).fold(FieldErrors::none(), |errors, key| {
        let why = if all().any(|known| known == key) {
            elsewhere.to_owned()
        } else {
            format!("Tombolo knows {}", all().collect::<Vec<_>>().join(", "))
        };
        errors.also(FieldErrors::invalid_key(key, key, &why))
    })
}

fn one_of(annotations: &Annotations, key: &str, values: &[&str]) -> FieldErrors {
    match annotations.get(key) {
        Some(value) if !values.contains(&value.as_str()) => {
            let why = format!("must be one of {}", values.join(", "));
            FieldErrors::invalid_because(format!("{value:?}"), key, why)
        }
        _ => FieldErrors::none(),
    }
}

fn steered(text: &str, traffic: &[TrafficTarget]) -> FieldErrors {
    let rules = match steering::parse(text) {
        Ok(rules) => rules,
        Err(error) => return FieldErrors::detailed("invalid value", &[&error.path], error.why),
    };
    let mut errors = FieldErrors::none();
    for (index, rule) in rules.iter().enumerate() {
        if !traffic.iter().any(|target| target.tag == rule.tag) {
            let why = "no target of the traffic has this tag";
            errors.add(
                FieldErrors::invalid_because(format!("{:?}", rule.tag), "tag", why)
                    .via(&format!("[{index}]")),
            );
        }
    }
    errors
}
