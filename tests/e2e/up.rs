//! `tombolo up` as a new user meets it.

use std::process::{Command, Stdio};

use tombolo_harness::{Process, Site, program, until};

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
    let output = up(dir.path()).args(["--demo", "--once"]).stdin(Stdio::null()).output().expect("tombolo runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert!(out.contains("Hello World from hello-00001!"), "{out}{err}");
    assert!(!dir.path().join("run").exists(), "the run directory is left");
}

/// `up --demo` serves until it is stopped; a second one finds it and says so; both signals of a terminal end it whole.
#[tokio::test]
async fn up_serves_until_it_is_stopped() {
    let Some(_site) = Site::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = up(dir.path());
    command.arg("--demo");
    let mut process = Process::start("tombolo up", command, None, &dir.path().join("log")).expect("tombolo runs");
    let log = process.log.clone();
    until("the printed curl line", 60, || async {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("curl http://hello.default.localhost:8080") { Ok(()) } else { Err(text) }
    })
    .await;
    let second = up(dir.path()).output().expect("tombolo runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned() + &String::from_utf8_lossy(&second.stdout);
    assert!(said.contains("already") && said.contains(&process.pid().to_string()), "{said}");

    process.interrupt().expect("it can be interrupted");
    let status = process.wait(40).expect("it ends");
    assert!(status.success() || status.code() == Some(130), "{status}: {}", process.last_words());
    assert!(!dir.path().join("run").exists(), "the run directory is left");
}


/// Wrong flags and no root: one line that says what to do, and the exit code of its kind.
#[test]
fn wrong_use_is_answered_in_a_line() {
    let run = |arguments: &[&str]| Command::new(program("tombolo")).args(arguments).output().expect("tombolo runs");
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
