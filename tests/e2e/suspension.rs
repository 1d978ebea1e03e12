//! Functions that take turns on a device with what they have on it moved away and back. The plugin is one of a test, which moves
//! nothing and remembers what it was asked: a driver that can is not everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::{Arc, Mutex};

use tombolo_device_sdk::{
    Abilities, Accelerator, Held, MoveError, Pid, SharedAccelerator, Suspended, UsageError,
};
use tombolo_harness::until;

use crate::devices::{Bench, Eyes, watching};

/// What one process pretends to hold on the device, bytes.
const HELD: u64 = 64 << 20;

/// Who is in the host's memory, and what was wrong.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    away: BTreeSet<Pid>,
    moves: u32,
    wrong: Vec<String>,
}

impl Ledger {
    fn moves(&self) -> u32 {
        self.0.lock().expect("no panic").moves
    }

    fn assert_right(&self) {
        assert_eq!(self.0.lock().expect("no panic").wrong, [""; 0]);
    }
}

/// The driver moves from inside the process.
fn is_frozen(pid: Pid) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return false };
        let (file, frozen) = match controllers {
            "" => (format!("/sys/fs/cgroup{path}/cgroup.events"), "frozen 1"),
            "freezer" => (format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "FROZEN"),
            _ => return false,
        };
        fs::read_to_string(file).is_ok_and(|state| state.contains(frozen))
    })
}

impl Accelerator for Ledger {
    fn describe(&self) -> Abilities {
        Abilities { suspend: Ok(()), tells_memory: true }
    }

    fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
        let mut books = self.0.lock().expect("no panic");
        for pid in processes {
            if is_frozen(*pid) {
                books.wrong.push(format!("{pid} was frozen before it was moved"));
            }
        }
        books.moves += 1;
        books.away.extend(processes);
        Ok(Suspended { moved: processes.clone(), freed_bytes: Some(HELD) })
    }

    fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
        let mut books = self.0.lock().expect("no panic");
        for pid in processes {
            if is_frozen(*pid) {
                books.wrong.push(format!("{pid} was still frozen when it was to come back"));
            }
            if !books.away.remove(pid) {
                books.wrong.push(format!("{pid} came back and was not away"));
            }
        }
        Ok(processes.clone())
    }

    fn usage(&self) -> Result<Vec<Held>, UsageError> {
        Ok(Vec::new())
    }
}

/// The instances of a service in any tier, with their tiers.
async fn tiers(bench: &Bench, service: &str) -> BTreeMap<String, String> {
    let status = bench.node.status().await.expect("the agent answers");
    let of_service = |revision: &&serde_json::Value| {
        revision["name"].as_str().is_some_and(|name| name.starts_with(&format!("{service}-")))
    };
    let revisions = status["revisions"].as_array().cloned().unwrap_or_default();
    let instances =
        revisions.iter().filter(of_service).filter_map(|revision| revision["instances"].as_array());
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    instances.flatten().map(|instance| (text(&instance["id"]), text(&instance["tier"]))).collect()
}

async fn has_tier(bench: &Bench, service: &str, tier: &str) -> String {
    until(&format!("{service} to be {tier}"), 60, || async {
        let found = tiers(bench, service).await;
        match found.iter().next() {
            Some((id, has)) if found.len() == 1 && has == tier => Ok(id.clone()),
            _ => Err(format!("{found:?}")),
        }
    })
    .await
}

#[tokio::test]
async fn functions_take_turns_on_a_device_and_go_on_where_they_were() {
    let Some(bench) = Bench::without_plugin(&["eye0"], 600).await else { return };
    let ledger = Ledger::default();
    Eyes::serve(&bench, Some(SharedAccelerator::new(ledger.clone())));
    bench.offers(1).await;
    let names = ["first", "second", "third"];
    let mut ids = BTreeMap::new();
    for name in names {
        let function = watching(name).annotation("tombolo.dev/idle-tier", "suspended");
        bench.site.hub.deploy(&function).await;
        bench.has(name, "eye0").await;
        ids.insert(name, has_tier(&bench, name, "running").await);
    }
    for round in 0..3 {
        for name in names {
            bench.has(name, "eye0").await;
            assert_eq!(has_tier(&bench, name, "running").await, ids[name], "round {round}");
        }
    }
    assert!(ledger.moves() >= 9, "{}", ledger.moves());
    ledger.assert_right();
}

#[tokio::test]
async fn a_suspended_function_outlives_the_agent() {
    let Some(mut bench) = Bench::without_plugin(&["eye0"], 1).await else { return };
    let ledger = Ledger::default();
    Eyes::serve(&bench, Some(SharedAccelerator::new(ledger.clone())));
    bench.offers(1).await;
    bench.site.hub.deploy(&watching("sleeper").annotation("tombolo.dev/idle-tier", "suspended")).await;
    bench.has("sleeper", "eye0").await;
    let id = has_tier(&bench, "sleeper", "suspended").await;
    bench.node.kill_agent();
    bench.node.start_agent().expect("the agent starts again");
    until("the agent to know it", 60, || async {
        let status = bench.node.status().await?;
        if status["allocatable"].to_string().contains(":1") { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_eq!(has_tier(&bench, "sleeper", "suspended").await, id);
    bench.has("sleeper", "eye0").await;
    assert_eq!(has_tier(&bench, "sleeper", "running").await, id);
    ledger.assert_right();
}

#[tokio::test]
async fn where_nothing_can_be_suspended_that_is_said_and_functions_begin_anew() {
    let Some(bench) = Bench::without_plugin(&["eye0"], 1).await else { return };
    Eyes::serve(&bench, None);
    bench.offers(1).await;
    for name in ["first", "second"] {
        bench.site.hub.deploy(&watching(name).annotation("tombolo.dev/idle-tier", "suspended")).await;
        bench.has(name, "eye0").await;
    }
    let id = has_tier(&bench, "second", "running").await;
    bench.has("first", "eye0").await;
    bench.has("second", "eye0").await;
    assert_ne!(has_tier(&bench, "second", "running").await, id);
    until("the reason to be told", 30, || async {
        let events = bench
            .site
            .hub
            .api
            .get("/api/v1/namespaces/default/events")
            .await
            .map_err(|error| error.to_string())?;
        if events.to_string().contains("NotSuspended") { Ok(()) } else { Err(events.to_string()) }
    })
    .await;
}
