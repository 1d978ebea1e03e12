//! Linear and weighted windows.

use serde_json::Value;
use tombolo_agent_core::autoscale::parameters::Aggregation;
use tombolo_agent_core::autoscale::window::Window;

use crate::recorded::{assert_replayed, at, lines};

/// Linear averages are recorded with six digits, weighted ones in full.
fn same(aggregation: Aggregation, ours: f64, recorded: f64) -> bool {
    match aggregation {
        Aggregation::Linear => (ours - recorded).abs() <= 1.1e-6,
        Aggregation::WeightedExponential => (ours - recorded).abs() <= 1e-9 * recorded.abs(),
    }
}

fn start(line: &Value) -> (Aggregation, Window) {
    let aggregation = match line["kind"].as_str().unwrap() {
        "linear" => Aggregation::Linear,
        "weighted" => Aggregation::WeightedExponential,
        other => panic!("{other}"),
    };
    let length = |key: &str| line[key].as_u64().unwrap();
    (aggregation, Window::new(aggregation, length("window_ms"), length("granularity_ms")))
}

#[test]
fn windows_average_as_recorded() {
    let (mut scenarios, mut records, mut queries, mut resizes) = (0, 0, 0, 0);
    let mut current = None;
    let mut name = String::new();
    for line in lines("windows") {
        if line["k"] == "scenario" {
            scenarios += 1;
            name = format!("{} {}", line["name"], line["kind"]);
            current = Some(start(&line));
            continue;
        }
        let (aggregation, window) = current.as_mut().unwrap();
        match line["k"].as_str().unwrap() {
            "rec" => {
                records += 1;
                window.record(at(&line["t_ms"]), line["v"].as_f64().unwrap());
            }
            "resize" => {
                resizes += 1;
                window.resize(line["window_ms"].as_u64().unwrap(), at(&line["clock_ms"]));
            }
            "q" => {
                queries += 1;
                let now = at(&line["t_ms"]);
                assert_eq!(window.is_empty(now), line["empty"], "{name}: {line}");
                let average = window.average(now);
                let recorded = line["avg"].as_f64().unwrap();
                assert!(same(*aggregation, average, recorded), "{name}: {average}, recorded {line}");
            }
            other => panic!("{other}"),
        }
    }
    assert_replayed([scenarios, records, queries, resizes], [131, 9_568, 12_709, 156]);
}
