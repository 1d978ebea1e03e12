//! Memory of the three processes with one function running, as proportional set size, and sizes of the programs.

use std::fs;
use std::time::Duration;

use tombolo_harness::{Function, NodeOptions, Site, program, until};

use crate::memory::{MB, pss_mb};
use crate::report::Row;

/// Until allocators and caches have come to rest.
const REST: Duration = Duration::from_secs(5);

pub(crate) async fn measure() -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let mut node = site.node(NodeOptions::named("bench").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 30, || node.answer("hello", "/")).await;
    tokio::time::sleep(REST).await;
    let supervisor = node.supervisor_pid().expect("a supervisor runs");
    let memory = |row: &str, pid: i32, bar: f64| Row::bounded("footprint", row, pss_mb(pid), "MB", bar);
    let size = |row: &str, name: &str, bar: f64| {
        let bytes = fs::metadata(program(name)).expect("the program is there").len();
        Row::bounded("footprint", row, bytes as f64 / MB, "MB", bar)
    };
    Some(vec![
        memory("agent-pss", node.agent().pid(), 10.0),
        memory("supervisor-pss", supervisor, 5.0),
        memory("hub-pss", site.hub.process().pid(), 40.0),
        size("agent-binary", "tombolo-agent", 12.0),
        size("hub-binary", "tombolo-hub", 30.0),
    ])
}
