//! Images on their way to a node, and on its disk: at the pace, in the hours and in the room that it has for them.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tombolo_harness::{Function, Node, NodeOptions, Site, until};

/// Where the manifest of an image by digest lies on a node.
fn manifest(node: &Node, image: &str) -> PathBuf {
    let hex = image.rsplit("sha256:").next().expect("a digest");
    node.state_dir().join("images/blobs/sha256").join(hex)
}

async fn pulls(site: &Site, node: &str) -> Result<Vec<Value>, String> {
    let node = site.hub.api.node(node).await.map_err(|error| error.to_string())?;
    Ok(node["status"]["pulls"].as_array().cloned().unwrap_or_default())
}

async fn said(site: &Site, service: &str, words: &[&str]) {
    until(&format!("{words:?} of {service}"), 60, || async {
        let text = site.hub.api.told(service).await.map_err(|error| error.to_string())?;
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn a_capped_download_keeps_its_pace_and_is_shown() {
    let Some(mut site) = Site::start().await else { return };
    let options = NodeOptions::named("press-7").config("[images]\nmax_bytes_per_s = 150000\n");
    let node = site.node(options).await;
    let begun = SystemTime::now();
    site.hub.deploy_unready(&Function::hello("slow").noise(2_500_000, 1)).await;
    until("the download in the node's status", 60, || async {
        let pulls = pulls(&site, "press-7").await?;
        let Some(pull) = pulls.first() else { return Err("none".to_owned()) };
        let (done, total) = (pull["doneBytes"].as_u64(), pull["totalBytes"].as_u64());
        match (done, total) {
            (Some(1..), Some(1_500_000..)) => Ok(()),
            _ => Err(pull.to_string()),
        }
    })
    .await;
    until("the first answer", 120, || node.answer("slow", "/")).await;
    let took = begun.elapsed().expect("the clock goes forward");
    assert!(took >= Duration::from_secs(10), "{took:?} for two megabytes");
    until("nothing under way", 30, || async {
        let pulls = pulls(&site, "press-7").await?;
        if pulls.is_empty() { Ok(()) } else { Err(format!("{pulls:?}")) }
    })
    .await;
}

/// The hour that begins in two hours.
fn another_hour() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs() / 3600 % 24;
    format!("{:02}:00-{:02}:00", (now + 2) % 24, (now + 3) % 24)
}

#[tokio::test]
async fn outside_its_hours_a_node_fetches_only_what_is_needed_at_once() {
    let Some(mut site) = Site::start().await else { return };
    let config = format!("[images]\nhours = [\"{}\"]\n", another_hour());
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600).config(&config)).await;
    let now = |function: Function| function.annotation("tombolo.dev/pull", "now");
    site.hub.deploy(&now(Function::hello("urgent"))).await;
    let before = node.instances("urgent").await.expect("the agent says what it runs");
    let later = Function::hello("later").content("another image");
    site.hub.deploy_unready(&later).await;
    said(&site, "later", &["PullDeferred", "UTC+00:00", "tombolo.dev/pull"]).await;
    node.answer("urgent", "/").await.expect("what runs goes on");
    assert_eq!(node.instances("urgent").await.expect("the agent says what it runs"), before);
    site.hub.deploy_unready(&now(later)).await;
    until("its answer", 60, || node.answer("later", "/")).await;
}

#[tokio::test]
async fn images_named_for_later_are_loaded_ahead() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let later = Function::hello("later").content("it is needed later").push().await;
    let first = Function::hello("first").annotation("tombolo.dev/preload", &later);
    site.hub.deploy(&first).await;
    until("the image ahead of need", 60, || async {
        if manifest(&node, &later).is_file() { Ok(()) } else { Err("not there") }
    })
    .await;
    let refused =
        Function::hello("second").annotation("tombolo.dev/preload", "hub.tombolo/default/later:latest");
    let image = refused.push().await;
    let refusal =
        site.hub.api.create_service(&refused.service(&image)).await.expect_err("a tag is no digest");
    assert!(refusal.to_string().contains("by digest"), "{refusal}");
}

/// A small disk: what is not needed goes by itself when another image needs its room, what serves, and what it would go back to,
/// never; and what does not fit at all is said with figures.
#[tokio::test]
async fn a_small_disk_keeps_what_is_needed_and_says_what_does_not_fit() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600).disk_bytes(64 << 20)).await;
    let former = site.hub.deploy(&Function::hello("runs").noise(1_000_000, 1)).await;
    let present = site.hub.deploy(&Function::hello("runs").noise(1_000_000, 2)).await;
    let passing = site.hub.deploy(&Function::hello("passing").noise(8_000_000, 3)).await;
    site.hub.api.delete_service("passing").await.expect("a service can be deleted");
    until("the answer", 30, || node.answer("runs", "/")).await;
    until("the passing service to be gone", 60, || async {
        if node.answer("passing", "/").await.is_err() { Ok(()) } else { Err("it answers") }
    })
    .await;
    assert!(manifest(&node, &passing).is_file(), "it is kept for a while");
    let before = node.instances("runs").await.expect("the agent says what it runs");

    site.hub.deploy_unready(&Function::hello("giant").noise(20_000_000, 4)).await;
    said(&site, "giant", &["DiskFull", "MiB", "stay free for what runs"]).await;
    site.hub.api.delete_service("giant").await.expect("a service can be deleted");
    let next = site.hub.deploy(&Function::hello("next").noise(8_000_000, 5)).await;
    until("the answer", 60, || node.answer("next", "/")).await;
    assert!(!manifest(&node, &passing).exists(), "its room was needed");
    for image in [&former, &present, &next] {
        assert!(manifest(&node, image).is_file(), "{image}");
    }
    assert_eq!(node.instances("runs").await.expect("the agent says what it runs"), before);
    node.answer("runs", "/").await.expect("what ran goes on");
}

/// Not a byte is free: an agent that begins again serves what ran, instances that ended included, says what is wrong, and takes what
/// is new by itself once there is room.
#[tokio::test]
async fn an_agent_begins_again_on_a_full_disk_and_recovers_when_there_is_room() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").idle_timeout_s(600).disk_bytes(64 << 20)).await;
    site.hub.deploy(&Function::hello("runs")).await;
    let before = node.instances("runs").await.expect("the agent says what it runs");
    node.fill_disk(0).expect("a disk can be filled");
    for end in ["killed", "stopped"] {
        match end {
            "killed" => node.kill_agent(),
            _ => node.stop_agent(),
        }
        node.start_agent().expect("an agent starts again");
        until(&format!("an answer of what ran, {end}"), 30, || node.answer("runs", "/")).await;
        // Requests find an instance a moment before the status tells of it.
        until(&format!("the same instance, {end}"), 30, || async {
            let now = node.instances("runs").await?;
            if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
        })
        .await;
    }
    node.power_off().expect("the power can be cut");
    node.start_agent().expect("an agent starts again");
    until("an answer after the power was off", 30, || node.answer("runs", "/")).await;

    site.hub.deploy_unready(&Function::hello("next").noise(1_000_000, 1)).await;
    until("what is wrong, at the hub", 90, || async {
        let seen = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?.to_string();
        if seen.contains("DiskFull") { Ok(()) } else { Err(seen) }
    })
    .await;
    let status = node.status().await.expect("the agent says what it serves").to_string();
    assert!(status.contains("DiskFull"), "{status}");
    node.answer("runs", "/").await.expect("what runs goes on");
    node.empty_disk().expect("a disk can be emptied");
    until("the new one to answer", 120, || node.answer("next", "/")).await;
    node.answer("runs", "/").await.expect("what runs goes on");
}
