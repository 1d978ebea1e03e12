//! What the next version of an image costs a node that has the one before: one line changed in a hundred megabytes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tombolo_harness::{Function, Node, NodeOptions, Site};

use crate::memory::{MB, pss_mb};
use crate::report::Row;
use crate::sample::Sample;

/// Bytes of the image's files.
const FILE_BYTES: usize = 50_000;
const FILES: usize = 2_000;

/// Bar of the bytes on the wire, percent of the image as it is stored and sent.
const BYTES_BAR_PERCENT: f64 = 2.0;

/// Bar of the agent's memory while an image comes, megabytes.
const MEMORY_BAR_MB: f64 = 40.0;

/// Repetitions at most: each builds and pushes a hundred megabytes.
const ROUNDS_MAX: u32 = 5;

/// What one pull cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    time: Duration,
    bytes: u64,
    agent_cpu_ms: f64,
    hub_cpu_ms: f64,
    agent_memory_mb: f64,
}

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let rounds = rounds.min(ROUNDS_MAX);
    let directory = site.dir().join("image");
    write_files(&directory);
    let mut node = site.node(NodeOptions::named("updated").idle_timeout_s(600)).await;
    pull(&mut site, &mut node, &directory, 0).await;
    let (mut deltas, mut wholes) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        change_a_line(&directory, round);
        deltas.push(pull(&mut site, &mut node, &directory, round).await);
        let mut fresh = site.node(NodeOptions::named(&format!("fresh-{round}")).idle_timeout_s(600)).await;
        wholes.push(pull(&mut site, &mut fresh, &directory, 100 + round).await);
    }
    let image = median(&wholes, |cost| cost.bytes as f64);
    let bytes = median(&deltas, |cost| cost.bytes as f64);
    let time = |costs: &[Cost]| {
        let mut sample = Sample::default();
        costs.iter().for_each(|cost| sample.add(cost.time));
        sample.quantile_ms(0.5)
    };
    let (ours, whole) = (time(&deltas), time(&wholes));
    let beside = |row: &str, unit: &'static str, of: fn(&Cost) -> f64| {
        Row::plain("delta", row, median(&deltas, of), unit).beside("whole image", median(&wholes, of))
    };
    let mut rows = vec![
        Row::bounded("delta", "bytes-of-the-image", 100.0 * bytes / image, "%", BYTES_BAR_PERCENT),
        beside("bytes", "MB", |cost| cost.bytes as f64 / MB),
        Row::plain("delta", "apply-to-200-p50", ours, "ms").beside("whole image", whole),
        beside("agent-cpu", "ms", |cost| cost.agent_cpu_ms),
        beside("hub-cpu", "ms", |cost| cost.hub_cpu_ms),
    ];
    let memory = deltas.iter().map(|cost| cost.agent_memory_mb).fold(0.0, f64::max);
    rows.push(Row::bounded("delta", "agent-memory-max", memory, "MB", MEMORY_BAR_MB));
    if ours > whole {
        // Where the bytes that are saved take as long as the work that saves them.
        let link = (image - bytes) * 8.0 / 1e6 / ((ours - whole) / 1e3);
        rows.push(Row::plain("delta", "faster-on-links-below", link, "Mb/s"));
    }
    Some(rows)
}

/// Pushes the directory as an image, and has `node` run it.
async fn pull(site: &mut Site, node: &mut Node, directory: &Path, round: u32) -> Cost {
    // Nowhere at first: the push is not what is measured.
    let program = Function::directory("large", directory, "/program").selector("is", "nowhere");
    let image = site.hub.deploy_unready(&program).await;
    let name = format!("large-{round}");
    let service = Function::hello(&name).selector("kubernetes.io/hostname", &node.name).service(&image);
    let (agent, hub) = (node.agent().pid(), site.hub.process().pid());
    let before = (received(agent), cpu_ms(agent), cpu_ms(hub));
    let ended = Arc::new(AtomicBool::new(false));
    let watch = std::thread::spawn({
        let ended = ended.clone();
        move || {
            let mut most: f64 = 0.0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(pss_mb(agent));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        }
    });
    let began = Instant::now();
    site.hub.api.create_service(&service).await.expect("a service can be created");
    while !node.ask(&name, "/").await.is_good() {
        assert!(began.elapsed() < Duration::from_secs(300), "{name} does not answer");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let time = began.elapsed();
    ended.store(true, Ordering::Relaxed);
    let agent_memory_mb = watch.join().expect("looking at memory does not panic");
    Cost {
        time,
        bytes: received(agent) - before.0,
        agent_cpu_ms: cpu_ms(agent) - before.1,
        hub_cpu_ms: cpu_ms(hub) - before.2,
        agent_memory_mb,
    }
}

/// Files as images have them: a third like programs, the rest like text.
fn write_files(directory: &Path) {
    let mut state = 1u64;
    let mut word = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let words: Vec<String> = (0..4_000).map(|_| format!("{:x} ", word() % 0xff_ffff)).collect();
    for number in 0..FILES {
        let mut content = Vec::with_capacity(FILE_BYTES + 8);
        while content.len() < FILE_BYTES {
            if number % 3 == 0 {
                content.extend_from_slice(&word().to_le_bytes());
            } else {
                content.extend_from_slice(words[word() as usize % words.len()].as_bytes());
                if word() % 12 == 0 {
                    content.push(b'\n');
                }
            }
        }
        let folder = directory.join(format!("lib/{:02}", number % 40));
        fs::create_dir_all(&folder).expect("the site's directory can be written");
        fs::write(folder.join(format!("{number}.txt")), content).expect("a file can be written");
    }
    let program = directory.join("program");
    fs::write(&program, Function::hello("any").program()).expect("a file can be written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("one's own file can be made a program");
}

fn change_a_line(directory: &Path, round: u32) {
    let path = directory.join(format!("lib/{:02}/{}.txt", (round + 1) % 40, round + 1));
    let content = fs::read(&path).expect("the file is there");
    let at = content.len() / 2;
    let line = format!("\nline {round} is another one\n");
    let changed = [&content[..at], line.as_bytes(), &content[at..]].concat();
    fs::write(&path, changed).expect("the file can be written");
}

/// Bytes that came over the link to the hub.
fn received(agent: i32) -> u64 {
    let counters = fs::read_to_string(format!("/proc/{agent}/net/dev")).expect("the kernel counts");
    let line = counters.lines().find_map(|line| line.trim().strip_prefix("uplink:"));
    let first = line.and_then(|line| line.split_whitespace().next());
    first.and_then(|bytes| bytes.parse().ok()).expect("the link to the hub has counters")
}

/// Processor time of a process, milliseconds.
fn cpu_ms(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|at| fields[*at].parse::<f64>().expect("a number of ticks")).sum();
    // The kernel's ticks for programs are hundredths of a second on every architecture.
    ticks * 10.0
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
