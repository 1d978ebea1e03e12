//! Programs that misbehave: what is said of each, and that another service on the same node is not touched.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tombolo_harness::{Function, Load, Node, NodeOptions, Outcome, Site, until, within};

/// A site with a good neighbour under constant load.
struct Street {
    site: Site,
    node: Node,
    load: Load,
}

impl Street {
    async fn start() -> Option<Self> {
        let mut site = Site::start().await?;
        let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
        site.hub.deploy(&Function::hello("neighbour")).await;
        until("the neighbour's first answer", 20, || node.answer("neighbour", "/")).await;
        let load = node.load("neighbour", "/", 2, 10);
        Some(Self { site, node, load })
    }

    async fn with(function: Function) -> Option<Self> {
        let street = Self::start().await?;
        let name = function.name().to_owned();
        street.site.hub.deploy(&function).await;
        until("the first answer", 20, || street.node.answer(&name, "/")).await;
        Some(street)
    }

    /// The neighbour has served all the while.
    async fn end(self) {
        let outcomes = self.load.stop().await;
        let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), outcomes.len(), failed[0]);
        assert!(outcomes.len() > 10, "{} requests", outcomes.len());
    }

    async fn said(&self, service: &str, words: &[&str]) {
        until(&format!("{words:?} in the status of {service}"), 60, || async {
            let text = self.site.hub.api.told(service).await.map_err(|error| error.to_string())?;
            if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

fn status(outcome: Outcome) -> (u16, String) {
    outcome.answer.expect("the router answers")
}

#[tokio::test]
async fn a_program_that_never_listens_is_told_to() {
    let Some(street) = Street::start().await else { return };
    let deaf = Function::subject("deaf")
        .env("MODE", "deaf")
        .annotation("serving.knative.dev/progress-deadline", "3s");
    street.site.hub.deploy_unready(&deaf).await;
    street.said("deaf", &["ProgressDeadlineExceeded", "$PORT"]).await;
    until("a refusal", 30, || async {
        match street.node.ask("deaf", "/").await.answer {
            Ok((503, body)) if body.contains("ProgressDeadlineExceeded") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    street.end().await;
}

#[tokio::test]
async fn a_program_that_ends_again_and_again_is_started_ever_more_rarely() {
    let Some(street) = Street::start().await else { return };
    street.site.hub.deploy_unready(&Function::subject("refuses").env("MODE", "exit")).await;
    street.said("refuses", &["ExitedBeforeReady", "exit status 3"]).await;
    let (code, body) = status(street.node.ask("refuses", "/").await);
    assert!(code == 503 && body.contains("ExitedBeforeReady"), "{code}: {body}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    // Each start says so itself. After 1 s, 2 s, 4 s, 8 s: at most five of them.
    let path = "/apis/tombolo.dev/v1/namespaces/default/services/refuses/log?follow=false&tailLines=100";
    let starts = until("what each start printed", 20, || async {
        let log = street.site.hub.api.get(path).await.map_err(|error| error.to_string())?;
        let starts = log.as_str().unwrap_or_default().matches("the subject refuses to run").count();
        if starts >= 2 { Ok(starts) } else { Err(log.to_string()) }
    })
    .await;
    assert!(starts <= 5, "{starts} starts");
    street.end().await;
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed() {
    let Some(street) = Street::with(Function::subject("stubborn")).await else { return };
    street.site.hub.api.delete_service("stubborn").await.expect("a service can be deleted");
    until("its process to be gone", 90, || async {
        let left = street.node.census("stubborn").cgroups;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    until("the hub to be told", 20, || async {
        let events = street.site.hub.api.get("/apis/tombolo.dev/v1/events").await;
        let events = events.map_err(|error| error.to_string())?.to_string();
        let is_told = events.contains("ExceededGracePeriod") && events.contains("SIGTERM");
        if is_told && events.contains("stubborn-00001") { Ok(()) } else { Err(events) }
    })
    .await;
    street.end().await;
}

/// Half a gibibyte and more, as fast as it can, while another function is deployed.
#[tokio::test]
async fn a_program_that_prints_without_end_fills_no_disk() {
    let Some(mut street) = Street::with(Function::subject("loud")).await else { return };
    let supervisor = street.node.supervisor_pid().expect("a supervisor runs");
    let programs = [street.node.agent().pid(), supervisor];
    let before = programs.map(memory_kib);
    let flood = street.node.load("loud", "/flood?64", 1, 1);
    street.site.hub.deploy(&Function::hello("newcomer")).await;
    until("the newcomer's first answer", 20, || street.node.answer("newcomer", "/")).await;
    for _ in 0..8 {
        assert_eq!(street.node.answer("loud", "/flood?64").await.as_deref(), Ok("64"));
        let kept = size_of(&street.node.state_dir().join("logs"));
        assert!(kept < 4 << 20, "{kept} bytes of logs are kept");
        let now = programs.map(memory_kib);
        assert!(
            now.iter().zip(before).all(|(now, before)| *now < before + (16 << 10)),
            "{before:?} KiB, {now:?} KiB"
        );
    }
    let outcomes = flood.stop().await;
    assert!(outcomes.iter().all(Outcome::is_good), "{outcomes:?}");
    street.end().await;
}

fn memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).expect("the kernel counts it")
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn a_fork_bomb_and_a_glutton_meet_their_limits() {
    let function = Function::subject("greedy").limit("memory", "128Mi");
    let Some(street) = Street::with(function).await else { return };
    let started: u64 =
        street.node.answer("greedy", "/fork?50000").await.expect("an answer").parse().expect("a count");
    // Of the 1024 that an instance may have, a few are its own.
    assert!((1000..1024).contains(&started), "{started} threads in one instance");
    street.node.answer("neighbour", "/").await.expect("an answer beside them");
    assert!(!street.node.ask("greedy", "/eat?400").await.is_good(), "it ate more than its limit");
    street.said("greedy", &["OOMKilled"]).await;
    until("an answer of the next instance", 30, || street.node.answer("greedy", "/")).await;
    street.end().await;
}

#[tokio::test]
async fn broken_answers_are_bad_gateways() {
    let Some(street) = Street::with(Function::subject("broken")).await else { return };
    let (code, body) = status(street.node.ask("broken", "/garbage").await);
    assert!(code == 502 && body.contains("broken-00001"), "{code}: {body}");
    // The head has gone out already: all that can be done is to end the connection early.
    let cut = street.node.ask("broken", "/cut?1000000").await;
    assert!(cut.answer.is_err(), "a cut answer must not look whole: {:?}", cut.answer.map(|(code, _)| code));
    let (code, body) = status(street.node.ask("broken", "/exit?7").await);
    assert!(code == 502 && body.contains("broken-00001"), "{code}: {body}");
    until("an answer of the next instance", 30, || street.node.answer("broken", "/")).await;
    street.end().await;
}

#[tokio::test]
async fn slow_clients_hold_up_nobody() {
    let Some(street) = Street::start().await else { return };
    let connect = || TcpStream::connect(street.node.router()).expect("the router accepts");
    let mut slow: Vec<TcpStream> = (0..300).map(|_| connect()).collect();
    for byte in b"GET / HTTP/1.1\r\nHost: neig" {
        for stream in &mut slow {
            // The router may have had enough of it.
            let _ = stream.write_all(&[*byte]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    street.node.answer("neighbour", "/").await.expect("an answer beside slow clients");
    // A head has a minute.
    let ends = tokio::task::spawn_blocking(move || {
        let mut ends = std::collections::BTreeMap::<String, usize>::new();
        for mut stream in slow {
            stream.set_read_timeout(Some(within(Duration::from_secs(90)))).expect("a time-out is fine");
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer).map_err(|error| error.kind());
            let first = answer.lines().next().unwrap_or_default();
            *ends.entry(format!("{first} {:?}", read.map(|_| ()))).or_default() += 1;
        }
        ends
    });
    let told = "HTTP/1.1 408 Request Timeout Ok(())".to_owned();
    assert_eq!(ends.await.expect("sockets can be read"), [(told, 300)].into());
    street.node.answer("neighbour", "/").await.expect("an answer afterwards");
    street.end().await;
}
