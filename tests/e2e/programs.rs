//! Hub and agent as a service manager and an operator see them: notifications, logs, configuration.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tombolo_harness::{Process, Site, program, within};

/// A program with ports of its own choice and everything it keeps below `dir`, told by the environment alone.
fn command(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(program(name));
    let path = |name: &str| dir.join(name).display().to_string();
    match name {
        "tombolo-hub" => {
            command.env("TOMBOLO_HUB__STATE_DIR", path("hub")).env("TOMBOLO_HUB__LOG__FORMAT", "json");
            for listener in ["API", "NODES", "MQTT"] {
                command.env(format!("TOMBOLO_HUB__{listener}__LISTEN"), "127.0.0.1:0");
            }
        }
        _ => {
            command.env("TOMBOLO_AGENT__NODE", "press-7").env("TOMBOLO_AGENT__LOG__FORMAT", "json");
            command.env("TOMBOLO_AGENT__STATE_DIR", path("agent")).env("TOMBOLO_AGENT__RUN_DIR", path("run"));
            for listener in ["ROUTER", "ADMIN"] {
                command.env(format!("TOMBOLO_AGENT__{listener}__LISTEN"), "127.0.0.1:0");
            }
        }
    }
    command
}

/// Each says when it is ready, that it lives, and that it stops; its log is one JSON object a line.
#[tokio::test]
async fn a_service_manager_is_told_and_logs_are_json() {
    let Some(_site) = Site::start().await else { return };
    for name in ["tombolo-hub", "tombolo-agent"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(within(Duration::from_secs(20)))).expect("a time-out");
        let mut command = command(name, dir.path());
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "400000");
        let mut process = Process::start(name, command, None, &dir.path().join("log")).expect("it starts");
        let await_word = |word: &str| {
            let mut buffer = [0; 1024];
            loop {
                let length = socket
                    .recv(&mut buffer)
                    .unwrap_or_else(|error| panic!("{name} does not say {word}: {error}"));
                if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == word) {
                    return;
                }
            }
        };
        await_word("READY=1");
        await_word("WATCHDOG=1");
        await_word("WATCHDOG=1");
        let status = process.terminate(20).expect("it ends when asked to");
        assert!(status.success(), "{name} ended with {status}: {}", process.last_words());
        await_word("STOPPING=1");
        let log = std::fs::read_to_string(&process.log).expect("it has written");
        assert!(!log.is_empty());
        for line in log.lines() {
            let object: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
            assert!(object["level"].is_string() && object["timestamp"].is_string(), "{line}");
        }
    }
}

/// A configuration is checked without running: a good one says so, a bad one names the key.
#[test]
fn a_configuration_can_be_checked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["tombolo-hub", "tombolo-agent"] {
        let file = dir.path().join("config.toml");
        for (text, good, word) in [
            ("[log]\nformat = \"json\"\n", true, "ok"),
            ("[log]\nformt = \"json\"\n", false, "formt"),
            ("nonsense", false, "config.toml"),
        ] {
            std::fs::write(&file, text).expect("a file");
            let output = Command::new(program(name))
                .arg("--check-config")
                .arg("--config")
                .arg(&file)
                .output()
                .expect("it runs");
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), good, "{name}: {said}");
            assert!(said.contains(word), "{name}: {said}");
        }
    }
}
