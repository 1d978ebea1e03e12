//! Docker and the hub's registry: a daemon of the test's own builds, pushes and pulls, and a node runs what it pushed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tombolo_harness::{Census, Function, NodeOptions, Process, Site, program, skip, until};

use super::{HUB, answers, answers_on};

/// A daemon with everything of its own: storage, sockets, configuration; it makes no bridge and no firewall rule.
struct Docker {
    dir: PathBuf,
    daemon: Process,
}

impl Docker {
    /// `None`, said loudly, where it is not installed.
    async fn start(dir: &Path) -> Option<Self> {
        for tool in ["dockerd", "docker", "containerd", "runc", "unshare"] {
            if Command::new(tool).arg("--version").output().is_err() {
                skip(&format!("{tool} is not installed"));
                return None;
            }
        }
        std::fs::create_dir_all(dir).expect("the test's directory can be written");
        std::fs::write(dir.join("daemon.json"), "{}").expect("the test's directory can be written");
        // What it mounts is gone with it, however it ends.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "dockerd"]);
        for (option, file) in
            [("config-file", "daemon.json"), ("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")]
        {
            command.arg(format!("--{option}={}", dir.join(file).display()));
        }
        command.arg(format!("--host={}", socket(dir))).arg(format!("--insecure-registry={HUB}")).args([
            "--storage-driver=vfs",
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
        ]);
        let daemon = Process::start("dockerd", command, None, &dir.join("log")).expect("it starts");
        let docker = Self { dir: dir.to_owned(), daemon };
        until("the daemon to answer", 60, || async {
            docker.run(&["version"]).map_err(|error| format!("{error}: {}", docker.daemon.last_words()))
        })
        .await;
        Some(docker)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("docker");
        command.arg("--config").arg(self.dir.join("client")).arg("--host").arg(socket(&self.dir));
        // The daemon's own builder: the other one is a program that has to be installed.
        command.args(arguments).current_dir(&self.dir).env("DOCKER_BUILDKIT", "0");
        let output = command.output().expect("an installed tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn ask(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("docker {arguments:?}: {error}"))
    }

    /// Writes a project of one program and a Dockerfile.
    fn write_project(&self, program: &[u8]) -> PathBuf {
        let project = self.dir.join("project");
        std::fs::create_dir_all(&project).expect("the test's directory can be written");
        std::fs::write(project.join("program"), program).expect("the test's directory can be written");
        let text = "FROM scratch\nCOPY program /program\nENTRYPOINT [\"/program\"]\n";
        std::fs::write(project.join("Dockerfile"), text).expect("the test's directory can be written");
        make_executable(&project.join("program"));
        project
    }

    /// What `tombolo` says, with docker and what unpacks archives in place of all other programs.
    fn tombolo(&self, arguments: &[&str]) -> String {
        let tools = self.dir.join("tools");
        std::fs::create_dir_all(&tools).expect("the test's directory can be written");
        let path = std::env::var_os("PATH").expect("a PATH");
        for tool in ["docker", "tar"] {
            let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file());
            let link = tools.join(tool);
            if !link.exists() {
                std::os::unix::fs::symlink(found.expect("it is installed"), link).expect("a link");
            }
        }
        let mut command = Command::new(program("tombolo"));
        command.args(["--hub", &format!("http://{HUB}")]).args(arguments).stdin(Stdio::null());
        command.env("PATH", tools).env("HOME", &self.dir).env("XDG_CACHE_HOME", self.dir.join("cache"));
        command.env("DOCKER_HOST", socket(&self.dir)).env("DOCKER_BUILDKIT", "0");
        let output = command.output().expect("tombolo runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "tombolo {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The image's own digest, and how its manifest is named.
    fn identity(&self, name: &str) -> (String, String) {
        let format = "{{.Id}} {{index .RepoDigests 0}}";
        let told = self.ask(&["image", "inspect", "--format", format, name]);
        let (id, digest) = told.split_once(' ').expect("two fields");
        (id.to_owned(), digest.to_owned())
    }

    /// Ends the daemon; it and what it started are gone.
    fn stop(mut self) {
        let status = self.daemon.terminate(30).expect("it ends when it is told to");
        assert!(status.success(), "{status}: {}", self.daemon.last_words());
    }
}

fn socket(dir: &Path) -> String {
    format!("unix://{}", dir.join("socket").display())
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, permissions).expect("the test's own file");
}

/// What docker pushes it pulls back as the same, and a node runs it; it pulls what `tombolo` pushes, too.
#[tokio::test]
async fn runs_what_docker_pushes() {
    let Some(mut site) = Site::start().await else { return };
    let dir = site.dir().join("docker");
    let node = site.node(NodeOptions::named("press-7")).await;
    let before = Census::take(&dir, "none");
    let Some(docker) = Docker::start(&dir).await else { return };
    let hello = Function::hello("docked");
    let (image, copy) = (format!("{HUB}/field/docked:v1"), format!("{HUB}/copies/docked:v2"));
    docker.write_project(hello.program());
    docker.ask(&["build", "-q", "-t", &image, "project"]);
    let pushed = docker.ask(&["push", &image]);
    let (id, named) = docker.identity(&image);
    let digest = named.split_once('@').expect("name and digest").1.to_owned();
    assert!(pushed.contains(&format!("digest: {digest}")), "{pushed}");

    // To another repository no blob is sent again.
    docker.ask(&["tag", &image, &copy]);
    let pushed = docker.ask(&["push", &copy]);
    assert!(pushed.contains("Mounted from field/docked"), "{pushed}");
    assert!(pushed.contains(&format!("digest: {digest}")), "{pushed}");

    for name in [&image, &format!("{HUB}/copies/docked@{digest}")] {
        docker.ask(&["image", "rm", "-f", &id]);
        assert!(docker.run(&["image", "inspect", &id]).is_err(), "it is gone");
        docker.ask(&["pull", "-q", name]);
        let (id_again, named) = docker.identity(name);
        assert_eq!((id_again, named.ends_with(&digest)), (id.clone(), true), "{named}");
    }
    answers(&site, &node, &hello, "hub.tombolo/field/docked:v1").await;

    let own = site.hub.deploy(&Function::hello("own")).await.replace("hub.tombolo", HUB);
    docker.ask(&["pull", "-q", &own]);
    let entrypoint = docker.ask(&["image", "inspect", "--format", "{{json .Config.Entrypoint}}", &own]);
    assert!(entrypoint.starts_with("[\"/"), "{entrypoint}");

    docker.stop();
    let left = Census::take(&dir, "none").since(&before);
    let of_docker = |line: &str| line.contains("docker") || line.contains("containerd");
    let running: Vec<_> = left.processes.iter().filter(|(_, line)| of_docker(line)).collect();
    assert!(running.is_empty() && left.mounts.is_empty(), "{running:?} {:?}", left.mounts);
    assert!(!dir.join("socket").exists() && !dir.join("pid").exists(), "its socket is gone");
}

/// A Dockerfile becomes a service where docker is the only program that understands it.
#[tokio::test]
async fn a_dockerfile_is_built_by_docker() {
    let Some(mut site) = Site::start().await else { return };
    let dir = site.dir().join("docker");
    let node = site.node(NodeOptions::named("press-7")).await;
    let Some(docker) = Docker::start(&dir).await else { return };
    let hello = Function::hello("filed");
    let project = docker.write_project(hello.program());
    let project = project.to_str().expect("the test's own name");
    docker.tombolo(&["deploy", "--no-wait", "--name", "filed", project]);
    answers_on(&site, &node, &hello).await;

    // It is docker's: its own cache gives the same image again.
    let digest = |told: String| told.split_once("@sha256:").expect("a digest").1.to_owned();
    let build = ["build", "-t", "filed", project];
    assert_eq!(digest(docker.tombolo(&build)), digest(docker.tombolo(&build)));
    docker.stop();
}
