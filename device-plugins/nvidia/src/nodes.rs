//! The driver's device nodes, without which a container cannot use a GPU: has the driver's own program make those that are
//! missing, as a user's first program would, and says what is missing then. Whether a GPU is well otherwise is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::config::{Capability, Config, Paths};
use crate::files;
use crate::gpu::{Gpu, Place, Uuid};

/// By this node the driver is controlled, and that is its number.
const CONTROL: &str = "nvidiactl";
const CONTROL_MINOR: u32 = 255;

/// All that computes needs it.
const UNIFIED_MEMORY: &str = "nvidia-uvm";

/// How soon what could not be made is tried again.
const PAUSE: Duration = Duration::from_secs(30);

pub(crate) struct Nodes {
    command: Vec<String>,
    paths: Paths,
    computes: bool,
    retry_at: Option<Instant>,
    /// Why nodes were not made when that was tried last.
    why: String,
}

/// What a GPU or an instance lacks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    /// Names below `/dev`.
    names: BTreeSet<String>,
    /// Numbers of nodes of GPUs.
    minors: BTreeSet<u32>,
    /// Files of the kernel that name nodes of instances.
    capabilities: BTreeSet<PathBuf>,
}

impl Nodes {
    pub(crate) fn new(config: &Config) -> Self {
        let computes = [Capability::Compute, Capability::All];
        Self {
            command: config.nodes.command.clone(),
            paths: config.paths.clone(),
            computes: config.cdi.capabilities.iter().any(|capability| computes.contains(capability)),
            retry_at: None,
            why: String::new(),
        }
    }

    /// Makes what is missing of `gpus`; why GPUs and instances cannot be used, of those that lack something still.
    pub(crate) fn attend(&mut self, gpus: &[Gpu], now: Instant) -> BTreeMap<Uuid, String> {
        let mut missing = self.missing(gpus);
        if missing.is_empty() {
            self.retry_at = None;
            return BTreeMap::new();
        }
        if !self.command.is_empty() && self.retry_at.is_none_or(|at| at <= now) {
            self.make(missing.values());
            self.retry_at = Some(now + PAUSE);
            missing = self.missing(gpus);
        }
        let told = |missing: &Missing| {
            let names: Vec<String> = missing.names.iter().map(|name| format!("/dev/{name}")).collect();
            let why = if self.command.is_empty() { "the machine has to make it" } else { &self.why };
            format!("there is no {}: {why}", names.join(", "))
        };
        missing.iter().map(|(uuid, missing)| (uuid.clone(), told(missing))).collect()
    }

    /// By GPU, and by instance of a cut one.
    fn missing(&self, gpus: &[Gpu]) -> BTreeMap<Uuid, Missing> {
        let mut all = BTreeMap::new();
        for gpu in gpus.iter().filter(|gpu| gpu.nodes.is_none()) {
            let instances = gpu.instances.iter().flatten();
            let instances = instances.map(|instance| (&instance.uuid, Some(instance.place)));
            for (uuid, place) in instances.chain([(&gpu.uuid, None)]) {
                let missing = self.missing_of(gpu, place);
                if !missing.names.is_empty() {
                    all.insert(uuid.clone(), missing);
                }
            }
        }
        all
    }

    fn missing_of(&self, gpu: &Gpu, place: Option<Place>) -> Missing {
        let is_absent = |name: &str| !self.paths.dev.join(name).exists();
        let mut missing = Missing::default();
        for (name, minor) in [(format!("nvidia{}", gpu.minor), gpu.minor), (CONTROL.into(), CONTROL_MINOR)] {
            if is_absent(&name) {
                missing.names.insert(name);
                missing.minors.insert(minor);
            }
        }
        if self.computes && is_absent(UNIFIED_MEMORY) {
            missing.names.insert(UNIFIED_MEMORY.to_owned());
        }
        for (file, name) in place.into_iter().flat_map(|place| files::capabilities(gpu, place, &self.paths)) {
            if is_absent(&name) {
                missing.names.insert(name);
                missing.capabilities.insert(file);
            }
        }
        missing
    }

    fn make<'a>(&mut self, missing: impl Iterator<Item = &'a Missing>) {
        let (mut of_gpus, mut of_memory) = (BTreeSet::new(), false);
        let mut capabilities = BTreeSet::new();
        for each in missing {
            of_gpus.extend(each.minors.iter().map(|minor| format!("-c={minor}")));
            capabilities.extend(each.capabilities.iter().map(|file| self.on_host(file)));
            of_memory |= each.names.contains(UNIFIED_MEMORY);
        }
        let mut calls: Vec<Vec<String>> = Vec::new();
        if !of_gpus.is_empty() || !capabilities.is_empty() {
            let files = capabilities.into_iter().flat_map(|file| ["-f".to_owned(), file]);
            calls.push(of_gpus.into_iter().chain(files).collect());
        }
        if of_memory {
            // With it, numbers are those of its own nodes.
            calls.push(vec!["-u".to_owned(), "-c=0".to_owned()]);
        }
        let failures: Vec<String> = calls.iter().filter_map(|call| self.run(call).err()).collect();
        let program = self.command.join(" ");
        let why = match failures.as_slice() {
            [] => format!("{program} has not made it"),
            [first, ..] => first.clone(),
        };
        match failures.first() {
            Some(failure) if self.why != why => tracing::warn!(why = failure, "device nodes cannot be made"),
            Some(_) => {}
            None => tracing::info!(calls = calls.len(), "device nodes are made by {program}"),
        }
        self.why = why;
    }

    fn run(&self, arguments: &[String]) -> Result<(), String> {
        let (program, first) = self.command.split_first().expect("it is not called without one");
        let output = Command::new(program).args(first).args(arguments).output().map_err(|error| {
            format!("cannot start {program}: {error}: it comes with NVIDIA's driver; nodes.command names it")
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        Err(format!("{program} {} failed ({}): {}", arguments.join(" "), output.status, said.trim()))
    }

    fn on_host(&self, path: &Path) -> String {
        let host =
            path.strip_prefix(&self.paths.root).map_or(path.to_owned(), |rest| Path::new("/").join(rest));
        host.display().to_string()
    }
}
