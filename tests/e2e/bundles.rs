//! What nodes should run, carried to them as a file: a USB stick is just another link.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until, within};

const NAME: &str = "press-7";

/// How often the agent is killed while it imports.
const KILLS: u64 = 20;

/// Bytes of noise in an image: what a kill can hit the copying of.
const NOISE: usize = 4 << 20;

/// Runs a command in this test's own network, to its end.
fn run(mut command: Command) -> Output {
    command.output().expect("a program of this project can be run")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn create(site: &Site, arguments: &[&str], file: &Path) -> Command {
    let mut command = Command::new(program("tombolo"));
    command.args(["bundle", "create", "--hub", &site.hub.url(), "-o"]).arg(file).args(arguments);
    command
}

/// A bundle for these nodes. Returns what the command said.
pub(super) fn created(site: &Site, arguments: &[&str], file: &Path) -> String {
    let output = run(create(site, arguments, file));
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

fn import(node: &Node, file: &Path) -> Command {
    let mut command = node.agent_command().expect("the configuration can be written");
    command.arg("import").arg(file);
    command
}

/// What the command said when it brought the node up to date.
pub(super) fn imported(node: &Node, file: &Path) -> String {
    let output = run(import(node, file));
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// What the command said when it refused.
pub(super) fn refused(node: &Node, file: &Path) -> String {
    let output = run(import(node, file));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    text(&output)
}

pub(super) async fn serves(node: &Node, revision: &str) {
    until(revision, 30, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains(revision) { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// What a node should have, waited for: a change takes a moment to be signed.
pub(super) async fn desired(site: &Site, above: u64) -> u64 {
    until("a newer generation", 20, || async {
        let node = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?;
        let generation = node["status"]["desired"]["generation"].as_u64().unwrap_or(0);
        if generation > above { Ok(generation) } else { Err(node["status"]["desired"].to_string()) }
    })
    .await
}

pub(super) async fn generation(node: &Node) -> u64 {
    let status = node.status().await.expect("the agent says what it serves");
    status["serving"]["generation"].as_u64().unwrap_or(0)
}

/// Another revision of `hello` at the hub, of which nodes without a link know nothing.
pub(super) async fn changed(site: &Site, node: &Node, content: &str) {
    let before = generation(node).await;
    site.hub.deploy_unready(&Function::hello("hello").content(content)).await;
    let mut known = desired(site, before).await;
    // Where another node has a link, its report changes what this one should have a moment later.
    for _ in 0..3 {
        tokio::time::sleep(within(Duration::from_secs(1))).await;
        known = desired(site, known - 1).await;
    }
}

/// Messages of a node's events with this reason, at the hub.
async fn events(site: &Site, reason: &str) -> Vec<String> {
    let list = site.hub.api.get("/apis/tombolo.dev/v1/events").await.expect("the hub lists events");
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let of_reason = items.iter().filter(|event| event["reason"] == reason);
    of_reason.map(text_of).collect()
}

fn text_of(event: &Value) -> String {
    event["message"].as_str().or(event["note"].as_str()).unwrap_or_default().to_owned()
}

pub(super) async fn connected(node: &Node) {
    until("the link", 120, || async {
        let hub = node.status().await?["hub"].clone();
        if hub["state"] == "connected" { Ok(()) } else { Err(hub.to_string()) }
    })
    .await;
}

/// Files of the image store with what tells a new one from an old one.
pub(super) fn stored(node: &Node) -> Vec<(PathBuf, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let dir = node.state_dir().join("images/blobs/sha256");
    let entries = fs::read_dir(dir).expect("the store can be listed").flatten();
    let mut all: Vec<_> =
        entries.map(|entry| (entry.path(), entry.metadata().map_or(0, |about| about.ino()))).collect();
    all.sort();
    all
}

/// The link is cut, the hub has a new revision, a file brings it: served, and when the link returns nothing is fetched or
/// started again. The file is an image archive that other programs read.
#[tokio::test]
async fn a_cut_off_node_is_brought_up_to_date_and_converges_when_the_link_returns() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello").content("one")).await;
    serves(&node, "hello-00001").await;
    node.cut_link();
    changed(&site, &node, "two").await;

    let (file, again) = (site.dir().join("b.tombolo"), site.dir().join("again.tombolo"));
    created(&site, &["--node", NAME], &file);
    created(&site, &["--node", NAME], &again);
    let bytes = fs::read(&file).expect("the bundle can be read");
    assert!(bytes == fs::read(&again).expect("the bundle can be read"), "the same state is the same file");
    assert_eq!(bytes.len() % 512, 0);
    let mut inspect = Command::new(program("tombolo"));
    inspect.args(["bundle", "inspect"]).arg(&file);
    let shown = text(&run(inspect));
    assert!(shown.contains("press-7, generation") && !shown.contains("not in the file"), "{shown}");
    others_read_it(&site, &file, &shown);

    let said = imported(&node, &file);
    assert!(said.contains("is in force"), "{said}");
    serves(&node, "hello-00002").await;
    let status = node.status().await.expect("the agent says what it serves");
    assert_eq!(status["import"]["state"], "imported", "{status}");
    let said = imported(&node, &file);
    assert!(said.contains("already"), "{said}");

    let (instances, blobs) = (node.instances("hello-00002").await, stored(&node));
    node.restore_link();
    connected(&node).await;
    until("the events at the hub", 60, || async {
        let told = events(&site, "BundleImported").await;
        if told.len() == 1 { Ok(()) } else { Err(told) }
    })
    .await;
    until("the same at both ends", 30, || async {
        let seen = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?;
        let (serving, desired) = (&seen["status"]["serving"], &seen["status"]["desired"]);
        if serving["digest"] == desired["digest"] { Ok(()) } else { Err(seen["status"].to_string()) }
    })
    .await;
    assert_eq!(node.instances("hello-00002").await, instances, "nothing was started again");
    assert!(stored(&node).iter().all(|blob| blobs.contains(blob)), "nothing was fetched again");
    let status = node.status().await.expect("the agent says what it serves");
    assert_eq!(status["refused"], Value::Null);
}

/// tar and skopeo, if they are here.
fn others_read_it(site: &Site, file: &Path, shown: &str) {
    let mut tar = Command::new("tar");
    tar.arg("-tf").arg(file);
    let listed = run(tar);
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && names.starts_with("oci-layout\nindex.json\nblobs/sha256/"), "{names}");
    let reference =
        shown.split_whitespace().find(|word| word.contains("@sha256:")).expect("an image is listed");
    if Command::new("skopeo").arg("--version").output().is_err() {
        tombolo_harness::skip("skopeo is not installed: it is what reads a bundle's images besides us");
        return;
    }
    let source = format!("oci-archive:{}:{reference}", file.display());
    let copy = format!("dir:{}", site.dir().join("copied").display());
    for arguments in [vec!["inspect", &source], vec!["copy", "--insecure-policy", &source, &copy]] {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(&arguments);
        let output = run(skopeo);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
}

/// Older, for another node, damaged, cut off, no bundle at all: refused with what to do, and what runs goes on.
#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    let other = site.node(NodeOptions::named("press-8").idle_timeout_s(600)).await;
    site.hub.deploy(&Function::hello("hello").content("one")).await;
    serves(&node, "hello-00001").await;
    let file = |name: &str| site.dir().join(name);
    created(&site, &["--node", NAME], &file("old.tombolo"));
    node.cut_link();
    changed(&site, &node, "two").await;
    created(&site, &["--node", NAME], &file("two.tombolo"));
    created(&site, &["--node", "press-8"], &file("other.tombolo"));
    let whole = fs::read(file("two.tombolo")).expect("the bundle can be read");
    let mut damaged = whole.clone();
    // The last of it is the end, before that the last layer.
    let last = whole.len() - 2048;
    damaged[last] ^= 1;
    fs::write(file("damaged.tombolo"), &damaged).expect("a file can be written");
    fs::write(file("cut.tombolo"), &whole[..last]).expect("a file can be written");
    fs::write(file("text.tombolo"), "hello").expect("a file can be written");
    let before = (generation(&node).await, node.instances("hello").await);
    for (name, words) in [
        ("other.tombolo", ["WrongNode", "for press-8"]),
        ("damaged.tombolo", ["BlobDamaged", "copy the file anew"]),
        ("cut.tombolo", ["BundleTruncated", "copy the file anew"]),
        ("text.tombolo", ["NotABundle", "tombolo bundle create"]),
        ("absent.tombolo", ["cannot be read", "absent.tombolo"]),
    ] {
        let said = refused(&node, &file(name));
        assert!(words.iter().all(|word| said.contains(word)), "{name}: {said}");
        assert_eq!((generation(&node).await, node.instances("hello").await), before, "{name}");
    }
    imported(&node, &file("two.tombolo"));
    serves(&node, "hello-00002").await;
    let now = generation(&node).await;
    let said = refused(&node, &file("old.tombolo"));
    assert!(said.contains("OlderGeneration"), "{said}");
    assert_eq!(generation(&node).await, now);
    serves(&node, "hello-00002").await;
    node.restore_link();
    until("the refusals at the hub", 120, || async {
        let told = events(&site, "BundleRefused").await.join("\n");
        let all = ["WrongNode", "BlobDamaged", "BundleTruncated", "NotABundle", "OlderGeneration"];
        if all.iter().all(|reason| told.contains(reason)) { Ok(()) } else { Err(told) }
    })
    .await;
    drop(other);
}

/// A stick with half a bundle, pulled out, and back with all of it; then it stays plugged in.
#[tokio::test]
async fn a_medium_that_is_plugged_in_is_imported_once() {
    let Some(mut site) = Site::start().await else { return };
    let media = site.dir().join("media");
    let stick = media.join("usb");
    fs::create_dir_all(&stick).expect("a directory can be made");
    let options = NodeOptions::named(NAME).idle_timeout_s(600);
    let options = options.config(&format!("[import]\ndirectories = [\"{}\"]\n", media.display()));
    let mut node = site.node(options).await;
    site.hub.deploy(&Function::hello("hello").content("one")).await;
    serves(&node, "hello-00001").await;
    node.cut_link();
    changed(&site, &node, "two").await;
    let file = site.dir().join("b.tombolo");
    created(&site, &["--node", NAME], &file);
    let whole = fs::read(&file).expect("the bundle can be read");

    let plug = |bytes: &[u8]| {
        // Filled before it is seen, as a stick is.
        let filled = site.dir().join("filled");
        fs::create_dir_all(&filled).expect("a directory can be made");
        mount(Some("tmpfs"), &filled, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("root may mount");
        fs::write(filled.join("from-the-office.tombolo"), bytes).expect("a file can be written");
        mount(Some(&filled), &stick, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("root may mount");
        umount2(&filled, MntFlags::MNT_DETACH).expect("root may unmount");
    };
    let pull = || umount2(&stick, MntFlags::MNT_DETACH).expect("root may unmount");
    plug(&whole[..whole.len() * 3 / 5]);
    until("the half to be noticed", 30, || async {
        let seen = node.status().await?["import"].clone();
        if seen["reason"] == "BundleTruncated" { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
    serves(&node, "hello-00001").await;
    pull();
    tokio::time::sleep(Duration::from_secs(3)).await;
    plug(&whole);
    serves(&node, "hello-00002").await;
    node.kill_agent();
    node.start_agent().expect("the agent starts again");
    serves(&node, "hello-00002").await;
    node.restore_link();
    connected(&node).await;
    // Were it imported once more, it would be by now.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(node.log().matches("imported a bundle").count(), 1);
    assert_eq!(events(&site, "BundleImported").await.len(), 1);
    pull();
}

/// kill -9 at random moments of importing: the request stays, and the next agent ends it with a complete image.
#[tokio::test]
async fn a_kill_while_importing_ends_complete() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named(NAME).idle_timeout_s(600)).await;
    let image = site.dir().join("image");
    fs::create_dir_all(&image).expect("a directory can be made");
    let hello = Function::hello("hello");
    fs::write(image.join("program"), hello.program()).expect("a file can be written");
    let set = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(image.join("program"), set).expect("a program may be run");
    let function = Function::directory("hello", &image, "/program");
    site.hub.deploy(&function).await;
    serves(&node, "hello-00001").await;
    node.cut_link();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let file = site.dir().join("b.tombolo");
    for round in 2..KILLS + 2 {
        let noise: Vec<u8> = (0..NOISE).map(|_| next(&mut random) as u8).collect();
        fs::write(image.join("noise"), noise).expect("a file can be written");
        let before = generation(&node).await;
        site.hub.deploy_unready(&function).await;
        let want = desired(&site, before).await;
        created(&site, &["--node", NAME], &file);
        let log = site.dir().join("import.log");
        let mut importing =
            Process::start("import", import(&node, &file), None, &log).expect("the command starts");
        let requests = node.state_dir().join("import");
        until("the request", 30, || async {
            let is_there = fs::read_dir(&requests).is_ok_and(|entries| entries.count() > 0);
            if is_there { Ok(()) } else { Err("nothing was asked") }
        })
        .await;
        tokio::time::sleep(Duration::from_micros(next(&mut random) % 900_000)).await;
        node.kill_agent();
        node.start_agent().expect("the agent starts again");
        let status = importing.wait(60).expect("the command ends");
        assert!(status.success(), "round {round}: {}", importing.last_words());
        until("what was imported", 30, || async {
            let serving = node.status().await?["serving"]["generation"].as_u64();
            // What was created may be newer than what was waited for: a change is sometimes two manifests.
            if serving >= Some(want) { Ok(()) } else { Err(format!("{serving:?} instead of {want}")) }
        })
        .await;
        serves(&node, &format!("hello-{round:05}")).await;
    }
    let left =
        fs::read_dir(node.state_dir().join("images/partial")).expect("the store can be listed").count();
    assert_eq!(left, 0, "nothing is left half-copied");
    let left = fs::read_dir(node.state_dir().join("import")).expect("it can be listed").count();
    assert_eq!(left, 0, "no request and no result is left");
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Two nodes by a label in one file; a command that was broken off goes on; a later file can leave out what an earlier one has.
#[tokio::test]
async fn one_file_serves_the_nodes_of_a_selector_and_is_gone_on_with() {
    let Some(mut site) = Site::start().await else { return };
    let options = |name: &str, line: &str| NodeOptions::named(name).idle_timeout_s(600).label("line", line);
    let (one, two) = (site.node(options(NAME, "3")).await, site.node(options("press-8", "3")).await);
    let apart = site.node(options("press-9", "4")).await;
    site.hub.deploy(&Function::hello("hello").content("one")).await;
    for node in [&one, &two] {
        serves(node, "hello-00001").await;
        node.cut_link();
    }
    changed(&site, &one, "two").await;
    let (file, again) = (site.dir().join("b.tombolo"), site.dir().join("again.tombolo"));
    let said = created(&site, &["--selector", "line=3"], &file);
    assert!(said.contains("press-7, press-8") && !said.contains("press-9"), "{said}");
    let whole = fs::read(&file).expect("the bundle can be read");
    for part in 1..8 {
        fs::write(site.dir().join("again.tombolo.partial"), &whole[..whole.len() * part / 8])
            .expect("a file can be written");
        let said = created(&site, &["-l", "line=3"], &again);
        assert!(said.contains("going on after"), "{said}");
        assert!(whole == fs::read(&again).expect("the bundle can be read"), "gone on with from {part}/8");
        fs::remove_file(&again).expect("a file can be removed");
    }
    // Killed for real, at whatever moment.
    let mut killed = create(&site, &["-l", "line=3"], &again).spawn().expect("the command starts");
    tokio::time::sleep(Duration::from_millis(30)).await;
    killed.kill().and_then(|()| killed.wait()).expect("the command can be killed");
    created(&site, &["-l", "line=3"], &again);
    assert!(whole == fs::read(&again).expect("the bundle can be read"));

    for node in [&one, &two] {
        imported(node, &file);
        serves(node, "hello-00002").await;
    }
    let said = refused(&apart, &file);
    assert!(said.contains("for press-7, press-8"), "{said}");
    changed(&site, &one, "three").await;
    let small = site.dir().join("small.tombolo");
    let base = file.display().to_string();
    let said = created(&site, &["-l", "line=3", "--without-images-of", &base], &small);
    println!("{said}");
    imported(&one, &small);
    serves(&one, "hello-00003").await;
    let output = run(create(&site, &["-l", "line=5"], &small));
    assert!(output.status.code() == Some(1) && text(&output).contains("line=5"), "{}", text(&output));
    let output = run(create(&site, &["--node", "nobody"], &small));
    assert!(output.status.code() == Some(1) && text(&output).contains("nobody"), "{}", text(&output));
}

/// A node that never joins: told whose files to believe, brought up to date before its agent ever ran.
#[tokio::test]
async fn a_node_that_never_joined_believes_the_key_it_was_told() {
    let Some(mut site) = Site::start().await else { return };
    let mut key = Command::new(program("tombolo-hub"));
    key.arg("manifest-key").arg("--config").arg(site.hub.config_file());
    let key = text(&run(key)).trim().to_owned();
    let options = NodeOptions::named(NAME).idle_timeout_s(600);
    let mut node = site.node(options.config(&format!("[import]\ntrust = \"{key}\"\n"))).await;
    site.hub.deploy(&Function::hello("hello").content("one")).await;
    serves(&node, "hello-00001").await;
    let file = site.dir().join("b.tombolo");
    created(&site, &["--node", NAME], &file);
    // The same machine, new from the shelf, where no network leads.
    node.cut_link();
    node.power_off().expect("the power can be cut");
    fs::remove_dir_all(node.state_dir()).expect("a directory can be removed");
    fs::create_dir_all(node.state_dir()).expect("a directory can be made");
    let said = imported(&node, &file);
    assert!(said.contains("is in force"), "{said}");
    node.start_agent().expect("the agent starts");
    serves(&node, "hello-00001").await;
    // Once it may join, it does, and what it has is what it should have.
    let instances = node.instances("hello").await;
    let mut delete = Command::new(program("tombolo"));
    delete.args(["delete", "node", NAME, "--hub", &site.hub.url()]);
    let output = run(delete);
    assert!(output.status.success(), "{}", text(&output));
    node.restore_link();
    connected(&node).await;
    until("to have joined", 30, || async {
        let seen = site.hub.api.node(NAME).await.map_err(|error| error.to_string())?;
        let (serving, desired) = (&seen["status"]["serving"], &seen["status"]["desired"]);
        if serving["digest"] == desired["digest"] { Ok(()) } else { Err(seen["status"].to_string()) }
    })
    .await;
    assert_eq!(node.instances("hello").await, instances);
}

/// A disk without room for what a bundle brings: images that nothing needs go for it, and no others; what does not fit even then is
/// refused with figures, and fits once there is room.
#[tokio::test]
async fn what_nobody_needs_makes_room_for_a_bundle() {
    let Some(mut site) = Site::start().await else { return };
    let options = NodeOptions::named(NAME).idle_timeout_s(600);
    let node = site.node(options.disk_bytes(64 << 20)).await;
    let former = site.hub.deploy(&Function::hello("hello").content("zero")).await;
    let present = site.hub.deploy(&Function::hello("hello").content("one")).await;
    let passing = site.hub.deploy(&Function::hello("passing").noise(8_000_000, 3)).await;
    site.hub.api.delete_service("passing").await.expect("a service can be deleted");
    until("the passing service to be gone", 60, || async {
        if node.answer("passing", "/").await.is_err() { Ok(()) } else { Err("it answers") }
    })
    .await;
    serves(&node, "hello-00002").await;
    let manifest = |image: &str| {
        let hex = image.rsplit("sha256:").next().expect("a digest");
        node.state_dir().join("images/blobs/sha256").join(hex)
    };
    assert!(manifest(&passing).is_file(), "it is kept for a while");
    node.cut_link();
    node.fill_disk(14 << 20).expect("a disk can be filled");
    let before = generation(&node).await;
    let large = Function::hello("hello").noise(8_000_000, 4);
    let next = site.hub.deploy_unready(&large).await;
    desired(&site, before).await;
    let file = site.dir().join("b.tombolo");
    created(&site, &["--node", NAME], &file);
    let said = imported(&node, &file);
    assert!(said.contains("is in force"), "{said}");
    serves(&node, "hello-00003").await;
    assert!(!manifest(&passing).exists(), "its room was needed");
    for image in [&former, &present, &next] {
        assert!(manifest(image).is_file(), "{image}");
    }

    let before = generation(&node).await;
    site.hub.deploy_unready(&Function::hello("hello").noise(10_000_000, 5)).await;
    desired(&site, before).await;
    let larger = site.dir().join("larger.tombolo");
    created(&site, &["--node", NAME], &larger);
    let said = refused(&node, &larger);
    assert!(["DiskFull", "MiB", "stay free"].iter().all(|word| said.contains(word)), "{said}");
    serves(&node, "hello-00003").await;
    node.empty_disk().expect("a disk can be emptied");
    imported(&node, &larger);
    serves(&node, "hello-00004").await;
}
