//! Whether a manifest becomes this node's desired state: the generation rule. Pure; knows nothing of how manifests come.
//!
//! | incoming is | verdict |
//! |---|---|
//! | the manifest held, byte for byte | same: nothing to do |
//! | not signed by the trusted key, for another node, unreadable | refused |
//! | older than the one held | refused |
//! | of the same number as the one held, with other content | refused: two hubs, or a forged one |
//! | newer | accepted |

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};
use tombolo_api::manifest::{Manifest, ManifestError, SignedManifest, Version};
use tombolo_api::{Digest, NodeId};

/// The manifest a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: Version,
    /// Digest of the signed manifest's bytes.
    pub digest: Digest,
}

/// What to do with an incoming manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Fetch what is missing, write, then serve it.
    Accept(Manifest),
    /// It is the one held.
    Same,
    Refuse(Refusal),
}

/// Why a manifest is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// For a person.
    pub message: String,
}

/// The word for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    OlderGeneration,
    SameGenerationOtherContent,
    BadSignature,
    UnknownKey,
    WrongNode,
    Malformed,
    UnknownFormat,
    /// An object's content does not fit its entry, or cannot be read by this program.
    BadObject,
    /// Objects it names, or parts of itself, did not come in time.
    ObjectsMissing,
    /// The disk of the state directory is full; what is served stays.
    DiskFull,
    /// It cannot be written for another reason.
    StoreFailed,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OlderGeneration => "OlderGeneration",
            Self::SameGenerationOtherContent => "SameGenerationOtherContent",
            Self::BadSignature => "BadSignature",
            Self::UnknownKey => "UnknownKey",
            Self::WrongNode => "WrongNode",
            Self::Malformed => "Malformed",
            Self::UnknownFormat => "UnknownFormat",
            Self::BadObject => "BadObject",
            Self::ObjectsMissing => "ObjectsMissing",
            Self::DiskFull => "DiskFull",
            Self::StoreFailed => "StoreFailed",
        }
    }
}

/// Judges the signed manifest in `bytes`.
pub fn judge(held: Option<&Held>, bytes: &[u8], trusted: &VerifyingKey, me: &NodeId) -> Verdict {
    let digest = Digest::of(bytes);
    if held.is_some_and(|held| held.digest == digest) {
        return Verdict::Same;
    }
    let manifest = match SignedManifest::from_bytes(bytes).and_then(|signed| signed.verify(trusted, me)) {
        Ok(manifest) => manifest,
        Err(error) => return Verdict::Refuse(untrusted(&error)),
    };
    let Some(held) = held else { return Verdict::Accept(manifest) };
    let (new, old) = (manifest.version(), held.version);
    if new > old {
        return Verdict::Accept(manifest);
    }
    let (reason, how) = if new == old {
        (Reason::SameGenerationOtherContent, "has other content than the one held under the same number")
    } else {
        (Reason::OlderGeneration, "is older than the one held")
    };
    let message = format!(
        "the manifest (epoch {}, generation {}) {how} (epoch {}, generation {})",
        new.epoch, new.generation, old.epoch, old.generation
    );
    Verdict::Refuse(Refusal { reason, message })
}

fn untrusted(error: &ManifestError) -> Refusal {
    let reason = match error {
        ManifestError::Malformed(_) => Reason::Malformed,
        ManifestError::UnknownKey { .. } => Reason::UnknownKey,
        ManifestError::BadSignature => Reason::BadSignature,
        ManifestError::WrongNode { .. } => Reason::WrongNode,
        ManifestError::UnknownFormat(_) => Reason::UnknownFormat,
    };
    Refusal { reason, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use proptest::prelude::*;
    use tombolo_api::manifest::FORMAT;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn me() -> NodeId {
        "press-7".parse().unwrap()
    }

    fn manifest(epoch: u64, generation: u64) -> Manifest {
        Manifest { format: FORMAT, node: me(), generation, epoch, hub_time_s: 1_700_000_000, objects: vec![] }
    }

    fn bytes(manifest: &Manifest) -> Vec<u8> {
        SignedManifest::sign(manifest, &key()).to_bytes()
    }

    fn held(manifest: &Manifest) -> Held {
        Held { version: manifest.version(), digest: Digest::of(&bytes(manifest)) }
    }

    fn judge_mine(held: Option<&Held>, bytes: &[u8]) -> Result<Option<Manifest>, Reason> {
        match judge(held, bytes, &key().verifying_key(), &me()) {
            Verdict::Accept(manifest) => Ok(Some(manifest)),
            Verdict::Same => Ok(None),
            Verdict::Refuse(refusal) => Err(refusal.reason),
        }
    }

    #[test]
    fn newer_is_accepted_same_is_nothing_older_is_refused() {
        let now = manifest(1, 5);
        let mut resigned = now.clone();
        resigned.hub_time_s += 1;
        let table = [
            (None, now.clone(), Ok(Some(now.clone()))),
            (Some(&now), manifest(1, 6), Ok(Some(manifest(1, 6)))),
            (Some(&now), manifest(2, 1), Ok(Some(manifest(2, 1)))),
            (Some(&now), now.clone(), Ok(None)),
            (Some(&now), manifest(1, 4), Err(Reason::OlderGeneration)),
            (Some(&now), manifest(0, 9), Err(Reason::OlderGeneration)),
            (Some(&now), resigned, Err(Reason::SameGenerationOtherContent)),
        ];
        for (old, new, verdict) in table {
            assert_eq!(judge_mine(old.map(held).as_ref(), &bytes(&new)), verdict, "{old:?} then {new:?}");
        }
    }

    #[test]
    fn what_the_hub_did_not_sign_for_me_is_refused() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let mut foreign = manifest(1, 1);
        foreign.node = "press-8".parse().unwrap();
        let mut later = manifest(1, 1);
        later.format = FORMAT + 1;
        let forged = String::from_utf8(bytes(&manifest(1, 1)))
            .unwrap()
            .replace(r#"\"generation\":1"#, r#"\"generation\":2"#);
        let table = [
            (SignedManifest::sign(&manifest(1, 1), &other).to_bytes(), Reason::UnknownKey),
            (bytes(&foreign), Reason::WrongNode),
            (bytes(&later), Reason::UnknownFormat),
            (forged.into_bytes(), Reason::BadSignature),
            (bytes(&manifest(1, 1))[..60].to_vec(), Reason::Malformed),
            (vec![], Reason::Malformed),
        ];
        for (bytes, reason) in table {
            assert_eq!(judge_mine(None, &bytes), Err(reason));
        }
    }

    proptest! {
        /// Any order, any repetition: never goes back, ends at the newest, and the first of one number wins.
        #[test]
        fn replays_end_at_the_newest(sent in proptest::collection::vec((0u64..4, 0u64..6, 0u64..2), 1..40)) {
            let mut current: Option<(Held, Manifest)> = None;
            for (epoch, generation, hub_time_s) in &sent {
                let incoming = Manifest { hub_time_s: *hub_time_s, ..manifest(*epoch, *generation) };
                if let Ok(Some(accepted)) = judge_mine(current.as_ref().map(|(held, _)| held), &bytes(&incoming)) {
                    prop_assert!(current.as_ref().is_none_or(|(held, _)| accepted.version() > held.version));
                    current = Some((held(&accepted), accepted));
                }
            }
            let newest = sent.iter().map(|(epoch, generation, _)| (*epoch, *generation)).max().unwrap();
            let (_, last) = current.unwrap();
            prop_assert_eq!((last.epoch, last.generation), newest);
            let first = sent.iter().find(|(epoch, generation, _)| (*epoch, *generation) == newest).unwrap();
            prop_assert_eq!(last.hub_time_s, first.2);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(judge_mine(None, &bytes).is_err());
        }
    }
}
