//! The hub as a program: started, killed, started again.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use reqwest::Method;
use serde_json::Value;

use crate::support::{Client, SERVICES, service};

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
