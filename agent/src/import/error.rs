//! Why a bundle was not imported: a word for status and events, a sentence for a person, and whether looking again is of use.

use tombolo_agent_core::accept::{Reason, Refusal};
use tombolo_api::Digest;
use tombolo_oci::{ArchiveError, ImageError, StoreError, UnpackError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{digest} in it has {actual} bytes, but should have {expected}")]
    WrongSize { digest: Digest, expected: u64, actual: u64 },
    #[error("it is for {}, this is {me}: make one with `tombolo bundle create --node {me}`", .nodes.join(", "))]
    OtherNodes { me: String, nodes: Vec<String> },
    #[error(
        "this node knows no key to verify it by: let it join its hub once, or set [import] trust to what \
         `tombolo-hub manifest-key` prints"
    )]
    NoKey,
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("image {image}: {reason}")]
    Image { image: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("it was broken off; the next import goes on from here")]
    Cancelled,
    #[error("the agent stops")]
    Stopped,
}

impl ImportError {
    /// One CamelCase word.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            _ if self.room_needed().is_some() => "DiskFull",
            Self::Archive(error) => match error {
                ArchiveError::Unreadable(_) => "BundleUnreadable",
                ArchiveError::NotABundle(_) => "NotABundle",
                ArchiveError::Truncated(_) => "BundleTruncated",
                ArchiveError::Corrupt(_) => "BlobDamaged",
                ArchiveError::TooLarge { .. } => "DocumentTooLarge",
                ArchiveError::Missing { .. } => "BlobMissing",
            },
            Self::WrongSize { .. } => "BlobDamaged",
            Self::OtherNodes { .. } => Reason::WrongNode.as_str(),
            Self::NoKey => "NoKey",
            Self::Refused(refusal) => refusal.reason.as_str(),
            Self::Image { .. } => "ImageInvalid",
            Self::Store(_) | Self::Unpack(_) => "ImageStoreFailed",
            Self::Cancelled => "Cancelled",
            Self::Stopped => "AgentStopped",
        }
    }

    /// Bytes that have to be free before the same may succeed, if it was room on the disk that was wanting; 0 where nobody knows.
    pub(super) fn room_needed(&self) -> Option<u64> {
        match self {
            Self::Store(error) => error.room_needed(),
            Self::Unpack(error) => error.room_needed(),
            _ => None,
        }
    }

    /// Whether the same bundle will never be taken by this node in the state it is in.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::OtherNodes { .. } => true,
            Self::Refused(refusal) => !is_passing(refusal.reason),
            _ => false,
        }
    }

    /// Whether the same file may be taken later though nobody touches it.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::NoKey | Self::Store(_) => true,
            Self::Refused(refusal) => is_passing(refusal.reason),
            error => error.room_needed().is_some(),
        }
    }
}

impl From<ImageError> for ImportError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Store(error) => Self::Store(error),
            ImageError::Malformed { digest, reason } => Self::Image { image: digest.to_string(), reason },
            error => Self::Image { image: "in it".into(), reason: error.to_string() },
        }
    }
}

fn is_passing(reason: Reason) -> bool {
    matches!(reason, Reason::DiskFull | Reason::StoreFailed | Reason::ObjectsMissing)
}
