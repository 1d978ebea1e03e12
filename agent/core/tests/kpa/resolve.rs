//! Annotations and defaults resolved to parameters.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tombolo_agent_core::autoscale::parameters::{Aggregation, Defaults, Metric, Parameters};
use tombolo_api::duration;

use crate::recorded::{assert_replayed, count, lines};

/// Knative's config map as our defaults. It takes a percentage of at most 1 as a fraction; ours are percent always.
fn defaults(map: &Value) -> Defaults {
    let mut defaults = Defaults::default();
    for (key, value) in map.as_object().unwrap() {
        let text = value.as_str().unwrap();
        let number = || text.parse::<f64>().unwrap();
        match key.as_str() {
            // Of activators, which a node does not have.
            "activator-capacity" => {}
            "container-concurrency-target-default" => defaults.concurrency_target = number(),
            "container-concurrency-target-percentage" => {
                let percent = if number() <= 1.0 { number() * 100.0 } else { number() };
                defaults.concurrency_utilization_percent = percent;
            }
            "initial-scale" => defaults.initial_scale = text.parse().unwrap(),
            "max-scale-down-rate" => defaults.max_scale_down_rate = number(),
            "max-scale-up-rate" => defaults.max_scale_up_rate = number(),
            "panic-threshold-percentage" => defaults.panic_threshold_percent = number(),
            "panic-window-percentage" => defaults.panic_window_percent = number(),
            "requests-per-second-target-default" => defaults.rps_target = number(),
            "scale-down-delay" => defaults.scale_down_delay_ms = duration::millis(text).unwrap(),
            "stable-window" => defaults.stable_window_ms = duration::millis(text).unwrap(),
            "target-burst-capacity" => defaults.target_burst_capacity = number(),
            other => panic!("{other}"),
        }
    }
    defaults
}

/// The parameters in the recording's words.
fn written(parameters: &Parameters) -> Value {
    let seconds = |ms: u64| ms as f64 / 1000.0;
    json!({
        "activation_scale": parameters.activation_scale,
        "aggregation": match parameters.aggregation {
            Aggregation::Linear => "linear",
            Aggregation::WeightedExponential => "weighted-exponential",
        },
        "initial_scale": parameters.range.initial,
        "max_scale_down_rate": parameters.max_scale_down_rate,
        "max_scale_up_rate": parameters.max_scale_up_rate,
        "metric": match parameters.metric {
            Metric::Concurrency => "concurrency",
            Metric::Rps => "rps",
        },
        "panic_threshold": parameters.panic_threshold,
        "panic_window_s": seconds(parameters.panic_window_ms),
        "resolved_tbc": parameters.target_burst_capacity,
        "scale_down_delay_s": seconds(parameters.scale_down_delay_ms),
        "stable_window_s": seconds(parameters.stable_window_ms),
        "target_burst_capacity": parameters.target_burst_capacity,
        "target_value": parameters.target_value,
        "total_value": parameters.total_value,
    })
}

fn assert_same(key: &str, ours: &Value, recorded: &Value, line: &Value) {
    let same = match (ours.as_f64(), recorded.as_f64()) {
        (Some(ours), Some(recorded)) => (ours - recorded).abs() <= 1e-12 * recorded.abs(),
        _ => ours == recorded,
    };
    assert!(same, "{key}: {ours}, recorded {line}");
}

#[test]
fn annotations_and_defaults_resolve_as_recorded() {
    let mut cases = 0;
    for mut line in lines("resolve-config") {
        cases += 1;
        let annotations: BTreeMap<_, _> = serde_json::from_value(line["annotations"].take()).unwrap();
        let defaults = defaults(&line["config_map"]);
        let parameters = Parameters::of(&annotations, count(&line["container_concurrency"]), &defaults);
        let ours = written(&parameters);
        let out = line["out"].as_object_mut().unwrap();
        for of_activators in ["activator_capacity", "num_activators_by_ready"] {
            assert!(out.remove(of_activators).is_some(), "{of_activators} is recorded");
        }
        // An argument of every decision here.
        assert_eq!(out.remove("reachable").unwrap(), line["reachability"] != "Unreachable");
        let out = line["out"].as_object_mut().unwrap();
        if out["aggregation"] == "" {
            out["aggregation"] = "linear".into();
        }
        let out = line["out"].clone();
        for (key, recorded) in out.as_object().unwrap() {
            assert_same(key, &ours[key], recorded, &line);
        }
    }
    assert_replayed([cases], [1_334]);
}
