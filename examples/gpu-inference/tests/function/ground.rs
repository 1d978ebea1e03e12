//! Running the program and talking to it. Must not know what it computes.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

/// Far longer than any answer takes, interpreted kernels on a busy machine included.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) type Variables = [(&'static str, &'static str)];

/// The program under test.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_gpu-inference").into()
}

/// Cargo puts the fake's library beside this test.
pub(crate) fn fake() -> PathBuf {
    let library =
        std::env::current_exe().expect("a test is a file").with_file_name("libtombolo_fake_cuda.so");
    assert!(library.is_file(), "{} is not there", library.display());
    library
}

/// Variables with those that have the program take the fake for the driver.
pub(crate) fn with_fake(variables: &Variables) -> Vec<(&'static str, &'static str)> {
    static FAKE: LazyLock<String> = LazyLock::new(|| fake().display().to_string());
    [&[("CUDA_LIBRARY", FAKE.as_str())], variables].concat()
}

fn command(variables: &Variables) -> Command {
    let mut command = Command::new(program());
    // On a machine with a GPU too, tests find the one that they mean.
    command.env_clear().env("CUDA_LIBRARY", "libcuda-of-nowhere.so.1").env("PORT", "0");
    command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Runs it to its end. Returns whether it succeeded and what it said.
pub(crate) fn run(variables: &Variables, arguments: &[&str]) -> (bool, String) {
    let output = command(variables).args(arguments).stderr(Stdio::piped()).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// A program that serves.
pub(crate) struct Function {
    child: Child,
    port: u16,
    log: String,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    body: Vec<u8>,
}

impl Function {
    pub(crate) fn start(variables: &Variables) -> Self {
        let child = command(variables).spawn().expect("it runs");
        let mut function = Self { child, port: 0, log: String::new() };
        let mut lines = BufReader::new(function.child.stdout.take().expect("it is piped"));
        while function.port == 0 {
            let from = function.log.len();
            let read = lines.read_line(&mut function.log).expect("lines");
            assert_ne!(read, 0, "it ended: {}", function.log);
            if let Some((_, port)) = function.log[from..].split_once(" listens on port ") {
                function.port = port.trim().parse().expect("a port");
            }
        }
        function
    }

    /// What it said before it served.
    pub(crate) fn log(&self) -> &str {
        &self.log
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.ask("POST", path, body)
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("it listens");
        connection.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).expect("it reads");
        // It may answer before it has read everything.
        let _ = connection.write_all(body);
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).expect("an answer");
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        Answer { status, head, body: answer[end + 4..].to_vec() }
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let kill = Command::new("kill").arg(OsStr::new(&self.child.id().to_string())).status();
        assert!(kill.expect("kill runs").success());
        self.child.wait().expect("it ends")
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}
