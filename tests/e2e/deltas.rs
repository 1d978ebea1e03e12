//! The next version of an image on a node that has the one before.

use std::fs;

use tombolo_harness::{Function, Node, NodeOptions, Site, until};

/// Lines of the file that makes the image large: of noise, so that its layer hardly shrinks.
const LINES: usize = 60_000;

/// Bytes of a layer with that file: each line has sixteen of entropy at least.
const LAYER_BYTES: u64 = LINES as u64 * 16;

/// A file of lines that all differ.
fn lines() -> Vec<String> {
    let mut state = 1u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    (0..LINES).map(|_| format!("{:012x}{:012x}{:012x}\n", word(), word(), word())).collect()
}

async fn answers_as(node: &Node, revision: &str) {
    until("an answer of the new revision", 60, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains(revision) { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// A line more in an image of some megabytes: a twentieth of the layer travels, and the result runs.
#[tokio::test]
async fn only_changed_content_travels() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let mut content = lines();
    let start = node.received_bytes();
    site.hub.deploy(&Function::hello("hello").content(&content.concat())).await;
    answers_as(&node, "hello-00001").await;
    let first = node.received_bytes();
    assert!(first - start > LAYER_BYTES, "{} bytes came for the first version", first - start);

    content.insert(LINES / 2, "one line more\n".into());
    site.hub.deploy(&Function::hello("hello").content(&content.concat())).await;
    answers_as(&node, "hello-00002").await;
    let second = node.received_bytes() - first;
    assert!(second < LAYER_BYTES / 4, "{second} bytes came for a line more");
    let log = node.log();
    assert!(log.contains("put a layer together from chunks"), "{log}");
}

/// A hub that has no chunk lists to give: the layer comes whole, and the log says so.
#[tokio::test]
async fn layers_come_whole_where_there_are_no_lists() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let mut content = lines();
    site.hub.deploy(&Function::hello("hello").content(&content.concat())).await;
    answers_as(&node, "hello-00001").await;
    let first = node.received_bytes();
    let lists = site.dir().join("hub/state/registry/chunks");
    fs::remove_dir_all(&lists).expect("the hub has a directory of lists");
    fs::write(&lists, "not a directory").expect("something can stand in its place");

    content.insert(LINES / 2, "one line more\n".into());
    site.hub.deploy(&Function::hello("hello").content(&content.concat())).await;
    answers_as(&node, "hello-00002").await;
    let second = node.received_bytes() - first;
    assert!(second > LAYER_BYTES, "{second} bytes came");
    let log = node.log();
    assert!(log.contains("a layer travels whole"), "{log}");
}

/// The agent is killed again and again while the next version is put together: it runs in the end, and nothing is left over.
#[tokio::test]
async fn a_killed_agent_goes_on_with_what_has_come() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let mut content = lines();
    site.hub.deploy(&Function::hello("hello").content(&content.concat())).await;
    answers_as(&node, "hello-00001").await;
    content.insert(LINES / 2, "one line more\n".into());
    site.hub.deploy_unready(&Function::hello("hello").content(&content.concat())).await;
    for _ in 0..5 {
        node.kill_agent();
        node.start_agent().expect("an agent starts again");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    answers_as(&node, "hello-00002").await;
    until("nothing to be left behind", 30, || async {
        let left = fs::read_dir(node.state_dir().join("images/deltas")).map_or(0, Iterator::count);
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}
