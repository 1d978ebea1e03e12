//! How fast an image of twelve layers comes onto a node and is unpacked there, from the hub's registry over loopback, beside podman
//! and skopeo at the same registry; and what it costs over a link that is slow, loses packets, and is cut again and again.

mod image;
mod link;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tombolo_harness::{Node, NodeOptions, Site, until};

use crate::memory::pss_mb;
use crate::peer::find;
use crate::report::Row;
use crate::sample::Sample;
use image::Image;
use link::BadLink;

const BENCH: &str = "pull";

/// The large image: layers, and bytes of each before compression.
const LAYERS: usize = 12;
const LAYER_BYTES: usize = 25_000_000;

/// The image for the bad link: a minute or two of it at one megabit a second.
const SMALL_LAYERS: usize = 4;
const SMALL_LAYER_BYTES: usize = 8_000_000;

/// Most rounds: each takes several seconds.
const ROUNDS_MAX: u32 = 5;

/// Longest that any pull may take.
const PULL_MAX: Duration = Duration::from_secs(600);

/// Bars: the peer's time over ours turned round, megabytes, percent.
const PODMAN_BAR: f64 = 1.0 / 1.5;
const MEMORY_BAR_MB: f64 = 40.0;
const OVERHEAD_BAR_PERCENT: f64 = 3.0;

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let mut rows = fast(rounds.min(ROUNDS_MAX)).await?;
    rows.extend(slow().await?);
    Some(rows)
}

async fn fast(rounds: u32) -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let image = Image::push(&site, LAYERS, LAYER_BYTES).await;
    let mut node = site.node(NodeOptions::named("bench")).await;
    site.hub.api.create_service(&image.service()).await.expect("a service can be created");
    wait(&node, &image, Instant::now()).await;
    let (mut ours, mut memory) = (Sample::default(), 0f64);
    let (mut podman, mut skopeo) = (Sample::default(), Sample::default());
    let scratch = tempfile::tempdir().expect("a temporary directory");
    for round in 0..rounds {
        node.stop_agent();
        std::fs::remove_dir_all(node.state_dir().join("images")).expect("images can be removed");
        let began = Instant::now();
        node.start_agent().expect("the agent starts");
        let pid = node.agent().pid();
        memory = wait_watching(&node, &image, began, pid).await.max(memory);
        ours.add(began.elapsed());
        let dir = scratch.path().join(round.to_string());
        podman.extend(run("podman", &podman_arguments(&dir, &image)));
        skopeo.extend(run("skopeo", &skopeo_arguments(&dir, &image)));
    }
    let row = Row::plain(BENCH, "image-p50", ours.quantile_ms(0.5), "ms");
    let row = match podman.is_empty() {
        true => row,
        false => row.beside("podman pull", podman.quantile_ms(0.5)).ratio_at_most(PODMAN_BAR),
    };
    let copied = Row::plain(BENCH, "beside-copy-p50", ours.quantile_ms(0.5), "ms");
    let copied = match skopeo.is_empty() {
        true => copied,
        false => copied.beside("skopeo copy, which unpacks nothing", skopeo.quantile_ms(0.5)),
    };
    let size = Row::plain(BENCH, "image-compressed", image.bytes as f64 / 1e6, "MB");
    let memory = Row::bounded(BENCH, "agent-pss-most", memory, "MB", MEMORY_BAR_MB);
    Some(vec![row, copied, size, memory])
}

/// Over a link of one megabit a second that loses a packet in twenty and is down for two seconds in every thirty.
async fn slow() -> Option<Vec<Row>> {
    let mut site = Site::start().await?;
    let image = Image::push(&site, SMALL_LAYERS, SMALL_LAYER_BYTES).await;
    let node = site.node(NodeOptions::named("far")).await;
    let Some(link) = BadLink::make(&node) else {
        eprintln!("SKIPPED: tc and nft are needed for a bad link");
        return Some(Vec::new());
    };
    site.hub.api.create_service(&image.service()).await.expect("a service can be created");
    let began = Instant::now();
    let cuts = tokio::select! {
        () = wait(&node, &image, began) => link.cuts(),
        () = link.cut_again_and_again(&node) => unreachable!("it goes on for ever"),
    };
    let took = began.elapsed().as_secs_f64();
    let received = received(&node).await;
    let overhead = (received as f64 / image.bytes as f64 - 1.0) * 100.0;
    Some(vec![
        Row::plain(BENCH, "bad-link", took, "s"),
        Row::plain(BENCH, "bad-link-image", image.bytes as f64 / 1e6, "MB"),
        Row::plain(BENCH, "bad-link-cuts", f64::from(cuts), ""),
        Row::bounded(BENCH, "bad-link-overhead", overhead, "%", OVERHEAD_BAR_PERCENT),
    ])
}

/// Bytes of blobs that the agent took from the registry.
async fn received(node: &Node) -> u64 {
    until("the agent's figures", 60, || async {
        let text = node.metrics().await?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("tombolo_agent_image_bytes_received_total "));
        line.and_then(|count| count.parse().ok()).ok_or("no such figure".to_owned())
    })
    .await
}

/// Until every layer is unpacked on the node.
async fn wait(node: &Node, image: &Image, began: Instant) {
    while !image.is_on(node) {
        assert!(began.elapsed() < PULL_MAX, "the image does not come: {}", node.log());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The same; gives the most memory that the agent had.
async fn wait_watching(node: &Node, image: &Image, began: Instant, pid: i32) -> f64 {
    let mut most = 0f64;
    let mut looked = began;
    while !image.is_on(node) {
        assert!(began.elapsed() < PULL_MAX, "the image does not come");
        if looked.elapsed() >= Duration::from_millis(50) {
            most = pss_mb(pid).max(most);
            looked = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    most
}

fn podman_arguments(dir: &Path, image: &Image) -> Vec<String> {
    let dir = dir.display();
    let place = [
        "--root",
        &format!("{dir}/podman"),
        "--runroot",
        &format!("{dir}/run"),
        "pull",
        "-q",
        "--tls-verify=false",
    ]
    .map(str::to_owned);
    place.into_iter().chain([format!("docker://{}", image.address)]).collect()
}

fn skopeo_arguments(dir: &Path, image: &Image) -> Vec<String> {
    std::fs::create_dir_all(dir).expect("a scratch directory");
    let copy = ["copy", "-q", "--src-tls-verify=false"].map(str::to_owned);
    copy.into_iter()
        .chain([format!("docker://{}", image.address), format!("oci:{}/skopeo", dir.display())])
        .collect()
}

/// How long a peer takes, if it is installed and does it.
fn run(name: &str, arguments: &[String]) -> Option<Duration> {
    let program = find(name)?;
    let began = Instant::now();
    let done =
        Command::new(program).args(arguments).stdout(Stdio::null()).output().expect("a peer can be started");
    let took = began.elapsed();
    if !done.status.success() {
        eprintln!("{name} failed: {}", String::from_utf8_lossy(&done.stderr));
        return None;
    }
    Some(took)
}
