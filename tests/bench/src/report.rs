//! Rows of figures: a table for people, one JSON object a line for programs.

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) row: String,
    pub(crate) ours: f64,
    pub(crate) unit: &'static str,
    /// The peer's figure in the same call.
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: Option<&'static str>,
    /// Ours divided by the peer's.
    pub(crate) ratio: Option<f64>,
    /// The most that is good; of the ratio where there is a peer (then the least, for rates).
    pub(crate) bar: Option<f64>,
    pub(crate) ok: Option<bool>,
}

impl Row {
    /// A figure of ours that should not exceed `bar`.
    pub(crate) fn bounded(bench: &'static str, row: &str, ours: f64, unit: &'static str, bar: f64) -> Self {
        let ok = Some(ours <= bar);
        Self { bar: Some(bar), ok, ..Self::plain(bench, row, ours, unit) }
    }

    /// A figure without a bar.
    pub(crate) fn plain(bench: &'static str, row: &str, ours: f64, unit: &'static str) -> Self {
        let row = row.to_owned();
        Self { bench, row, ours, unit, peer: None, peer_name: None, ratio: None, bar: None, ok: None }
    }

    /// The same beside a peer's figure.
    pub(crate) fn beside(mut self, peer_name: &'static str, peer: f64) -> Self {
        (self.peer, self.peer_name, self.ratio) = (Some(peer), Some(peer_name), Some(self.ours / peer));
        self
    }

    /// The ratio should not exceed `bar`.
    pub(crate) fn ratio_at_most(self, bar: f64) -> Self {
        let ok = self.ratio.map(|ratio| ratio <= bar);
        Self { bar: Some(bar), ok, ..self }
    }

    /// The ratio should be `bar` at least.
    pub(crate) fn ratio_at_least(self, bar: f64) -> Self {
        let ok = self.ratio.map(|ratio| ratio >= bar);
        Self { bar: Some(bar), ok, ..self }
    }
}

pub(crate) fn print(rows: &[Row], json: bool) {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row).expect("a row is plain data"));
        }
        return;
    }
    println!(
        "{:<10} {:<24} {:>10} {:<4} {:>10} {:>6} {:>10} {:>3}",
        "BENCH", "ROW", "OURS", "UNIT", "PEER", "RATIO", "BAR", "OK"
    );
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        let ok = row.ok.map_or("-", |ok| if ok { "yes" } else { "NO" });
        let (peer, ratio, bar) = (number(row.peer), number(row.ratio), number(row.bar));
        println!(
            "{:<10} {:<24} {:>10.2} {:<4} {peer:>10} {ratio:>6} {bar:>10} {ok:>3}",
            row.bench, row.row, row.ours, row.unit
        );
    }
}
