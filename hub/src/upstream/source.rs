//! Where images come from: a configured mirror of everything under a prefix, or the registry that an image names itself.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tombolo_oci::{BasicAuth, Client, Endpoint, Repository, Scheme, TransferError};

use crate::config::UpstreamConfig;

/// A configured origin of images.
#[derive(Clone, Debug)]
pub(super) struct Source(UpstreamConfig);

impl Source {
    pub(super) fn new(config: UpstreamConfig) -> Self {
        Self(config)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Whether a repository's name begins with the prefix, part by part.
    pub(super) fn covers(&self, host: &str, repository: &Repository) -> bool {
        let name = format!("{host}/{repository}");
        name.strip_prefix(&self.0.prefix).is_some_and(|rest| rest.starts_with('/') || rest.is_empty())
    }

    /// What the repository is called there.
    pub(super) fn there(&self, repository: &Repository) -> Result<Repository, TransferError> {
        match self.place().1 {
            "" => Ok(repository.clone()),
            below => format!("{below}/{repository}")
                .parse()
                .map_err(|error| TransferError::Client(format!("registry.upstreams: {error}"))),
        }
    }

    /// Reads files.
    pub(super) fn client(&self) -> Result<Client, TransferError> {
        let unreadable = |path: &Path, error: &dyn std::fmt::Display| {
            TransferError::Client(format!(
                "registry.upstreams: {}: cannot read {}: {error}",
                self.0.prefix,
                path.display()
            ))
        };
        let (address, _) = self.place();
        let (scheme, address) = if self.0.url.starts_with("http://") {
            (Scheme::Http, with_port(address, 80))
        } else {
            let roots = match self.0.ca_file.as_path() {
                none if none == Path::new("") => system_roots(),
                file => {
                    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
                    read.map_err(|error| unreadable(file, &error))?
                }
            };
            (Scheme::Https(Arc::new(tls(roots)?)), with_port(address, 443))
        };
        let auth = if self.0.user.is_empty() {
            None
        } else {
            let password = match self.0.password_file.as_path() {
                none if none == Path::new("") => self.0.password.clone(),
                file => {
                    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            Some(BasicAuth { user: self.0.user.clone(), password })
        };
        Client::new(Endpoint { scheme, address, auth, server_name: None })
    }

    /// `host[:port]`, and the path below which repositories stand.
    fn place(&self) -> (&str, &str) {
        let rest = self.0.url.split_once("://").map_or("", |(_, rest)| rest);
        let (address, below) = rest.split_once('/').unwrap_or((rest, ""));
        (address, below.trim_matches('/'))
    }
}

/// A client for a registry without any setting. Reads files.
pub(super) fn direct(host: &str) -> Result<Client, TransferError> {
    let scheme =
        if is_this_machine(host) { Scheme::Http } else { Scheme::Https(Arc::new(tls(system_roots())?)) };
    Client::new(Endpoint { scheme, address: host.to_owned(), auth: None, server_name: None })
}

/// Registries of this machine speak plain HTTP, as every container tool assumes.
fn is_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The authorities this machine believes.
fn system_roots() -> Vec<CertificateDer<'static>> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "an authority of this machine cannot be read");
    }
    if loaded.certs.is_empty() {
        tracing::warn!(
            "this machine believes no authority: registries need a ca_file, or install its CA certificates"
        );
    }
    loaded.certs
}

fn tls(believed: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, TransferError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(believed);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransferError::Client(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn with_port(address: &str, port: u16) -> String {
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    if has_port { address.to_owned() } else { format!("{address}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(prefix: &str, url: &str) -> Source {
        let none = String::new();
        Source::new(UpstreamConfig {
            prefix: prefix.into(),
            url: url.into(),
            ca_file: "".into(),
            user: none.clone(),
            password: none,
            password_file: "".into(),
        })
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for (host, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
        ] {
            assert_eq!(is_this_machine(host), plain, "{host}");
        }
    }

    #[test]
    fn prefixes_end_between_parts() {
        let team: Repository = "team/app".parse().unwrap();
        for (prefix, covers) in [
            ("r.lan", true),
            ("r.lan/team", true),
            ("r.lan/team/app", true),
            ("r.lan/tea", false),
            ("r.la", false),
            ("r.lan/team/app/x", false),
        ] {
            assert_eq!(source(prefix, "http://m").covers("r.lan", &team), covers, "{prefix}");
        }
    }

    #[test]
    fn a_mirror_may_keep_repositories_below_a_path() {
        let team: Repository = "team/app".parse().unwrap();
        for (url, there) in [
            ("https://m", "team/app"),
            ("https://m:1/", "team/app"),
            ("https://m/proxy/r/", "proxy/r/team/app"),
        ] {
            assert_eq!(source("r.lan", url).there(&team).unwrap().as_str(), there, "{url}");
        }
        assert_eq!(with_port("m", 443), "m:443");
        assert_eq!(with_port("m:5000", 443), "m:5000");
    }
}
