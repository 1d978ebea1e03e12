//! Whole decisions: `kpa-trace` feeds samples, `kpa-decide-random` feeds averages.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tombolo_agent_core::autoscale::decide::{Decider, Instances};
use tombolo_agent_core::autoscale::metrics::{Averages, Metrics};
use tombolo_agent_core::autoscale::parameters::{Aggregation, Defaults, Metric, Parameters};

use crate::recorded::{assert_replayed, at, count, lines, ms};

/// One scenario while it is replayed.
struct Replay {
    name: String,
    parameters: Parameters,
    reachable: bool,
    metrics: Metrics,
    decider: Decider,
}

fn parameters(config: &Value) -> Parameters {
    let number = |key: &str| config[key].as_f64().unwrap();
    Parameters {
        metric: if config["metric"] == "rps" { Metric::Rps } else { Metric::Concurrency },
        aggregation: if config["aggregation"] == "linear" {
            Aggregation::Linear
        } else {
            Aggregation::WeightedExponential
        },
        target_value: number("target_value"),
        total_value: number("total_value"),
        stable_window_ms: ms(&config["stable_window_s"]),
        panic_window_ms: ms(&config["panic_window_s"]),
        panic_threshold: number("panic_threshold_pct") / 100.0,
        max_scale_up_rate: number("max_scale_up_rate"),
        max_scale_down_rate: number("max_scale_down_rate"),
        target_burst_capacity: number("target_burst_capacity"),
        scale_down_delay_ms: ms(&config["scale_down_delay_s"]),
        activation_scale: count(&config["activation_scale"]),
        ..Parameters::of(&BTreeMap::new(), 0, &Defaults::default())
    }
}

impl Replay {
    fn start(line: &Value) -> Self {
        let parameters = parameters(&line["config"]);
        Self {
            name: line["name"].to_string(),
            reachable: line["config"]["reachable"].as_bool().unwrap(),
            metrics: Metrics::new(&parameters),
            decider: Decider::new(&parameters, count(&line["ready_at_start"]), at(&json!(0))),
            parameters,
        }
    }

    fn feed(&mut self, samples: &Value) {
        for sample in samples.as_array().map(Vec::as_slice).unwrap_or_default() {
            let value = |index: usize| sample[index].as_f64().unwrap();
            let value = match self.parameters.metric {
                Metric::Concurrency => value(1) - value(2),
                Metric::Rps => value(3) - value(4),
            };
            self.metrics.record(at(&sample[0]), value);
        }
    }

    fn update(&mut self, line: &Value) {
        self.feed(&line["recs_before"]);
        self.parameters = parameters(&line["config"]);
        self.reachable = line["config"]["reachable"].as_bool().unwrap();
        self.metrics.resize(&self.parameters, at(&line["t_ms"]));
    }

    /// The averages of what was fed, which must be the recorded ones.
    fn measured(&self, line: &Value) -> Option<Averages> {
        let averages = self.metrics.averages(&self.parameters, at(&line["t_ms"]));
        for (ours, recorded) in
            [(averages.map(|a| a.stable), &line["stable"]), (averages.map(|a| a.panic), &line["panic"])]
        {
            let same = match (ours, recorded.as_f64()) {
                (Some(ours), Some(recorded)) => (ours - recorded).abs() <= 1.1e-6,
                (ours, recorded) => ours == recorded,
            };
            assert!(same, "{}: {ours:?}, recorded {line}", self.name);
        }
        averages
    }

    fn tick(&mut self, line: &Value, averages: Option<Averages>) {
        let ready = match line["ready_err"].as_str() {
            None => Some(count(&line["ready"])),
            Some("notfound") => Some(0),
            Some(_) => None,
        };
        let instances = Instances { ready, reachable: self.reachable };
        let verdict = self.decider.decide(&self.parameters, instances, averages, at(&line["t_ms"]));
        assert_eq!(verdict.is_some(), line["valid"], "{}: {line}", self.name);
        if let Some(verdict) = verdict {
            let ours = json!([verdict.desired, verdict.excess_burst_capacity]);
            assert_eq!(ours, json!([line["desired"], line["ebc"]]), "{}: {line}", self.name);
        }
        let (since, max) = self.decider.panic();
        let crossed = (!line["panic_time_ms"].is_null()).then(|| at(&line["panic_time_ms"]));
        assert_eq!(self.decider.is_panicking(), line["in_panic"], "{}: {line}", self.name);
        assert_eq!((since, max), (crossed, count(&line["max_panic_pods"])), "{}: {line}", self.name);
    }
}

/// Replays a file and says how many scenarios, ticks and updates were in it. Scenarios in which the reference's integers
/// overflow are left out, as the recording says.
fn replay(file: &str, averages: impl Fn(&Replay, &Value) -> Option<Averages>) -> [u32; 3] {
    let [mut scenarios, mut ticks, mut updates] = [0; 3];
    let mut current: Option<Replay> = None;
    for line in lines(file) {
        match line["k"].as_str().unwrap() {
            "scenario" if line["int32_overflow"] == true => current = None,
            "scenario" => {
                scenarios += 1;
                current = Some(Replay::start(&line));
            }
            kind => {
                let Some(replay) = &mut current else { continue };
                if kind == "update" {
                    updates += 1;
                    replay.update(&line);
                } else {
                    ticks += 1;
                    replay.feed(&line["recs"]);
                    let averages = averages(replay, &line);
                    replay.tick(&line, averages);
                }
            }
        }
    }
    [scenarios, ticks, updates]
}

#[test]
fn traces_of_samples_are_decided_as_recorded() {
    assert_replayed(replay("kpa-trace", Replay::measured), [76, 12_627, 7]);
}

#[test]
fn random_averages_are_decided_as_recorded() {
    let given = |_: &Replay, line: &Value| {
        let (stable, panic) = (line["stable"].as_f64()?, line["panic"].as_f64()?);
        Some(Averages { stable, panic })
    };
    assert_replayed(replay("kpa-decide-random", given), [267, 26_700, 0]);
}
