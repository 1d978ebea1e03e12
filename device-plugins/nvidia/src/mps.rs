//! NVIDIA's MPS control daemon: one that runs is used, and where none does it is started and looked after. It is called at each
//! look and never waits.
//!
//! Programs that share a GPU through the daemon end with it, so it outlives this plugin: the next one finds it by its own file.
//!
//! ```text
//!            it is called for ──▶ one runs? ──▶ used ◀── started ◀─┐
//!                                     │ none      │ it has ended   │ after a pause
//!                                     └───────────┴────────────────┘
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::config::MpsConfig;
use crate::files;
use crate::gpu::Uuid;

/// Where the daemon says its number.
const PID_FILE: &str = "nvidia-cuda-mps-control.pid";

/// Where programs reach it.
const CONTROL: &str = "control";

/// Of the name of its process, which the kernel cuts.
const NAME: &str = "nvidia-cuda-mps";

/// Which GPUs it serves; without it, all.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// First and longest pause before it is started again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One that ran for so long has not failed at its start.
const STEADY: Duration = Duration::from_secs(60);

pub(crate) struct Mps {
    config: MpsConfig,
    /// The daemon's directories as the plugin sees them.
    pipes: PathBuf,
    logs: PathBuf,
    proc: PathBuf,
    started: Option<(Child, Instant)>,
    /// In a row.
    failures: u32,
    retry_at: Option<Instant>,
    why: String,
}

/// Why GPUs cannot be shared through the daemon now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unserved {
    pub gpus: BTreeSet<Uuid>,
    pub why: String,
}

impl Mps {
    /// `root`: the host's file system; `proc`: where the plugin sees processes.
    pub(crate) fn new(config: MpsConfig, root: &Path, proc: &Path) -> Self {
        Self {
            pipes: files::under(root, &config.pipe_directory),
            logs: files::under(root, &config.log_directory),
            proc: proc.to_owned(),
            config,
            started: None,
            failures: 0,
            retry_at: None,
            why: String::new(),
        }
    }

    /// Sees to it that a daemon serves `gpus`; those that it does not, if there are any.
    pub(crate) fn attend(&mut self, gpus: &BTreeSet<Uuid>, now: Instant) -> Option<Unserved> {
        self.reap(now);
        if gpus.is_empty() {
            return None;
        }
        let all = |why: String| Some(Unserved { gpus: gpus.clone(), why });
        if self.config.command.is_empty() {
            return if self.has_control() { None } else { all(self.missing("the machine has to start it")) };
        }
        let Some(pid) = self.running() else {
            if self.retry_at.is_none_or(|at| at <= now) {
                self.start(gpus, now);
            }
            return all(self.missing(&self.why));
        };
        if !self.has_control() {
            return all(self.missing("it has only just begun"));
        }
        let served = self.served_by(pid);
        let gpus: BTreeSet<_> = gpus
            .iter()
            .filter(|gpu| served.as_ref().is_some_and(|all| !all.contains(&gpu.0)))
            .cloned()
            .collect();
        let why = "the MPS control daemon that runs serves other GPUs: once no program uses it, end it (echo quit | \
                   nvidia-cuda-mps-control), and it is started for all";
        (!gpus.is_empty()).then(|| Unserved { gpus, why: why.to_owned() })
    }

    fn has_control(&self) -> bool {
        self.pipes.join(CONTROL).exists()
    }

    fn missing(&self, why: &str) -> String {
        format!("the MPS control daemon does not run at {}: {why}", self.pipes.display())
    }

    /// Notes the end of the one that was started here.
    fn reap(&mut self, now: Instant) {
        let Some((child, since)) = &mut self.started else { return };
        let why = match child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => ended(status),
            Err(error) => format!("it cannot be waited for: {error}"),
        };
        if now.duration_since(*since) >= STEADY {
            self.failures = 0;
        }
        self.started = None;
        // Another that runs is why, or is used instead.
        if self.running().is_none() {
            self.fail(format!("{why}; what it logged is in {}", self.logs.display()), now);
        }
    }

    fn start(&mut self, gpus: &BTreeSet<Uuid>, now: Instant) {
        match self.spawn(gpus) {
            Ok(child) => {
                tracing::info!(pid = child.id(), gpus = gpus.len(), "the MPS control daemon is started");
                self.why = "it has only just begun".to_owned();
                self.started = Some((child, now));
            }
            Err(why) => self.fail(why, now),
        }
    }

    fn fail(&mut self, why: String, now: Instant) {
        tracing::warn!(why, "the MPS control daemon does not run");
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
        self.why = why;
    }

    fn spawn(&self, gpus: &BTreeSet<Uuid>) -> Result<Child, String> {
        for directory in [&self.pipes, &self.logs] {
            fs::create_dir_all(directory)
                .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        }
        let (program, arguments) = self.config.command.split_first().ok_or("mps.command is empty")?;
        let uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.0.as_str()).collect();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("CUDA_MPS_PIPE_DIRECTORY", &self.pipes)
            .env("CUDA_MPS_LOG_DIRECTORY", &self.logs)
            .env(VISIBLE, uuids.join(","))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // What ends the plugin must not end whoever shares a GPU.
            .process_group(0);
        if let Some(percent) = self.config.thread_percentage {
            command.env("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percent.to_string());
        }
        if !self.config.pinned_memory_limit.is_empty() {
            command.env("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", &self.config.pinned_memory_limit);
        }
        command.spawn().map_err(|error| {
            format!("cannot start {program}: {error}: it comes with NVIDIA's driver; mps.command names it")
        })
    }

    /// The daemon that has these pipes, whoever started it.
    fn running(&self) -> Option<u32> {
        if let Some((child, _)) = &self.started {
            return Some(child.id());
        }
        let pid: u32 = fs::read_to_string(self.pipes.join(PID_FILE)).ok()?.trim().parse().ok()?;
        let name = fs::read_to_string(self.proc.join(pid.to_string()).join("comm")).ok()?;
        name.starts_with(NAME).then_some(pid)
    }

    /// The GPUs that it was told to serve; none: all, or it cannot be seen.
    fn served_by(&self, pid: u32) -> Option<BTreeSet<String>> {
        let environment = fs::read(self.proc.join(pid.to_string()).join("environ")).ok()?;
        let variables = String::from_utf8_lossy(&environment);
        let prefix = format!("{VISIBLE}=");
        let value = variables.split('\0').find_map(|variable| variable.strip_prefix(&prefix))?;
        let gpus: BTreeSet<String> = value.split(',').map(str::to_owned).collect();
        // Numbers are the driver's own order.
        gpus.iter().all(|gpu| gpu.starts_with("GPU-")).then_some(gpus)
    }
}

fn ended(status: ExitStatus) -> String {
    format!("it ended ({status})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;

    fn gpus(numbers: &[u32]) -> BTreeSet<Uuid> {
        numbers.iter().map(|number| gpu(*number).uuid).collect()
    }

    /// A daemon with directories of its own, started by `command`.
    fn mps(root: &Path, command: &[&str]) -> Mps {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let proc = root.join("proc");
        Mps::new(MpsConfig { command, ..MpsConfig::default() }, root, &proc)
    }

    /// Process 7, with this environment.
    fn runs(root: &Path, name: &str, environment: &str) {
        let (process, pipes) = (root.join("proc/7"), root.join("tmp/nvidia-mps"));
        fs::create_dir_all(&process).unwrap();
        fs::create_dir_all(&pipes).unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
        fs::write(process.join("environ"), environment).unwrap();
        fs::write(pipes.join(PID_FILE), "7\n").unwrap();
        fs::write(pipes.join(CONTROL), "").unwrap();
    }

    #[test]
    fn one_that_runs_is_used_for_the_gpus_that_it_serves() {
        let now = Instant::now();
        let told = |environment: &str| {
            let root = tempfile::tempdir().unwrap();
            runs(root.path(), "nvidia-cuda-mps", environment);
            let unserved = mps(root.path(), &["false"]).attend(&gpus(&[0, 1]), now);
            unserved.map(|unserved| unserved.gpus)
        };
        assert_eq!(told("A=1\0"), None);
        assert_eq!(told(&format!("A=1\0CUDA_VISIBLE_DEVICES={},{}\0", gpu(0).uuid, gpu(1).uuid)), None);
        assert_eq!(told(&format!("CUDA_VISIBLE_DEVICES={}\0", gpu(0).uuid)), Some(gpus(&[1])));
        assert_eq!(told("CUDA_VISIBLE_DEVICES=0\0"), None, "nobody can say which that is");
    }

    #[test]
    fn another_process_under_its_number_is_not_it() {
        let root = tempfile::tempdir().unwrap();
        runs(root.path(), "bash", "");
        let unserved = mps(root.path(), &["/no/such/program"]).attend(&gpus(&[0]), Instant::now()).unwrap();
        assert!(unserved.why.contains("cannot start /no/such/program"), "{}", unserved.why);
    }

    #[test]
    fn one_that_the_machine_starts_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let mut mps = mps(root.path(), &[]);
        let now = Instant::now();
        assert_eq!(mps.attend(&gpus(&[]), now), None);
        assert!(mps.attend(&gpus(&[0]), now).unwrap().why.contains("the machine has to start it"));
        runs(root.path(), "nvidia-cuda-mps", "");
        assert_eq!(mps.attend(&gpus(&[0]), now), None);
    }

    #[test]
    fn one_that_does_not_start_is_started_ever_more_rarely() {
        let root = tempfile::tempdir().unwrap();
        let mut mps = mps(root.path(), &["/no/such/program"]);
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            mps.attend(&gpus(&[0]), now);
            let at = mps.retry_at.unwrap();
            mps.attend(&gpus(&[0]), at - Duration::from_millis(1));
            assert_eq!(mps.retry_at, Some(at), "it is not tried before");
            pauses.push(at.duration_since(now).as_secs());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
