//! How long one changed line of a function in Python takes until its new digest is in the registry.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tombolo_harness::{Site, program};

use crate::report::Row;
use crate::sample::Sample;

/// Bar of the median, milliseconds.
const BAR_MS: f64 = 300.0;

/// Rounds of the peer, which take seconds each.
const PEER_ROUNDS: u32 = 5;

const HUB: &str = "10.99.0.1:7080";

pub(crate) async fn measure(rounds: u32) -> Option<Vec<Row>> {
    let _site = Site::start().await?;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let project = dir.path().join("function");
    std::fs::create_dir(&project).expect("a directory");
    let built = |round: u32| {
        write(&project, round);
        let mut command = Command::new(program("tombolo"));
        command.args(["--hub", &format!("http://{HUB}"), "build", "-t", "bench/function"]).arg(&project);
        command.env("XDG_CACHE_HOME", dir.path().join("cache"));
        timed(command)
    };
    // Base and dependencies are made and pushed once.
    let first = built(0);
    let mut sample = Sample::default();
    for round in 1..=rounds {
        sample.add(built(round));
    }
    let row = Row::bounded("build", "line-to-digest-p50", sample.quantile_ms(0.5), "ms", BAR_MS);
    let row = match peer(dir.path(), &project) {
        Some(peer) => row.beside("buildah build + push", peer.quantile_ms(0.5)),
        None => row,
    };
    Some(vec![
        row,
        Row::plain("build", "line-to-digest-p99", sample.quantile_ms(0.99), "ms"),
        Row::plain("build", "first-build", first.as_secs_f64() * 1000.0, "ms"),
    ])
}

/// A function whose answer is another in each round.
fn write(project: &Path, round: u32) {
    let text = format!(
        "import os\nfrom http.server import BaseHTTPRequestHandler, HTTPServer\n\n\nclass Handler(BaseHTTPRequestHandler):\n    \
         def do_GET(self):\n        self.send_response(200)\n        self.end_headers()\n        self.wfile.write(b\"{round}\")\n\n\n\
         HTTPServer((\"\", int(os.environ[\"PORT\"])), Handler).serve_forever()\n"
    );
    std::fs::write(project.join("main.py"), text).expect("a file");
}

fn timed(mut command: Command) -> Duration {
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("a program runs");
    let took = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    took
}

/// The same change by buildah, on the very image that we have built as its base.
fn peer(dir: &Path, project: &Path) -> Option<Sample> {
    if Command::new("buildah").arg("--version").output().is_err() {
        eprintln!("SKIPPED: buildah is not installed");
        return None;
    }
    let file = dir.join("Dockerfile");
    let text = format!("FROM {HUB}/bench/function:latest\nCOPY main.py /app/main.py\n");
    std::fs::write(&file, text).expect("a file");
    let round = |round: u32| {
        write(project, 1_000_000 + round);
        let script = format!(
            "buildah build --tls-verify=false --pull=never -q --layers -f {} -t bench-function {} && \
             buildah push -q --tls-verify=false bench-function docker://{HUB}/bench/peer:latest",
            file.display(),
            project.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        timed(command)
    };
    let mut pull = Command::new("buildah");
    pull.args(["pull", "-q", "--tls-verify=false", &format!("docker://{HUB}/bench/function:latest")]);
    timed(pull);
    round(0);
    let mut sample = Sample::default();
    (1..=PEER_ROUNDS).for_each(|number| sample.add(round(number)));
    Some(sample)
}
