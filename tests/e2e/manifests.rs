//! Manifests that must not be believed, and power that goes while one is being accepted.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use serde_json::json;
use tombolo_api::frame::{self, Frame};
use tombolo_api::manifest::{Manifest, SignedManifest};
use tombolo_api::topics::NodeTopics;
use tombolo_harness::{Function, Node, NodeOptions, Site, until};

const NAME: &str = "press-7";

/// How often the agent is killed while it accepts.
const KILLS: u32 = 200;

async fn refusals(node: &Node) -> (u64, String) {
    let status = node.status().await.expect("the agent says what it runs");
    (
        status["refused"]["count"].as_u64().unwrap_or(0),
        status["refused"]["reason"].as_str().unwrap_or_default().to_owned(),
    )
}

/// Older, replayed, forged, half-written, and of the same number with other content: refused, counted, reported; the state
/// before them stays.
#[tokio::test]
async fn what_the_hub_did_not_say_now_is_refused_and_reported() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    let topic = NodeTopics::of(&NAME.parse().expect("a node's name")).manifest();
    let intruder = site.hub.intruder();

    site.hub.deploy(&Function::hello("hello").content("one")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let old = intruder.retained(&topic).await;
    site.hub.deploy(&Function::hello("hello").content("two")).await;
    until("the second revision", 20, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains("00002") { Ok(()) } else { Err(answer) }
    })
    .await;
    let current = intruder.retained(&topic).await;
    assert_ne!(old, current);
    let before = node.instances("hello").await.expect("the agent says what it runs");
    let serving = node.status().await.expect("the agent says what it runs")["serving"].clone();

    let Ok(Frame::Inline(bytes)) = frame::decode(&current) else { panic!("a small manifest is inline") };
    let signed = SignedManifest::from_bytes(bytes).expect("the hub's manifest can be read");
    let manifest: Manifest = serde_json::from_str(&signed.payload).expect("the payload is a manifest");
    let hub_key = SigningKey::from_bytes(&intruder.manifest_key());
    let other_key = SigningKey::from_bytes(&[9; 32]);
    let again = Manifest { hub_time_s: manifest.hub_time_s + 1, objects: vec![], ..manifest.clone() };
    let next = Manifest { generation: manifest.generation + 1, objects: vec![], ..manifest.clone() };
    let mut altered = SignedManifest::sign(&next, &hub_key);
    altered.payload = altered
        .payload
        .replace(&format!("\"epoch\":{}", next.epoch), &format!("\"epoch\":{}", next.epoch + 1));
    let foreign = Manifest { node: "press-8".parse().expect("a node's name"), ..next.clone() };

    let inline = |signed: &SignedManifest| frame::encode(&signed.to_bytes()).payload;
    let bad = [
        ("OlderGeneration", old),
        ("SameGenerationOtherContent", inline(&SignedManifest::sign(&again, &hub_key))),
        ("UnknownKey", inline(&SignedManifest::sign(&next, &other_key))),
        ("BadSignature", inline(&altered)),
        ("WrongNode", inline(&SignedManifest::sign(&foreign, &hub_key))),
        ("Malformed", current[..current.len() / 2].to_vec()),
    ];
    for (reason, payload) in bad {
        let (count, _) = refusals(&node).await;
        intruder.publish(&topic, payload).await;
        until(reason, 20, || async {
            let now = refusals(&node).await;
            if now.0 > count && now.1 == reason { Ok(()) } else { Err(now) }
        })
        .await;
        let status = node.status().await.expect("the agent says what it runs");
        assert_eq!(status["serving"], serving, "{reason} changed what is served");
        node.answer("hello", "/").await.expect("it goes on serving");
    }
    assert_eq!(node.instances("hello").await.expect("the agent says what it runs"), before);
    // The hub has been told, by report or event.
    until("the refusal at the hub", 60, || async {
        let seen = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?.to_string();
        if seen.contains("Malformed") { Ok(()) } else { Err(seen) }
    })
    .await;
    // And what the hub says next is still believed.
    site.hub.deploy(&Function::hello("hello").content("three")).await;
    until("the third revision", 30, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains("00003") { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// kill -9 at random moments of accepting, again and again: what is served afterwards is always one whole manifest, the old
/// one or the new one, never older than what was served before.
#[tokio::test]
async fn a_kill_while_accepting_leaves_the_old_state_or_the_new_one() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut last, mut olds, mut news) = (0, 0, 0);
    for round in 0..KILLS {
        let before =
            until("the agent to be connected and served up to date", 60, || current(&site, &node)).await;
        assert!(before >= last, "generation {before} after {last} in round {round}");
        // A tag changes the route and with it the manifest, but needs no new image.
        let traffic = json!([{"latestRevision": true, "percent": 100, "tag": format!("t{round}")}]);
        let patch = json!({"spec": {"traffic": traffic}});
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // The power goes while the change is on its way, is being accepted, or has just been.
        let patched = site.hub.api.patch_service("hello", &patch);
        let killed = async {
            tokio::time::sleep(Duration::from_micros(random % 10_000)).await;
            node.kill_agent();
        };
        let (patched, ()) = tokio::join!(patched, killed);
        patched.expect("a service can be patched");
        node.start_agent().expect("the agent starts again");
        last = until("the agent to serve", 20, || async {
            node.answer("hello", "/").await?;
            let status = node.status().await?;
            status["serving"]["generation"].as_u64().ok_or(status.to_string())
        })
        .await;
        assert!(last >= before, "generation {last} after {before} in round {round}");
        if last == before { olds += 1 } else { news += 1 }
    }
    println!("the old state {olds} times, a new one {news} times");
    assert!(olds > 0 && news > 0, "the kills came at no interesting moment: {olds} old, {news} new");
    let status = node.status().await.expect("the agent says what it runs");
    assert_eq!(status["refused"], serde_json::Value::Null, "nothing was refused");
}

/// The generation served, once it is the one that the hub wants.
async fn current(site: &Site, node: &Node) -> Result<u64, String> {
    let status = node.status().await?;
    let seen = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?["status"].clone();
    let (serving, desired) =
        (status["serving"]["generation"].as_u64(), seen["desired"]["generation"].as_u64());
    match serving {
        Some(serving) if Some(serving) == desired && status["hub"]["state"] == "connected" => Ok(serving),
        _ => Err(format!("{} of {desired:?}, {}", status["serving"], status["hub"])),
    }
}
