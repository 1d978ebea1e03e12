//! How far a node's revisions are in taking the place of others, as it is written for its store. Knows no store.
//!
//! Times are left out: an agent that starts again gives a takeover that had begun its whole progress deadline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tombolo_api::report::RolledBack;
use tombolo_api::{Digest, RevisionKey};

use crate::actual::{RevisionActual, Takeover};
use crate::stored::{self, StoredError};

/// Of the encoding. A higher one was written by a newer release.
const VERSION: u32 = 1;

/// Takeovers that have begun and those that were undone, each of one object of its revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Takeovers(BTreeMap<RevisionKey, (Digest, State)>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum State {
    Begun,
    Undone(RolledBack),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    version: u32,
    takeovers: Vec<One>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct One {
    revision: RevisionKey,
    object: Digest,
    state: State,
}

impl Takeovers {
    /// Those of `revisions`.
    pub fn among(revisions: &BTreeMap<RevisionKey, RevisionActual>) -> Self {
        let of = |(key, known): (&RevisionKey, &RevisionActual)| {
            let state = match &known.takeover {
                Takeover::None => return None,
                Takeover::Begun { .. } => State::Begun,
                Takeover::Undone(why) => State::Undone(why.clone()),
            };
            Some((key.clone(), (known.object, state)))
        };
        Self(revisions.iter().filter_map(of).collect())
    }

    /// How far the revision is with this very object.
    pub fn of(&self, revision: &RevisionKey, object: &Digest) -> Takeover {
        match self.0.get(revision).filter(|(of, _)| of == object) {
            None => Takeover::None,
            Some((_, State::Begun)) => Takeover::Begun { started: None },
            Some((_, State::Undone(why))) => Takeover::Undone(why.clone()),
        }
    }

    /// Everything that a restart needs to go on.
    pub fn encode(&self) -> Vec<u8> {
        let one = |(revision, (object, state)): (&RevisionKey, &(Digest, State))| One {
            revision: revision.clone(),
            object: *object,
            state: state.clone(),
        };
        let stored = Stored { version: VERSION, takeovers: self.0.iter().map(one).collect() };
        serde_json::to_vec(&stored).expect("takeovers are plain data")
    }

    /// What [`Takeovers::encode`] wrote. Without it, those that had begun begin anew, and those that were undone are tried again.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let stored: Stored = stored::decode(bytes, VERSION)?;
        Ok(Self(stored.takeovers.into_iter().map(|one| (one.revision, (one.object, one.state))).collect()))
    }
}
