//! What a node does when the hub or its own agent is gone.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tombolo_harness::{Function, Node, NodeOptions, Site, condition, until, within};

/// Hub killed: the node goes on answering, scales to zero and back.
#[tokio::test]
async fn survives_hub_loss() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(1)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let connects = node.traffic().await.expect("the agent counts its connections").connects;
    site.hub.kill();
    for _ in 0..2 {
        node.answer("hello", "/").await.expect("it answers without a hub");
        until("zero instances", 20, || async {
            let instances = node.instances("hello").await?;
            if instances.is_empty() { Ok(()) } else { Err(format!("{instances:?}")) }
        })
        .await;
    }
    node.answer("hello", "/").await.expect("it wakes without a hub");
    // And the hub finds it again.
    site.hub.start().await.expect("the hub starts again");
    until("the node to connect again", 90, || async {
        let now = node.traffic().await?.connects;
        if now > connects { Ok(()) } else { Err(format!("{now} connections")) }
    })
    .await;
    until("the hub to know it", 10, || async {
        let seen = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
        let ready = condition(&seen, "Ready");
        if ready["status"] == "True" { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
}

/// Agent killed -9 and started again: the same instances, answers within a second, and only requests that were in flight
/// through the dead agent saw an error; those that came while there was none waited.
#[tokio::test]
async fn a_killed_agent_finds_its_instances_again() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what it runs");
    assert_eq!(before.len(), 1, "{before:?}");
    let load = node.load_anew("hello", "/", 4, 2);
    tokio::time::sleep(within(Duration::from_millis(300))).await;

    let killed = Instant::now();
    node.kill_agent();
    let dead = Instant::now();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    node.start_agent().expect("the agent starts again");
    until("an answer", 5, || node.answer("hello", "/")).await;
    let back = Instant::now();
    tokio::time::sleep(within(Duration::from_millis(300))).await;

    let outcomes = load.stop().await;
    assert!(back - started <= within(Duration::from_secs(1)), "answers came back after {:?}", back - started);
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_good()) {
        assert!(
            outcome.start <= dead && outcome.end >= killed,
            "{outcome:?}, killed {killed:?}, dead {dead:?}, back {back:?}"
        );
    }
    let between = outcomes.iter().filter(|outcome| outcome.start > dead && outcome.start < started).count();
    assert!(between > 0, "somebody asked while there was no agent");
    let good_after = outcomes.iter().filter(|outcome| outcome.is_good() && outcome.start > back).count();
    assert!(good_after > 10, "{good_after} requests succeeded afterwards");
    still_runs(&node, "hello", &before).await;
}

/// Until the status tells of the same instances: requests find them a moment before.
async fn still_runs(node: &Node, service: &str, before: &BTreeMap<String, i64>) {
    until("the same instances", 10, || async {
        let after = node.instances(service).await?;
        if after == *before { Ok(()) } else { Err(format!("{after:?} instead of {before:?}")) }
    })
    .await;
}

/// Agent stopped and started as a service manager does: nobody is refused.
#[tokio::test]
async fn a_restarted_agent_refuses_nobody() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let load = node.load_anew("hello", "/", 4, 2);
    node.stop_agent();
    let stopped = Instant::now();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    node.start_agent().expect("the agent starts again");
    until("an answer", 20, || node.answer("hello", "/")).await;
    let outcomes = load.stop().await;
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_good()) {
        // A connection that the agent had accepted, and no request had come on it yet, may be closed; none is refused.
        assert!(outcome.start <= stopped, "{outcome:?}, stopped {stopped:?}");
        assert!(!format!("{:?}", outcome.answer).contains("refused"), "{outcome:?}");
    }
    let between = outcomes.iter().filter(|outcome| outcome.end > stopped && outcome.start < started).count();
    assert!(between > 0, "somebody asked while there was no agent");
}

/// A client of the subject that asks for this and to switch protocols, which only `/tunnel` does.
async fn connect(node: &Node, path: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(node.router()).await.expect("somebody listens");
    let mut stream = BufReader::new(stream);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: subject.default.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("the router reads");
    stream
}

/// Reads lines until one is this.
async fn hear(stream: &mut BufReader<TcpStream>, expected: &str) {
    let mut heard = String::new();
    while heard.lines().last() != Some(expected) {
        let read = timeout(within(Duration::from_secs(30)), stream.read_line(&mut heard)).await;
        assert!(matches!(read, Ok(Ok(1..))), "{expected:?} does not come: {read:?} after {heard:?}");
    }
}

/// Agent stopped: a connection that switched protocols, as a WebSocket does, goes on for its grace and is closed then, and its
/// instance runs on.
#[tokio::test]
async fn a_websocket_has_its_grace_when_the_agent_stops() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::subject("subject")).await;
    until("the first answer", 20, || node.answer("subject", "/")).await;
    let before = node.instances("subject").await.expect("the agent says what it runs");
    let (mut socket, mut plain) = (connect(&node, "/tunnel").await, connect(&node, "/").await);
    hear(&mut socket, "").await;
    hear(&mut plain, "subject ").await;

    node.agent().ask_to_end().expect("the agent runs");
    // It has begun to stop when it closes what nobody waits for.
    let closed =
        timeout(within(Duration::from_secs(30)), plain.read(&mut [0])).await.expect("the other one ends");
    assert!(!matches!(closed, Ok(1)), "nothing was asked");
    for word in ["still", "here"] {
        socket.write_all(format!("{word}\n").as_bytes()).await.expect("it is open");
        hear(&mut socket, word).await;
    }
    let end = timeout(within(Duration::from_secs(90)), socket.read(&mut [0])).await;
    assert!(!matches!(end.expect("it is closed"), Ok(1)), "nothing was said");
    node.agent_ends();
    assert!(!node.log().contains("did not end in time"), "the agent has waited for it in vain");

    node.start_agent().expect("the agent starts again");
    let mut socket = connect(&node, "/tunnel").await;
    hear(&mut socket, "").await;
    socket.write_all(b"again\n").await.expect("it is open");
    hear(&mut socket, "again").await;
    still_runs(&node, "subject", &before).await;
}

/// The runtime supervisor killed -9: instances go on, the agent starts another one, which knows them and keeps the router's
/// socket as the one before it did.
#[tokio::test]
async fn a_killed_supervisor_is_replaced_and_instances_stay() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what it runs");
    node.kill_supervisor();
    node.answer("hello", "/").await.expect("instances serve without a supervisor");
    until("another supervisor and the same instances", 20, || async {
        let after = node.instances("hello").await?;
        match node.supervisor_pid() {
            Some(_) if after == before => Ok(()),
            supervisor => Err(format!("{after:?} instead of {before:?}, supervisor {supervisor:?}")),
        }
    })
    .await;
    until("it to keep the router's socket", 20, || async {
        let supervisor = node.supervisor_pid().ok_or("no supervisor")?;
        if listens(supervisor, node.router().port()) { Ok(()) } else { Err("it does not") }
    })
    .await;
    node.kill_agent();
    let waiting = TcpStream::connect(node.router()).await;
    let waiting = waiting.expect("somebody listens for the next agent");
    node.start_agent().expect("the agent starts again");
    until("an answer", 20, || node.answer("hello", "/")).await;
    drop(waiting);
    // It can still be stopped and deleted by the new one.
    site.hub.api.delete_service("hello").await.expect("a service can be deleted");
    until("the instance to be gone", 60, || async {
        let left = node.census("hello");
        let running =
            before.values().any(|pid| left.processes.iter().any(|(other, _)| i64::from(*other) == *pid));
        if running || !left.cgroups.is_empty() { Err(left) } else { Ok(()) }
    })
    .await;
}

/// Whether a process has a socket that listens on a TCP port of its network namespace.
fn listens(process: i32, port: u16) -> bool {
    let table = fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default();
    // Columns of the kernel's: local address, state (0A: listening), inode.
    let inodes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&format!(":{port:04X}")) && *fields.get(3)? == "0A";
        is_it.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
    });
    let inodes: Vec<String> = inodes.collect();
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
}
