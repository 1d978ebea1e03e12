//! How a node's rollouts are written for its store. Knows no store.

use serde::{Deserialize, Serialize};

use super::state::Track;
use super::{Rollouts, TargetKey};
use crate::stored::{self, StoredError};

/// Of the encoding. A higher one was written by a newer release.
const VERSION: u32 = 1;

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

    /// What [`Rollouts::encode`] wrote. A target whose shares do not add up is left out. Without it, the newest
    /// revisions get all at once.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let stored: Stored = stored::decode(bytes, VERSION)?;
        let valid = stored.targets.into_iter().filter(|target| target.track.is_valid());
        Ok(Self { targets: valid.map(|target| (target.target, target.track)).collect() })
    }
}
