//! One warm revision through the router, and the same program behind nginx, driven by `wrk` in turn.
//!
//! nginx's program is in control groups like the instance's: outside it would have its threads' share of two busy processors
//! each, and the instance one for all.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tombolo_harness::{Beside, Function, Node, NodeOptions, Process, Site, until};

use crate::client;
use crate::peer::bundle::write_program;
use crate::peer::{find, nginx};
use crate::report::Row;
use crate::sample::median;

const CONNECTIONS: [u32; 3] = [1, 64, 512];
const SIZES: [(&str, u32); 2] = [("1k", 1024), ("64k", 65_536)];

/// How a row is measured: runs of `wrk` on each side in turn, of which the median counts.
struct Turns {
    number: u32,
    /// Length of one run, seconds.
    run_s: u32,
}

const TURNS: Turns = Turns { number: 3, run_s: 3 };

/// The same for a row with a bar. On a busy machine with few processors one run differs from the next: its rate by a tenth, its
/// p99 by ten times, when the scheduler lets one of six busy threads wait. So many short runs say more than few long ones.
const BARRED_TURNS: Turns = Turns { number: 31, run_s: 1 };

/// Of [`BARRED_TURNS`], how many may have the worse p99 on our side. Were both sides alike, more than this would be seen in one
/// of 28 measurements (binomial distribution, 31 throws of a coin).
const WORSE_TURNS_MAX: f64 = 20.0;

/// Connections of the rows with a bar.
const BARRED: u32 = 64;

/// Where the program and nginx listen in the node's network namespace.
const PROGRAM_PORT: u16 = 9000;
const NGINX_PORT: u16 = 8081;

/// What one run of `wrk` said.
#[derive(Clone, Copy)]
struct Run {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

pub(crate) async fn measure() -> Option<Vec<Row>> {
    let wrk = find("wrk").or_else(|| {
        tombolo_harness::skip("the router's benchmark needs wrk");
        None
    })?;
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("bench").idle_timeout_s(600)).await;
    let function = Function::subject("subject");
    site.hub.deploy(&function).await;
    until("the first answer", 30, || node.answer("subject", "/")).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let instances = node.instances("subject").await.expect("the agent says what it runs");
    let instance = *instances.values().next().expect("an instance answered");
    let peer = start_nginx(&node, &function, dir.path(), instance as i32);
    let ours = (node.router(), "subject.default.localhost");
    let theirs = peer.as_ref().map(|_| ((node.address(), NGINX_PORT).into(), "localhost"));
    let mut rows = Vec::new();
    for (name, bytes) in SIZES {
        for connections in CONNECTIONS {
            let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
            let turns = if connections == BARRED { BARRED_TURNS } else { TURNS };
            for _ in 0..turns.number {
                our_runs.push(drive(&wrk, ours, bytes, connections, turns.run_s));
                their_runs.extend(theirs.map(|target| drive(&wrk, target, bytes, connections, turns.run_s)));
            }
            rows.extend(compare(
                &format!("{name}-c{connections}"),
                connections == BARRED,
                &our_runs,
                &their_runs,
            ));
        }
    }
    Some(rows)
}

/// nginx and the program behind it.
struct Peer {
    _processes: [Process; 2],
    /// Of the program. Goes after it.
    _place: Beside,
}

/// Starts them in the node's network namespace.
fn start_nginx(node: &Node, function: &Function, dir: &Path, instance: i32) -> Option<Peer> {
    let program = find("nginx")?;
    let (upstream, listen) =
        ((Ipv4Addr::LOCALHOST, PROGRAM_PORT).into(), (node.address(), NGINX_PORT).into());
    let binary = dir.join("subject");
    write_program(&binary, function.program()).expect("a program can be written");
    let mut subject = Command::new(binary);
    subject.env("PORT", PROGRAM_PORT.to_string());
    let subject = node.start_beside("subject", subject).expect("the program starts");
    let place = Beside::instance(instance, "nginx-subject").expect("control groups can be made");
    place.add(subject.pid()).expect("the program can be put there");
    let config = nginx::configure(dir, listen, upstream).expect("a configuration can be written");
    let mut nginx = Command::new(program);
    nginx.arg("-c").arg(config).arg("-e").arg(dir.join("start.log"));
    let nginx = node.start_beside("nginx", nginx).expect("nginx starts");
    client::until_answer(listen, "localhost");
    Some(Peer { _processes: [subject, nginx], _place: place })
}

fn drive(wrk: &Path, (address, host): (SocketAddr, &str), bytes: u32, connections: u32, run_s: u32) -> Run {
    let threads = connections.min(2);
    let output = Command::new(wrk)
        .args(["--latency", "--timeout", "10s", "-t", &threads.to_string(), "-c", &connections.to_string()])
        .args(["-d", &format!("{run_s}s"), "-H", &format!("Host: {host}")])
        .arg(format!("http://{address}/bytes?{bytes}"))
        .output()
        .expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    for trouble in ["Socket errors", "Non-2xx"] {
        if let Some(line) = text.lines().find(|line| line.contains(trouble)) {
            eprintln!("{host}, {connections} connections, {bytes} bytes: {}", line.trim());
        }
    }
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let quantile = |name: &str| value(name).and_then(milliseconds).unwrap_or(f64::NAN);
    Run {
        per_second: value("Requests/sec:").and_then(|text| text.parse().ok()).unwrap_or(f64::NAN),
        p50_ms: quantile("50%"),
        p99_ms: quantile("99%"),
    }
}

/// `wrk`'s times: `87.00us`, `1.23ms`, `2.00s`.
fn milliseconds(text: &str) -> Option<f64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let value: f64 = text[..at].parse().ok()?;
    match &text[at..] {
        "us" => Some(value / 1000.0),
        "ms" => Some(value),
        "s" => Some(value * 1000.0),
        _ => None,
    }
}

fn compare(name: &str, barred: bool, ours: &[Run], theirs: &[Run]) -> Vec<Row> {
    let middle = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of));
    let row = |what: &str, unit, of: fn(&Run) -> f64| {
        let row = Row::plain("router", &format!("{name}-{what}"), middle(ours, of), unit);
        if theirs.is_empty() { row } else { row.beside("nginx", middle(theirs, of)) }
    };
    let (rate, p99) = (row("rate", "1/s", |run| run.per_second), row("p99", "ms", |run| run.p99_ms));
    let (rate, p99) = if barred { (rate.ratio_at_least(1.0), p99.ratio_at_most(1.0)) } else { (rate, p99) };
    let mut rows = vec![rate, row("p50", "ms", |run| run.p50_ms), p99];
    if barred && !theirs.is_empty() {
        let worse = ours.iter().zip(theirs).filter(|(ours, theirs)| ours.p99_ms > theirs.p99_ms).count();
        let name = format!("{name}-p99-worse");
        rows.push(Row::bounded("router", &name, worse as f64, "turn", WORSE_TURNS_MAX));
    }
    rows
}
