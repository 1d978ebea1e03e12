//! The hub's configuration, read here and nowhere else: one TOML file and environment overrides.
//!
//! Every key has a default; unknown keys are refused by name. `TOMBOLO_HUB__API__LISTEN=…` overrides `[api] listen`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tombolo_config::{ConfigError, LogConfig};

mod address;
mod registry;

pub use address::{AddressError, BrokerUrl, HostPort};
pub use registry::{CacheConfig, ExternalConfig, RegistryConfig, UpstreamConfig};

/// Prefix of environment overrides; `__` separates the levels.
const ENV_PREFIX: &str = "TOMBOLO_HUB__";

/// What a hub is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything the hub keeps: resources, images, its certificate authority.
    pub state_dir: PathBuf,
    pub api: ApiConfig,
    pub nodes: NodesConfig,
    pub mqtt: MqttConfig,
    pub routes: RoutesConfig,
    pub registry: RegistryConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Where the REST API and the registry answer, plain HTTP without access control: keep it on loopback.
    pub listen: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodesConfig {
    /// Where nodes enrol and pull images, HTTPS.
    pub listen: SocketAddr,
    /// By which nodes reach it. `None`, empty in the file: the listen address.
    #[serde(deserialize_with = "address::unless_empty")]
    pub advertise: Option<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttConfig {
    /// Where the embedded broker listens, mutual TLS.
    pub listen: SocketAddr,
    /// By which nodes reach it. `None`, empty in the file: the listen address.
    #[serde(deserialize_with = "address::unless_empty")]
    pub advertise: Option<HostPort>,
    /// An external broker; the embedded one is off then. `None`, empty in the file: the embedded one.
    #[serde(deserialize_with = "address::unless_empty")]
    pub url: Option<BrokerUrl>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutesConfig {
    /// Last part of every host: `{name}.{namespace}.{domain}`.
    pub domain: String,
    /// Port of the nodes' routers as clients see it.
    pub http_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/tombolo/hub".into(),
            api: ApiConfig::default(),
            nodes: NodesConfig::default(),
            mqtt: MqttConfig::default(),
            routes: RoutesConfig::default(),
            registry: RegistryConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7080)) }
    }
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7443)), advertise: None }
    }
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7883)), advertise: None, url: None }
    }
}

impl Default for RoutesConfig {
    fn default() -> Self {
        Self { domain: "localhost".into(), http_port: 8080 }
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

    fn check(self) -> Result<Self, String> {
        if !self.state_dir.is_absolute() {
            return Err(format!("state_dir: {} must be an absolute path", self.state_dir.display()));
        }
        advertised("nodes", &self.nodes.listen, self.nodes.advertise.is_some())?;
        advertised("mqtt", &self.mqtt.listen, self.mqtt.advertise.is_some() || self.mqtt.url.is_some())?;
        let labels = |domain: &str| domain.split('.').all(tombolo_api::names::is_dns1123_label);
        if !labels(&self.routes.domain) {
            return Err(format!("routes.domain: {:?} is not a lower-case domain name", self.routes.domain));
        }
        self.registry.check()?;
        Ok(self)
    }
}

/// An address on which everything listens is none by which anything is reached.
fn advertised(section: &str, listen: &SocketAddr, is_told: bool) -> Result<(), String> {
    if !listen.ip().is_unspecified() || is_told {
        return Ok(());
    }
    Err(format!(
        "{section}.advertise: needed when {section}.listen is {listen}: the host:port by which nodes reach it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hub.toml");
        std::fs::write(&file, text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&file), env).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_a_file_and_overrides_it() {
        let text =
            "state_dir = \"/srv/hub\"\n[nodes]\nlisten = \"0.0.0.0:7443\"\nadvertise = \"hub.lan:7443\"\n";
        let config = load(text, &[("TOMBOLO_HUB__ROUTES__HTTP_PORT", "80"), ("PATH", "/bin")]).unwrap();
        assert_eq!(config.state_dir, Path::new("/srv/hub"));
        assert_eq!(config.nodes.advertise, "hub.lan:7443".parse().ok());
        assert_eq!(config.routes.http_port, 80);
    }

    #[test]
    fn unknown_and_unfit_keys_are_named() {
        for (text, env, named) in [
            ("stat_dir = \"/a\"", None, "stat_dir"),
            ("[api]\nlisen = \"x\"", None, "lisen"),
            ("[api]\nlisten = \"here\"", None, "listen"),
            ("state_dir = \"relative\"", None, "state_dir"),
            ("[nodes]\nlisten = \"0.0.0.0:1\"", None, "nodes.advertise"),
            ("[mqtt]\nlisten = \"[::]:1\"", None, "mqtt.advertise"),
            ("[mqtt]\nadvertise = \"hub\"", None, "\"hub\" is not host:port"),
            ("[mqtt]\nadvertise = \"hub:0\"", None, "advertise"),
            ("[mqtt]\nurl = \"mqtt://b:1883\"", None, "must start with mqtts://"),
            ("[mqtt]\nurl = \"mqtts://b\"", None, "\"b\" is not host:port"),
            ("", Some(("TOMBOLO_HUB__MQTT__ADVERTISE", "hub")), "mqtt.advertise"),
            ("[routes]\ndomain = \"Example.com\"", None, "routes.domain"),
            ("", Some(("TOMBOLO_HUB__API__LISTNE", "x")), "listne"),
            ("[registry]\nunused = 1", None, "unused"),
            ("[registry.external]\nurl = \"http://r.lan/below\"", None, "registry.external"),
            ("[[registry.upstreams]]\nprefix = \"r.lan\"", None, "url"),
            ("[[registry.upstreams]]\nprefix = \"r.lan/A\"\nurl = \"http://r.lan\"", None, "\"A\""),
            (
                "[[registry.upstreams]]\nprefix = \"hub.tombolo/a\"\nurl = \"http://r.lan\"",
                None,
                "hub.tombolo",
            ),
            ("[[registry.upstreams]]\nprefix = \"r.lan\"\nurl = \"ftp://r.lan\"", None, "ftp://r.lan"),
            (
                "[[registry.upstreams]]\nprefix = \"r.lan\"\nurl = \"http://r.lan\"\nuser = \"u\"",
                None,
                "password",
            ),
        ] {
            let error = load(text, env.as_slice()).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn an_external_broker_needs_no_address_of_ones_own() {
        assert!(load("[mqtt]\nlisten = \"0.0.0.0:7883\"\nurl = \"mqtts://broker.lan:8883\"", &[]).is_ok());
    }

    #[test]
    fn the_packaged_example_is_the_default() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/hub.toml");
        assert_eq!(Config::load(Some(&file), std::iter::empty()).unwrap(), Config::default());
    }
}
