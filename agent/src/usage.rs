//! What instances hold of accelerators' memory, and how accelerators are: plugins tell of processes, and here each is found to be
//! whose it is. Takes what plugins tell, and gives what each instance holds, for whoever decides and for `/metrics`, and what of
//! all that is worth telling the hub.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tombolo_agent_core::accelerators::{Measurements, Teller, measurements};
use tombolo_agent_core::devices::overuse::{Use, Uses};
use tombolo_agent_core::supervision::{InstanceId, instance_of_cgroups};
use tombolo_agent_devices::{Held, Pid, Told};
use tombolo_api::report::{AcceleratorReport, Report};

use crate::clock::Clock;

/// What instances hold, and how often that was too much, for all who want to know.
#[derive(Clone)]
pub(crate) struct Usage {
    pub(crate) uses: watch::Receiver<Arc<Uses>>,
    pub(crate) overuses: Arc<Overuses>,
    /// What the hub is told of accelerators.
    pub(crate) accelerators: watch::Receiver<Arc<Measurements>>,
}

/// How often an instance held more than it declared, since this agent's start.
#[derive(Debug, Default)]
pub(crate) struct Overuses {
    pub(crate) stopped: AtomicU64,
    pub(crate) warned: AtomicU64,
}

/// Finds out whose processes are told of, at each change, until nobody tells any more.
pub(crate) async fn find_instances(
    mut told: watch::Receiver<Arc<Told<Held>>>,
    uses: watch::Sender<Arc<Uses>>,
) {
    while told.changed().await.is_ok() {
        let now = told.borrow_and_update().clone();
        let found = sum(&now, instance_of);
        uses.send_if_modified(|current| {
            let changed = **current != found;
            if changed {
                *current = Arc::new(found);
            }
            changed
        });
    }
}

/// Tells what of accelerators has become worth telling, until nobody tells any more.
pub(crate) async fn tell_accelerators(
    mut told: watch::Receiver<Arc<Told<AcceleratorReport>>>,
    mut uses: watch::Receiver<Arc<Uses>>,
    accelerators: watch::Sender<Arc<Measurements>>,
    figures_pause: Duration,
) {
    let clock = Clock::start();
    let mut teller = Teller::new(u64::try_from(figures_pause.as_millis()).unwrap_or(u64::MAX));
    loop {
        let now = clock.now();
        let now_so = {
            let (told, uses) = (told.borrow_and_update(), uses.borrow_and_update());
            measurements(told.values().flatten(), &uses)
        };
        let (changed, wake) = teller.hear(&now_so, now);
        if changed {
            accelerators.send_replace(Arc::new(teller.told().clone()));
        }
        let wait = async {
            match wake {
                Some(at) => tokio::time::sleep(Duration::from_millis(at.since(now))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            changed = uses.changed() => if changed.is_err() { return },
            () = wait => {}
        }
    }
}

/// None: it is of no instance, or has ended.
fn instance_of(process: Pid) -> Option<InstanceId> {
    instance_of_cgroups(&std::fs::read_to_string(format!("/proc/{}/cgroup", process.0)).ok()?)
}

/// What is told of twice, by the plugin of each of its resources, counts once. What is not told counts as nothing.
fn sum(told: &Told<Held>, instance_of: impl Fn(Pid) -> Option<InstanceId>) -> Uses {
    let mut processes: BTreeMap<Pid, BTreeMap<&str, u64>> = BTreeMap::new();
    for held in told.values().flatten() {
        let bytes = processes.entry(held.process).or_default().entry(&held.device).or_default();
        *bytes = held.bytes.unwrap_or(0).max(*bytes);
    }
    let mut uses = Uses::new();
    for (process, held) in processes {
        let Some(instance) = instance_of(process) else { continue };
        let of_instance = uses.entry(instance).or_default();
        for (accelerator, bytes) in held {
            let of_accelerator: &mut Use = of_instance.entry(accelerator.to_owned()).or_default();
            of_accelerator.bytes = of_accelerator.bytes.saturating_add(bytes);
            of_accelerator.processes += 1;
        }
    }
    uses
}

impl Usage {
    /// As Prometheus' text: of the instances that a revision of `report` has.
    pub(crate) fn render(&self, report: &Report, text: &mut String) {
        let uses = self.uses.borrow().clone();
        let mut lines = String::new();
        let instances = report
            .revisions
            .iter()
            .flat_map(|revision| revision.instances.iter().map(move |instance| (revision, instance)));
        for (revision, instance) in instances {
            for (accelerator, held) in uses.get(&InstanceId(instance.id.clone())).into_iter().flatten() {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    lines,
                    "tombolo_instance_accelerator_memory_bytes{{namespace=\"{}\",revision=\"{}\",instance=\"{}\",accelerator=\"{accelerator}\"}} {}",
                    revision.namespace, revision.name, instance.id, held.bytes
                );
            }
        }
        if !lines.is_empty() {
            text.push_str("# HELP tombolo_instance_accelerator_memory_bytes What an instance holds of an accelerator's memory\n");
            text.push_str("# TYPE tombolo_instance_accelerator_memory_bytes gauge\n");
            text.push_str(&lines);
        }
        let name = "tombolo_accelerator_memory_exceeded_total";
        let _ = writeln!(
            text,
            "# HELP {name} Instances that held more than they declared, by what became of them\n# TYPE {name} counter"
        );
        for (action, count) in [("stopped", &self.overuses.stopped), ("warned", &self.overuses.warned)] {
            let _ = writeln!(text, "{name}{{action=\"{action}\"}} {}", count.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent_core::devices::ResourceName;
    use tombolo_api::report::Tier;

    use super::*;
    use crate::testing::report_of;

    fn id(text: &str) -> InstanceId {
        InstanceId(text.into())
    }

    /// Process, device and bytes.
    type Line = (u32, &'static str, Option<u64>);

    fn told(of: &[(&str, &[Line])]) -> Told<Held> {
        let held = |(pid, device, bytes): &Line| Held {
            process: Pid(*pid),
            device: (*device).to_owned(),
            bytes: *bytes,
        };
        of.iter().map(|(name, all)| (ResourceName((*name).into()), all.iter().map(held).collect())).collect()
    }

    /// Processes 1 to 9 are of `a`, others below 100 of `b`.
    fn whose(process: Pid) -> Option<InstanceId> {
        match process.0 {
            1..10 => Some(id("a")),
            10..100 => Some(id("b")),
            _ => None,
        }
    }

    #[test]
    fn processes_count_once_for_their_instance() {
        let all = [(1, "GPU-1", Some(5)), (2, "GPU-1", Some(7)), (2, "GPU-2", Some(1)), (10, "GPU-1", None)];
        let twice = told(&[
            ("x.example/gpu", &all),
            ("x.example/memory", &all),
            ("y.example/z", &[(100, "GPU-1", Some(9))]),
        ]);
        let held = |of: &[(&str, u64, u32)]| -> BTreeMap<String, Use> {
            of.iter()
                .map(|(gpu, bytes, processes)| {
                    ((*gpu).to_owned(), Use { bytes: *bytes, processes: *processes })
                })
                .collect()
        };
        let expected: Uses =
            [(id("a"), held(&[("GPU-1", 12, 2), ("GPU-2", 1, 1)])), (id("b"), held(&[("GPU-1", 0, 1)]))]
                .into();
        assert_eq!(sum(&twice, whose), expected);
    }

    #[test]
    fn a_process_outside_is_of_no_instance() {
        assert_eq!(instance_of(Pid(std::process::id())), None);
        assert_eq!(instance_of(Pid(u32::MAX)), None);
    }

    #[test]
    fn what_is_held_is_shown_by_instance() {
        let held = [("GPU-1".to_owned(), Use { bytes: 12, processes: 2 })];
        let uses = [(id("a"), held.clone().into()), (id("gone"), held.into())];
        let (_sender, uses) = watch::channel(Arc::new(uses.into()));
        let (_told, accelerators) = watch::channel(Arc::default());
        let usage = Usage { uses, overuses: Arc::default(), accelerators };
        usage.overuses.stopped.fetch_add(2, Ordering::Relaxed);
        let mut text = String::new();
        usage.render(&report_of(&[("a", Tier::Running)]), &mut text);
        let labels = "namespace=\"default\",revision=\"s-00001\",instance=\"a\",accelerator=\"GPU-1\"";
        let figures: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            figures,
            [
                format!("tombolo_instance_accelerator_memory_bytes{{{labels}}} 12").as_str(),
                "tombolo_accelerator_memory_exceeded_total{action=\"stopped\"} 2",
                "tombolo_accelerator_memory_exceeded_total{action=\"warned\"} 0",
            ]
        );
    }
}
