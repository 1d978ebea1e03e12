//! The command as a person or a script meets it: a process, its output, its exit code.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Nobody's user id.
const NOBODY: u32 = 65534;

fn tombolo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo"));
    command.args(arguments).env_remove("TOMBOLO_HUB").env_remove("TOMBOLO_LOG").stdin(Stdio::null());
    command
}

/// `up` in directories of its own, on free ports.
fn up(root: &Path, more: &[&str]) -> Command {
    let mut command = tombolo(&["up", "--http-port", "0"]);
    for flag in ["--api-listen", "--node-listen", "--mqtt-listen", "--admin-listen"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    command.arg("--state-dir").arg(root.join("state")).arg("--run-dir").arg(root.join("run")).args(more);
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("the command runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn exit_codes_tell_scripts_what_happened() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    for (arguments, code, says) in [
        (&["version"][..], 0, ""),
        (&["completion", "bash"], 0, ""),
        (&["get", "pods"], 2, "no kind of resource"),
        (&["get", "services", "--nonsense"], 2, "--nonsense"),
        (&["deploy", "./nothing-here"], 2, "there is no directory"),
        (&["deploy", ".", "--env", "A"], 2, "K=V"),
        (&["get", "services", "--hub", "nonsense"], 2, "not the URL of a hub"),
        (&["get", "services", "--hub", &nobody], 3, "no hub answers"),
        (&["version", "--hub", &nobody], 3, "no hub answers"),
    ] {
        let output = run(tombolo(arguments));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child =
        tombolo(&["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn without_root_up_says_what_to_type() {
    let mut command = tombolo(&["up", "--demo"]);
    if is_root() {
        // The program may lie where only root can go: then there is nothing to try.
        let mut probe = tombolo(&["version"]);
        if probe.uid(NOBODY).output().is_err() {
            eprintln!("SKIPPED: user {NOBODY} cannot run {}", env!("CARGO_BIN_EXE_tombolo"));
            return;
        }
        command.uid(NOBODY);
    }
    let output = run(command);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("takes root") && said.contains("sudo ") && said.trim_end().ends_with(" up --demo"),
        "{said}"
    );
}

#[test]
fn up_once_answers_and_leaves_only_its_state() {
    if !is_root() {
        eprintln!("SKIPPED: `up` needs root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    // Twice: the second finds the state of the first, and the service unchanged.
    for _ in 0..2 {
        let output = run(up(root.path(), &["--once"]));
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "Hello World from hello-00001!\n");
        assert!(!root.path().join("run").exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
    }
}

#[test]
fn a_second_up_finds_the_first_and_a_signal_stops_it() {
    if !is_root() {
        eprintln!("SKIPPED: `up` needs root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let mut first = up(root.path(), &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut steps = BufReader::new(first.stderr.take().unwrap()).lines();
    let runs = steps.by_ref().map_while(Result::ok).any(|line| line.contains("Ctrl-C stops everything"));
    assert!(runs, "{:?}", first.wait());
    let second = run(up(root.path(), &["--demo"]));
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(
        said.contains(&format!("is running already: pid {}", first.id()))
            && said.contains("http://127.0.0.1:"),
        "{said}"
    );
    let pid = nix::unistd::Pid::from_raw(first.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    // Read on, so that no step waits for a reader.
    let rest: Vec<String> = steps.map_while(Result::ok).collect();
    assert_eq!(first.wait().unwrap().code(), Some(0), "{rest:?}");
    assert!(!root.path().join("run").exists());
}
