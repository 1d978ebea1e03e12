//! Nodes whose clock is wrong, or is set while they run: images come and stay as if it were right.

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use tombolo_harness::{Function, Node, NodeOptions, Site, program, skip, until};

const DAY: i64 = 86_400;
const YEAR: i64 = 365 * DAY;

/// Seconds since 1970 by the machine's own clock.
fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    i64::try_from(now.as_secs()).expect("a time before the end of it")
}

/// Whether clocks can be played here.
fn can_play() -> bool {
    let is_there = program("libtombolo_fake_clock.so").is_file();
    if !is_there {
        skip("libtombolo_fake_clock.so is not built");
    }
    is_there
}

/// Where the manifest of an image by digest lies on a node.
fn manifest(node: &Node, image: &str) -> PathBuf {
    let hex = image.rsplit("sha256:").next().expect("a digest");
    node.state_dir().join("images/blobs/sha256").join(hex)
}

async fn answers(site: &Site, node: &Node, service: &str) {
    until(&format!("{service} to answer"), 90, || async {
        match node.answer(service, "/").await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}: {}", site.hub.api.told(service).await.unwrap_or_default())),
        }
    })
    .await;
}

/// Waits until the node has looked through its images since this one came.
async fn looked_through(node: &Node, image: &str) {
    let digest = image.rsplit('@').next().expect("a digest");
    until("the node to look through its images", 60, || async {
        let known = fs::read_to_string(node.state_dir().join("images.json")).unwrap_or_default();
        if known.contains(digest) { Ok(()) } else { Err(known) }
    })
    .await;
}

async fn says(site: &Site, service: &str, words: &[&str]) {
    until(&format!("{words:?} of {service}"), 60, || async {
        let text = site.hub.api.told(service).await.map_err(|error| error.to_string())?;
        if words.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    })
    .await;
}

async fn clock_is_behind(node: &Node) -> bool {
    let status = node.status().await.expect("the agent says what it serves");
    status["clock"]["behind"].as_bool().expect("it says what it knows of its clock")
}

/// A clock without a battery: it begins in 1970, and is set once there is a network; then somebody sets it three years too late.
/// The node joins, fetches in hours that it cannot know, and what nobody has needed for a minute is not a day old for that.
#[tokio::test]
async fn a_clock_that_begins_in_1970_and_is_set_loses_no_image() {
    if !can_play() {
        return;
    }
    let Some(mut site) = Site::start().await else { return };
    // By a clock that begins anew at every start these hours come never.
    let options =
        NodeOptions::named("press-7").idle_timeout_s(600).config("[images]\nhours = [\"12:00-13:00\"]\n");
    let mut node = site.node(options.clock_ahead_s(60 - now_s())).await;
    let runs = site.hub.deploy(&Function::hello("runs")).await;
    let passing = site.hub.deploy(&Function::hello("passing").content("for a while")).await;
    answers(&site, &node, "runs").await;
    assert!(clock_is_behind(&node).await);
    let before = node.instances("runs").await.expect("the agent says what it runs");
    site.hub.api.delete_service("passing").await.expect("a service can be deleted");

    let now = |function: Function| function.annotation("tombolo.dev/pull", "now");
    for (ahead_s, name) in [(0, "right"), (3 * YEAR, "ahead"), (-YEAR, "behind")] {
        node.set_clock_ahead_s(ahead_s);
        if name == "behind" {
            // It begins anew with a clock that is behind what it knows has passed.
            node.stop_agent();
            node.start_agent().expect("the agent starts again");
        }
        let image = site.hub.deploy(&now(Function::hello(name).content(name))).await;
        answers(&site, &node, name).await;
        looked_through(&node, &image).await;
        for image in [&runs, &passing, &image] {
            assert!(manifest(&node, image).is_file(), "{image} with a clock that is {name}");
        }
        assert_eq!(clock_is_behind(&node).await, name == "behind");
        assert_eq!(node.instances("runs").await.expect("the agent says what it runs"), before, "{name}");
    }
    // What is needed again is there: nothing comes for it.
    let restored = site.hub.deploy(&now(Function::hello("restored").content("for a while"))).await;
    assert_eq!(restored.rsplit('@').next(), passing.rsplit('@').next());
    answers(&site, &node, "restored").await;
    let log = node.log();
    assert!(!log.contains("removed images nobody wants"), "{log}");
    assert!(!log.contains("cannot renew"), "{log}");
}

/// A clock that is ahead has the node wait for hours that are over; once it is set right the image comes.
#[tokio::test]
async fn a_clock_that_is_set_into_the_hours_begins_what_waits() {
    if !can_play() {
        return;
    }
    let Some(mut site) = Site::start().await else { return };
    let options = NodeOptions::named("press-7").config("[images]\nhours = [\"02:00-03:00\"]\n");
    let ahead_s = |second_of_day: i64| 400 * DAY + second_of_day - now_s().rem_euclid(DAY);
    let node = site.node(options.clock_ahead_s(ahead_s(12 * 3600))).await;
    site.hub.deploy_unready(&Function::hello("waits")).await;
    says(&site, "waits", &["PullDeferred", "02:00 UTC+00:00"]).await;
    node.set_clock_ahead_s(ahead_s(2 * 3600 + 60));
    answers(&site, &node, "waits").await;
}

/// Bytes a second of the node that may fetch in the night only.
const RATE: u64 = 300_000;

/// The largest file of a directory of the node's images, bytes.
fn largest(node: &Node, directory: &str) -> u64 {
    let files =
        fs::read_dir(node.state_dir().join("images").join(directory)).expect("the store can be listed");
    let content = files.flatten().filter(|file| file.path().extension().is_none());
    content.filter_map(|file| file.metadata().ok()).map(|about| about.len()).max().unwrap_or(0)
}

/// The hours end in the middle of a download: it stops, keeps what came, says so, and goes on from there when they begin.
#[tokio::test]
async fn hours_that_end_in_the_middle_of_a_download_cost_no_byte_of_it() {
    if !can_play() {
        return;
    }
    let Some(mut site) = Site::start().await else { return };
    let config = format!("[images]\nhours = [\"02:00-03:00\"]\nmax_bytes_per_s = {RATE}\n");
    let ahead_s = |hour: i64| 400 * DAY + hour * 3600 - now_s().rem_euclid(DAY);
    let options = NodeOptions::named("press-7").config(&config);
    let mut node = site.node(options.clock_ahead_s(ahead_s(2))).await;
    let start = node.received_bytes();
    site.hub.deploy_unready(&Function::hello("large").noise(6_000_000, 1)).await;
    until("some of it", 60, || async {
        let here = largest(&node, "partial");
        if here > 2_000_000 { Ok(()) } else { Err(here) }
    })
    .await;
    node.set_clock_ahead_s(ahead_s(12));
    says(&site, "large", &["PullDeferred", "02:00 UTC+00:00", "tombolo.dev/pull"]).await;
    until("nothing under way", 30, || async {
        let seen = site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
        let pulls = seen["status"]["pulls"].as_array().cloned().unwrap_or_default();
        if pulls.is_empty() { Ok(()) } else { Err(format!("{pulls:?}")) }
    })
    .await;
    let kept = largest(&node, "partial");
    assert!(kept > 2_000_000, "{kept}");
    // It is asked again and again whether it is time.
    let tried = node.log().matches("action=PrepareImage").count();
    until("another attempt", 60, || async {
        if node.log().matches("action=PrepareImage").count() > tried { Ok(()) } else { Err("none") }
    })
    .await;
    assert_eq!(largest(&node, "partial"), kept, "nothing comes outside the hours, and nothing goes");
    node.set_clock_ahead_s(ahead_s(2));
    answers(&site, &node, "large").await;
    let (layer, received) = (largest(&node, "blobs/sha256"), node.received_bytes() - start);
    // What was asked for and not taken any more, and what goes around the content.
    assert!(
        received < layer + 4 * RATE + layer / 20,
        "{received} bytes for a layer of {layer} with {kept} here"
    );
}
