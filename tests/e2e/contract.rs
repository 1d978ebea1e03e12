//! What a program finds in its container: Knative's runtime contract, and the walls around it.

use std::collections::BTreeMap;

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

async fn subject(function: Function) -> Option<(Site, Node)> {
    let mut site = Site::start().await?;
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let name = function.name().to_owned();
    site.hub.deploy(&function).await;
    until("the first answer", 20, || node.answer(&name, "/")).await;
    Some((site, node))
}

async fn ask(node: &Node, path: &str) -> String {
    node.answer("subject", path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn the_program_finds_what_the_runtime_contract_promises() {
    let function =
        Function::subject("subject").env("MINE", "kept").limit("memory", "64Mi").limit("cpu", "500m");
    let Some((_site, node)) = subject(function).await else { return };
    let text = ask(&node, "/env").await;
    let env: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
    for (name, value) in [
        ("PORT", "8080"),
        ("K_SERVICE", "subject"),
        ("K_CONFIGURATION", "subject"),
        ("K_REVISION", "subject-00001"),
        ("MINE", "kept"),
    ] {
        assert_eq!(env.get(name), Some(&value), "{text}");
    }
    assert_eq!(ask(&node, "/stdin").await, "0 bytes, then the end");
    for file in ["/tmp/file", "/var/log/file", "/anywhere"] {
        assert_eq!(ask(&node, &format!("/write?{file}")).await, "written", "{file}");
    }
    assert!(!ask(&node, "/read?/etc/resolv.conf").await.starts_with("error"));
    assert!(ask(&node, "/read?/etc/hosts").await.contains("localhost"));
    // Its limits, by cgroup v2 or v1.
    let bytes = (64u64 << 20).to_string();
    for (v2, v1, limit) in [
        ("memory.max", "memory/memory.limit_in_bytes", bytes.as_str()),
        ("cpu.max", "cpu/cpu.cfs_quota_us", "50000"),
    ] {
        let [v2, v1] = [v2, v1].map(|file| format!("/read?/sys/fs/cgroup/{file}"));
        let mut seen = ask(&node, &v2).await;
        if seen.starts_with("error") {
            seen = ask(&node, &v1).await;
        }
        assert_eq!(seen.split_whitespace().next(), Some(limit), "{v1}");
    }
}

#[tokio::test]
async fn the_program_stays_within_its_walls() {
    let Some((_site, node)) = subject(Function::subject("subject")).await else { return };
    let status = ask(&node, "/read?/proc/self/status").await;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("Pid:"), "1");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapInh:"), "0000000000000000");
    let effective = u64::from_str_radix(&field("CapEff:"), 16).expect("a capability set is a number");
    for (name, bit) in [
        ("CAP_SYS_ADMIN", 21),
        ("CAP_NET_ADMIN", 12),
        ("CAP_SYS_PTRACE", 19),
        ("CAP_MKNOD", 27),
        ("CAP_NET_RAW", 13),
    ] {
        assert_eq!(effective >> bit & 1, 0, "{name}");
    }
    // Masked paths are empty or unreadable, kernel settings read only.
    let kcore = ask(&node, "/read?/proc/kcore").await;
    assert!(kcore.is_empty() || kcore.starts_with("error"), "{} bytes of kcore", kcore.len());
    assert!(ask(&node, "/write?/proc/sys/kernel/hostname").await.starts_with("error"));
    // Only its own network: loopback.
    let links = ask(&node, "/read?/proc/net/dev").await;
    assert_eq!(links.lines().filter(|line| line.contains(':')).count(), 1, "{links}");
    // Its own user namespace, where the node can make one: root inside is nobody outside.
    let map = ask(&node, "/read?/proc/self/uid_map").await;
    let limitations = node.status().await.expect("the agent says what it is")["limitations"].to_string();
    let mapped = !map.split_whitespace().eq(["0", "0", "4294967295"]);
    assert!(mapped || limitations.contains("user namespace"), "{map}, {limitations}");
}

#[tokio::test]
async fn memory_and_processes_have_limits() {
    let function = Function::subject("subject").limit("memory", "64Mi").limit("cpu", "500m");
    let Some((site, node)) = subject(function).await else { return };
    let started: u64 = ask(&node, "/fork?5000").await.parse().expect("a count");
    assert!(started < 1100, "{started} threads in one instance");
    assert_eq!(ask(&node, "/eat?8").await, (8u64 << 20).to_string());

    let outcome = node.ask("subject", "/eat?200").await;
    assert!(!outcome.is_good(), "it ate more than its limit: {outcome:?}");
    until("the reason in the hub's revision", 30, || async {
        let revision = site.hub.api.revision("subject-00001").await.map_err(|error| error.to_string())?;
        let text = revision["status"].to_string();
        let node = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?.to_string();
        if text.contains("OOMKilled") || node.contains("OOMKilled") { Ok(()) } else { Err(text + &node) }
    })
    .await;
    until("an answer of the next instance", 30, || node.answer("subject", "/")).await;
}

#[tokio::test]
async fn what_the_program_writes_is_in_the_log() {
    let Some((site, node)) = subject(Function::subject("subject")).await else { return };
    for number in 0..5 {
        ask(&node, &format!("/log?line-{number}")).await;
    }
    until("the lines at the hub", 20, || async {
        let path = "/apis/tombolo.dev/v1/namespaces/default/services/subject/log?follow=false&tailLines=100";
        let log = site.hub.api.get(path).await.map_err(|error| error.to_string())?;
        let text = log.as_str().unwrap_or_default().to_owned();
        let whole = (0..5).all(|number| text.contains(&format!("stdout F line-{number}")));
        if whole && text.starts_with("press-7/") { Ok(()) } else { Err(text) }
    })
    .await;
}
