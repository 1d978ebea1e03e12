//! Where images go: hubs and registries that speak TLS, with a password, and ones that go away in the middle.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tombolo_harness::{Certificate, Front, Process};

use super::*;

/// The user tombolo and the password secret, for docker-registry and for a client.
const USERS: &str = "tombolo:$2b$04$aaaaaaaaaaaaaaaaaaaaaOGY9KrC7e/pHj3EXQPxs8hKEBbvQhsvG\n";
const LOGIN: &str = r#"{"auths": {"10.99.0.1:5443": {"auth": "dG9tYm9sbzpzZWNyZXQ="}}}"#;

/// Content that does not get smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    (0..bytes / 4).flat_map(|_| next()).collect()
}

/// A hub behind a proxy that speaks TLS: everything from the image to the answer, if its authority is believed.
#[tokio::test]
async fn a_hub_that_speaks_tls_is_pushed_to() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let certificate = Certificate::make(shop.dir.path(), "10.99.0.1").expect("a certificate");
    let address = |port: u16| SocketAddr::from(([10, 99, 0, 1], port));
    let front = Front::start(address(0), address(7080), &certificate).expect("a front");
    let url = format!("https://{}", front.address);
    let dir = shop.project("plain", &[]);
    fs::create_dir_all(&dir).expect("a directory");
    fs::copy(tombolo_test_hello(&shop), dir.join("run")).expect("a file");

    // This machine believes somebody else.
    fs::create_dir(shop.path("other")).expect("a directory");
    let other = Certificate::make(&shop.path("other"), "other.example").expect("a certificate");
    let deploy = |more: &[&str]| {
        let mut command = Command::new(program("tombolo"));
        command.args(["--hub", &url, "deploy", "--no-wait", text(&dir)]).args(more).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", shop.path("cache")).env("SSL_CERT_FILE", &other.file);
        command
    };
    let (code, said) = refused(deploy(&[]));
    assert!(code == Some(3) && said.contains("certificate"), "{said}");
    let (code, said) = refused(deploy(&["--ca-file", text(&shop.path("absent"))]));
    assert!(code == Some(2) && said.contains("--ca-file"), "{said}");
    run(deploy(&["--ca-file", text(&certificate.file)]));
    answers(&node, "plain", "Hello World").await;
    let mut build = shop.tombolo(&["build", "-t", "plain", text(&dir)]);
    build.args(["--hub", &url]).env("TOMBOLO_CA_FILE", &certificate.file);
    assert_eq!(built(build).1, 0, "it is the same registry");
}

/// Another registry, the one Debian has, with TLS and a password that `podman login` keeps.
#[tokio::test]
async fn another_registry_is_pushed_to() {
    let Some(site) = Site::start().await else { return };
    if !has("docker-registry") || !has("skopeo") || !has("python3") {
        return;
    }
    let shop = Workshop::new();
    let certificate = Certificate::make(shop.dir.path(), "10.99.0.1").expect("a certificate");
    let put = |name: &str, content: &str| {
        fs::write(shop.path(name), content).expect("a file");
        shop.path(name)
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 10.99.0.1:5443\n  tls:\n    \
         certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        text(&shop.path("content")),
        text(&certificate.file),
        text(&certificate.key),
        text(&put("users", USERS)),
    );
    let mut serve = Command::new("docker-registry");
    serve.arg("serve").arg(put("config.yml", &config));
    let _registry = Process::start("the registry", serve, None, &shop.path("log")).expect("it starts");
    let listens =
        || async { TcpStream::connect("10.99.0.1:5443").map(drop).map_err(|error| error.to_string()) };
    until("the registry to listen", 20, listens).await;

    // On a base of the hub's, whose layers have to be brought over.
    let server = SERVER.replace("import greetings\n", "").replace("greetings.WORD", "'plain'");
    let dir = shop.project("plain", &[("main.py", &server)]);
    run(shop.tombolo(&["build", "--base", "host", "-t", "base/python", text(&dir)]));
    let (login, ca) = (put("auth.json", LOGIN), text(&certificate.file));
    let build = |login: &Path| {
        let mut build =
            shop.tombolo(&["build", "--ca-file", ca, "-t", "10.99.0.1:5443/team/plain:v1", text(&dir)]);
        build.env("REGISTRY_AUTH_FILE", login);
        build
    };
    let (code, said) = refused(build(&shop.path("absent")));
    assert!(code == Some(1) && said.contains("podman login 10.99.0.1:5443"), "{said}");
    let (digest, sent) = built(build(&login));
    assert_eq!(sent, 3, "two layers and the configuration, the code being in the base as well");
    assert_eq!(built(build(&login)), (digest.clone(), 0));
    assert!(run(build(&login)).contains(&format!("10.99.0.1:5443/team/plain@{digest}")));
    let mut inspect = Command::new("skopeo");
    inspect.args(["inspect", "--tls-verify=false", "--authfile", text(&login), "--format", "{{.Digest}}"]);
    inspect.arg("docker://10.99.0.1:5443/team/plain:v1");
    assert_eq!(run(inspect).trim(), digest);
    drop(site);
}

/// A way to the hub on which only so much passes until it is opened.
struct Narrow {
    address: SocketAddr,
    way: Arc<Way>,
}

#[derive(Default)]
struct Way {
    passed: AtomicU64,
    open: AtomicBool,
}

/// Bytes to the hub, of all connections together.
const PASS_MAX: u64 = 4 << 20;

impl Narrow {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("10.99.0.1:0").expect("the hub's address is here");
        let address = listener.local_addr().expect("an address");
        let way = Arc::new(Way::default());
        let shared = way.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // One that finds no hub is closed.
                let Ok(hub) = TcpStream::connect(to) else { continue };
                let (back, forth) =
                    (hub.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
                let (there, here) = (shared.clone(), shared.clone());
                std::thread::spawn(move || pass(forth, hub, &there, true));
                std::thread::spawn(move || pass(back, client, &here, false));
            }
        });
        Self { address, way }
    }

    async fn is_full(&self) {
        until("the push to be under way", 60, || async {
            let passed = self.way.passed.load(Ordering::Relaxed);
            if passed >= PASS_MAX { Ok(()) } else { Err(passed) }
        })
        .await;
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, way: &Way, counts: bool) {
    let wait = || {
        while !way.open.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut piece = [0; 16 * 1024];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        if counts && way.passed.load(Ordering::Relaxed) >= PASS_MAX {
            wait();
        }
        way.passed.fetch_add(if counts { bytes as u64 } else { 0 }, Ordering::Relaxed);
        if to.write_all(&piece[..bytes]).is_err() {
            break;
        }
    }
    // While it is narrow, a client does not notice either that the hub is gone.
    if !counts && way.passed.load(Ordering::Relaxed) >= PASS_MAX {
        wait();
    }
    for end in [from, to] {
        // The other direction may have been first.
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// A push outlives a hub that starts anew, and otherwise says what to do; what the hub has by then is not sent again.
#[tokio::test]
async fn a_push_outlives_a_hub_that_starts_anew() {
    let Some(mut site) = Site::start().await else { return };
    let shop = Workshop::new();
    let dir = shop.project("large", &[("+run", "#!/bin/sh\n")]);
    fs::write(dir.join("noise"), noise(8 << 20)).expect("a file");
    let start = |narrow: &Narrow, log: &str| {
        let mut build = Command::new(program("tombolo"));
        build.args(["--hub", &format!("http://{}", narrow.address), "build", text(&dir)]);
        build.env("XDG_CACHE_HOME", shop.path("cache"));
        Process::start("a build", build, None, &shop.path(log)).expect("it starts")
    };
    let narrow = Narrow::start(SocketAddr::from(([10, 99, 0, 1], 7080)));
    let mut build = start(&narrow, "first.log");
    narrow.is_full().await;
    site.hub.kill();
    narrow.way.open.store(true, Ordering::Relaxed);
    assert_eq!(build.wait(60).expect("it ends").code(), Some(3), "{}", build.last_words());
    let said = build.last_words();
    assert!(
        said.contains("type the same again once it answers") && said.contains("cannot be reached"),
        "{said}"
    );

    site.hub.start().await.expect("the hub starts");
    let narrow = Narrow::start(SocketAddr::from(([10, 99, 0, 1], 7080)));
    let mut build = start(&narrow, "second.log");
    narrow.is_full().await;
    site.hub.kill();
    site.hub.start().await.expect("the hub starts");
    narrow.way.open.store(true, Ordering::Relaxed);
    let status = build.wait(120).expect("it ends");
    let said = build.last_words();
    assert!(status.success() && said.contains("trying again"), "{status}: {said}");
    assert_eq!(built(shop.tombolo(&["build", text(&dir)])).1, 0, "it is all there");
    site.hub.stop();
    let (code, said) = refused(shop.tombolo(&["build", text(&dir)]));
    assert!(code == Some(3) && said.contains("nothing was built"), "{said}");
}
