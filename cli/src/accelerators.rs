//! A node's devices and accelerators, for people: as nodes report them, in `describe node` and `get nodes`. Must not know where
//! nodes come from.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::fields::{items, number, text};

pub(crate) const HEAD: [&str; 8] =
    ["ACCELERATOR", "MODEL", "MEMORY", "USED BY", "UTILISATION", "TEMPERATURE", "POWER", "ECC ERRORS"];

pub(crate) const HELD_HEAD: [&str; 4] = ["ACCELERATOR", "REVISION", "INSTANCE", "MEMORY"];

const MIB: i64 = 1 << 20;

/// Rows of [`HEAD`], and why some of them must not be used.
pub(crate) fn rows(node: &Value) -> (Vec<Vec<String>>, Vec<String>) {
    let all = items(node, "/status/accelerators");
    let faults = all.iter().filter(|it| !text(it, "/fault").is_empty());
    let faults = faults.map(|it| format!("{}: {}", text(it, "/id"), text(it, "/fault"))).collect();
    (all.iter().map(row).collect(), faults)
}

fn row(accelerator: &Value) -> Vec<String> {
    let with = |pointer: &str, unit: &str| {
        number(accelerator, pointer).map(|value| format!("{value}{unit}")).unwrap_or_default()
    };
    let holders = items(accelerator, "/held").len();
    let errors = match (
        number(accelerator, "/memoryErrors/corrected"),
        number(accelerator, "/memoryErrors/uncorrected"),
    ) {
        (Some(corrected), Some(uncorrected)) => format!("{corrected} corrected, {uncorrected} uncorrected"),
        _ => String::new(),
    };
    vec![
        text(accelerator, "/id").to_owned(),
        text(accelerator, "/model").to_owned(),
        memory(number(accelerator, "/memoryUsedBytes"), number(accelerator, "/memoryBytes")),
        match holders {
            0 => String::new(),
            1 => "1 instance".to_owned(),
            many => format!("{many} instances"),
        },
        with("/utilisationPercent", "%"),
        with("/temperatureCelsius", " °C"),
        with("/powerWatts", " W"),
        errors,
    ]
}

/// Rows of [`HELD_HEAD`].
pub(crate) fn held(node: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for accelerator in items(node, "/status/accelerators") {
        rows.extend(items(accelerator, "/held").iter().map(|held| {
            vec![
                text(accelerator, "/id").to_owned(),
                format!("{}/{}", text(held, "/namespace"), text(held, "/revision")),
                text(held, "/instance").to_owned(),
                format!("{} MiB", number(held, "/bytes").unwrap_or(0) / MIB),
            ]
        }));
    }
    rows
}

/// `2 NVIDIA L4 (1 faulty), 3/46 GiB used`; empty where no plugin tells of any.
pub(crate) fn summary(node: &Value) -> String {
    const GIB: i64 = 1 << 30;
    let all = items(node, "/status/accelerators");
    let mut models: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for accelerator in all {
        let (count, faulty) = models.entry(text(accelerator, "/model")).or_default();
        *count += 1;
        *faulty += usize::from(!text(accelerator, "/fault").is_empty());
    }
    let of_model = |(model, (count, faulty)): (&str, (usize, usize))| {
        let faulty = if faulty == 0 { String::new() } else { format!(" ({faulty} faulty)") };
        format!("{count} {model}{faulty}")
    };
    let mut parts: Vec<String> = models.into_iter().map(of_model).collect();
    let sum = |pointer: &str| all.iter().filter_map(|it| number(it, pointer)).sum::<i64>();
    let memory = sum("/memoryBytes");
    if memory > 0 {
        parts.push(format!("{}/{} GiB used", sum("/memoryUsedBytes") / GIB, memory / GIB));
    }
    parts.join(", ")
}

/// Devices by resource: `tombolo.dev/gpu-memory: 8 (4 healthy), 4 at most for one instance`.
pub(crate) fn devices(node: &Value) -> Vec<String> {
    let count =
        |what: &str, name: &str| node.pointer("/status/info")?.get(what)?.get(name).and_then(Value::as_u64);
    let all = node.pointer("/status/info/capacity").and_then(Value::as_object);
    let line = |name: &String| {
        let (all, healthy) = (count("capacity", name).unwrap_or(0), count("allocatable", name).unwrap_or(0));
        let healthy = if healthy == all { String::new() } else { format!(" ({healthy} healthy)") };
        let piece = count("largestPiece", name);
        let piece = piece.map(|most| format!(", {most} at most for one instance")).unwrap_or_default();
        format!("{name}: {all}{healthy}{piece}")
    };
    all.into_iter().flat_map(serde_json::Map::keys).map(line).collect()
}

fn memory(used: Option<i64>, all: Option<i64>) -> String {
    match (used, all) {
        (Some(used), Some(all)) => format!("{}/{} MiB", used / MIB, all / MIB),
        (None, Some(all)) => format!("{} MiB", all / MIB),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Value {
        let held = json!([{"namespace": "default", "revision": "a-00001", "instance": "a-00001-x-1", "bytes": 1 << 30}]);
        json!({"status": {
        "info": {"capacity": {"tombolo.dev/gpu-memory": 8, "a.example/x": 1}, "largestPiece": {"tombolo.dev/gpu-memory": 4},
            "allocatable": {"tombolo.dev/gpu-memory": 4, "a.example/x": 1}},
        "accelerators": [
            {"id": "GPU-1", "model": "NVIDIA L4", "memoryBytes": 23_i64 << 30, "memoryUsedBytes": 3_i64 << 30,
                "utilisationPercent": 40, "temperatureCelsius": 61, "powerWatts": 70,
                "memoryErrors": {"corrected": 3, "uncorrected": 0}, "held": held},
            {"id": "GPU-2", "model": "NVIDIA L4", "memoryBytes": 23_i64 << 30, "fault": "it is hot"},
        ]}})
    }

    #[test]
    fn what_is_told_is_shown_and_nothing_else() {
        let (rows, faults) = rows(&node());
        let shown = |row: &Vec<String>| row.join(" | ");
        let first = "GPU-1 | NVIDIA L4 | 3072/23552 MiB | 1 instance | 40% | 61 °C | 70 W | 3 corrected, 0 uncorrected";
        assert_eq!(shown(&rows[0]), first);
        assert_eq!(shown(&rows[1]), "GPU-2 | NVIDIA L4 | 23552 MiB |  |  |  |  | ");
        assert_eq!(faults, ["GPU-2: it is hot"]);
        assert_eq!(held(&node())[0].join(" | "), "GPU-1 | default/a-00001 | a-00001-x-1 | 1024 MiB");
        assert_eq!(summary(&node()), "2 NVIDIA L4 (1 faulty), 3/46 GiB used");
        assert_eq!(
            devices(&node()),
            ["a.example/x: 1", "tombolo.dev/gpu-memory: 8 (4 healthy), 4 at most for one instance"]
        );
        assert!(summary(&json!({})).is_empty() && devices(&json!({})).is_empty());
    }
}
