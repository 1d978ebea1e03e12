//! The scale-down delay's maximum.

use tombolo_agent_core::autoscale::TICK_MS;
use tombolo_agent_core::autoscale::delay::DelayWindow;

use crate::recorded::{assert_replayed, at, count, lines, ms};

#[test]
fn the_delay_window_remembers_the_recorded_maximum() {
    let (mut scenarios, mut records) = (0, 0);
    let mut current = None;
    let mut name = String::new();
    for line in lines("max-window") {
        if line["k"] == "scenario" {
            scenarios += 1;
            assert_eq!(ms(&line["granularity_s"]), TICK_MS);
            name = line["name"].to_string();
            current = Some(DelayWindow::new(ms(&line["duration_s"])));
        } else {
            records += 1;
            let largest = current.as_mut().unwrap().record(at(&line["t_ms"]), count(&line["v"]));
            assert_eq!(largest, count(&line["current"]), "{name}: {line}");
        }
    }
    assert_replayed([scenarios, records], [48, 3_840]);
}
