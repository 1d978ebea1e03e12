//! What a hub is told of its own registry and of others.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tombolo_oci::{HUB_HOST, Repository};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Content that no manifest names is removed when no push has used it for this long.
    pub unused_s: u64,
    pub cache: CacheConfig,
    /// Where images of other registries come from, by the beginning of their names.
    pub upstreams: Vec<UpstreamConfig>,
    /// The registry that the hub's own is, instead of one of the hub's.
    pub external: Option<ExternalConfig>,
}

/// Images of other registries that are kept at the hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// What no revision names goes after this long without use.
    pub unused_s: u64,
    /// And the longest unused first when all of it is larger than this.
    pub max_mib: u64,
}

/// A registry that keeps what is pushed to the hub.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// `http://host[:port]` or `https://…`.
    pub url: String,
    /// Authorities to believe, PEM. Empty: the machine's.
    #[serde(default)]
    pub ca_file: PathBuf,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub password: String,
    /// Holds the password. Empty: it is in `password`.
    #[serde(default)]
    pub password_file: PathBuf,
}

/// One registry, or a part of one.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `host` or `host/part/of/repository`.
    pub prefix: String,
    /// `http://` or `https://`, with a path if repositories stand below one.
    pub url: String,
    /// Authorities to believe, PEM. Empty: the machine's.
    #[serde(default)]
    pub ca_file: PathBuf,
    #[serde(default)]
    pub user: String,
    #[serde(default)]
    pub password: String,
    /// Holds the password. Empty: it is in `password`.
    #[serde(default)]
    pub password_file: PathBuf,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { unused_s: 86_400, cache: CacheConfig::default(), upstreams: Vec::new(), external: None }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { unused_s: 30 * 86_400, max_mib: 20 * 1024 }
    }
}

impl std::fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UpstreamConfig({} at {})", self.prefix, self.url)
    }
}

impl std::fmt::Debug for ExternalConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalConfig({})", self.url)
    }
}

impl RegistryConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        for upstream in &self.upstreams {
            upstream.check_prefix().map_err(|why| format!("registry.upstreams: {why}"))?;
            upstream.check().map_err(|why| format!("registry.upstreams: {}: {why}", upstream.prefix))?;
        }
        if let Some(external) = &self.external {
            let place = external.at(HUB_HOST);
            place.check().map_err(|why| format!("registry.external: {why}"))?;
            if place.url.split_once("://").is_some_and(|(_, rest)| rest.trim_end_matches('/').contains('/')) {
                return Err("registry.external: url: a path is not possible here".into());
            }
        }
        Ok(())
    }
}

impl ExternalConfig {
    /// The same as the origin of everything under a prefix.
    pub(crate) fn at(&self, prefix: &str) -> UpstreamConfig {
        let Self { url, ca_file, user, password, password_file } = self.clone();
        UpstreamConfig { prefix: prefix.to_owned(), url, ca_file, user, password, password_file }
    }
}

impl UpstreamConfig {
    fn check_prefix(&self) -> Result<(), String> {
        let (host, below) = self.prefix.split_once('/').unwrap_or((&self.prefix, ""));
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(format!("prefix {:?} begins with no host", self.prefix));
        }
        if host == HUB_HOST {
            return Err(format!("{HUB_HOST} is this hub's own registry: see registry.external"));
        }
        let below = Some(below).filter(|below| !below.is_empty());
        below.map_or(Ok(()), |below| below.parse::<Repository>().map(drop).map_err(|error| error.to_string()))
    }

    fn check(&self) -> Result<(), String> {
        let rest = self.url.strip_prefix("http://").or_else(|| self.url.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#'])) {
            return Err(format!("url {:?} is not http://host[:port][/path] or https://…", self.url));
        }
        let has_password = !self.password.is_empty() || self.password_file != Path::new("");
        if has_password == self.user.is_empty() {
            return Err("user and password (or password_file) go together".into());
        }
        Ok(())
    }
}
