//! Where the time of a request to a sleeping service goes: differences of what the agent counts of each stage, and what is left
//! of the client's time. Means, since these add up.

use std::collections::BTreeMap;
use std::time::Duration;

use tombolo_harness::Node;

use crate::sample::Sample;

/// The agent's metric.
const METRIC: &str = "tombolo_activation_stage_seconds";

/// Stages that a held request waits for, in their order.
const HELD: [&str; 5] = ["create", "start", "exec", "probe", "thaw"];

/// How often each stage was, and how long in all, seconds.
pub(crate) type Stages = BTreeMap<String, (f64, f64)>;

/// The times of the requests that woke one service.
pub(crate) struct Breakdown {
    tier: &'static str,
    whole: Sample,
    stages: Stages,
}

impl Breakdown {
    pub(crate) fn new(tier: &'static str) -> Self {
        Self { tier, whole: Sample::default(), stages: Stages::new() }
    }

    /// What the agent has counted so far of this tier.
    pub(crate) async fn read(&self, node: &Node) -> Stages {
        parse(&node.metrics().await.expect("the agent shows its metrics"), self.tier)
    }

    /// A request took the client `whole`.
    pub(crate) fn add(&mut self, whole: Duration, before: &Stages, after: &Stages) {
        self.whole.add(whole);
        for (stage, (count, sum)) in after {
            let (count_before, sum_before) = before.get(stage).copied().unwrap_or_default();
            let entry = self.stages.entry(stage.clone()).or_default();
            *entry = (entry.0 + count - count_before, entry.1 + sum - sum_before);
        }
    }

    /// `TIER-mean`, and its parts: held (with the stages waited for, and `TIER-hold-rest` for deciding, routing and being
    /// woken), unless requests wake an instance without being held; forwarded; and `TIER-rest` for the connection, the head of
    /// the request and the body of the answer. Milliseconds for each request.
    pub(crate) fn means_ms(&self) -> Vec<(String, f64)> {
        let stage = |name: &str| self.stages.get(name).filter(|(count, _)| *count > 0.0);
        let requests = stage("forward").map_or(f64::NAN, |(count, _)| *count);
        let mean = |name: &str| stage(name).map(|(_, sum)| sum * 1000.0 / requests);
        let whole = self.whole.mean_ms();
        let forward = mean("forward").unwrap_or(f64::NAN);
        let mut rows = vec![("mean".to_owned(), whole)];
        let hold = mean("hold");
        if let Some(hold) = hold {
            let waited: Vec<_> = HELD.iter().filter_map(|name| Some((*name, mean(name)?))).collect();
            let known: f64 = waited.iter().map(|(_, mean)| mean).sum();
            rows.push(("hold-mean".to_owned(), hold));
            rows.extend(waited.iter().map(|(name, mean)| (format!("hold-{name}-mean"), *mean)));
            rows.push(("hold-rest-mean".to_owned(), hold - known));
        }
        rows.push(("forward-mean".to_owned(), forward));
        rows.push(("rest-mean".to_owned(), whole - hold.unwrap_or_default() - forward));
        rows.into_iter().map(|(name, mean)| (format!("{}-{name}", self.tier), mean)).collect()
    }
}

/// The stages of one tier in the text of `/metrics`.
fn parse(text: &str, tier: &str) -> Stages {
    let mut stages = Stages::new();
    for line in text.lines() {
        let Some((name, rest)) = line.strip_prefix(METRIC).and_then(|rest| rest.split_once('{')) else {
            continue;
        };
        let Some((labels, value)) = rest.split_once("} ") else { continue };
        let label = |key: &str| {
            let pair = labels.split(',').find_map(|pair| pair.strip_prefix(key));
            pair.map(|value| value.trim_start_matches('=').trim_matches('"'))
        };
        let (Some(stage), Ok(value)) = (label("stage"), value.parse::<f64>()) else { continue };
        if label("tier") == Some(tier) {
            let entry = stages.entry(stage.to_owned()).or_default();
            match name {
                "_count" => entry.0 = value,
                "_sum" => entry.1 = value,
                _ => {}
            }
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(scale: f64) -> String {
        let mut text = String::from(
            "# TYPE tombolo_activation_stage_seconds summary\ntombolo_held_requests{a=\"b\"} 1\n",
        );
        for (tier, stage, sum) in [
            ("primed", "hold", 0.006),
            ("primed", "start", 0.001),
            ("primed", "forward", 0.0005),
            ("frozen", "forward", 0.002),
            ("frozen", "thaw", 0.001),
            ("cold", "hold", 9.0),
        ] {
            let labels = format!("{{tier=\"{tier}\",stage=\"{stage}\"}}");
            let (count, sum) = (scale, sum * scale);
            text += &format!("{METRIC}_sum{labels} {sum}\n{METRIC}_count{labels} {count}\n");
        }
        text
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut breakdown = Breakdown::new("primed");
        for round in [3.0, 4.0] {
            let (before, after) = (parse(&text(round), "primed"), parse(&text(round + 1.0), "primed"));
            breakdown.add(Duration::from_millis(7), &before, &after);
        }
        let rows: BTreeMap<_, _> = breakdown.means_ms().into_iter().collect();
        let expected = [
            ("primed-mean", 7.0),
            ("primed-hold-mean", 6.0),
            ("primed-hold-start-mean", 1.0),
            ("primed-hold-rest-mean", 5.0),
            ("primed-forward-mean", 0.5),
            ("primed-rest-mean", 0.5),
        ];
        assert_eq!(rows.len(), expected.len(), "{rows:?}");
        for (name, mean) in expected {
            assert!((rows[name] - mean).abs() < 1e-6, "{name} {rows:?}");
        }
    }

    #[test]
    fn who_is_not_held_is_forwarded_at_once() {
        let mut breakdown = Breakdown::new("frozen");
        breakdown.add(Duration::from_millis(3), &Stages::new(), &parse(&text(1.0), "frozen"));
        let rows: Vec<_> =
            breakdown.means_ms().into_iter().map(|(name, mean)| (name, mean.round())).collect();
        let expected = [("mean", 3.0), ("forward-mean", 2.0), ("rest-mean", 1.0)];
        assert_eq!(rows, expected.map(|(name, mean)| (format!("frozen-{name}"), mean)));
    }
}
