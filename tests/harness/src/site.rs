//! A site: one hub and its nodes, in network namespaces of their own, in a temporary directory.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::api::Api;
use crate::intruder::Intruder;
use crate::net::{self, Netns};
use crate::node::{Node, NodeOptions};
use crate::process::{Process, end_all, program};
use crate::until;

/// The hub's address on the wide area network.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Nodes of one site: their number is part of an address.
const NODES_MAX: usize = 200;

/// Of this process, at the moment.
static SITES: AtomicUsize = AtomicUsize::new(0);

/// A hub and what belongs to it.
pub struct Site {
    pub hub: Hub,
    netns: Netns,
    nodes: usize,
    dir: PathBuf,
    /// Removes `dir` at the end, unless it is to stay.
    _temporary: Option<TempDir>,
}

/// The hub's process and its directory.
pub struct Hub {
    pub api: Api,
    process: Option<Process>,
    dir: PathBuf,
    /// Sections of its configuration that a test adds.
    settings: String,
}

impl Site {
    /// A running hub. `None`, said loudly, where the machine cannot do it.
    pub async fn start() -> Option<Self> {
        let temporary =
            tempfile::Builder::new().prefix("tombolo-site-").tempdir().expect("a temporary directory");
        let mut site = Self::prepare(temporary.path())?;
        site._temporary = Some(temporary);
        site.hub.start().await.expect("a hub starts");
        Some(site)
    }

    /// A running hub that keeps everything in `dir`, and finds there what an earlier one kept.
    pub async fn start_in(dir: &Path) -> Option<Self> {
        let mut site = Self::prepare(dir)?;
        site.hub.start().await.expect("a hub starts");
        Some(site)
    }

    /// The site of `dir` without its hub.
    pub fn alone_in(dir: &Path) -> Option<Self> {
        Self::prepare(dir)
    }

    fn prepare(dir: &Path) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            crate::skip("containers and network namespaces need root");
            return None;
        }
        // Ignored: another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let netns = net::isolate().expect("root may make network namespaces");
        net::bridge(&netns, "wan", HUB).expect("root may make a bridge");
        let hub_dir = dir.join("hub");
        std::fs::create_dir_all(&hub_dir).expect("the site's directory can be written");
        let api = Api::new(&format!("http://{HUB}:7080"));
        let hub = Hub { api, process: None, dir: hub_dir, settings: String::new() };
        SITES.fetch_add(1, Ordering::SeqCst);
        Some(Self { hub, netns, nodes: 0, dir: dir.to_owned(), _temporary: None })
    }

    /// A node whose agent runs and has joined the hub.
    pub async fn node(&mut self, options: NodeOptions) -> Node {
        let mut node = self.prepare_node(options).expect("a node can be prepared");
        node.start_agent().expect("an agent starts");
        let api = self.hub.api.clone();
        let name = node.name.clone();
        until("the node to join", 30, || async {
            let seen = api.node(&name).await.map_err(|error| error.to_string())?;
            let ready = crate::api::condition(&seen, "Ready");
            if ready["status"] == "True" { Ok(()) } else { Err(format!("{ready}")) }
        })
        .await;
        node
    }

    /// A node with links and configuration, its agent not started.
    pub fn prepare_node(&mut self, options: NodeOptions) -> Result<Node> {
        assert!(self.nodes < NODES_MAX, "a site has at most {NODES_MAX} nodes");
        self.nodes += 1;
        let token =
            std::fs::read_to_string(self.hub.dir.join("state/pki/join-token")).context("the join token")?;
        let dir = self.dir.join(&options.name);
        Node::prepare(&self.netns, self.nodes, dir, token.trim(), options)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Hub {
    /// Starts the hub's program and waits for its API.
    pub async fn start(&mut self) -> Result<()> {
        let config = self.dir.join("hub.toml");
        std::fs::write(&config, self.config())?;
        let mut command = Command::new(program("tombolo-hub"));
        command.arg("--config").arg(&config);
        self.process = Some(Process::start("the hub", command, None, &self.dir.join("hub.log"))?);
        let api = self.api.clone();
        until("the hub to be ready", 30, || async {
            api.get("/readyz").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Ok(())
    }

    fn config(&self) -> String {
        let state = self.dir.join("state");
        format!(
            "state_dir = \"{}\"\n[api]\nlisten = \"{HUB}:7080\"\n[nodes]\nlisten = \"{HUB}:7443\"\n\
             [mqtt]\nlisten = \"{HUB}:7883\"\n[log]\nlevel = \"info\"\n{}",
            state.display(),
            self.settings
        )
    }

    /// Sections of its configuration, from its next start on.
    pub fn configure(&mut self, settings: &str) {
        self.settings = settings.into();
    }

    /// The hub's process; the hub must have been started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the hub was started")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill().expect("the hub can be killed");
        self.process = None;
    }

    /// SIGTERM, and an exit without complaint.
    pub fn stop(&mut self) {
        let status = self.process().terminate(20).expect("the hub ends when asked to");
        assert!(status.success(), "the hub ended with {status}");
        self.process = None;
    }

    /// Somebody with the hub's keys.
    pub fn intruder(&self) -> Intruder {
        Intruder::new(self.dir.join("state/pki"))
    }

    /// The API's address, as a command is told it.
    pub fn url(&self) -> String {
        format!("http://{HUB}:7080")
    }

    /// The hub's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("hub.toml")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("hub.log")).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.hub.log();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- the end of the hub's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        self.hub.process = None;
        // Tests that share this process, as `cargo test` runs them, must not end each other's agents.
        let others = SITES.fetch_sub(1, Ordering::SeqCst) > 1;
        end_all(&self.dir, others);
    }
}
