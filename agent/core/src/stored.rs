//! How what a node must not forget is read from its store: a version, and what it says of the rest. Knows no store.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why a record cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("the record is not what was written")]
    Malformed(#[source] serde_json::Error),
    #[error(
        "the record has version {found}, this release reads {read}: install the newer release again to go on with it"
    )]
    Version { found: u32, read: u32 },
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// A record in JSON whose `version` must be this one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], version: u32) -> Result<T, StoredError> {
    let header: Header = serde_json::from_slice(bytes).map_err(StoredError::Malformed)?;
    if header.version != version {
        return Err(StoredError::Version { found: header.version, read: version });
    }
    serde_json::from_slice(bytes).map_err(StoredError::Malformed)
}
