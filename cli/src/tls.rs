//! Whom to believe of servers that speak TLS: the authorities of a file, or else this machine's.
//!
//! Must not know who the servers are.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// What the command line says of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    pub(crate) ca_file: Option<PathBuf>,
}

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("--ca-file {path} cannot be read: {cause}", path = path.display())]
    Read { path: PathBuf, cause: pem::Error },
    #[error("--ca-file {path} holds no certificate", path = .0.display())]
    Empty(PathBuf),
    #[error("this machine has no certificates of authorities: name a file of them with --ca-file")]
    NoneHere,
}

impl Trust {
    /// Reads files.
    pub(crate) fn config(&self) -> Result<ClientConfig, TrustError> {
        let believed = match &self.ca_file {
            None => rustls_native_certs::load_native_certs().certs,
            Some(path) => CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|cause| TrustError::Read { path: path.clone(), cause })?,
        };
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(believed);
        if added == 0 {
            return Err(self.ca_file.clone().map_or(TrustError::NoneHere, TrustError::Empty));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3");
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: PathBuf| Trust { ca_file: Some(path) }.config().unwrap_err().to_string();
        assert!(said(dir.path().join("absent")).contains("cannot be read"));
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "words").unwrap();
        assert!(said(path.clone()).contains("holds no certificate"));
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, junk).unwrap();
        assert!(said(path).contains("holds no certificate"));
    }
}
