//! Images that cosign itself signs, of version 2 or 3, whichever is installed: found in each form that it writes, judged by nodes.
//! And what else cosign does in the hub's registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tombolo_harness::{Function, NodeOptions, Process, Site, program, skip, until};

use super::registry::{Tools, at_hub};
use super::signatures::{is_refused, until_told, write_demand};

/// The hub's registry, as a person names it.
const HUB: &str = "10.99.0.1:7080";

/// How a signature lies in a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Simple signing, under a tag that has the image's digest.
    Tag,
    /// Simple signing, in a manifest that names the image as its subject.
    Referrer,
    /// A sigstore bundle, in a manifest that names the image as its subject.
    Bundle,
}

/// Cosign, with keys of its own.
struct Cosign {
    dir: PathBuf,
    /// Of version 3: it writes bundles unless told not to, and asks for the services that it is to use unless told not to.
    writes_bundles: bool,
}

impl Cosign {
    /// `None`, said loudly, where it is not installed.
    fn new(dir: &Path) -> Option<Self> {
        let Ok(help) = Command::new("cosign").args(["sign", "--help"]).output() else {
            skip("cosign is not installed");
            return None;
        };
        std::fs::create_dir_all(dir).expect("the test's directory can be written");
        for (name, content) in [("empty.json", "{}"), ("review.json", "{\"by\":\"me\"}")] {
            std::fs::write(dir.join(name), content).expect("the test's directory can be written");
        }
        let writes_bundles = String::from_utf8_lossy(&help.stdout).contains("--use-signing-config");
        Some(Self { dir: dir.to_owned(), writes_bundles })
    }

    fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("cosign");
        command
            .args(arguments)
            .current_dir(&self.dir)
            .env("HOME", &self.dir)
            .env("COSIGN_PASSWORD", "secret");
        if arguments.contains(&"--registry-referrers-mode=oci-1-1") {
            command.env("COSIGN_EXPERIMENTAL", "1");
        }
        let output = command.output().expect("an installed cosign runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|error| panic!("cosign {arguments:?}: {error}"))
    }

    /// Makes a key pair; the public key.
    fn key(&self, name: &str) -> String {
        self.run(&["generate-key-pair", "--output-key-prefix", name]);
        std::fs::read_to_string(self.dir.join(format!("{name}.pub"))).expect("cosign wrote the public key")
    }

    /// Signs or attests: with a key, without asking anybody.
    fn make(&self, what: &[&str], key: &str, image: &str) {
        let key = format!("{key}.key");
        let mut arguments = what.to_vec();
        arguments.extend(["--key", &key, "--tlog-upload=false", "--allow-http-registry", "-y"]);
        if self.writes_bundles {
            arguments.push("--use-signing-config=false");
        }
        arguments.push(image);
        self.run(&arguments);
    }

    fn sign(&self, key: &str, form: Form, image: &str) {
        let mut what = vec!["sign"];
        if form == Form::Referrer {
            what.push("--registry-referrers-mode=oci-1-1");
        }
        match (form, self.writes_bundles) {
            (Form::Bundle, true) | (Form::Tag | Form::Referrer, false) => {}
            (Form::Tag | Form::Referrer, true) => what.push("--new-bundle-format=false"),
            // Version 2.5 has it for attestations only; this is the statement that version 3 signs.
            (Form::Bundle, false) => {
                let statement = "https://sigstore.dev/cosign/sign/v1";
                what =
                    vec!["attest", "--new-bundle-format", "--type", statement, "--predicate", "empty.json"];
            }
        }
        self.make(&what, key, image);
    }

    /// Says something of an image that is not that it is signed, under a tag and as a bundle.
    fn attest(&self, key: &str, image: &str) {
        let what = ["attest", "--type", "https://example.com/review", "--predicate", "review.json"];
        for as_bundle in ["--new-bundle-format=false", "--new-bundle-format=true"] {
            self.make(&[&what[..], &[as_bundle]].concat(), key, image);
        }
    }

    /// Puts a signature under an image's tag that was made elsewhere.
    fn attach(&self, payload: &str, signature: &str, image: &str) {
        for (name, content) in [("payload", payload), ("signature", signature)] {
            std::fs::write(self.dir.join(name), content).expect("the test's directory can be written");
        }
        let files = ["--payload", "payload", "--signature", "signature"];
        self.run(&[&["attach", "signature"], &files[..], &["--allow-http-registry", image]].concat());
    }

    /// Whether cosign believes the signature under an image's tag.
    fn verify(&self, key: &str, image: &str) -> Result<String, String> {
        let key = format!("{key}.pub");
        let mut arguments =
            vec!["verify", "--key", &key, "--private-infrastructure", "--allow-http-registry"];
        if self.writes_bundles {
            arguments.push("--new-bundle-format=false");
        }
        arguments.push(image);
        self.try_run(&arguments)
    }
}

/// An image's name for a person, from the one that nodes have.
fn named(image: &str) -> String {
    image.replace("hub.tombolo", HUB)
}

/// What `tombolo describe` says.
fn described(kind: &str, name: &str) -> String {
    let mut command = Command::new(program("tombolo"));
    let output = command.args(["--hub", &format!("http://{HUB}"), "describe", kind, name]).output();
    let output = output.expect("tombolo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn until_ready(site: &Site, service: &str) {
    until(&format!("{service} to be ready"), 40, || site.hub.api.ready_service(service)).await;
}

/// Signed by a stranger: refused by name of the key that was expected. Signed with that key: runs. And then with no hub and no link.
#[tokio::test]
async fn what_cosign_signs_in_each_of_its_forms_runs_and_goes_on_alone() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let release = cosign.key("release");
    cosign.key("stranger");
    write_demand(&site, "require", &format!("release-2026:\n{release}"));
    let forms = [("tag", Form::Tag), ("referrer", Form::Referrer), ("bundle", Form::Bundle)];
    for (name, form) in forms {
        let image = named(&site.hub.deploy_unready(&Function::hello(name)).await);
        let revision = format!("{name}-00001");
        until_told(&site, &revision, "Ready", &["ImageNotSigned", "release-2026 (sha256:"]).await;
        cosign.sign("stranger", form, &image);
        let wrong = ["ImageSignatureInvalid", "release-2026 (sha256:", "another key"];
        until_told(&site, &revision, "Ready", &wrong).await;
        is_refused(&node, name).await;
        cosign.sign("release", form, &image);
        until_ready(&site, name).await;
        until("the first answer", 20, || node.answer(name, "/")).await;
    }
    site.hub.kill();
    node.cut_link();
    node.power_off().expect("the power can be cut");
    node.start_agent().expect("the agent starts");
    for (name, _) in forms {
        let answer = until("an answer after the reboot", 20, || node.answer(name, "/")).await;
        assert_eq!(answer, format!("Hello World from {name}-00001!\n"));
    }
}

/// A good signature of one image, attached to another: as it is, and with the other's digest written into it.
#[tokio::test]
async fn what_was_signed_of_another_image_or_was_changed_is_refused() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    write_demand(&site, "require", &cosign.key("release"));
    let signed = named(&site.hub.deploy_unready(&Function::hello("signed")).await);
    let other = named(&site.hub.deploy_unready(&Function::hello("other").content("another")).await);
    cosign.sign("release", Form::Tag, &signed);
    until_ready(&site, "signed").await;
    let told: Value =
        serde_json::from_str(&cosign.run(&["download", "signature", "--allow-http-registry", &signed]))
            .expect("one signature, as JSON");
    let payload = STANDARD.decode(told["Payload"].as_str().expect("a payload")).expect("base64");
    let payload = String::from_utf8(payload).expect("a text");
    let signature = told["Base64Signature"].as_str().expect("a signature");

    cosign.attach(&payload, signature, &other);
    let of = format!("it is of {}", digest(&signed));
    until_told(&site, "other-00001", "Ready", &["ImageSignatureInvalid", &of, "key sha256:"]).await;
    cosign.attach(&payload.replace(digest(&signed), digest(&other)), signature, &other);
    let changed = "what was signed has been changed";
    until_told(&site, "other-00001", "Ready", &["ImageSignatureInvalid", changed, "key sha256:"]).await;
    is_refused(&node, "other").await;
    cosign.sign("release", Form::Tag, &other);
    until_ready(&site, "other").await;
}

fn digest(image: &str) -> &str {
    image.split_once('@').expect("an image by its digest").1
}

/// What a key attests of an image is not that it may run; `describe` says what is demanded and whether it is met.
#[tokio::test]
async fn an_attestation_is_no_signature() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    write_demand(&site, "require", &format!("release-2026:\n{}", cosign.key("release")));
    let image = named(&site.hub.deploy_unready(&Function::hello("hello")).await);
    cosign.attest("release", &image);
    let attested = "passed over: an attestation (https://example.com/review)";
    until_told(&site, "hello-00001", "Ready", &["ImageNotSigned", attested]).await;
    is_refused(&node, "hello").await;
    for (kind, name) in [("revision", "hello-00001"), ("service", "hello")] {
        let text = described(kind, name);
        for says in ["required with release-2026 (sha256:", &format!("hello-00001: not signed; {attested}")] {
            assert!(text.contains(says), "{says}: {text}");
        }
    }
    cosign.sign("release", Form::Bundle, &image);
    until_ready(&site, "hello").await;
    let text = described("service", "hello");
    assert!(text.contains("hello-00001: signed with release-2026 (sha256:"), "{text}");
}

/// Of an image for several platforms the index counts, not what a node takes of it.
#[tokio::test]
async fn of_an_index_it_is_the_index_that_has_to_be_signed() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let hello = Function::hello("both");
    for architecture in ["amd64", "arm64"] {
        tools.commit(hello.program(), "oci", Some(architecture), &format!("localhost/{architecture}"));
    }
    tools.buildah(&["manifest", "create", "localhost/both", "localhost/amd64", "localhost/arm64"]);
    let both = at_hub("field/both:v1");
    tools.buildah(&["manifest", "push", "-q", "--all", "--tls-verify=false", "localhost/both", &both]);
    write_demand(&site, "require", &cosign.key("release"));
    site.hub.api.create_service(&hello.service("hub.tombolo/field/both:v1")).await.expect("it is taken");
    until_told(&site, "both-00001", "Ready", &["ImageNotSigned"]).await;

    let manifests = tools.manifest("field/both:v1")["manifests"].clone();
    for manifest in manifests.as_array().expect("an index") {
        let digest = manifest["digest"].as_str().expect("a digest");
        cosign.sign("release", Form::Tag, &format!("{HUB}/field/both@{digest}"));
    }
    // What is pushed after them is looked at after them.
    site.hub.deploy_unready(&Function::hello("later")).await;
    until_told(&site, "later-00001", "Ready", &["ImageNotSigned"]).await;
    until_told(&site, "both-00001", "Ready", &["ImageNotSigned"]).await;
    let revision = site.hub.api.revision("both-00001").await.expect("the hub has it");
    let pinned = revision["status"]["containerStatuses"][0]["imageDigest"].as_str().expect("a digest");
    cosign.make(&["sign", "--recursive"], "release", &named(pinned));
    until_ready(&site, "both").await;
    until("the first answer", 20, || node.answer("both", "/")).await;
}

/// Cosign verifies, shows, saves, loads and removes signatures in the hub's registry; what is loaded runs, what is removed is missed.
#[tokio::test]
async fn cosign_has_signatures_in_the_hubs_registry_as_in_any_other() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let release = cosign.key("release");
    cosign.key("stranger");
    let image = named(&site.hub.deploy(&Function::hello("hello")).await);
    cosign.sign("release", Form::Tag, &image);
    let verified = cosign.verify("release", &image).expect("cosign believes it");
    assert!(verified.contains(digest(&image)), "{verified}");
    cosign.verify("stranger", &image).expect_err("another key has not signed");
    let tree = cosign.run(&["tree", "--allow-http-registry", &image]);
    assert!(tree.contains("Signatures for an image tag"), "{tree}");

    cosign.run(&["save", "--allow-http-registry", "--dir", "saved", &image]);
    let moved = format!("{HUB}/moved/hello:v1");
    cosign.run(&["load", "--allow-http-registry", "--dir", "saved", &moved]);
    cosign.verify("release", &moved).expect("cosign believes it there too");
    write_demand(&site, "require", &release);
    let service = Function::hello("moved").service("hub.tombolo/moved/hello:v1");
    site.hub.api.create_service(&service).await.expect("the hub takes a service");
    until_ready(&site, "moved").await;
    until("the first answer", 20, || node.answer("moved", "/")).await;
    cosign.run(&["clean", "--force", "--type", "all", "--allow-http-registry", &moved]);
    cosign.verify("release", &moved).expect_err("it is removed");
    until_told(&site, "moved-00001", "ContainerHealthy", &["ImageNotSigned", "Warning"]).await;
    assert_eq!(site.hub.api.get("/v2/moved/hello/tags/list").await.expect("tags")["tags"], json!(["v1"]));
}

/// Another registry, without an API for referrers: a bundle is found by the tag that cosign lists it under.
#[tokio::test]
async fn a_bundle_is_found_in_a_registry_without_an_api_for_referrers() {
    let Some(mut site) = Site::start().await else { return };
    let Some(cosign) = Cosign::new(&site.dir().join("cosign")) else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    if Command::new("docker-registry").arg("--version").output().is_err() {
        return skip("docker-registry is not installed");
    }
    let place = "10.99.0.1:5000";
    let config = site.dir().join("registry.yml");
    let root = site.dir().join("registry");
    let settings = format!(
        "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"{place}\" }}\n",
        root.display()
    );
    std::fs::write(&config, settings).expect("the test's directory can be written");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config);
    let log = site.dir().join("registry.log");
    let _registry = Process::start("the other registry", command, None, &log).expect("it starts");
    let hello = Function::hello("through");
    tools.commit(hello.program(), "oci", None, "localhost/through");
    let image = format!("docker://{place}/team/app:v1");
    until("the other registry to take an image", 30, || async {
        tools.run("buildah", &["push", "-q", "--tls-verify=false", "localhost/through", &image])
    })
    .await;

    site.hub.stop();
    let upstream = format!("prefix = \"registry.example/team\"\nurl = \"http://{place}\"\n");
    site.hub.configure(&format!("[[registry.upstreams]]\n{upstream}"));
    site.hub.start().await.expect("the hub starts");
    let node = site.node(NodeOptions::named("press-7")).await;
    write_demand(&site, "require", &cosign.key("release"));
    let service = hello.service("registry.example/team/app:v1");
    site.hub.api.create_service(&service).await.expect("the hub takes a service");
    until_told(&site, "through-00001", "Ready", &["ImageNotSigned"]).await;
    let revision = site.hub.api.revision("through-00001").await.expect("the hub has it");
    let pinned = revision["status"]["containerStatuses"][0]["imageDigest"].as_str().expect("a digest");
    cosign.sign("release", Form::Bundle, &format!("{place}/team/app@{}", digest(pinned)));
    until_ready(&site, "through").await;
    until("the first answer", 20, || node.answer("through", "/")).await;
}
