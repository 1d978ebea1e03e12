//! From source to an answer: projects of each language, dependencies, repositories, and what a change of one line costs.

mod interruptions;
mod readme;
mod registries;
mod toolchains;
mod users;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tombolo_harness::{Node, NodeOptions, Site, program, skip, until};

/// Where the site's hub answers.
const HUB: &str = "http://10.99.0.1:7080";

/// Not root, and the owner of nothing.
const NOBODY: u32 = 65_534;

/// One greeting, as a package for Python.
const WHEEL: &str = "import sys, zipfile
name = 'greetings-1.0.dist-info/'
with zipfile.ZipFile(sys.argv[1] + '/greetings-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('greetings.py', 'WORD = \"hello of a wheel\"\\n')
    wheel.writestr(name + 'METADATA', 'Metadata-Version: 2.1\\nName: greetings\\nVersion: 1.0\\n')
    wheel.writestr(name + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(name + 'RECORD', 'greetings.py,,\\n' + name + 'METADATA,,\\n' + name + 'WHEEL,,\\n' + name + 'RECORD,,\\n')
";

/// Answers with a word of that package.
const SERVER: &str = "import os
from http.server import BaseHTTPRequestHandler, HTTPServer
import greetings
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((greetings.WORD + ' 1').encode())
HTTPServer(('', int(os.environ['PORT'])), Handler).serve_forever()
";

/// Where a test's projects, packages and caches are.
struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tombolo-building-").tempdir().expect("a directory");
        // Another user works here too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn project(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.path(name);
        for (path, text) in files {
            let (path, mode) = path.strip_prefix('+').map_or((*path, 0o644), |path| (path, 0o755));
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory");
            fs::write(&path, text).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        }
        dir
    }

    /// `tombolo`, with a cache of its own and the packages of this workshop.
    fn tombolo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("tombolo"));
        command.args(["--hub", HUB]).args(arguments).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("HOME", self.path("home"));
        command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", self.path("wheels"));
        // Without the wrappers of version managers, which other users may not run.
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }

    /// Makes a package that a function can require.
    fn make_wheel(&self) {
        fs::create_dir_all(self.path("wheels")).expect("a directory");
        let mut python = Command::new("python3");
        python.args(["-c", WHEEL]).arg(self.path("wheels"));
        good(&python.output().expect("python3 runs"));
    }
}

impl Workshop {
    /// The same directory again at another place, with times of another day.
    fn copy(&self, dir: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::create_dir_all(to.parent().expect("it is in a directory")).expect("a directory");
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(dir).arg(&to);
        run(copy);
        let mut touch = Command::new("find");
        touch.arg(&to).args(["-exec", "touch", "-d", "2001-02-03", "{}", "+"]);
        run(touch);
        to
    }

    /// Directories with these programs of the PATH and nothing else.
    fn only(&self, programs: &[&str]) -> PathBuf {
        let dir = self.path(&format!("only-{}", programs.join("-")));
        fs::create_dir_all(&dir).expect("a directory");
        for name in programs {
            let found = find(name).expect("it was asked for before");
            let _ = std::os::unix::fs::symlink(found, dir.join(name));
        }
        dir
    }
}

/// Standard output of a command that succeeded.
fn good(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

fn run(mut command: Command) -> String {
    good(&command.output().expect("a program runs"))
}

/// `tombolo build --json`: the digest, and how many blobs were sent.
fn built(mut command: Command) -> (String, usize) {
    command.arg("--json");
    let said: Value = serde_json::from_str(&run(command)).expect("JSON");
    let sent = said["blobs"].as_array().expect("blobs").iter().filter(|blob| blob["sent"] == true).count();
    (said["digest"].as_str().expect("a digest").to_owned(), sent)
}

fn has(program: &str) -> bool {
    let found = find(program).is_some();
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

/// A program of the PATH, by its own path.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// How a command failed: its exit code, and what it said.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("a program runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    (output.status.code(), said)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

async fn answers(node: &Node, service: &str, words: &str) {
    until(&format!("{service} to say {words:?}"), 60, || async {
        let answer = node.answer(service, "/").await?;
        if answer.contains(words) { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// `tombolo new` for each language: its own test passes, and it deploys unchanged.
#[tokio::test]
async fn a_new_project_of_each_language_deploys_unchanged() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    for (lang, needs, test, words) in [
        ("python", "python3", &["python3", "-m", "unittest"][..], "Hello from new-python"),
        ("node", "node", &["node", "--test"], "Hello from new-node"),
        ("static", "python3", &["sh", "test.sh"], "<h1>Hello from new-static"),
        ("rust", "cargo", &["cargo", "test", "--offline"], "Hello from new-rust"),
        ("go", "go", &["go", "test"], "Hello from new-go"),
    ] {
        if !has(needs) {
            continue;
        }
        let name = format!("new-{lang}");
        let dir = shop.path(&name);
        let mut new = shop.tombolo(&["new", "--lang", lang, text(&dir)]);
        let said = run(shop.tombolo(&["new", "--lang", lang, text(&dir)]));
        assert!(said.contains("tombolo deploy"), "{said}");
        assert!(!new.output().expect("tombolo runs").status.success(), "it must not be overwritten");
        let mut own = Command::new(test[0]);
        own.args(&test[1..])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .env("CARGO_TARGET_DIR", shop.path("target"));
        good(&own.output().expect("the language's tool runs"));
        let mut deploy = shop.tombolo(&["deploy", "--no-wait", text(&dir)]);
        // Of cargo and rustc, where the user has them.
        deploy.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        deploy.env("HOME", std::env::var_os("HOME").unwrap_or_default());
        deploy.env("CARGO_TARGET_DIR", shop.path("target"));
        run(deploy);
        answers(&node, &name, words).await;
    }
}

/// A requirement is installed without a network; the same input gives the same digest from another place, at another time
/// and for another user; a change of one line pushes its layer and the configuration that names it.
#[tokio::test]
async fn one_line_of_python_costs_one_layer() {
    let Some(mut site) = Site::start().await else { return };
    if !has("python3") || !has("pip3") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    shop.make_wheel();
    let files = [("main.py", SERVER), ("requirements.txt", "greetings==1.0\n")];
    let first = shop.project("greeter", &files);
    run(shop.tombolo(&["deploy", "--no-wait", text(&first)]));
    answers(&node, "greeter", "hello of a wheel 1").await;

    let build = |dir: &Path| built(shop.tombolo(&["build", "-t", "greeter", text(dir)]));
    let (digest, sent) = build(&first);
    assert_eq!(sent, 0, "everything is there");
    let second = shop.project("elsewhere/greeter", &files);
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let file = fs::File::options().write(true).open(second.join("main.py")).expect("a file");
    file.set_modified(old).expect("a time");
    assert_eq!(build(&second), (digest.clone(), 0), "from another place, at another time");
    let fresh = built(shop.tombolo(&["build", "--no-cache", "-t", "greeter", text(&second)]));
    assert_eq!(fresh, (digest.clone(), 0), "without the cache");
    let mut other = shop.tombolo(&["build", "-t", "greeter", text(&first)]);
    let home = shop.path("nobody");
    fs::create_dir(&home).expect("a directory");
    chown(&home, Some(NOBODY), Some(NOBODY)).expect("root gives files away");
    other.env("XDG_CACHE_HOME", &home).env("HOME", &home).uid(NOBODY).gid(NOBODY);
    assert_eq!(built(other), (digest.clone(), 0), "for another user, without root");

    fs::write(first.join("main.py"), SERVER.replace("' 1'", "' 2'")).expect("a file");
    let (changed, sent) = build(&first);
    assert_ne!(changed, digest);
    assert_eq!(sent, 2, "the layer of the code, and the configuration");
    run(shop.tombolo(&["deploy", "--no-wait", text(&first)]));
    answers(&node, "greeter", "hello of a wheel 2").await;
}

/// The hub's own base image is taken where there is one, and its layers stay where they are.
#[tokio::test]
async fn a_base_image_at_the_hub_is_not_fetched() {
    let Some(mut site) = Site::start().await else { return };
    if !has("python3") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let server = SERVER.replace("import greetings\n", "").replace("greetings.WORD", "'plain'");
    let dir = shop.project("plain", &[("main.py", &server)]);
    run(shop.tombolo(&["build", "--base", "host", "-t", "base/python", text(&dir)]));
    let blobs = || walk(&site.dir().join("hub/state/registry/blobs"));
    let before = blobs();
    let output = shop.tombolo(&["deploy", "--no-wait", text(&dir)]).output().expect("tombolo runs");
    good(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("as Python on hub.tombolo/base/python:latest"), "{said}");
    assert_eq!(blobs() - before, 2, "a configuration and a manifest: code and interpreter were there");
    answers(&node, "plain", "plain 1").await;
    // As a directory, the whole image is wanted: what the hub alone has is fetched.
    let layout = shop.path("layout");
    run(shop.tombolo(&["build", "--no-push", "-o", text(&layout), text(&dir)]));
    assert_eq!(walk(&layout.join("blobs")), 4, "the code is in the base as well");
    let missing = shop.tombolo(&["build", "--base", "no/such:1", text(&dir)]).output().expect("tombolo runs");
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("hub.tombolo/no/such:1"), "{said}");
}

/// How many files are below a directory.
fn walk(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 }).sum()
}

/// Node.js with a dependency that npm installs from a lock, without a network.
#[tokio::test]
async fn npm_installs_what_the_lock_says() {
    let Some(mut site) = Site::start().await else { return };
    if !has("node") || !has("npm") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let server = "const http = require('node:http');
http.createServer((_, response) => response.end(require('word'))).listen(process.env.PORT);";
    let dir = shop.project(
        "talker",
        &[
            ("package.json", r#"{"name": "talker", "scripts": {"start": "node server.js"}}"#),
            ("server.js", server),
            ("vendor/word/package.json", r#"{"name": "word", "version": "1.0.0"}"#),
            ("vendor/word/index.js", "module.exports = 'a word of a package';"),
        ],
    );
    let mut install = Command::new("npm");
    install.args(["install", "--offline", "--no-audit", "--no-fund", "./vendor/word"]).current_dir(&dir);
    good(&install.stdin(Stdio::null()).output().expect("npm runs"));
    run(shop.tombolo(&["deploy", "--no-wait", text(&dir)]));
    answers(&node, "talker", "a word of a package").await;
    // Packed, it is installed as what comes from a registry is.
    let packed = shop.copy(&dir, "packed");
    let mut install = Command::new("sh");
    install.args(["-c", "npm pack --silent ./vendor/word && rm -r vendor package-lock.json node_modules && npm install --offline --no-audit --no-fund ./word-1.0.0.tgz"]);
    good(&install.current_dir(&packed).stdin(Stdio::null()).output().expect("npm runs"));
    run(shop.tombolo(&["deploy", "--no-wait", text(&packed)]));
    answers(&node, "packed", "a word of a package").await;
    for (name, dir) in [("talker", &dir), ("packed", &packed)] {
        let build = |dir: &Path| built(shop.tombolo(&["build", "--no-cache", "-t", name, text(dir)]));
        let digest = build(dir);
        assert_eq!(digest.1, 0, "{name}: everything is there");
        assert_eq!(build(&shop.copy(dir, &format!("elsewhere/{name}"))), digest);
        fs::write(dir.join("server.js"), format!("{server}\n// Another line.\n")).expect("a file");
        assert_eq!(build(dir).1, 2, "{name}: the layer of the code, and the configuration");
    }
}

/// A Dockerfile goes through buildah, and a script in a plain directory runs on this machine's shell.
#[tokio::test]
async fn dockerfiles_and_directories_become_services() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let hello = tombolo_test_hello(&shop);
    if has("buildah") {
        let dir = shop.project(
            "docked",
            &[("Dockerfile", "FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n")],
        );
        fs::copy(&hello, dir.join("hello")).expect("a file");
        let mut deploy = shop.tombolo(&["deploy", "--no-wait", text(&dir)]);
        deploy.env("HOME", std::env::var_os("HOME").unwrap_or_default());
        run(deploy);
        answers(&node, "docked", "Hello World").await;
        let broken = shop.project("broken", &[("Dockerfile", "FROM scratch\nCOPY absent /\n")]);
        let output = shop.tombolo(&["build", text(&broken)]).output().expect("tombolo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("absent"), "its own words are passed on: {said}");
    }
    let script = "#!/bin/sh\nexec /deep/hello\n";
    let dir = shop.project("script", &[("+run", script), ("+deep/hello", "")]);
    fs::copy(&hello, dir.join("deep/hello")).expect("a file");
    run(shop.tombolo(&["deploy", "--no-wait", "--base", "host", text(&dir)]));
    answers(&node, "script", "Hello World").await;

    let dir = shop.project("gopher", &[("go.mod", "module gopher\n"), ("main.go", "package main\n")]);
    if !Path::new("/usr/bin/go").exists() && !Path::new("/usr/local/bin/go").exists() {
        let output = shop.tombolo(&["build", text(&dir)]).output().expect("tombolo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("install"), "{said}");
    }
}

/// The static example as a file.
fn tombolo_test_hello(shop: &Workshop) -> PathBuf {
    let path = shop.path("hello");
    fs::write(&path, tombolo_harness::Function::hello("hello").program()).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    path
}

/// A commit of a repository is deployed by its name, and the same commit is the same image, labelled with it.
#[tokio::test]
async fn a_commit_of_a_repository_is_deployed() {
    let Some(mut site) = Site::start().await else { return };
    if !has("git") || !has("python3") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let server =
        |word: &str| SERVER.replace("import greetings\n", "").replace("greetings.WORD", &format!("'{word}'"));
    let dir = shop.project("repository", &[("functions/told/main.py", &server("first"))]);
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]);
        run({
            git.args(arguments).current_dir(&dir);
            git
        })
    };
    for arguments in [&["init", "-q"][..], &["add", "."], &["commit", "-qm", "one"], &["tag", "v1"]] {
        git(arguments);
    }
    let commit = git(&["rev-parse", "HEAD"]).trim().to_owned();
    fs::write(dir.join("functions/told/main.py"), server("second")).expect("a file");
    git(&["commit", "-qam", "two"]);
    let url = format!("file://{}", text(&dir));
    let one = format!("{url}#v1:functions/told");
    run(shop.tombolo(&["deploy", "--no-wait", "--git", &one]));
    answers(&node, "told", "first 1").await;
    let layout = shop.path("layout");
    let same = format!("{url}#{commit}:functions/told");
    let (digest, _) = built(shop.tombolo(&["build", "-t", "told", "--git", &one]));
    let (again, sent) =
        built(shop.tombolo(&["build", "-t", "told", "--git", &same, "-o", text(&layout), "--push"]));
    assert_eq!((again.as_str(), sent), (digest.as_str(), 0));
    let manifest = layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    assert!(fs::read_to_string(manifest).expect("a manifest").contains(&commit));
    run(shop.tombolo(&["deploy", "--no-wait", "--git", &format!("{url}#main:functions/told")]));
    answers(&node, "told", "second 1").await;
    for (bad, says) in [("#absent", "absent"), ("#v1:absent", "absent"), ("#v1:../x", "in the repository")] {
        let output =
            shop.tombolo(&["build", "--git", &format!("{url}{bad}")]).output().expect("tombolo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{bad}: {said}");
    }
}

/// Killed at any instant, and several at once: the next build is the one that was wanted.
#[tokio::test]
async fn builds_that_are_killed_or_run_at_once_leave_a_good_cache() {
    let Some(_site) = Site::start().await else { return };
    if !has("python3") || !has("pip3") {
        return;
    }
    let shop = Workshop::new();
    shop.make_wheel();
    let dir = shop.project("greeter", &[("main.py", SERVER), ("requirements.txt", "greetings==1.0\n")]);
    let (expected, _) = {
        let mut apart = shop.tombolo(&["build", "--no-push", text(&dir)]);
        apart.env("XDG_CACHE_HOME", shop.path("apart"));
        built(apart)
    };
    for round in 0..20_u64 {
        let mut command = shop.tombolo(&["build", "--no-push", text(&dir)]);
        if round % 3 == 0 {
            command.arg("--no-cache");
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("tombolo runs");
        std::thread::sleep(Duration::from_millis(round * 37 % 400));
        let group = i32::try_from(child.id()).expect("the kernel's pids are small");
        // It may be through already.
        let _ =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL);
        child.wait().expect("it ends");
    }
    let at_once: Vec<_> = (0..4)
        .map(|_| {
            let mut command = shop.tombolo(&["build", "--no-push", "--no-cache", "--json", text(&dir)]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tombolo runs")
        })
        .collect();
    for child in at_once {
        let said = good(&child.wait_with_output().expect("it ends"));
        assert!(said.contains(&expected), "{said}");
    }
    let (digest, sent) = built(shop.tombolo(&["build", "-t", "greeter", text(&dir)]));
    assert_eq!(digest, expected);
    assert!(sent >= 4, "base, requirement, code and configuration were taken by the registry: {sent}");
    let left = walk(&shop.path("cache/tombolo/build/tmp"));
    assert_eq!(left, 0, "what killed builds left is gone");
}
