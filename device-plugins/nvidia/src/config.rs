//! What the plugin is told: one TOML file with environment overrides (`TOMBOLO_NVIDIA__LOOK_INTERVAL_S=2`). Every key has a
//! default.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tombolo_config::ConfigError;

use crate::gpu::Gpu;

const ENV_PREFIX: &str = "TOMBOLO_NVIDIA__";

/// Smallest unit of GPU memory, MiB: a list of all units has to fit in one message (4 MiB), for machines full of GPUs too.
const UNIT_MIB_MIN: u64 = 64;

/// Most programs that share a GPU: NVIDIA's limit for MPS.
const REPLICAS_MAX: u32 = 48;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The driver's management library.
    pub library: PathBuf,
    /// The driver's compute library, by which processes are suspended. It is loaded when that is first asked for.
    pub cuda_library: PathBuf,
    /// How often GPUs are looked at, seconds. Critical errors are heard of at once.
    pub look_interval_s: u64,
    pub paths: Paths,
    pub nodes: NodesConfig,
    pub cdi: CdiConfig,
    pub health: HealthConfig,
    pub memory: MemoryConfig,
    pub mps: MpsConfig,
    pub suspend: SuspendConfig,
    /// How GPUs are shared: the first that matches counts, one that nothing matches is exclusive.
    pub gpu: Vec<GpuConfig>,
}

/// Where the host's files are, for a plugin that runs in a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Paths {
    /// The host's file system; what containers get is told without it.
    pub root: PathBuf,
    pub dev: PathBuf,
    pub proc: PathBuf,
    pub sys: PathBuf,
}

/// The driver's device nodes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NodesConfig {
    /// NVIDIA's program that makes them, where some are missing; empty: the machine makes them.
    pub command: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CdiConfig {
    /// Where the specification of all GPUs is written; empty: nowhere, and containers get device nodes and mounts instead.
    pub directory: PathBuf,
    /// Which parts of the driver containers get.
    pub capabilities: Vec<Capability>,
    /// Directories of the driver's libraries beside those that the linker's cache names, on the host without `root`.
    pub library_directories: Vec<PathBuf>,
    /// Where libraries go in containers; empty: where they are on the host.
    pub container_library_directories: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capability {
    Compute,
    Utility,
    Video,
    /// Everything.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HealthConfig {
    /// Critical errors that programs cause to themselves: the GPU is as good as before.
    pub ignored_xids: Vec<u64>,
    /// Good looks in a row after which a GPU is healthy again.
    pub recovery_looks: u32,
}

/// GPUs shared by memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MemoryConfig {
    /// What one device of the resource is, MiB. The same for all GPUs: requests count units.
    pub unit_mib: u64,
    /// What the driver itself takes of each GPU, MiB.
    pub reserved_mib: u64,
}

/// NVIDIA's multi-process service and its control daemon.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MpsConfig {
    /// How the control daemon is started where none runs, to stay in the foreground; empty: the machine starts it.
    pub command: Vec<String>,
    /// The control daemon's, on the host and in containers.
    pub pipe_directory: PathBuf,
    /// Where it logs, if it is started here.
    pub log_directory: PathBuf,
    /// What the daemon has as `/dev/shm`.
    pub shm_directory: PathBuf,
    /// The most of a GPU's processors that a program gets, percent, and of its memory, as NVIDIA writes it (`0=4G,1=2G`), where the
    /// daemon is started here and the container is given no other.
    pub thread_percentage: Option<u32>,
    pub pinned_memory_limit: String,
}

/// Moving processes' state from GPUs to the host's memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SuspendConfig {
    /// How long what a process does on a GPU may take to end, milliseconds; after that, the process is not suspended.
    pub lock_timeout_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct GpuConfig {
    /// A UUID or its beginning, an index, or `*`.
    #[serde(rename = "match")]
    pub selector: String,
    #[serde(flatten)]
    pub share: Share,
}

/// How many programs get a GPU. One that is cut into instances (MIG) gives those instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "share", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Share {
    Exclusive,
    /// In turns, each with the whole memory.
    TimeSlice {
        replicas: u32,
    },
    /// At once, each with its part of the processors and of the memory.
    Mps {
        replicas: u32,
    },
    /// By declared memory; with `mps`, the driver holds each to it.
    Memory {
        #[serde(default)]
        mps: bool,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            library: "libnvidia-ml.so.1".into(),
            cuda_library: "libcuda.so.1".into(),
            look_interval_s: 5,
            paths: Paths::default(),
            nodes: NodesConfig::default(),
            cdi: CdiConfig::default(),
            health: HealthConfig::default(),
            memory: MemoryConfig::default(),
            mps: MpsConfig::default(),
            suspend: SuspendConfig::default(),
            gpu: Vec::new(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Self { root: "/".into(), dev: "/dev".into(), proc: "/proc".into(), sys: "/sys".into() }
    }
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self { command: vec!["nvidia-modprobe".to_owned()] }
    }
}

impl Default for CdiConfig {
    fn default() -> Self {
        Self {
            directory: "/var/run/cdi".into(),
            capabilities: vec![Capability::Compute, Capability::Utility],
            library_directories: Vec::new(),
            container_library_directories: Vec::new(),
        }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        // Exceptions, page faults, stops and time-outs of programs, and what is cleaned up after them: what NVIDIA's own
        // device plugin leaves out.
        Self { ignored_xids: vec![13, 31, 43, 45, 68, 109], recovery_looks: 3 }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { unit_mib: 256, reserved_mib: 512 }
    }
}

impl Default for MpsConfig {
    fn default() -> Self {
        Self {
            command: ["nvidia-cuda-mps-control", "-f", "-multiuser-server"].map(str::to_owned).into(),
            pipe_directory: "/tmp/nvidia-mps".into(),
            log_directory: "/var/log/nvidia-mps".into(),
            shm_directory: "/dev/shm".into(),
            thread_percentage: None,
            pinned_memory_limit: String::new(),
        }
    }
}

impl Default for SuspendConfig {
    fn default() -> Self {
        Self { lock_timeout_ms: 10_000 }
    }
}

impl Config {
    pub(crate) fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        tombolo_config::load(file, ENV_PREFIX, env, Self::checked)
    }

    fn checked(self) -> Result<Self, String> {
        if self.look_interval_s == 0 {
            return Err("look_interval_s: at least 1".to_owned());
        }
        if self.health.recovery_looks == 0 {
            return Err("health.recovery_looks: at least 1".to_owned());
        }
        if self.memory.unit_mib < UNIT_MIB_MIN {
            return Err(format!("memory.unit_mib: at least {UNIT_MIB_MIN}"));
        }
        if self.suspend.lock_timeout_ms == 0 {
            return Err("suspend.lock_timeout_ms: at least 1, since the driver takes 0 for no end".to_owned());
        }
        if self.mps.thread_percentage.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return Err("mps.thread_percentage: 1 to 100".to_owned());
        }
        for gpu in &self.gpu {
            if let Share::TimeSlice { replicas } | Share::Mps { replicas } = gpu.share
                && !(1..=REPLICAS_MAX).contains(&replicas)
            {
                return Err(format!("gpu {:?}: replicas: 1 to {REPLICAS_MAX}", gpu.selector));
            }
        }
        Ok(self)
    }

    /// How `gpu` is shared.
    pub(crate) fn share(&self, gpu: &Gpu) -> Share {
        let matches = |selector: &str| {
            selector == "*"
                || selector == gpu.index.to_string()
                || (selector.starts_with("GPU-") && gpu.uuid.0.starts_with(selector))
        };
        let found = self.gpu.iter().find(|config| matches(&config.selector));
        found.map_or(Share::Exclusive, |config| config.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), std::iter::empty()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_that_matches_says_how_a_gpu_is_shared() {
        let config = read(
            "[[gpu]]\nmatch = \"GPU-1\"\nshare = \"exclusive\"\n\
             [[gpu]]\nmatch = \"2\"\nshare = \"time-slice\"\nreplicas = 4\n\
             [[gpu]]\nmatch = \"*\"\nshare = \"memory\"\nmps = true\n",
        )
        .unwrap();
        assert_eq!(config.share(&gpu(1)), Share::Exclusive);
        assert_eq!(config.share(&gpu(2)), Share::TimeSlice { replicas: 4 });
        assert_eq!(config.share(&gpu(3)), Share::Memory { mps: true });
        assert_eq!(Config::default().share(&gpu(3)), Share::Exclusive);
    }

    #[test]
    fn the_packaged_example_is_the_default() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/device-plugin-nvidia.toml");
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(read(&text), Ok(Config::default()));
        // What stands there as an example is one, too.
        let (_, examples) = text.split_once("exclusive.\n#\n").unwrap();
        let examples: String =
            examples.lines().map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
        let shares: Vec<_> = read(&examples).unwrap().gpu.into_iter().map(|gpu| gpu.share).collect();
        let [memory, slices, mps] = shares.as_slice() else { panic!("{shares:?}") };
        assert_eq!(*memory, Share::Memory { mps: false });
        assert_eq!((*slices, *mps), (Share::TimeSlice { replicas: 4 }, Share::Mps { replicas: 4 }));
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, said) in [
            ("librari = 1", "librari"),
            ("look_interval_s = 0", "look_interval_s: at least 1"),
            ("[health]\nrecovery_looks = 0", "recovery_looks"),
            ("[suspend]\nlock_timeout_ms = 0", "suspend.lock_timeout_ms"),
            ("[mps]\nthread_percentage = 101", "mps.thread_percentage: 1 to 100"),
            ("[memory]\nunit_mib = 1", "unit_mib: at least 64"),
            ("[[gpu]]\nmatch = \"*\"\nshare = \"mps\"\nreplicas = 49", "replicas: 1 to 48"),
            ("[[gpu]]\nmatch = \"*\"\nshare = \"time-slice\"", "replicas"),
            ("[[gpu]]\nmatch = \"*\"\nshare = \"half\"", "half"),
            ("[[gpu]]\nmatch = \"*\"\nshare = \"mps\"\nreplicas = 2\nreplica = 3", "replica"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(said), "{text}: {why}");
        }
    }
}
