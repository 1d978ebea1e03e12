//! The hub's identity: its certificate authority, its own certificates, the join token and the key that signs manifests.
//!
//! All of it is plain files in `<state_dir>/pki`, made at the first call and never lost with a damaged store:
//!
//! | file | what |
//! |---|---|
//! | `ca.key`, `ca.crt` | the authority every certificate of this hub's fleet comes from |
//! | `server.key`, `server.crt` | for the node listener and the broker: `hub.tombolo`, certificate and authority in one chain |
//! | `client.key`, `client.crt` | the hub as a client of its broker: common name `hub.tombolo` |
//! | `manifest.key` | the ed25519 key that signs manifests |
//! | `join-token` | what a new node must show: `tombolo1.<digest of the authority>.<secret>` |
//!
//! Knows no socket and no store. Which node may have which key is decided elsewhere; here it is only signed.

mod certificate;
mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::SigningKey;
use rcgen::{Issuer, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tombolo_api::{Digest, NodeId};

pub(crate) use certificate::{CsrError, NodeCertificate, Peer};

use crate::pki::certificate::Own;
use crate::pki::files::Dir;

/// The name in the hub's certificates, whatever its address: so a hub can move. Not a DNS label, so no node can have it.
pub(crate) const HUB_NAME: &str = "hub.tombolo";

/// What a join token starts with; says which form it has.
const TOKEN_FORM: &str = "tombolo1";

/// The hub's keys and certificates, in memory.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
    ca_pem: String,
    server: Own,
    client: Own,
    manifest_key: SigningKey,
    secret: String,
}

/// Why the hub's identity could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    #[error("cannot {act} {path}")]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} cannot be read: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "{path} exists without ca.key: restore the key, or remove the directory and enrol every node anew"
    )]
    NoKey { path: PathBuf },
    #[error("cannot make a key or certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot use the hub's certificates")]
    Tls(#[from] rustls::Error),
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

impl Pki {
    /// Opens `<state_dir>/pki`; makes what is absent, and the hub's own certificates anew when they end soon.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, PkiError> {
        let dir = Dir::open(state_dir)?;
        let key = dir.key("ca.key", "ca.crt")?;
        let ca_pem = dir.text_or("ca.crt", 0o644, || Ok(certificate::authority(&key)?.pem()))?;
        let malformed = |reason: String| PkiError::Malformed { path: dir.path("ca.crt"), reason };
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|error| malformed(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&ca, key)?;
        let manifest_key = dir.bytes_or("manifest.key", random::<32>)?;
        let secret = dir.text_or("join-token", 0o600, || {
            Ok(format!("{TOKEN_FORM}.{}.{}\n", Digest::of(&ca).hex(), hex::encode(random::<16>()?)))
        })?;
        Ok(Self {
            server: certificate::own(&dir, "server", certificate::server_params(), &issuer, &ca_pem)?,
            client: certificate::own(&dir, "client", certificate::client_params(), &issuer, &ca_pem)?,
            manifest_key: SigningKey::from_bytes(&manifest_key),
            secret: secret.trim().to_owned(),
            issuer,
            ca,
            ca_pem,
        })
    }

    /// What a new node needs, to be passed on out of band: it names the hub's authority, so the node trusts no other.
    pub(crate) fn join_token(&self) -> &str {
        &self.secret
    }

    /// Whether `token` is the join token. Takes equally long for every wrong one.
    pub(crate) fn accepts(&self, token: &str) -> bool {
        same_secret(token.trim(), &self.secret)
    }

    /// The authority's certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(crate) fn manifest_key(&self) -> &SigningKey {
        &self.manifest_key
    }

    /// The public half, as nodes are given it.
    pub(crate) fn manifest_key_base64(&self) -> String {
        BASE64.encode(self.manifest_key.verifying_key().as_bytes())
    }

    /// Signs a node's request for a year. Everything in it but the key is replaced.
    pub(crate) fn sign(&self, node: &NodeId, csr_pem: &str) -> Result<NodeCertificate, CsrError> {
        certificate::sign(&self.issuer, node, csr_pem)
    }

    /// TLS for the node listener: nodes say who they are within.
    pub(crate) fn node_listener(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let config = server_builder()?.with_no_client_auth();
        Ok(Arc::new(config.with_single_cert(self.server.chain.clone(), self.server.key.clone_key())?))
    }

    /// TLS for the broker: only certificates of this authority get in.
    pub(crate) fn broker(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = server_builder()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.server.chain.clone(), self.server.key.clone_key())?;
        // Every connection is verified anew, and the memory of thousands of sessions is saved.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// TLS for the hub as a client of its broker.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.client.chain.clone(), self.client.key.clone_key())?;
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(Arc::new(roots))
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("authority", &Digest::of(&self.ca)).finish_non_exhaustive()
    }
}

/// Whether two secrets are the same, in a time that does not depend on where they differ.
pub(crate) fn same_secret(a: &str, b: &str) -> bool {
    let (a, b) = (Digest::of(a.as_bytes()).hex(), Digest::of(b.as_bytes()).hex());
    let differing = a.bytes().zip(b.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b));
    std::hint::black_box(differing) == 0
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(PkiError::Random)?;
    Ok(bytes)
}

fn server_builder() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, PkiError> {
    let provider = Arc::new(ring::default_provider());
    Ok(ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

/// A private key and its chain, as rustls takes them.
fn parse_own(chain_pem: &str, key_pem: &str) -> Result<Own, String> {
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| error.to_string())?;
    Ok(Own { chain, key })
}

#[cfg(test)]
mod tests;
