//! How a node's rollouts are written for its store. Knows no store.

use serde::{Deserialize, Serialize};

use super::state::Track;
use super::{Rollouts, TargetKey};

/// Of the encoding. A higher one was written by a newer release.
const VERSION: u32 = 1;

/// Why stored rollouts cannot be gone on with: the newest revisions get all at once.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("the stored rollouts are no rollouts")]
    Malformed(#[source] serde_json::Error),
    #[error(
        "the stored rollouts have version {0}, this release reads {VERSION}: install the newer release again to go on with them"
    )]
    Version(u32),
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    targets: Vec<Target>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Target {
    target: TargetKey,
    track: Track,
}

impl Rollouts {
    /// Everything that a restart needs to go on.
    pub fn encode(&self) -> Vec<u8> {
        let targets = self.targets.iter();
        let targets =
            targets.map(|(target, track)| Target { target: target.clone(), track: track.clone() }).collect();
        serde_json::to_vec(&Stored { version: VERSION, targets }).expect("rollouts are plain data")
    }

    /// What [`Rollouts::encode`] wrote. A target whose shares do not add up is left out.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let header: Header = serde_json::from_slice(bytes).map_err(StoredError::Malformed)?;
        if header.version != VERSION {
            return Err(StoredError::Version(header.version));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(StoredError::Malformed)?;
        let valid = stored.targets.into_iter().filter(|target| target.track.is_valid());
        Ok(Self { targets: valid.map(|target| (target.target, target.track)).collect() })
    }
}
