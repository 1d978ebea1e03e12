//! Who this node is: its key, and what its hub gave it at enrolment. Plain files, each written whole or not at all.
//!
//! `node.key` is the node's own ECDSA P-256 key, made once and kept for ever. `hub.json` is one enrolment, whole, so that a
//! power cut never leaves a mix of two; `node.crt` and `ca.crt` repeat parts of it for people and other programs.
//! Nothing here is in the store: a damaged store costs a resync, never the identity. It must not know the network, and an
//! expired certificate is a fact to report, never an error here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::VerifyingKey;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tombolo_api::NodeId;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// An enrolled node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The node's private key, PKCS #8 PEM.
    pub(crate) key_pem: String,
    pub(crate) enrolment: Enrolment,
}

/// What a hub gave a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enrolment {
    pub(crate) node: NodeId,
    /// The hub's node listener, `https://host:port`.
    pub(crate) hub_url: String,
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
    /// The hub's ed25519 public key, base64.
    pub(crate) manifest_key: String,
    /// `mqtts://host:port`.
    pub(crate) mqtt_url: String,
    /// `host:port` of the registry that `hub.tombolo` stands for.
    pub(crate) registry: String,
    /// Password for it; the user is the node's id.
    pub(crate) pull_token: String,
}

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot {act} {path}")]
    Io {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} cannot be read: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(
        "{dir} holds the identity of node {found}, this is {me}: use another state directory, or remove that one"
    )]
    OtherNode { dir: PathBuf, found: NodeId, me: NodeId },
}

/// The directory of one node's identity.
#[derive(Clone, Debug)]
pub(crate) struct IdentityDir {
    dir: PathBuf,
}

impl IdentityDir {
    /// `<state_dir>/identity`, made if absent.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, IdentityError> {
        let dir = state_dir.join("identity");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| IdentityError::Io { act: "create", path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// The identity, if the node has been enrolled as `me`.
    pub(crate) fn load(&self, me: &NodeId) -> Result<Option<Identity>, IdentityError> {
        let path = self.dir.join("hub.json");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let enrolment: Enrolment = serde_json::from_slice(&bytes)
            .map_err(|error| IdentityError::Malformed { path: path.clone(), reason: error.to_string() })?;
        if enrolment.node != *me {
            return Err(IdentityError::OtherNode {
                dir: self.dir.clone(),
                found: enrolment.node,
                me: me.clone(),
            });
        }
        let identity = Identity { key_pem: self.key()?, enrolment };
        identity.check().map_err(|reason| IdentityError::Malformed { path, reason })?;
        Ok(Some(identity))
    }

    /// The node's private key, made at the first call.
    pub(crate) fn key(&self) -> Result<String, IdentityError> {
        let path = self.dir.join("node.key");
        if let Some(bytes) = read(&path)? {
            return String::from_utf8(bytes)
                .map_err(|error| IdentityError::Malformed { path, reason: error.to_string() });
        }
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem();
        write_atomically(&path, pem.as_bytes(), 0o600).map_err(|source| IdentityError::Io {
            act: "write",
            path,
            source,
        })?;
        Ok(pem)
    }

    /// Keeps an enrolment; durable when it returns.
    pub(crate) fn save(&self, enrolment: &Enrolment) -> Result<(), IdentityError> {
        let json = serde_json::to_vec_pretty(enrolment).expect("an enrolment is plain data");
        for (name, bytes, mode) in [
            ("node.crt", enrolment.certificate_pem.as_bytes(), 0o644),
            ("ca.crt", enrolment.ca_pem.as_bytes(), 0o644),
            ("hub.json", json.as_slice(), 0o600),
        ] {
            let path = self.dir.join(name);
            write_atomically(&path, bytes, mode).map_err(|source| IdentityError::Io {
                act: "write",
                path,
                source,
            })?;
        }
        Ok(())
    }
}

impl Identity {
    /// The key whose manifests are believed.
    pub(crate) fn manifest_key(&self) -> VerifyingKey {
        parse_manifest_key(&self.enrolment.manifest_key).expect("checked when it was read")
    }

    /// When the certificate begins and ends to be valid, seconds since 1970 (UTC).
    pub(crate) fn validity_s(&self) -> (u64, u64) {
        validity_s(&self.enrolment.certificate_pem).expect("checked when it was read")
    }

    /// Whether a fresh certificate should be asked for: less than a third of its life is left.
    pub(crate) fn wants_renewal(&self, now_s: u64) -> bool {
        let (from, to) = self.validity_s();
        now_s > to.saturating_sub((to - from.min(to)) / 3)
    }

    fn check(&self) -> Result<(), String> {
        parse_manifest_key(&self.enrolment.manifest_key)?;
        validity_s(&self.enrolment.certificate_pem)?;
        CertificateDer::from_pem_slice(self.enrolment.ca_pem.as_bytes())
            .map_err(|error| error.to_string())?;
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// Reads a hub's public key.
pub(crate) fn parse_manifest_key(text: &str) -> Result<VerifyingKey, String> {
    let bytes = BASE64.decode(text).map_err(|error| format!("the manifest key is not base64: {error}"))?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| "the manifest key is not 32 bytes".to_owned())?;
    VerifyingKey::from_bytes(&bytes).map_err(|error| format!("the manifest key is none: {error}"))
}

/// When the certificate in `pem` begins and ends to be valid, seconds since 1970 (UTC).
pub(crate) fn validity_s(pem: &str) -> Result<(u64, u64), String> {
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| format!("no certificate: {error}"))?;
    let (_, certificate) =
        X509Certificate::from_der(&der).map_err(|error| format!("no certificate: {error}"))?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Ok((seconds(certificate.validity().not_before), seconds(certificate.validity().not_after)))
}

/// Replaces `path` by a file with `content`, on the disk when this returns: readers see the old file or the new one.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io { act: "read", path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolment(node: &str) -> Enrolment {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        let certificate = params.self_signed(&key).unwrap().pem();
        Enrolment {
            node: node.parse().unwrap(),
            hub_url: "https://127.0.0.1:7443".into(),
            certificate_pem: certificate.clone(),
            ca_pem: certificate,
            manifest_key: BASE64
                .encode(ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key().as_bytes()),
            mqtt_url: "mqtts://127.0.0.1:7883".into(),
            registry: "127.0.0.1:7443".into(),
            pull_token: "secret".into(),
        }
    }

    #[test]
    fn an_identity_reads_back_and_its_key_stays() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let me: NodeId = "press-7".parse().unwrap();
        let dir = IdentityDir::open(state.path()).unwrap();
        assert_eq!(dir.load(&me).unwrap(), None);
        let key = dir.key().unwrap();
        let enrolment = enrolment("press-7");
        dir.save(&enrolment).unwrap();
        let identity = IdentityDir::open(state.path()).unwrap().load(&me).unwrap().unwrap();
        assert_eq!(identity, Identity { key_pem: key, enrolment });
        for name in ["node.key", "hub.json"] {
            let mode = fs::metadata(state.path().join("identity").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let error = dir.load(&"press-8".parse().unwrap()).unwrap_err();
        assert!(matches!(error, IdentityError::OtherNode { .. }), "{error}");
    }

    #[test]
    fn a_stop_while_writing_leaves_the_old_one() {
        let state = tempfile::tempdir().unwrap();
        let me: NodeId = "press-7".parse().unwrap();
        let dir = IdentityDir::open(state.path()).unwrap();
        let old = enrolment("press-7");
        dir.save(&old).unwrap();
        // What a power cut leaves: a half-written temporary file, and the small certificates of the new enrolment.
        fs::write(state.path().join("identity/.hub.json.new"), b"{\"node\"").unwrap();
        fs::write(state.path().join("identity/node.crt"), b"new").unwrap();
        assert_eq!(dir.load(&me).unwrap().unwrap().enrolment, old);
    }

    #[test]
    fn renewal_is_wanted_in_the_last_third() {
        let identity = Identity { key_pem: String::new(), enrolment: enrolment("press-7") };
        let (from, to) = identity.validity_s();
        let life = to - from;
        for (now, wanted) in
            [(0, false), (from + life / 2, false), (from + life * 3 / 4, true), (to + life, true)]
        {
            assert_eq!(identity.wants_renewal(now), wanted, "{now}");
        }
    }
}
