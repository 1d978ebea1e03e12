//! The certificate the router shows its clients: read from two PEM files, and read again when they change. Must not know
//! what is served with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::sync::watch;

/// How often it is looked whether the files have changed: a certificate is renewed days before it ends.
const LOOK: Duration = Duration::from_secs(30);

/// Why the files are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("{0} holds no certificate: it must be a PEM file, the server's own certificate first")]
    Empty(String),
    #[error(transparent)]
    Unusable(#[from] rustls::Error),
}

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// When the two were changed.
pub(crate) type Modified = (SystemTime, SystemTime);

impl Files {
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let unreadable = |path: &Path, reason: String| CertificateError::Unreadable {
            path: path.display().to_string(),
            reason,
        };
        let in_certificate =
            |error: rustls::pki_types::pem::Error| unreadable(&self.certificate, error.to_string());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&self.certificate).map_err(in_certificate)?.collect();
        let chain = chain.map_err(in_certificate)?;
        if chain.is_empty() {
            return Err(CertificateError::Empty(self.certificate.display().to_string()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| unreadable(&self.key, error.to_string()))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&key)?);
        certified.keys_match()?;
        Ok(tombolo_router::server_config(Arc::new(SingleCertAndKey::from(certified)))?)
    }

    /// Reads the files again whenever they have changed since they were `known`; runs for ever. A pair that is of no use leaves the
    /// one before.
    pub(crate) async fn follow(self, configs: watch::Sender<Arc<ServerConfig>>, mut known: Option<Modified>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Ok(modified) = self.modified() else { continue };
            if known == Some(modified) {
                continue;
            }
            match self.load() {
                Ok(config) => {
                    tracing::info!(certificate = %self.certificate.display(), "the router has a new certificate");
                    configs.send_replace(config);
                    known = Some(modified);
                }
                Err(error) => tracing::warn!(%error, "the router keeps its certificate"),
            }
        }
    }

    /// To be asked before they are loaded.
    pub(crate) fn modified(&self) -> io::Result<Modified> {
        let of = |path: &Path| std::fs::metadata(path)?.modified();
        Ok((of(&self.certificate)?, of(&self.key)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> Files {
        Files { certificate: dir.join("tls.crt"), key: dir.join("tls.key") }
    }

    fn write(files: &Files) {
        let made = rcgen::generate_simple_self_signed(vec!["hello.default.localhost".to_owned()]).unwrap();
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_pair_of_files_is_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        write(&files);
        assert_eq!(files.load().unwrap().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        assert!(files.load().unwrap_err().to_string().contains("tls.crt"));
        write(&files);
        std::fs::write(&files.certificate, "no PEM").unwrap();
        assert!(files.load().unwrap_err().to_string().contains("tls.crt holds no certificate"));
        write(&files);
        std::fs::remove_file(&files.key).unwrap();
        assert!(files.load().unwrap_err().to_string().contains("tls.key"));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        write(&files);
        let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        std::fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(matches!(files.load(), Err(CertificateError::Unusable(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        write(&files);
        let known = files.modified().ok();
        let configs = watch::Sender::new(files.load().unwrap());
        let mut seen = configs.subscribe();
        // However soon it was renewed.
        write(&files);
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::options().write(true).open(&files.key).unwrap().set_modified(later).unwrap();
        let task = tokio::spawn(files.clone().follow(configs, known));
        tokio::time::timeout(LOOK * 2, seen.changed()).await.unwrap().unwrap();
        task.abort();
    }
}
