//! A puller that is killed two hundred times, at any instant, ends with a verified image, and asks for no byte twice that was on
//! its disk.

#[path = "support/registry.rs"]
mod registry;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{check_asked, image, on_the_disk, serve};
use tombolo_oci::image::{Platform, summary};
use tombolo_oci::{Client, Endpoint, Progress, Scheme, Store};

const KILLS: u32 = 200;

/// Says to the test's own program that it is the puller: where the registry is, where the store is, and the image.
const PULL: &str = "TOMBOLO_TEST_PULL";

/// The program that is killed: this test's own, which does nothing else.
#[tokio::test]
async fn puller() {
    let Ok(told) = std::env::var(PULL) else { return };
    let [address, dir, image] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let store = Store::open(Path::new(dir)).expect("a store");
    let endpoint = Endpoint { scheme: Scheme::Http, address: address.into(), auth: None, server_name: None };
    let client = Client::new(endpoint).expect("a client");
    let image = image.parse().expect("a digest");
    let repository = "a".parse().expect("a name");
    client
        .pull(&store, &repository, &image, &Platform::host(), &Progress::default())
        .await
        .expect("it comes");
}

#[expect(
    clippy::zombie_processes,
    reason = "one that has ended was waited for in the loop, and the others are after it"
)]
#[test]
fn killed_at_any_instant_it_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: unpacking needs root");
        return;
    }
    let built = tempfile::tempdir().expect("a directory");
    let (registry, image) = image(built.path());
    let registry = Arc::new(registry);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let address = runtime.block_on(serve(registry.clone()));

    let (mut kills, mut images, mut random) = (0, 0, 7u64);
    while kills < KILLS || images == 0 {
        let dir = tempfile::tempdir().expect("a directory");
        loop {
            let there = on_the_disk(dir.path(), &registry);
            registry.asked.lock().expect("no panic").clear();
            let begun = Instant::now();
            let mut puller = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "puller", "--nocapture"])
                .env(PULL, format!("{address} {} {image}", dir.path().display()))
                .stdout(Stdio::null())
                .spawn()
                .expect("a puller");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let life = Duration::from_millis(if kills < KILLS { (random >> 33) % 350 } else { 60_000 });
            let mut ended = None;
            while ended.is_none() && begun.elapsed() < life {
                std::thread::sleep(Duration::from_millis(2));
                ended = puller.try_wait().expect("a child");
            }
            if ended.is_none() {
                puller.kill().expect("it can be killed");
                puller.wait().expect("it ends");
                kills += 1;
            }
            check_asked(&there, &registry);
            match ended {
                Some(status) => {
                    assert!(status.success(), "{status}");
                    break;
                }
                None => assert!(kills < KILLS + 2, "it does not come to an end"),
            }
        }
        let store = Store::open(dir.path()).expect("a store");
        let complete = summary(&store, &image, &Platform::host()).expect("a sound image").expect("all of it");
        assert_eq!(complete.layers.len(), 3);
        for blob in &complete.blobs {
            assert!(store.verify(blob).expect("a blob"), "{blob}");
        }
        for (number, layer) in complete.layers.iter().rev().enumerate() {
            assert!(layer.join(format!("file-{number}")).is_file());
        }
        images += 1;
    }
    eprintln!("{kills} kills, {images} images");
}
