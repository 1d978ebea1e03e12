//! The directory of the hub's keys: files written whole or not at all, made by one process at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::KeyPair;

use super::PkiError;

/// `<state_dir>/pki`, locked against other processes that would make the same files.
pub(super) struct Dir {
    dir: PathBuf,
    /// Held until this is dropped.
    _lock: File,
}

impl Dir {
    pub(super) fn open(state_dir: &Path) -> Result<Self, PkiError> {
        let dir = state_dir.join("pki");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| PkiError::Io { act: "create", path: dir.clone(), source })?;
        let path = dir.join(".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(|source| PkiError::Io { act: "open", path: path.clone(), source })?;
        lock.lock().map_err(|source| PkiError::Io { act: "lock", path, source })?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file's content, if there is such a file.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, PkiError> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PkiError::Io { act: "read", path, source }),
        }
    }

    /// The file's content, made first if there is none.
    pub(super) fn text_or(
        &self,
        name: &str,
        mode: u32,
        make: impl FnOnce() -> Result<String, PkiError>,
    ) -> Result<String, PkiError> {
        if let Some(text) = self.text(name)? {
            return Ok(text);
        }
        let text = make()?;
        self.write(name, text.as_bytes(), mode)?;
        Ok(text)
    }

    /// Like [`Dir::text_or`], for a secret of fixed length, kept as hexadecimal digits.
    pub(super) fn bytes_or<const N: usize>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<[u8; N], PkiError>,
    ) -> Result<[u8; N], PkiError> {
        let text = self.text_or(name, 0o600, || Ok(hex::encode(make()?)))?;
        let mut bytes = [0; N];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|error| PkiError::Malformed {
            path: self.path(name),
            reason: format!("expected {} hexadecimal digits: {error}", 2 * N),
        })?;
        Ok(bytes)
    }

    /// A private key, made first if there is none. `certificate` is what must not be there without the key.
    pub(super) fn key(&self, name: &str, certificate: &str) -> Result<KeyPair, PkiError> {
        if self.text(name)?.is_none() && self.text(certificate)?.is_some() {
            return Err(PkiError::NoKey { path: self.path(certificate) });
        }
        let pem = self.text_or(name, 0o600, || {
            Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem())
        })?;
        KeyPair::from_pem(&pem)
            .map_err(|error| PkiError::Malformed { path: self.path(name), reason: error.to_string() })
    }

    /// Replaces a file; durable when this returns.
    pub(super) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), PkiError> {
        let path = self.path(name);
        let temporary = self.path(&format!(".{name}.new"));
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| PkiError::Io { act: "write", path: path.clone(), source })
    }
}
