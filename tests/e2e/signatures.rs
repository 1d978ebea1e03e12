//! Images that have to be signed: what a namespace demands reaches its nodes, and they judge by themselves.

use serde_json::{Value, json};
use tombolo_harness::{Function, Node, NodeOptions, Signer, Site, condition, program, until};

const POLICY: &str = "tombolo.dev/image-signatures";
const KEYS: &str = "tombolo.dev/image-signature-keys";

fn demand(site: &Site, policy: &str, keys: &[(&str, &Signer)]) {
    let keys: String = keys.iter().map(|(name, key)| format!("{name}:\n{}", key.public_key())).collect();
    write_demand(site, policy, &keys);
}

/// Writes the namespace as a user does, from a file.
pub(super) fn write_demand(site: &Site, policy: &str, keys: &str) {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "default", "annotations": { POLICY: policy, KEYS: keys } },
    });
    let file = site.dir().join("namespace.json");
    std::fs::write(&file, namespace.to_string()).expect("a file can be written");
    let mut command = std::process::Command::new(program("tombolo"));
    command.args(["--hub", "http://10.99.0.1:7080", "apply", "-f"]).arg(&file);
    let output = command.output().expect("tombolo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the newest revision of a service says all of `words` in one condition.
pub(super) async fn until_told(site: &Site, revision: &str, kind: &str, words: &[&str]) -> Value {
    until(&format!("revision {revision} to say {words:?}"), 30, || async {
        let found = site.hub.api.revision(revision).await.map_err(|error| error.to_string())?;
        let said = condition(&found, kind);
        let text = said.to_string();
        if words.iter().all(|word| text.contains(word)) { Ok(said) } else { Err(text) }
    })
    .await
}

async fn until_not_told(site: &Site, service: &str, word: &str) {
    until(&format!("{word} to be said no more"), 30, || async {
        let told = site.hub.api.told(service).await.map_err(|error| error.to_string())?;
        if told.contains(word) { Err(told) } else { Ok(()) }
    })
    .await;
}

pub(super) async fn is_refused(node: &Node, service: &str) {
    let answer = node.ask(service, "/").await.answer.expect("the router answers");
    assert_eq!(answer.0, 503, "{}", answer.1);
    let running = node.instances(service).await.expect("the agent says what runs");
    assert!(running.is_empty(), "{running:?}");
}

/// Unsigned, then signed by a stranger: refused by name of the key that was expected, and no request is served. Signed with that
/// key: ready, with nobody touching anything.
#[tokio::test]
async fn an_image_is_refused_until_it_is_signed_with_the_right_key() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let (release, stranger) = (Signer::new(), Signer::new());
    demand(&site, "require", &[("release-2026", &release)]);
    let image = site.hub.deploy_unready(&Function::hello("hello")).await;
    let said = until_told(&site, "hello-00001", "Ready", &["ImageNotSigned", "release-2026 (sha256:"]).await;
    assert_eq!(said["status"], "False", "{said}");
    is_refused(&node, "hello").await;

    stranger.sign(&image).await.expect("an image can be signed");
    until_told(
        &site,
        "hello-00001",
        "Ready",
        &["ImageSignatureInvalid", "release-2026 (sha256:", "another key"],
    )
    .await;
    is_refused(&node, "hello").await;

    release.sign(&image).await.expect("an image can be signed");
    until("the service to be ready", 40, || site.hub.api.ready_service("hello")).await;
    let answer = until("the first answer", 20, || node.answer("hello", "/")).await;
    assert_eq!(answer, "Hello World from hello-00001!\n");
    until_not_told(&site, "hello", "ImageSignatureInvalid").await;
}

/// A signature that is there before its image is deployed: nothing of all this is seen.
#[tokio::test]
async fn a_signed_image_is_ready_like_any_other() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let release = Signer::new();
    let image = site.hub.deploy(&Function::hello("hello")).await;
    release.sign(&image).await.expect("an image can be signed");
    site.hub.api.delete_service("hello").await.expect("a service can be deleted");
    demand(&site, "require", &[("old", &Signer::new()), ("release", &release)]);
    site.hub.deploy(&Function::hello("hello")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let events =
        site.hub.api.get("/apis/tombolo.dev/v1/events").await.expect("the hub lists events").to_string();
    assert!(!events.contains("ImageNotSigned") && !events.contains("ImageSignatureInvalid"), "{events}");
}

/// What a namespace demands changes nothing of what runs: the same process serves through every policy and set of keys.
#[tokio::test]
async fn what_runs_goes_on_whatever_its_namespace_demands() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let (old, new) = (Signer::new(), Signer::new());
    let hello = Function::hello("hello").annotation("autoscaling.knative.dev/min-scale", "1");
    let image = site.hub.deploy(&hello).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let load = node.load("hello", "/", 2, 5);
    let before = node.instances("hello").await.expect("the agent says what runs");
    assert_eq!(before.len(), 1, "{before:?}");

    demand(&site, "warn", &[("old", &old)]);
    until_told(&site, "hello-00001", "ContainerHealthy", &["ImageNotSigned", "old (sha256:", "Warning"])
        .await;
    until("the event", 20, || async {
        let events = site
            .hub
            .api
            .get("/apis/tombolo.dev/v1/events")
            .await
            .map_err(|error| error.to_string())?
            .to_string();
        if events.contains("ImageNotSigned") { Ok(()) } else { Err(events) }
    })
    .await;
    old.sign(&image).await.expect("an image can be signed");
    until_not_told(&site, "hello", "ImageNotSigned").await;

    demand(&site, "require", &[("old", &old), ("new", &new)]);
    // The key goes before anybody has signed with the next one: no further instance, the one that runs stays.
    demand(&site, "require", &[("new", &new)]);
    until_told(&site, "hello-00001", "ContainerHealthy", &["ImageSignatureInvalid", "new (sha256:", "go on"])
        .await;
    until("the service to be ready still", 10, || site.hub.api.ready_service("hello")).await;
    // An update that nobody signed does not take over.
    site.hub.deploy_unready(&hello.content("two")).await;
    until_told(&site, "hello-00002", "Ready", &["ImageNotSigned", "new (sha256:"]).await;

    demand(&site, "off", &[]);
    until("the update to be ready", 40, || site.hub.api.ready_service("hello")).await;
    until("traffic on the update", 20, || async {
        let answer = node.answer("hello", "/").await?;
        if answer.contains("hello-00002") { Ok(()) } else { Err(answer) }
    })
    .await;
    let outcomes = load.stop().await;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), outcomes.len(), failed[0]);
}

/// The same process before and after each change of keys and signatures.
#[tokio::test]
async fn other_keys_and_signatures_restart_nothing() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let (old, new) = (Signer::new(), Signer::new());
    let image =
        site.hub.deploy(&Function::hello("hello").annotation("autoscaling.knative.dev/min-scale", "1")).await;
    until("the first answer", 20, || node.answer("hello", "/")).await;
    let before = node.instances("hello").await.expect("the agent says what runs");
    old.sign(&image).await.expect("an image can be signed");
    let generation = || async { node.status().await.map(|status| status["serving"].to_string()) };
    let mut seen = generation().await.expect("the agent says what it serves");
    for keys in
        [vec![("old", &old)], vec![("old", &old), ("new", &new)], vec![("new", &new)], vec![("old", &old)]]
    {
        demand(&site, "require", &keys);
        seen = until("the node to have it", 20, || async {
            let now = generation().await?;
            if now == seen { Err(now) } else { Ok(now) }
        })
        .await;
        let now = node.instances("hello").await.expect("the agent says what runs");
        assert_eq!(now, before);
        node.answer("hello", "/").await.expect("it answers");
    }
    until_not_told(&site, "hello", "ImageSignatureInvalid").await;
    assert_eq!(node.instances("hello").await.expect("the agent says what runs"), before);
}

/// Power lost, hub gone: what is signed is judged good and served, what is not is still refused.
#[tokio::test]
async fn signatures_are_judged_after_a_reboot_without_a_hub() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7")).await;
    let release = Signer::new();
    demand(&site, "require", &[("release", &release)]);
    let image = site.hub.deploy_unready(&Function::hello("signed")).await;
    release.sign(&image).await.expect("an image can be signed");
    site.hub.deploy_unready(&Function::hello("unsigned").content("another")).await;
    until("the service to be ready", 40, || site.hub.api.ready_service("signed")).await;
    until("the first answer", 20, || node.answer("signed", "/")).await;
    until_told(&site, "unsigned-00001", "Ready", &["ImageNotSigned"]).await;

    site.hub.kill();
    node.cut_link();
    node.power_off().expect("the power can be cut");
    node.start_agent().expect("the agent starts");
    let answer = until("an answer after the reboot", 10, || node.answer("signed", "/")).await;
    assert_eq!(answer, "Hello World from signed-00001!\n");
    until("the refusal after the reboot", 10, || async {
        let status = node.status().await?.to_string();
        if status.contains("ImageNotSigned") && status.contains("release (sha256:") {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    is_refused(&node, "unsigned").await;
}

/// A demand that cannot be met is refused when it is written, with what to do.
#[tokio::test]
async fn a_demand_that_cannot_be_met_is_refused() {
    let Some(site) = Site::start().await else { return };
    for (annotations, says) in [
        (json!({ POLICY: "always" }), "none of require, warn and off"),
        (json!({ POLICY: "require" }), "needs keys"),
        (
            json!({ POLICY: "require", KEYS: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----" }),
            "no public key",
        ),
    ] {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default", "annotations": annotations },
        });
        let file = site.dir().join("namespace.json");
        std::fs::write(&file, namespace.to_string()).expect("a file can be written");
        let mut command = std::process::Command::new(program("tombolo"));
        command.args(["--hub", "http://10.99.0.1:7080", "apply", "-f"]).arg(&file);
        let output = command.output().expect("tombolo runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(says), "{told}");
    }
}
