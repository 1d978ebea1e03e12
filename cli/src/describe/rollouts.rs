//! How far nodes are with moving requests to a new revision, as they report it. Must not know where reports come from.

use serde_json::Value;

use crate::fields::{items, number, text};

/// Titles of what [`of`] gives.
pub(super) const HEAD: [&str; 5] = ["NODE", "TARGET", "GOAL", "NOW", "STATE"];

/// One row for every target of the route on every node that reports it.
pub(super) fn of(nodes: &[Value], namespace: &str, route: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for node in nodes {
        let own = |report: &&Value| text(report, "/namespace") == namespace && text(report, "/name") == route;
        for report in items(node, "/status/routes").iter().filter(own) {
            for target in items(report, "/targets") {
                rows.push(row(text(node, "/metadata/name"), target));
            }
        }
    }
    rows
}

fn row(node: &str, target: &Value) -> Vec<String> {
    let goal = text(target, "/goal");
    let share =
        |share: &Value| format!("{}% {}", number(share, "/percent").unwrap_or(0), text(share, "/revision"));
    let shares = items(target, "/shares");
    let arrived = matches!(shares, [only] if text(only, "/revision") == goal);
    let state = match (target.get("rolledBack"), arrived) {
        (Some(back), _) if back.is_object() => {
            format!("rolled back: {}: {}", text(back, "/reason"), text(back, "/message"))
        }
        (_, true) => "done".to_owned(),
        (_, false) => "in progress".to_owned(),
    };
    let tag = text(target, "/tag");
    let name = if tag.is_empty() { "@latest".to_owned() } else { format!("@latest ({tag})") };
    let now = shares.iter().map(share).collect::<Vec<_>>().join(", ");
    vec![node.to_owned(), name, goal.to_owned(), now, state]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rollouts_are_told_with_their_state() {
        let target = |shares: Value, back: Value| json!({"configuration": "a", "goal": "a-2", "shares": shares, "rolledBack": back});
        let share = |revision: &str, percent: u8| json!({"revision": revision, "percent": percent});
        let slow = json!({"reason": "LatencyTooHigh", "message": "p99 is 900 ms, was 20 ms"});
        let nodes = [json!({"metadata": {"name": "press-7"}, "status": {"routes": [
            {"namespace": "n", "name": "a", "targets": [
                target(json!([share("a-1", 80), share("a-2", 20)]), Value::Null),
                target(json!([share("a-2", 100)]), Value::Null),
                target(json!([share("a-1", 100)]), slow),
            ]},
            {"namespace": "m", "name": "a", "targets": [target(json!([]), Value::Null)]},
        ]}})];
        let told: Vec<String> = of(&nodes, "n", "a").iter().map(|row| row[3..].join(" | ")).collect();
        assert_eq!(
            told,
            [
                "80% a-1, 20% a-2 | in progress",
                "100% a-2 | done",
                "100% a-1 | rolled back: LatencyTooHigh: p99 is 900 ms, was 20 ms",
            ]
        );
    }
}
