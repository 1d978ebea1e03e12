//! `tombolo up` as a new user meets it.

use std::process::{Command, Stdio};

use tombolo_harness::{Census, Process, Site, program, until};

fn up(dir: &std::path::Path) -> Command {
    let mut command = Command::new(program("tombolo"));
    command.arg("up").arg("--state-dir").arg(dir.join("state")).arg("--run-dir").arg(dir.join("run"));
    command
}

/// `up --demo --once` prints the function's answer and leaves nothing running.
#[tokio::test]
async fn up_once_answers_and_ends() {
    let Some(_site) = Site::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let before = Census::take(dir.path(), "hello-0");
    let output =
        up(dir.path()).args(["--demo", "--once"]).stdin(Stdio::null()).output().expect("tombolo runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert!(out.contains("Hello World from hello-00001!"), "{out}{err}");
    assert_nothing_is_left(dir.path(), &before);
}

/// Nothing of `up` but what it keeps for the next time.
fn assert_nothing_is_left(dir: &std::path::Path, before: &Census) {
    assert!(!dir.join("run").exists(), "the run directory is left");
    let left = Census::take(dir, "hello-0").since(before);
    let mine = |line: &str| line.contains(&dir.display().to_string());
    let processes: Vec<_> = left.processes.iter().filter(|(_, line)| mine(line)).collect();
    assert!(processes.is_empty() && left.mounts.is_empty() && left.cgroups.is_empty(), "{left:?}");
}

/// `up --demo` serves until it is stopped; a second one finds it and says so; Ctrl-C ends it whole.
#[tokio::test]
async fn up_serves_until_it_is_stopped() {
    let Some(_site) = Site::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let before = Census::take(dir.path(), "hello-0");
    let mut command = up(dir.path());
    command.arg("--demo");
    let mut process =
        Process::start("tombolo up", command, None, &dir.path().join("log")).expect("tombolo runs");
    let log = process.log.clone();
    until("the printed curl line", 60, || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("curl http://hello.default.localhost:8080") { Ok(()) } else { Err(text) }
    })
    .await;
    let second = up(dir.path()).output().expect("tombolo runs");
    let said =
        String::from_utf8_lossy(&second.stderr).into_owned() + &String::from_utf8_lossy(&second.stdout);
    assert!(said.contains("already") && said.contains(&process.pid().to_string()), "{said}");

    the_command_works(dir.path());

    process.interrupt().expect("it can be interrupted");
    let status = process.wait(40).expect("it ends");
    assert!(status.success() || status.code() == Some(130), "{status}: {}", process.last_words());
    assert_nothing_is_left(dir.path(), &before);
}

/// Knative's hello in a file, as its users write it; the image need not be there for the hub to take it.
const HELLO_YAML: &str = "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: helloworld-go
  namespace: default
spec:
  template:
    metadata:
      name: helloworld-go-00001
    spec:
      containers:
        - image: registry.example/knative/helloworld-go:latest
          ports:
            - containerPort: 8080
          env:
            - name: TARGET
              value: \"World\"
";

/// Everything a person does with a running hub.
fn the_command_works(dir: &std::path::Path) {
    let run = |arguments: &[&str]| {
        let output = Command::new(program("tombolo")).args(arguments).output().expect("tombolo runs");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (good, bad) = (dir.join("good.yaml"), dir.join("bad.yaml"));
    std::fs::write(&good, HELLO_YAML).expect("a file");
    std::fs::write(&bad, HELLO_YAML.replace("helloworld-go", "badworld").replace("8080", "80800"))
        .expect("a file");
    let (good, bad) = (good.display().to_string(), bad.display().to_string());
    for (arguments, code, words) in [
        (vec!["apply", "-f", &good], 0, vec!["helloworld-go", "created"]),
        (vec!["apply", "-f", &good], 0, vec!["unchanged"]),
        (
            vec!["apply", "-f", &bad],
            1,
            vec!["bad.yaml:13", "spec.template.spec.containers[0].ports.containerPort"],
        ),
        (vec!["get", "services"], 0, vec!["NAME", "URL", "hello ", "helloworld-go"]),
        (vec!["get", "revisions", "-o", "json"], 0, vec!["\"kind\": \"RevisionList\"", "hello-00001"]),
        (vec!["get", "routes", "-o", "yaml"], 0, vec!["kind: RouteList"]),
        (vec!["get", "configurations", "-o", "name"], 0, vec!["configuration.serving.knative.dev/hello"]),
        (vec!["get", "nodes"], 0, vec!["READY", "True"]),
        (vec!["describe", "service", "hello"], 0, vec!["hello-00001", "Ready"]),
        (vec!["logs", "hello"], 0, vec!["listening on port 8080"]),
        (vec!["delete", "service", "helloworld-go"], 0, vec!["deleted"]),
        (vec!["describe", "service", "helloworld-go"], 1, vec!["not found"]),
        (vec!["version"], 0, vec![env!("CARGO_PKG_VERSION")]),
        (vec!["completion", "bash"], 0, vec!["complete -F"]),
    ] {
        let (status, text) = run(&arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{arguments:?} does not say {word:?}: {text}");
        }
    }
}

/// Wrong use: words that say what to do, and the exit code of its kind.
#[test]
fn wrong_use_is_answered_with_what_to_do() {
    let run =
        |arguments: &[&str]| Command::new(program("tombolo")).args(arguments).output().expect("tombolo runs");
    for (arguments, code, word) in [
        (vec!["up", "--nonsense"], 2, "--nonsense"),
        (vec!["get", "pods"], 2, "pods"),
        (vec!["get", "services", "--hub", "http://127.0.0.1:1"], 3, "tombolo up"),
        (vec!["get", "services", "--hub", "nothing"], 2, "nothing"),
    ] {
        let output = run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}
