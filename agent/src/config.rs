//! The agent's configuration, read here and nowhere else: one TOML file and environment overrides.
//!
//! Every key has a default; unknown keys are refused by name. `TOMBOLO_AGENT__ROUTER__LISTEN=…` overrides `[router] listen`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use serde::Deserialize;
use tombolo_agent_core::autoscale::parameters::WINDOW_MAX_MS;
use tombolo_agent_core::devices::overuse::{Policy, Rule};
use tombolo_agent_core::hours::Hours;
use tombolo_config::{ConfigError, LogConfig};

use crate::identity::parse_manifest_key;

/// Prefix of environment overrides; `__` separates the levels.
const ENV_PREFIX: &str = "TOMBOLO_AGENT__";

/// Least limit of downloads, bytes a second: below it an image's documents alone would take minutes.
const PACE_MIN: u64 = 1024;

/// Longest time to zero, seconds: the autoscaler's longest stable window, which takes memory by the second for each revision.
const IDLE_TIMEOUT_MAX_S: u64 = WINDOW_MAX_MS / 1000;

/// What an agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node's name at its hub. Empty: the host name.
    pub node: String,
    /// What must survive a reboot: identity, desired state, images, logs.
    pub state_dir: PathBuf,
    /// What must not: sockets, bundles, records of instances.
    pub run_dir: PathBuf,
    /// Where the kernel says which boot this is.
    pub boot_id_file: PathBuf,
    /// Where the kernel says what memory the node has.
    pub meminfo_file: PathBuf,
    /// Labels for placement, beside those the agent adds itself.
    pub labels: BTreeMap<String, String>,
    pub hub: HubConfig,
    pub router: RouterConfig,
    pub admin: AdminConfig,
    pub supervisor: SupervisorSection,
    pub serving: ServingConfig,
    pub devices: DevicesConfig,
    pub images: ImagesConfig,
    pub import: ImportConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// The hub's node listener, `https://host:port`. Empty: no hub; the node serves what it has.
    pub url: String,
    /// Join token, needed until the node is enrolled. `token_file` is read if this is empty.
    pub token: String,
    pub token_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Where requests to functions come in.
    pub listen: SocketAddr,
    pub tls: TlsConfig,
}

/// HTTPS for requests to functions, beside plain HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Where requests come in over TLS. Absent: nowhere.
    pub listen: Option<SocketAddr>,
    /// PEM files: the certificate with its chain, and its key. Read again when they change.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where `/healthz`, `/readyz`, `/status` and `/metrics` answer.
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisorSection {
    /// The supervisor's program. Empty: `tombolo-supervisor` beside the agent's own.
    pub binary: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServingConfig {
    /// Without a request for this long a revision goes to zero instances, seconds, up to an hour.
    pub idle_timeout_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicesConfig {
    /// Where device plugins find the kubelet's socket and put their own.
    pub plugin_directory: PathBuf,
    /// Of CDI specifications; a later one goes before an earlier one.
    pub cdi_directories: Vec<PathBuf>,
    /// What is measured of accelerators is told the hub at most so often, seconds; faults and errors of their memory at once.
    pub figures_interval_s: u64,
    pub memory: MemoryConfig,
}

/// How images come to the node, and how long they stay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// Bytes a second that all downloads together may take. 0: as many as come.
    pub max_bytes_per_s: u64,
    /// When images may be fetched, such as `22:00-05:00`. None: always.
    pub hours: Vec<String>,
    /// Of `hours`, from UTC.
    pub utc_offset: String,
    /// What downloads leave of the disk under `state_dir`, MiB; of a small disk a twentieth at most.
    pub keep_free_mib: u64,
    /// How long an image stays that nothing needs, hours.
    pub keep_unused_hours: u64,
    /// Whether of the next version of a layer only what is new is fetched. Off, where the link is faster than the node: layers come whole.
    pub deltas: bool,
}

/// Instances that hold more of an accelerator's memory than the `tombolo.dev/gpu-memory` they declared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    pub overuse: OverusePolicy,
    /// How long one may, seconds.
    pub overuse_grace_s: u64,
    /// What the driver itself takes for each process, beside what is declared, MiB.
    pub context_mib: u64,
}

/// What becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverusePolicy {
    /// Each is killed once its grace is over.
    #[default]
    Stop,
    /// An event says so.
    Warn,
    Off,
}

impl MemoryConfig {
    pub(crate) fn rule(&self) -> Rule {
        let policy = match self.overuse {
            OverusePolicy::Stop => Policy::Stop,
            OverusePolicy::Warn => Policy::Warn,
            OverusePolicy::Off => Policy::Off,
        };
        Rule {
            policy,
            grace_ms: self.overuse_grace_s.saturating_mul(1000),
            context_bytes: self.context_mib.saturating_mul(1 << 20),
        }
    }
}

/// Bundles: desired state and images that come as files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportConfig {
    /// Where media with bundles are mounted, on a directory or on one just below it.
    pub directories: Vec<PathBuf>,
    /// The hub's public key, base64: whose bundles a node believes that never joined. Empty: none.
    pub trust: String,
}

impl ImportConfig {
    /// The key in `trust`.
    pub(crate) fn trusted(&self) -> Option<VerifyingKey> {
        parse_manifest_key(&self.trust).ok().filter(|_| !self.trust.is_empty())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            state_dir: "/var/lib/tombolo/agent".into(),
            run_dir: "/run/tombolo".into(),
            boot_id_file: "/proc/sys/kernel/random/boot_id".into(),
            meminfo_file: "/proc/meminfo".into(),
            labels: BTreeMap::new(),
            hub: HubConfig::default(),
            router: RouterConfig::default(),
            admin: AdminConfig::default(),
            supervisor: SupervisorSection::default(),
            serving: ServingConfig::default(),
            devices: DevicesConfig::default(),
            images: ImagesConfig::default(),
            import: ImportConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), tls: TlsConfig::default() }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7081)) }
    }
}

impl Default for DevicesConfig {
    fn default() -> Self {
        Self {
            plugin_directory: "/var/lib/kubelet/device-plugins".into(),
            cdi_directories: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
            figures_interval_s: 60,
            memory: MemoryConfig::default(),
        }
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        // A context of CUDA takes 200 to 600 MiB, the more the larger the GPU.
        Self { overuse: OverusePolicy::Stop, overuse_grace_s: 10, context_mib: 640 }
    }
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            max_bytes_per_s: 0,
            hours: Vec::new(),
            utc_offset: "+00:00".into(),
            keep_free_mib: 256,
            keep_unused_hours: 24,
            deltas: true,
        }
    }
}

impl ImagesConfig {
    /// The hours in which images may be fetched.
    pub(crate) fn hours(&self) -> Result<Hours, String> {
        Hours::parse(&self.hours, &self.utc_offset)
    }
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self { idle_timeout_s: 60 }
    }
}

impl Config {
    /// Reads `file` (defaults only, if `None`), then applies the overrides among `env`.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        tombolo_config::load(file, ENV_PREFIX, env, Self::check)
    }

    fn check(mut self) -> Result<Self, String> {
        if self.node.is_empty() {
            let name = nix::unistd::gethostname()
                .map_err(|error| format!("node: cannot read the host name: {error}"))?;
            self.node =
                name.to_string_lossy().to_lowercase().split('.').next().unwrap_or_default().to_owned();
        }
        self.node.parse::<tombolo_api::NodeId>().map_err(|error| format!("node: {error}"))?;
        if !self.hub.url.is_empty() && !self.hub.url.starts_with("https://") {
            return Err(format!("hub.url: {:?} must start with https://", self.hub.url));
        }
        if !(1..=IDLE_TIMEOUT_MAX_S).contains(&self.serving.idle_timeout_s) {
            return Err(format!("serving.idle_timeout_s: must be 1 to {IDLE_TIMEOUT_MAX_S}"));
        }
        self.images.hours().map_err(|error| format!("images.{error}"))?;
        if (1..PACE_MIN).contains(&self.images.max_bytes_per_s) {
            return Err(format!("images.max_bytes_per_s: must be 0 (no limit) or at least {PACE_MIN}"));
        }
        if self.router.tls.listen.is_some() {
            for (name, file) in [("certificate", &self.router.tls.certificate), ("key", &self.router.tls.key)]
            {
                if file.as_os_str().is_empty() {
                    return Err(format!("router.tls.{name}: needed with router.tls.listen, a PEM file"));
                }
            }
        }
        if !self.import.trust.is_empty() {
            parse_manifest_key(&self.import.trust)
                .map_err(|error| format!("import.trust: {error}; `tombolo-hub manifest-key` prints it"))?;
        }
        let media = self.import.directories.iter().map(|dir| ("import.directories", dir));
        let own = [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)];
        let plugins = ("devices.plugin_directory", &self.devices.plugin_directory);
        let cdi = self.devices.cdi_directories.iter().map(|dir| ("devices.cdi_directories", dir));
        for (name, dir) in own.into_iter().chain([plugins]).chain(cdi).chain(media) {
            if !dir.is_absolute() {
                return Err(format!("{name}: {} must be an absolute path", dir.display()));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let file = std::env::temp_dir().join(format!("tombolo-config-{}-{:p}", std::process::id(), text));
        std::fs::write(&file, text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let result = Config::load(Some(&file), env).map_err(|error| error.to_string());
        std::fs::remove_file(&file).unwrap();
        result
    }

    #[test]
    fn reads_a_file_and_overrides_it() {
        let text = "node = \"press-7\"\n[labels]\nline = \"3\"\n[router]\nlisten = \"0.0.0.0:80\"\n";
        let config =
            load(text, &[("TOMBOLO_AGENT__SERVING__IDLE_TIMEOUT_S", "5"), ("PATH", "/bin")]).unwrap();
        assert_eq!(config.node, "press-7");
        assert_eq!(config.labels["line"], "3");
        assert_eq!(config.router.listen.port(), 80);
        assert_eq!(config.serving.idle_timeout_s, 5);
    }

    #[test]
    fn unknown_and_unfit_keys_are_named() {
        for (text, env, named) in [
            ("nod = \"a\"", None, "nod"),
            ("[router]\nlisen = \"x\"", None, "lisen"),
            ("node = \"Press 7\"", None, "node:"),
            ("state_dir = \"relative\"", None, "state_dir"),
            ("[devices]\ncdi_directories = [\"cdi\"]", None, "devices.cdi_directories"),
            ("[devices.memory]\noveruse = \"kill\"", None, "kill"),
            ("[hub]\nurl = \"http://h\"", None, "hub.url"),
            ("[import]\ntrust = \"AAAA\"", None, "import.trust"),
            ("[import]\ndirectories = [\"media\"]", None, "import.directories"),
            ("", Some(("TOMBOLO_AGENT__ROUTER__LISTNE", "x")), "listne"),
            ("[router.tls]\nlisten = \"127.0.0.1:1\"", None, "router.tls.certificate"),
            ("[images]\nhours = [\"22-5\"]", None, "images.hours"),
            ("[images]\nutc_offset = \"CET\"", None, "images.utc_offset"),
            ("[images]\nmax_bytes_per_s = 3", None, "images.max_bytes_per_s"),
            ("[serving]\nidle_timeout_s = 0", None, "serving.idle_timeout_s: must be 1 to 3600"),
            ("[serving]\nidle_timeout_s = 3601", None, "serving.idle_timeout_s: must be 1 to 3600"),
        ] {
            let error = load(text, env.as_slice()).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn an_idle_timeout_of_an_hour_is_taken() {
        assert_eq!(load("[serving]\nidle_timeout_s = 3600", &[]).unwrap().serving.idle_timeout_s, 3600);
    }

    #[test]
    fn the_packaged_example_is_the_default() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agent.toml");
        let mut expected = Config::default().check().unwrap();
        expected.hub.url = "https://127.0.0.1:7443".into();
        expected.hub.token_file = "/etc/tombolo/join-token".into();
        let read = Config::load(Some(&file), std::iter::empty()).unwrap();
        assert_eq!(read, expected);
    }
}
