//! The router's counters in Prometheus' text format. Where it is served is for others to know.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tombolo_api::RevisionKey;

use crate::activations::Activations;
use crate::sample::{Histogram, Refused, RevisionMeter};

/// Every metric of these revisions, for one exposition.
pub fn render(revisions: &BTreeMap<RevisionKey, RevisionMeter>) -> String {
    let mut text = Text { lines: String::new(), revisions };
    text.counter("tombolo_requests_total", "Answers, by class of status", |revision| {
        let class = |(digit, count): (usize, &u64)| (format!(",code_class=\"{}xx\"", digit + 1), *count);
        revision.answers.iter().enumerate().map(class).filter(|(_, count)| *count > 0).collect()
    });
    text.counter(
        "tombolo_requests_abandoned_total",
        "Requests whose client left before the answer",
        |revision| vec![(String::new(), revision.abandoned)],
    );
    text.counter(
        "tombolo_answers_broken_total",
        "Answers, 5xx left out, that their instance broke off after the head",
        |revision| vec![(String::new(), revision.broken)],
    );
    text.counter(
        "tombolo_requests_refused_total",
        "Requests that were at no instance, by reason",
        |revision| {
            let reason =
                |why: Refused| (format!(",reason=\"{}\"", why.word()), revision.refused[why as usize]);
            Refused::ALL.into_iter().map(reason).filter(|(_, count)| *count > 0).collect()
        },
    );
    text.gauge("tombolo_in_flight_requests", "Requests at instances", |revision| revision.in_flight);
    text.gauge("tombolo_held_requests", "Requests that wait for an instance", |revision| revision.held);
    text.gauge("tombolo_held_bytes", "Bytes of the requests that wait for an instance", |revision| {
        revision.held_bytes
    });
    text.histogram(
        "tombolo_request_latency_seconds",
        "From a request to the head of its answer",
        |revision| &revision.latency,
    );
    text.histogram(
        "tombolo_cold_start_seconds",
        "How long requests waited for a first instance",
        |revision| &revision.cold_starts,
    );
    text.lines
}

/// How long the ways from each idle tier to traffic take, by stage.
pub fn render_activations(activations: &Activations) -> String {
    let name = "tombolo_activation_stage_seconds";
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "# HELP {name} Stages from a request that finds no instance to the head of its answer, by the tier the revision \
         rested in: hold (in the router, the stages up to ready included), create and start or thaw (the supervisor's calls), \
         exec (from the start to the probe that passed), probe (that one), forward (to an instance and back)\n\
         # TYPE {name} summary"
    );
    for shown in activations.shown() {
        let (tier, stage) = (shown.tier, shown.stage);
        for (suffix, value) in [("sum", shown.sum.as_secs_f64()), ("count", shown.count as f64)] {
            let _ = writeln!(text, "{name}_{suffix}{{tier=\"{tier}\",stage=\"{stage}\"}} {value}");
        }
    }
    text
}

struct Text<'a> {
    lines: String,
    revisions: &'a BTreeMap<RevisionKey, RevisionMeter>,
}

impl Text<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.lines, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn counter(&mut self, name: &str, help: &str, values: impl Fn(&RevisionMeter) -> Vec<(String, u64)>) {
        self.head(name, "counter", help);
        for (key, revision) in self.revisions {
            for (labels, value) in values(revision) {
                let _ = writeln!(self.lines, "{name}{{{}{labels}}} {value}", of(key));
            }
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&RevisionMeter) -> usize) {
        self.head(name, "gauge", help);
        for (key, revision) in self.revisions {
            let _ = writeln!(self.lines, "{name}{{{}}} {}", of(key), value(revision));
        }
    }

    /// Of revisions that have something to show: 200 services at zero are not to be thousands of lines.
    fn histogram(&mut self, name: &str, help: &str, times: impl Fn(&RevisionMeter) -> &Histogram) {
        self.head(name, "histogram", help);
        for (key, revision) in self.revisions {
            let (labels, times) = (of(key), times(revision));
            let count = times.count();
            if count == 0 {
                continue;
            }
            let mut below = 0;
            // The last bucket has no bound.
            for (bucket, here) in times.counts.iter().enumerate().take(times.counts.len() - 1) {
                below += here;
                let bound = Histogram::bound_us(bucket) as f64 / 1e6;
                let _ = writeln!(self.lines, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
            }
            let sum = times.sum_us as f64 / 1e6;
            let _ = writeln!(
                self.lines,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
            );
        }
    }
}

/// Names are DNS labels and need no escape.
fn of(key: &RevisionKey) -> String {
    format!("namespace=\"{}\",revision=\"{}\"", key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tombolo_agent_core::annotations::IdleTier;
    use tombolo_agent_core::supervision::InstanceId;

    use super::*;
    use crate::activations::Stage;

    #[test]
    fn stages_are_shown_with_their_sum_and_how_often_they_were() {
        let (activations, instance) = (Activations::default(), InstanceId("i1".into()));
        activations.begin(&instance, IdleTier::Cold);
        for millis in [20, 30] {
            activations.ended(&instance, Stage::Create, Duration::from_millis(millis));
        }
        let text = render_activations(&activations);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("# HELP tombolo_activation_stage_seconds "));
        assert_eq!(
            lines[1..],
            [
                "# TYPE tombolo_activation_stage_seconds summary",
                "tombolo_activation_stage_seconds_sum{tier=\"cold\",stage=\"create\"} 0.05",
                "tombolo_activation_stage_seconds_count{tier=\"cold\",stage=\"create\"} 2",
            ]
        );
    }

    #[test]
    fn every_metric_is_shown_once_and_histograms_add_up() {
        let mut revision = RevisionMeter::new(Instant::now());
        revision.answers = [0, 7, 0, 1, 2];
        revision.refused[Refused::NodeQueueFull as usize] = 2;
        revision.held = 3;
        revision.broken = 4;
        revision.latency.counts[1] = 6;
        revision.latency.counts[24] = 4;
        revision.latency.sum_us = 2_500_000;
        let idle = RevisionMeter::new(Instant::now());
        let key = |name| RevisionKey::new("default", name);
        let text = render(&BTreeMap::from([(key("a"), revision), (key("b"), idle)]));
        let a = "namespace=\"default\",revision=\"a\"";
        for line in [
            format!("tombolo_requests_total{{{a},code_class=\"2xx\"}} 7"),
            format!("tombolo_requests_total{{{a},code_class=\"5xx\"}} 2"),
            format!("tombolo_requests_refused_total{{{a},reason=\"NodeQueueFull\"}} 2"),
            format!("tombolo_answers_broken_total{{{a}}} 4"),
            format!("tombolo_held_requests{{{a}}} 3"),
            "tombolo_held_requests{namespace=\"default\",revision=\"b\"} 0".to_owned(),
            format!("tombolo_request_latency_seconds_bucket{{{a},le=\"0.000064\"}} 0"),
            format!("tombolo_request_latency_seconds_bucket{{{a},le=\"0.000128\"}} 6"),
            format!("tombolo_request_latency_seconds_bucket{{{a},le=\"+Inf\"}} 10"),
            format!("tombolo_request_latency_seconds_sum{{{a}}} 2.5"),
            format!("tombolo_request_latency_seconds_count{{{a}}} 10"),
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
        assert!(!text.contains("code_class=\"1xx\"") && !text.contains("cold_start_seconds_sum"));
        let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = types.clone();
        once.dedup();
        assert_eq!((types.len(), once.len()), (9, 9));
    }
}
