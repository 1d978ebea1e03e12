//! A node: an agent in a network namespace of its own, with one link to the hub and one to the test's client.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

use crate::census::Census;
use crate::grpc::GrpcCall;
use crate::load::{Load, Outcome, ask, client};
use crate::net::{self, End, Netns};
use crate::process::{Process, cgroups_of, descendants, descendants_of, kill_all, program, terminate};
use crate::site::HUB;

/// What a test chooses of a node.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// To zero after this long without a request, seconds.
    pub idle_timeout_s: u64,
    /// Size of the file system that holds the state directory, bytes; `None`: the machine's own.
    pub state_bytes: Option<u64>,
    /// The same, on a disk of its own with ext4 on it.
    pub disk_bytes: Option<u64>,
    /// Further sections of the agent's configuration.
    pub config: String,
    /// What it is told of its memory: all there is, and what of it is available, MiB; `None`: the machine's own.
    pub memory_mib: Option<(u64, u64)>,
    /// Seconds that its clock is ahead of the machine's; `None`: it has the machine's own, which nobody sets.
    pub clock_ahead_s: Option<i64>,
}

/// What an agent has said to its hub and heard from it since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct HubTraffic {
    pub connects: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
}

/// A node.
pub struct Node {
    pub name: String,
    options: NodeOptions,
    dir: PathBuf,
    netns: Netns,
    lan: Ipv4Addr,
    token: String,
    boot: u32,
    agent: Option<Process>,
    http: reqwest::Client,
}

impl NodeOptions {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            labels: BTreeMap::new(),
            idle_timeout_s: 60,
            state_bytes: None,
            disk_bytes: None,
            config: String::new(),
            memory_mib: None,
            clock_ahead_s: None,
        }
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    #[must_use]
    pub fn idle_timeout_s(mut self, seconds: u64) -> Self {
        self.idle_timeout_s = seconds;
        self
    }

    /// Further sections of the agent's configuration, TOML.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self
    }

    #[must_use]
    pub fn state_bytes(mut self, bytes: u64) -> Self {
        self.state_bytes = Some(bytes);
        self
    }

    /// A clock of its own, so far ahead of the machine's or behind it, that can be set.
    #[must_use]
    pub fn clock_ahead_s(mut self, seconds: i64) -> Self {
        self.clock_ahead_s = Some(seconds);
        self
    }

    /// So much memory, all of it available.
    #[must_use]
    pub fn memory_mib(mut self, total: u64) -> Self {
        self.memory_mib = Some((total, total));
        self
    }

    #[must_use]
    pub fn disk_bytes(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }
}

impl Node {
    pub(crate) fn prepare(
        site: &Netns,
        number: usize,
        dir: PathBuf,
        token: &str,
        options: NodeOptions,
    ) -> Result<Self> {
        let netns = Netns::create()?;
        let octet = u8::try_from(number).context("node number")?;
        let (near, lan) = (Ipv4Addr::new(10, 98, octet, 1), Ipv4Addr::new(10, 98, octet, 2));
        let wan = Ipv4Addr::new(10, 99, 0, octet + 10);
        let names = (format!("wan{number}"), format!("lan{number}"));
        net::link(
            &End { netns: site, name: &names.0, address: None, bridge: Some("wan") },
            &End { netns: &netns, name: "uplink", address: Some((wan, 24)), bridge: None },
        )?;
        net::link(
            &End { netns: site, name: &names.1, address: Some((near, 30)), bridge: None },
            &End { netns: &netns, name: "shop", address: Some((lan, 30)), bridge: None },
        )?;
        fs::create_dir_all(dir.join("state"))?;
        if let Some(bytes) = options.state_bytes {
            let size = format!("size={bytes}");
            mount(Some("tmpfs"), &dir.join("state"), Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))?;
        }
        if let Some(bytes) = options.disk_bytes {
            mount_disk(&dir, bytes)?;
        }
        let name = options.name.clone();
        let mut node = Self {
            name,
            options,
            dir,
            netns,
            lan,
            token: token.into(),
            boot: 0,
            agent: None,
            http: client(),
        };
        node.new_boot()?;
        if let Some((_, available)) = node.options.memory_mib {
            node.set_available_mib(available);
        }
        if let Some(seconds) = node.options.clock_ahead_s {
            node.set_clock_ahead_s(seconds);
        }
        Ok(node)
    }

    /// Starts the agent's program. Returns at once.
    pub fn start_agent(&mut self) -> Result<()> {
        let command = self.agent_command()?;
        self.agent =
            Some(Process::start("the agent", command, Some(&self.netns), &self.dir.join("agent.log"))?);
        Ok(())
    }

    /// The agent's program with this node's configuration, which is written anew.
    pub fn agent_command(&self) -> Result<Command> {
        let config = self.dir.join("agent.toml");
        fs::write(&config, self.config())?;
        let mut command = Command::new(program("tombolo-agent"));
        command.arg("--config").arg(&config);
        if self.options.clock_ahead_s.is_some() {
            command
                .env("LD_PRELOAD", program("libtombolo_fake_clock.so"))
                .env("FAKE_CLOCK", self.clock_file());
        }
        Ok(command)
    }

    /// Sets the clock of a node that has its own.
    pub fn set_clock_ahead_s(&self, seconds: i64) {
        let (file, fresh) = (self.clock_file(), self.dir.join("clock.new"));
        let written = fs::write(&fresh, seconds.to_string()).and_then(|()| fs::rename(&fresh, &file));
        written.expect("the node's directory can be written");
    }

    /// Tells a node with memory of its own how much of it is available, MiB.
    pub fn set_available_mib(&self, available: u64) {
        let (total, _) = self.options.memory_mib.expect("a node with memory of its own");
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", total << 10, available << 10);
        let (file, fresh) = (self.dir.join("meminfo"), self.dir.join("meminfo.new"));
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &file));
        written.expect("the node's directory can be written");
    }

    fn clock_file(&self) -> PathBuf {
        self.dir.join("clock")
    }

    /// Bytes that came over the link to the hub.
    pub fn received_bytes(&mut self) -> u64 {
        let counters = fs::read_to_string(format!("/proc/{}/net/dev", self.agent().pid()));
        let counters = counters.expect("the kernel counts what comes over a link");
        let line = counters.lines().find_map(|line| line.trim().strip_prefix("uplink:"));
        let first = line.and_then(|line| line.split_whitespace().next());
        first.and_then(|bytes| bytes.parse().ok()).expect("the link to the hub has counters")
    }

    fn config(&self) -> String {
        let labels: String =
            self.options.labels.iter().map(|(key, value)| format!("\"{key}\" = \"{value}\"\n")).collect();
        let (dir, supervisor) = (self.dir.display(), program("tombolo-supervisor"));
        let plugins = self.plugin_directory().display().to_string();
        let meminfo = self.options.memory_mib.map(|_| format!("meminfo_file = \"{dir}/meminfo\"\n"));
        let meminfo = meminfo.unwrap_or_default();
        format!(
            "node = \"{}\"\nstate_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\nboot_id_file = \"{dir}/boot_id\"\n{meminfo}\
             [labels]\n{labels}[hub]\nurl = \"https://{HUB}:7443\"\ntoken = \"{}\"\n\
             [router]\nlisten = \"0.0.0.0:8080\"\n[admin]\nlisten = \"0.0.0.0:7081\"\n\
             [supervisor]\nbinary = \"{}\"\n[serving]\nidle_timeout_s = {}\n\
             [devices]\nplugin_directory = \"{plugins}\"\ncdi_directories = [\"{dir}/cdi\"]\n[log]\nlevel = \"tombolo_agent=debug,info\"\n{}",
            self.name,
            self.token,
            supervisor.display(),
            self.options.idle_timeout_s,
            self.options.config,
        )
    }

    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().expect("the agent was started")
    }

    /// SIGKILL to the agent alone.
    pub fn kill_agent(&mut self) {
        self.agent().kill().expect("the agent can be killed");
        self.agent = None;
    }

    /// SIGTERM to the agent: instances stay, and open requests get their time.
    pub fn stop_agent(&mut self) {
        self.agent().ask_to_end().expect("the agent runs");
        self.agent_ends();
    }

    /// Waits for the end of an agent that was asked to.
    pub fn agent_ends(&mut self) {
        let status = self.agent().wait(90).expect("the agent ends when asked to");
        assert!(status.success(), "the agent ended with {status}");
        self.agent = None;
    }

    /// SIGKILL to agent, supervisor and instances at once; what a tmpfs and the kernel held is gone; another boot id.
    pub fn power_off(&mut self) -> Result<()> {
        let supervisor = self.supervisor_pid();
        let instances = supervisor.map(descendants_of).unwrap_or_default();
        let cgroups: BTreeSet<_> = instances.iter().flat_map(|pid| cgroups_of(*pid)).collect();
        // The agent first: it would start another supervisor.
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
        }
        kill_all(&supervisor.into_iter().chain(instances).collect::<Vec<_>>());
        cgroups.iter().for_each(|path| drop(fs::remove_dir(path)));
        match fs::remove_dir_all(self.run_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.new_boot()
    }

    fn new_boot(&mut self) -> Result<()> {
        self.boot += 1;
        fs::write(self.dir.join("boot_id"), format!("00000000-0000-4000-8000-{:012}\n", self.boot))?;
        Ok(())
    }

    /// Takes the link to the hub down.
    pub fn cut_link(&self) {
        self.netns.set_link("uplink", false).expect("a link can be taken down");
    }

    pub fn restore_link(&self) {
        self.netns.set_link("uplink", true).expect("a link can be brought up");
    }

    /// Where this node's functions answer.
    pub fn router(&self) -> SocketAddr {
        (self.lan, 8080).into()
    }

    /// One request to a function on this node.
    pub async fn ask(&self, service: &str, path: &str) -> Outcome {
        ask(&self.http, &format!("http://{}{path}", self.router()), &host(service)).await
    }

    /// One request under any host, with further headers.
    pub async fn ask_host(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Outcome {
        let mut request = self.http.get(format!("http://{}{path}", self.router())).header("Host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        crate::load::outcome(request).await
    }

    /// The body of a request that must succeed.
    pub async fn answer(&self, service: &str, path: &str) -> Result<String, String> {
        match self.ask(service, path).await.answer? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("{status}: {body}")),
        }
    }

    /// A gRPC call of a function on this node, once its answer has begun.
    pub async fn call(&self, service: &str, method: &str) -> Result<GrpcCall> {
        GrpcCall::open(self.router(), &host(service), method).await
    }

    pub fn load(&self, service: &str, path: &str, clients: usize, pause_ms: u64) -> Load {
        Load::start(self.router(), &host(service), path, clients, std::time::Duration::from_millis(pause_ms))
    }

    /// The same on a new connection for each request.
    pub fn load_anew(&self, service: &str, path: &str, clients: usize, pause_ms: u64) -> Load {
        let pause = std::time::Duration::from_millis(pause_ms);
        Load::start_anew(self.router(), &host(service), path, clients, pause)
    }

    /// What the agent says of itself.
    pub async fn status(&self) -> Result<Value, String> {
        let answer = self.http.get(format!("http://{}:7081/status", self.lan)).send().await;
        let text = async { answer?.error_for_status()?.text().await };
        let text = text.await.map_err(|error| format!("{error:?}"))?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Whether the agent's routes are in force.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("http://{}:7081/readyz", self.lan)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Text of `/metrics`.
    pub async fn metrics(&self) -> Result<String, String> {
        let answer = self.http.get(format!("http://{}:7081/metrics", self.lan)).send().await;
        let text = async { answer?.error_for_status()?.text().await };
        text.await.map_err(|error| format!("{error:?}"))
    }

    /// Messages from and to the hub.
    pub async fn traffic(&self) -> Result<HubTraffic, String> {
        let text = self.metrics().await?;
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .ok_or(format!("no {name} in {text}"))?;
            line.trim().parse::<u64>().map_err(|error| error.to_string())
        };
        Ok(HubTraffic {
            connects: self.status().await?["hub"]["connections"].as_u64().ok_or("not connected")?,
            sent: value("tombolo_agent_hub_messages_total{direction=\"sent\"}")?,
            sent_bytes: value("tombolo_agent_hub_message_bytes_total{direction=\"sent\"}")?,
            received: value("tombolo_agent_hub_messages_total{direction=\"received\"}")?,
            received_bytes: value("tombolo_agent_hub_message_bytes_total{direction=\"received\"}")?,
        })
    }

    /// How many instances of revisions that start with `service` are in each tier.
    pub async fn tiers(&self, service: &str) -> Result<BTreeMap<String, usize>, String> {
        let status = self.status().await?;
        let mut found = BTreeMap::new();
        for revision in status["revisions"].as_array().into_iter().flatten() {
            if revision["name"].as_str().unwrap_or_default().starts_with(service) {
                for instance in revision["instances"].as_array().into_iter().flatten() {
                    *found.entry(instance["tier"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
                }
            }
        }
        Ok(found)
    }

    /// Starts another program in this node's network namespace.
    pub fn start_beside(&self, name: &str, command: Command) -> Result<Process> {
        Process::start(name, command, Some(&self.netns), &self.dir.join(format!("{name}.log")))
    }

    /// This node's address on the clients' side.
    pub fn address(&self) -> Ipv4Addr {
        self.lan
    }

    /// Pids of running instances whose revision starts with `service`, by instance.
    pub async fn instances(&self, service: &str) -> Result<BTreeMap<String, i64>, String> {
        let status = self.status().await?;
        let mut found = BTreeMap::new();
        for revision in status["revisions"].as_array().into_iter().flatten() {
            if !revision["name"].as_str().unwrap_or_default().starts_with(service) {
                continue;
            }
            for instance in revision["instances"].as_array().into_iter().flatten() {
                if instance["tier"] == "running" {
                    found.insert(
                        instance["id"].as_str().unwrap_or_default().to_owned(),
                        instance["pid"].as_i64().unwrap_or_default(),
                    );
                }
            }
        }
        Ok(found)
    }

    pub fn census(&self, service: &str) -> Census {
        Census::take(&self.dir, service)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where this node's device plugins register.
    pub fn plugin_directory(&self) -> PathBuf {
        self.dir.join("plugins")
    }

    /// Fills the disk of the state directory until so many bytes are left; with none, until not one can be written.
    pub fn fill_disk(&self, left: u64) -> Result<()> {
        let mut file = fs::File::create(self.filler())?;
        if left > 0 {
            let disk = statvfs(&self.state_dir())?;
            let bytes = (disk.blocks_available() * disk.fragment_size()).saturating_sub(left);
            posix_fallocate(file.as_raw_fd(), 0, i64::try_from(bytes)?)?;
            return Ok(());
        }
        for size in [64 << 10, 1] {
            while file.write(&vec![1; size]).is_ok() {}
        }
        file.sync_all().or_else(|error| if is_full(&error) { Ok(()) } else { Err(error) })?;
        Ok(())
    }

    /// Gives back what was filled.
    pub fn empty_disk(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.state_dir().join("filler")
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The supervisor's pid, if one runs.
    pub fn supervisor_pid(&self) -> Option<i32> {
        let run = self.run_dir().display().to_string();
        let all = descendants().into_iter();
        let of_run = all.filter(|(_, line)| line.contains("tombolo-supervisor") && line.contains(&run));
        // What it forks for an operation has its command line too, and comes after it.
        of_run.map(|(pid, _)| pid).min()
    }

    /// SIGKILL to the supervisor alone; its instances stay.
    pub fn kill_supervisor(&self) {
        kill_all(&[self.supervisor_pid().expect("a supervisor runs")]);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }
}

/// The host a service of the default namespace answers under.
fn host(service: &str) -> String {
    format!("{service}.default.localhost")
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the end of {}'s log\n{}",
                self.name,
                lines[lines.len().saturating_sub(60)..].join("\n")
            );
            if let Some(status) = self.agent.as_mut().and_then(Process::end) {
                eprintln!("--- the agent of {} is gone: {status}", self.name);
            }
        }
        self.agent = None;
        let supervisor = self.supervisor_pid();
        let instances = supervisor.map(descendants_of).unwrap_or_default();
        let cgroups: BTreeSet<_> = instances.iter().flat_map(|pid| cgroups_of(*pid)).collect();
        // Told to end, it removes what it was making or removing, which nothing else knows of.
        supervisor.into_iter().for_each(terminate);
        kill_all(&supervisor.into_iter().chain(instances).collect::<Vec<_>>());
        cgroups.iter().for_each(|path| drop(fs::remove_dir(path)));
        if self.options.state_bytes.or(self.options.disk_bytes).is_some() {
            // Nothing of this node runs any more.
            let _ = umount2(&self.state_dir(), MntFlags::MNT_DETACH);
        }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::StorageFull
}

/// A disk of this size below `dir`, with ext4 on it, as its state directory.
fn mount_disk(dir: &Path, bytes: u64) -> Result<()> {
    let (disk, state) = (dir.join("disk"), dir.join("state"));
    fs::File::create(&disk)?.set_len(bytes)?;
    for command in [
        Command::new("mkfs.ext4").arg("-q").arg("-F").arg(&disk),
        Command::new("mount").arg("-o").arg("loop").arg(&disk).arg(&state),
    ] {
        let done = command.output().with_context(|| format!("{command:?}"))?;
        anyhow::ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
