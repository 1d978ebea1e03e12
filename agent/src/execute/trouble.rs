//! Why an action failed, in words for the status. Does nothing about it.

use std::io;
use std::path::Path;

use tombolo_oci::StoreError;

/// Why an action failed: for the status, as every refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// One CamelCase word.
    pub(crate) reason: String,
    /// What happened and what to do.
    pub(crate) message: String,
}

impl Trouble {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    /// An error of the node's file system.
    pub(super) fn of_io(act: &str, path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::disk_full(path),
            _ => Self::new("StorageFailed", format!("cannot {act} {}: {error}", path.display())),
        }
    }

    pub(super) fn disk_full(path: &Path) -> Self {
        let message = StoreError::DiskFull { path: path.to_owned() }.to_string();
        Self::new("DiskFull", format!("{message}; what runs goes on"))
    }
}
