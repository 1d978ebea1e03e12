//! Images of other registries: over HTTPS with an authority of their own, in a cache that has a bound, and in bundles.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, skip, until};

use crate::bundles::{connected, created, desired, generation, imported, serves, stored};

const PLAIN: &str = "10.99.0.1:5000";
const SAFE: &str = "10.99.0.1:5001";

/// The registry that Debian has.
struct Registry {
    dir: PathBuf,
    processes: Vec<Process>,
}

impl Registry {
    /// `None`, said loudly, where it is not installed.
    async fn start(site: &Site) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            skip("docker-registry is not installed");
            return None;
        }
        let dir = site.dir().join("registry");
        fs::create_dir_all(&dir).expect("the test's directory can be written");
        let mut registry = Self { dir, processes: Vec::new() };
        registry.serve("plain", PLAIN, "").await;
        Some(registry)
    }

    /// The same images at another address, by HTTPS, with a certificate for it. Returns the authority's certificate.
    async fn serve_safely(&mut self) -> String {
        let (authority, issuer) = authority();
        let key = KeyPair::generate().expect("there is randomness");
        let params = CertificateParams::new(vec!["10.99.0.1".into()]).expect("an address can be certified");
        let certificate = params.signed_by(&key, &issuer).expect("an authority signs");
        let (certificate, key) =
            (self.write("tls.crt", &certificate.pem()), self.write("tls.key", &key.serialize_pem()));
        let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
        self.serve("safe", SAFE, &tls).await;
        authority.pem()
    }

    async fn serve(&mut self, name: &str, address: &str, tls: &str) {
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{tls}",
            self.dir.join("content").display()
        );
        let config = self.write(&format!("{name}.yml"), &config);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config);
        let log = self.dir.join(format!("{name}.log"));
        self.processes.push(Process::start(name, command, None, &log).expect("it starts"));
        until("the registry to listen", 30, || async {
            tokio::net::TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        write(&self.dir.join(name), text)
    }

    fn kill(&mut self) {
        self.processes.iter_mut().for_each(|process| process.kill().expect("it can be killed"));
    }
}

fn write(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).expect("the test's directory can be written");
    path.to_owned()
}

fn authority() -> (Certificate, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("there is randomness");
    let mut params = CertificateParams::default();
    // Each another one by name too, as they are where there are several.
    params.distinguished_name.push(DnType::CommonName, key.public_key_pem());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("an authority signs itself");
    (certificate, Issuer::new(params, key))
}

async fn configured(site: &mut Site, settings: &str) {
    site.hub.stop();
    site.hub.configure(settings);
    site.hub.start().await.expect("the hub starts");
}

async fn deployed(site: &Site, function: &Function, image: &str) {
    site.hub.api.create_service(&function.service(image)).await.expect("the hub takes a service");
}

async fn answers(site: &Site, node: &Node, service: &str) {
    until(&format!("{service} to answer"), 60, || async {
        match node.answer(service, "/").await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}: {}", site.hub.api.told(service).await.unwrap_or_default())),
        }
    })
    .await;
}

/// A registry is believed by the authority that is configured for it and by no other, which is said, with what to do; once the
/// file is the right one, the image comes.
#[tokio::test]
async fn a_registry_is_believed_by_its_own_authority_only() {
    let Some(mut site) = Site::start().await else { return };
    let Some(mut registry) = Registry::start(&site).await else { return };
    Function::hello("safe").push_to(PLAIN, "team/app", "v1").await;
    let authority_of_it = registry.serve_safely().await;
    let right = registry.write("right-ca.pem", &authority_of_it);
    let wrong = registry.write("wrong-ca.pem", &authority().0.pem());
    let upstream = |prefix: &str, ca: &Path| {
        format!(
            "[[registry.upstreams]]\nprefix = \"{prefix}\"\nurl = \"https://{SAFE}\"\nca_file = \"{}\"\n",
            ca.display()
        )
    };
    let settings = upstream("right.example", &right) + &upstream("wrong.example", &wrong);
    configured(&mut site, &settings).await;
    let node = site.node(NodeOptions::named("press-7")).await;
    deployed(&site, &Function::hello("safe"), "right.example/team/app:v1").await;
    answers(&site, &node, "safe").await;

    deployed(&site, &Function::hello("unsafe"), "wrong.example/team/app:v1").await;
    until("what is wrong with the certificate", 60, || async {
        let told = site.hub.api.told("unsafe").await.map_err(|error| error.to_string())?;
        if told.contains(SAFE) && told.contains("ca_file") { Ok(()) } else { Err(told) }
    })
    .await;
    fs::copy(&right, &wrong).expect("a file can be replaced");
    answers(&site, &node, "unsafe").await;
}

/// Asks the hub for an image as a mirror's client does. Returns its layers.
async fn fetched(site: &Site, repository: &str) -> Vec<Digest> {
    let at = |what: &str| format!("/v2/{repository}/{what}?ns=registry.example");
    let manifest = site.hub.api.get(&at("manifests/v1")).await.expect("the hub fetches an image");
    let layers = manifest["layers"].as_array().expect("an image has layers");
    let digests: Vec<Digest> = layers.iter().map(digest).collect();
    for digest in digests.iter().chain([&digest(&manifest["config"])]) {
        site.hub.api.get(&at(&format!("blobs/{digest}"))).await.expect("the hub fetches a blob");
    }
    digests
}

fn digest(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().and_then(|text| text.parse().ok()).expect("a descriptor has a digest")
}

/// Whether the hub's cache has all of these.
fn cached(site: &Site, digests: &[Digest]) -> bool {
    let blobs = site.dir().join("hub/state/cache/blobs/sha256");
    digests.iter().all(|digest| blobs.join(digest.hex()).is_file())
}

/// More than the cache is to hold: what was used least lately goes at once, and is fetched again when it is needed; what a
/// revision names stays whatever comes, and so do the site's own images.
#[tokio::test]
async fn the_cache_of_other_registries_keeps_its_bound() {
    let Some(mut site) = Site::start().await else { return };
    let Some(mut registry) = Registry::start(&site).await else { return };
    let large = |name: &str, seed: u32| Function::hello(name).noise(1_600_000, seed);
    for (name, seed) in [("one", 1), ("two", 2), ("three", 3)] {
        large(name, seed).push_to(PLAIN, &format!("team/{name}"), "v1").await;
    }
    configured(
        &mut site,
        &format!(
            "[registry]\ncache = {{ max_mib = 2 }}\n[[registry.upstreams]]\nprefix = \"registry.example\"\nurl = \"http://{PLAIN}\"\n"
        ),
    )
    .await;
    let node = site.node(NodeOptions::named("press-7")).await;
    let own = site.hub.deploy(&large("own", 4)).await;
    let one = fetched(&site, "team/one").await;
    assert!(cached(&site, &one));
    let two = fetched(&site, "team/two").await;
    until("the first one to go", 30, || async {
        if cached(&site, &one) { Err("it is there") } else { Ok(()) }
    })
    .await;
    assert!(cached(&site, &two), "what was used last stays");

    deployed(&site, &Function::hello("one"), "registry.example/team/one:v1").await;
    answers(&site, &node, "one").await;
    let three = fetched(&site, "team/three").await;
    until("what no revision names to go", 30, || async {
        if cached(&site, &two) || cached(&site, &three) { Err("it is there") } else { Ok(()) }
    })
    .await;
    assert!(cached(&site, &one), "a revision names it");
    registry.kill();
    // Nodes that come later have both, of the hub.
    let later = site.node(NodeOptions::named("press-8")).await;
    answers(&site, &later, "one").await;
    answers(&site, &later, "own").await;
    let (repository, digest) =
        own.split_once('/').and_then(|(_, name)| name.split_once('@')).expect("by digest");
    site.hub.api.get(&format!("/v2/{repository}/manifests/{digest}")).await.expect("its own images stay");
}

/// A node without a link gets the next version of another registry's image as a file, which is made and read without it too.
#[tokio::test]
async fn a_bundle_brings_images_of_other_registries() {
    let Some(mut site) = Site::start().await else { return };
    let Some(mut registry) = Registry::start(&site).await else { return };
    for version in ["v1", "v2"] {
        Function::hello("hello").content(version).push_to(PLAIN, "team/app", version).await;
    }
    configured(
        &mut site,
        &format!("[[registry.upstreams]]\nprefix = \"registry.example\"\nurl = \"http://{PLAIN}\"\n"),
    )
    .await;
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let hello = Function::hello("hello");
    deployed(&site, &hello, "registry.example/team/app:v1").await;
    serves(&node, "hello-00001").await;
    node.cut_link();
    let before = generation(&node).await;
    let mut next = hello.service("registry.example/team/app:v2");
    next["metadata"] = json!({});
    site.hub.api.patch_service("hello", &next).await.expect("the hub takes a service");
    desired(&site, before).await;

    let (file, again) = (site.dir().join("b.tombolo"), site.dir().join("again.tombolo"));
    created(&site, &["--node", "press-7"], &file);
    registry.kill();
    created(&site, &["--node", "press-7"], &again);
    assert!(
        fs::read(&file).expect("the bundle can be read") == fs::read(&again).expect("the bundle can be read"),
        "the hub has what it needs for it"
    );
    let said = imported(&node, &file);
    assert!(said.contains("is in force"), "{said}");
    serves(&node, "hello-00002").await;
    let (instances, blobs) = (node.instances("hello-00002").await, stored(&node));
    node.restore_link();
    connected(&node).await;
    assert!(stored(&node).iter().all(|blob| blobs.contains(blob)), "nothing was fetched again");
    assert_eq!(node.instances("hello-00002").await, instances, "nothing was started again");
}
