//! The hub as a program: started, killed, started again.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use tombolo_api::Digest;

use crate::support::{Client, SERVICES, service};

/// Times that a hub is killed in the middle of pushes.
const KILLS: u64 = 12;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tombolo-hub");

struct Program {
    child: Child,
    client: Client,
}

impl Program {
    /// Starts the program and waits until it says that it is ready.
    fn start(config: &Path) -> Self {
        let mut child =
            Command::new(PROGRAM).arg("--config").arg(config).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.by_ref().map(Result::unwrap).map(|line| {
            serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        let ready =
            ready.into_iter().find(|line| line["message"] == "the hub is ready").expect("the hub starts");
        // Goes on reading, so that the program never waits for us.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, client: Client::new(format!("http://{}", ready["api"].as_str().unwrap())) }
    }

    fn signal(&mut self, signal: libc::c_int) -> std::process::ExitStatus {
        let sent =
            Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(dir: &Path) -> PathBuf {
    let file = dir.join("hub.toml");
    let state = dir.join("state");
    let text = format!(
        "state_dir = {state:?}\n[api]\nlisten = \"127.0.0.1:0\"\n[nodes]\nlisten = \"127.0.0.1:0\"\n\
         [mqtt]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n"
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn survives_kill_9_with_everything_it_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut confirmed = Vec::new();
    for round in 0..3 {
        let mut program = Program::start(&config);
        for name in &confirmed {
            let (code, stored) = program.client.get(&format!("{SERVICES}/{name}")).await;
            assert_eq!(code, 200, "{name}: {stored}");
        }
        for number in 0..5 {
            let name = format!("s-{round}-{number}");
            let image = "hub.tombolo/hello:v1";
            assert_eq!(program.client.send(Method::POST, SERVICES, &service(&name, image)).await.0, 201);
            confirmed.push(name);
        }
        program.signal(libc::SIGKILL);
    }
    let mut program = Program::start(&config);
    let (_, list) = program.client.get(SERVICES).await;
    assert_eq!(list["items"].as_array().unwrap().len(), confirmed.len());
    assert!(program.signal(libc::SIGTERM).success(), "told to stop, it stops in order");
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

#[test]
fn says_whether_a_configuration_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path());
    let path = file.to_str().unwrap();
    let good = run(&["--check-config", "--config", path]);
    assert!(good.status.success());
    assert_eq!(String::from_utf8_lossy(&good.stdout), format!("{path}: ok\n"));
    for (text, named) in [("[api]\nlisen = 1", "lisen"), ("[log]\nlevel = \"a=b=c\"", "log.level")] {
        std::fs::write(&file, text).unwrap();
        let bad = run(&["--check-config", "--config", path]);
        assert_eq!(bad.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&bad.stderr).contains(named), "{bad:?}");
    }
}

#[test]
fn prints_the_join_token_whether_it_runs_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path());
    let token =
        |file: &Path| String::from_utf8(run(&["token", "--config", file.to_str().unwrap()]).stdout).unwrap();
    let before = token(&file);
    assert!(before.starts_with("tombolo1."), "{before}");
    let _program = Program::start(&file);
    assert_eq!(token(&file), before);
}

/// Pushes images, one after the other, until the hub is gone; the names of those that it said it has.
async fn push_until_gone(client: &Client, round: u64) -> Vec<(String, Digest, Digest)> {
    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
    let mut stored = Vec::new();
    let base = "/v2/line/app";
    let blob = async |content: &[u8]| {
        let path = format!("{base}/blobs/uploads/?digest={}", Digest::of(content));
        let sent = client.request(Method::POST, &path).body(content.to_vec()).send().await.ok()?;
        assert_eq!(sent.status(), 201);
        Some(json!({"mediaType": "x/y", "digest": Digest::of(content).to_string(), "size": content.len()}))
    };
    for count in 0_u64.. {
        // Every third is large enough to be killed within.
        let size = if count.is_multiple_of(3) { 3_000_000 } else { 5_000 };
        let layer = (round << 32 | count).to_le_bytes().repeat(size / 8);
        let (Some(config), Some(named)) = (blob(b"{}").await, blob(&layer).await) else { break };
        let manifest = json!({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": [named]});
        let content = serde_json::to_vec(&manifest).unwrap();
        let tag = format!("v{round}-{count}");
        let digest = Digest::of(&content);
        let put =
            client.request(Method::PUT, &format!("{base}/manifests/{tag}")).header("Content-Type", TYPE);
        let Ok(put) = put.body(content).send().await else { break };
        assert_eq!(put.status(), 201);
        stored.push((tag, digest, Digest::of(&layer)));
    }
    stored
}

/// Whatever a client was told is stored is there, whole, after a kill at any moment; nothing half is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_costs_no_image_that_was_pushed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut stored = Vec::new();
    for round in 0..KILLS {
        let mut program = Program::start(&config);
        let client = Client::new(program.client.base().to_owned());
        let pushes = tokio::spawn(async move { push_until_gone(&client, round).await });
        // At another moment each time.
        tokio::time::sleep(std::time::Duration::from_millis(40 + round * 53 % 400)).await;
        program.signal(libc::SIGKILL);
        stored.extend(pushes.await.unwrap());
    }
    assert!(!stored.is_empty(), "nothing was pushed to show anything");
    let program = Program::start(&config);
    for (tag, manifest, layer) in &stored {
        let get = async |path: String| {
            let answer = program.client.request(Method::GET, &path).send().await.unwrap();
            (answer.status().as_u16(), Digest::of(&answer.bytes().await.unwrap()))
        };
        assert_eq!(get(format!("/v2/line/app/manifests/{tag}")).await, (200, *manifest));
        assert_eq!(get(format!("/v2/line/app/blobs/{layer}")).await, (200, *layer));
    }
    // What is listed is there: a tag whose push was not answered may be, then it is whole.
    let (_, list) = program.client.get("/v2/line/app/tags/list").await;
    for tag in list["tags"].as_array().unwrap() {
        let path = format!("/v2/line/app/manifests/{}", tag.as_str().unwrap());
        let (code, manifest) = program.client.get(&path).await;
        let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
        let blob = program.client.request(Method::GET, &format!("/v2/line/app/blobs/{layer}"));
        assert_eq!((code, Digest::of(&blob.send().await.unwrap().bytes().await.unwrap())), (200, layer));
    }
    for entry in std::fs::read_dir(dir.path().join("state/registry/blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let is = Digest::of(&std::fs::read(&path).unwrap()).hex();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), is, "what has its name is whole");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("state/registry/uploads")).unwrap().count(), 0);
}
