//! The hub's registry and the tools that people have: skopeo, buildah, podman, docker and oras push to it and pull from it, and
//! what they pushed is deployed and answers.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, skip, until};

mod docker;
mod oras;

const HUB: &str = "10.99.0.1:7080";

/// Container tools with storage of their own.
pub(super) struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// `None`, said loudly, where one of them is not installed.
    pub(super) fn new(dir: &Path) -> Option<Self> {
        for tool in ["skopeo", "buildah", "podman"] {
            if Command::new(tool).arg("--version").output().is_err() {
                skip(&format!("{tool} is not installed"));
                return None;
            }
        }
        std::fs::create_dir_all(dir).expect("the test's directory can be written");
        Some(Self { dir: dir.to_owned() })
    }

    pub(super) fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(tool);
        match tool {
            "skopeo" => drop(command.args(["--insecure-policy", "--tmpdir"]).arg(&self.dir)),
            _ => {
                let (root, run) = (self.dir.join("storage"), self.dir.join("run"));
                command.arg("--root").arg(root).arg("--runroot").arg(run).args(["--storage-driver", "vfs"]);
            }
        }
        let output = command.args(arguments).current_dir(&self.dir).output().expect("an installed tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn skopeo(&self, arguments: &[&str]) -> String {
        self.run("skopeo", arguments).unwrap_or_else(|error| panic!("skopeo {arguments:?}: {error}"))
    }

    pub(super) fn buildah(&self, arguments: &[&str]) -> String {
        self.run("buildah", arguments).unwrap_or_else(|error| panic!("buildah {arguments:?}: {error}"))
    }

    fn podman(&self, arguments: &[&str]) -> String {
        self.run("podman", arguments).unwrap_or_else(|error| panic!("podman {arguments:?}: {error}"))
    }

    /// Commits an image of one program to `name`.
    pub(super) fn commit(&self, program: &[u8], format: &str, architecture: Option<&str>, name: &str) {
        std::fs::write(self.dir.join("program"), program).expect("the test's directory can be written");
        let container = self.buildah(&["from", "scratch"]);
        self.buildah(&["copy", "--chmod", "755", &container, "program", "/program"]);
        self.buildah(&["config", "--entrypoint", "[\"/program\"]", &container]);
        if let Some(architecture) = architecture {
            self.buildah(&["config", "--os", "linux", "--arch", architecture, &container]);
        }
        self.buildah(&["commit", "-q", "--rm", "--format", format, &container, name]);
    }

    /// The manifest under a name of the hub's registry.
    pub(super) fn manifest(&self, name: &str) -> Value {
        let text = self.skopeo(&["inspect", "--raw", "--tls-verify=false", &at_hub(name)]);
        serde_json::from_str(&text).expect("a manifest is JSON")
    }

    /// An artifact as an OCI layout, as tools for artifacts make it.
    fn artifact(&self, layout: &str) -> Digest {
        let root = self.dir.join(layout);
        let blobs = root.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("the test's directory can be written");
        let put = |media_type: &str, content: &[u8]| {
            let digest = Digest::of(content);
            std::fs::write(blobs.join(digest.hex()), content).expect("the test's directory can be written");
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.example.model",
            "config": put("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": [put("application/vnd.example.weights", b"weights")],
        })
        .to_string();
        let mut entry = put("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        for (name, content) in
            [("index.json", index.as_str()), ("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}")]
        {
            std::fs::write(root.join(name), content).expect("the test's directory can be written");
        }
        Digest::of(manifest.as_bytes())
    }
}

pub(super) fn at_hub(name: &str) -> String {
    format!("docker://{HUB}/{name}")
}

fn layer_type(manifest: &Value) -> &str {
    manifest["layers"][0]["mediaType"].as_str().unwrap_or_default()
}

/// Deploys an image under the name of its function, and waits until it answers.
async fn answers(site: &Site, node: &Node, function: &Function, image: &str) {
    site.hub.api.create_service(&function.service(image)).await.expect("the hub takes a service");
    answers_on(site, node, function).await;
}

async fn answers_on(site: &Site, node: &Node, function: &Function) {
    let name = function.name();
    let answer = until(&format!("{name} to answer"), 40, || async {
        let answer = node.answer(name, "/").await;
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("{error}: {}", site.hub.api.told(name).await.unwrap_or_default())),
        }
    })
    .await;
    assert_eq!(answer, format!("Hello World from {name}-00001!\n"));
}

/// Docker's and OCI's manifests, gzip and zstd, by each tool.
#[tokio::test]
async fn runs_what_skopeo_buildah_and_podman_push() {
    let Some(mut site) = Site::start().await else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let hello = Function::hello("any");
    tools.commit(hello.program(), "docker", None, "localhost/docker");
    tools.commit(hello.program(), "oci", None, "localhost/oci");

    let docker = format!("docker://{HUB}/field/docker:v1");
    tools.buildah(&["push", "-q", "--tls-verify=false", "--format", "v2s2", "localhost/docker", &docker]);
    let manifest = tools.manifest("field/docker:v1");
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    tools.podman(&["push", "-q", "--tls-verify=false", "localhost/oci", &format!("{HUB}/field/oci:v1")]);
    let manifest = tools.manifest("field/oci:v1");
    assert!(layer_type(&manifest).ends_with("tar+gzip"), "{manifest}");
    tools.skopeo(&[
        "copy",
        "-q",
        "--dest-compress-format=zstd",
        "--dest-compress",
        "--dest-tls-verify=false",
        "--src-tls-verify=false",
        &at_hub("field/oci:v1"),
        "dir:zstd",
    ]);
    tools.skopeo(&["copy", "-q", "--dest-tls-verify=false", "dir:zstd", &at_hub("field/zstd:v1")]);
    assert!(layer_type(&tools.manifest("field/zstd:v1")).ends_with("tar+zstd"));
    for name in ["docker", "oci", "zstd"] {
        answers(&site, &node, &Function::hello(name), &format!("hub.tombolo/field/{name}:v1")).await;
    }

    // They pull what they pushed, and what `tombolo` pushed.
    let own = site.hub.deploy(&Function::hello("own")).await;
    let own = own.replace("hub.tombolo", HUB);
    tools.buildah(&["rmi", "-a", "-f"]);
    for image in [format!("{HUB}/field/docker:v1"), format!("{HUB}/field/zstd:v1"), own] {
        tools.podman(&["pull", "-q", "--tls-verify=false", &image]);
    }
    tools.buildah(&["pull", "-q", "--tls-verify=false", &format!("{HUB}/field/oci:v1")]);
    let pulled = tools.podman(&["images", "--format", "{{.Repository}}"]);
    for name in ["field/docker", "field/zstd", "field/oci", "default/own"] {
        assert!(pulled.lines().any(|line| line.ends_with(name)), "{name}: {pulled}");
    }
}

/// An index leads each node to its platform's image; copies, lists and deletions of skopeo.
#[tokio::test]
async fn runs_the_platform_of_an_index_that_tools_push_and_copy() {
    let Some(mut site) = Site::start().await else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let hello = Function::hello("any");
    let (here, elsewhere) =
        if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
    // The other platform's program would not run.
    tools.commit(b"no program", "oci", Some(elsewhere), "localhost/elsewhere");
    tools.commit(hello.program(), "oci", Some(here), "localhost/here");
    tools.buildah(&["manifest", "create", "localhost/both", "localhost/elsewhere", "localhost/here"]);
    let both = at_hub("field/both:v1");
    tools.buildah(&["manifest", "push", "-q", "--all", "--tls-verify=false", "localhost/both", &both]);
    assert_eq!(tools.manifest("field/both:v1")["manifests"].as_array().map(Vec::len), Some(2));
    answers(&site, &node, &Function::hello("both"), "hub.tombolo/field/both:v1").await;

    let (from, to) = (at_hub("field/both:v1"), at_hub("copies/all:v2"));
    tools.skopeo(&["copy", "-q", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to]);
    answers(&site, &node, &Function::hello("copied"), "hub.tombolo/copies/all:v2").await;
    let only = at_hub("copies/all:only");
    tools.skopeo(&["copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &only]);
    let inspected: Value =
        serde_json::from_str(&tools.skopeo(&["inspect", "--tls-verify=false", &only])).expect("JSON");
    assert_eq!((&inspected["Architecture"], &inspected["RepoTags"]), (&json!(here), &json!(["only", "v2"])));
    let tags = tools.skopeo(&["list-tags", "--tls-verify=false", &at_hub("copies/all")]);
    let tags: Value = serde_json::from_str(&tags).expect("JSON");
    assert_eq!(tags["Tags"], json!(["only", "v2"]));

    // What one repository gives up stays in the other, and what runs goes on.
    tools.skopeo(&["delete", "--tls-verify=false", &to]);
    let gone = tools.run("skopeo", &["inspect", "--tls-verify=false", &to]).expect_err("it is deleted");
    assert!(gone.contains("manifest unknown"), "{gone}");
    tools.manifest("field/both:v1");
    node.answer("copied", "/").await.expect("what is on the node goes on");

    let artifact = tools.artifact("artifact");
    tools.skopeo(&["copy", "-q", "--dest-tls-verify=false", "oci:artifact:v1", &at_hub("models/defects:v1")]);
    tools.skopeo(&["copy", "-q", "--src-tls-verify=false", &at_hub("models/defects:v1"), "oci:back:v1"]);
    let back = tools.dir.join("back/blobs/sha256").join(artifact.hex());
    assert!(back.is_file(), "the artifact came back as it went");
}

/// An image of another registry: nodes get it from the hub, which fetches it once, and has it when that registry is gone.
#[tokio::test]
async fn images_of_other_registries_come_through_the_hub() {
    let Some(mut site) = Site::start().await else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    let other = site.dir().join("other");
    std::fs::create_dir_all(&other).expect("the test's directory can be written");
    let config = format!(
        "state_dir = \"{}\"\n[api]\nlisten = \"10.99.0.1:5000\"\n[nodes]\nlisten = \"127.0.0.1:0\"\n[mqtt]\nlisten = \"127.0.0.1:0\"\n",
        other.join("state").display()
    );
    std::fs::write(other.join("hub.toml"), config).expect("the test's directory can be written");
    let mut command = Command::new(program("tombolo-hub"));
    command.arg("--config").arg(other.join("hub.toml"));
    let mut registry =
        Process::start("the other registry", command, None, &other.join("log")).expect("it starts");
    let hello = Function::hello("through");
    tools.commit(hello.program(), "oci", None, "localhost/through");
    until("the other registry to take an image", 30, || async {
        let place = "docker://10.99.0.1:5000/team/app:v1";
        tools.run("buildah", &["push", "-q", "--tls-verify=false", "localhost/through", place])
    })
    .await;

    site.hub.stop();
    site.hub.configure(
        "[[registry.upstreams]]\nprefix = \"registry.example/team\"\nurl = \"http://10.99.0.1:5000\"\n",
    );
    site.hub.start().await.expect("the hub starts");
    let (first, second) =
        (site.node(NodeOptions::named("press-7")).await, site.node(NodeOptions::named("press-8")).await);
    answers(&site, &first, &hello, "registry.example/team/app:v1").await;
    answers_on(&site, &second, &hello).await;
    registry.kill().expect("it can be killed");
    let third = site.node(NodeOptions::named("press-9")).await;
    answers_on(&site, &third, &hello).await;
    let fetched = site.hub.log().matches("fetched from another registry").count();
    assert_eq!(fetched, 2, "configuration and layer, each once");
}

/// With an external registry, the one Debian has, the hub keeps no images: tools and `tombolo` push through it, with its
/// password, and nodes are served when that registry is gone.
#[tokio::test]
async fn the_hubs_registry_may_be_another_one() {
    let Some(mut site) = Site::start().await else { return };
    let Some(tools) = Tools::new(&site.dir().join("tools")) else { return };
    if Command::new("docker-registry").arg("--version").output().is_err() {
        return skip("docker-registry is not installed");
    }
    let dir = site.dir().join("external");
    std::fs::create_dir_all(&dir).expect("the test's directory can be written");
    let write = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("the test's directory can be written");
        dir.join(name).display().to_string()
    };
    // The user hub and the password secret.
    let users = write("users", "hub:$2y$05$xtGiWX60ctcueMdZcJuFZ.IC2jiaRzSclelhzGXIhtYuLZDOr7wLa\n");
    let config = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: 10.99.0.1:5000\nauth:\n  htpasswd:\n    realm: test\n    path: {users}\n",
        dir.join("content").display()
    );
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(write("config.yml", &config));
    let mut registry =
        Process::start("the external registry", command, None, &dir.join("log")).expect("it starts");
    let password = write("password", "secret\n");
    site.hub.stop();
    site.hub.configure(&format!(
        "[registry.external]\nurl = \"http://10.99.0.1:5000\"\nuser = \"hub\"\npassword_file = \"{password}\"\n"
    ));
    site.hub.start().await.expect("the hub starts");
    let node = site.node(NodeOptions::named("press-7")).await;

    let pushed = Function::hello("pushed");
    tools.commit(pushed.program(), "oci", None, "localhost/pushed");
    let place = at_hub("field/pushed:v1");
    tools.buildah(&["push", "-q", "--tls-verify=false", "localhost/pushed", &place]);
    answers(&site, &node, &pushed, "hub.tombolo/field/pushed:v1").await;
    let own = Function::hello("own").content("one");
    site.hub.deploy(&own).await;
    answers_on(&site, &node, &own).await;
    tools.skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &place,
        &at_hub("field/copy:v2"),
    ]);
    let there = "docker://10.99.0.1:5000/field/copy";
    let tags = tools.skopeo(&["list-tags", "--creds=hub:secret", "--tls-verify=false", there]);
    assert_eq!(serde_json::from_str::<Value>(&tags).expect("JSON")["Tags"], json!(["v2"]), "it is there");
    tools.skopeo(&["delete", "--tls-verify=false", &at_hub("field/copy:v2")]);
    let gone = tools.run("skopeo", &["inspect", "--tls-verify=false", &at_hub("field/copy:v2")]);
    assert!(gone.is_err_and(|error| error.contains("manifest unknown")), "it is deleted there");

    registry.kill().expect("it can be killed");
    let second = site.node(NodeOptions::named("press-8")).await;
    answers_on(&site, &second, &pushed).await;
    answers_on(&site, &second, &own).await;
}
