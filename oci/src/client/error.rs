//! Why a transfer failed, in words that end up in a condition: what is wrong, and what to do.

use crate::image::ImageError;
use crate::layer::UnpackError;
use crate::store::StoreError;

/// Why an image could not be resolved, pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("the registry has no {what}: push it, or correct its name")]
    NotFound { what: String },
    #[error("the registry does not give {what} to this client: check its user and password")]
    Unauthorized { what: String },
    #[error("the registry {address} cannot be reached: {cause}")]
    Unreachable { address: String, cause: String },
    #[error("the registry {address} shows a certificate that is not believed: {cause}")]
    Untrusted { address: String, cause: String },
    #[error("the registry {address} does not answer in time")]
    Timeout { address: String },
    #[error("the registry refused {what} with status {status}{}", if said.is_empty() { String::new() } else { format!(": {said}") })]
    Refused { what: String, status: u16, said: String },
    #[error("the transfer of {what} broke off: {cause}")]
    Interrupted { what: String, cause: String },
    #[error("the registry's answer for {what} is no good: {cause}")]
    Broken { what: String, cause: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("the download was paused")]
    Paused,
    #[error("no client can be made: {0}")]
    Client(String),
}

impl TransferError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            _ if self.is_disk_full() => "DiskFull",
            Self::NotFound { .. } => "ImageNotFound",
            Self::Unauthorized { .. } => "RegistryUnauthorized",
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Timeout { .. }
            | Self::Interrupted { .. } => "RegistryUnreachable",
            Self::Refused { .. } | Self::Broken { .. } => "RegistryRefused",
            Self::Image(ImageError::Platform { .. }) => "ImagePlatformMismatch",
            Self::Image(ImageError::Malformed { .. }) => "ImageInvalid",
            Self::Unpack(UnpackError::Store(_) | UnpackError::Write { .. }) => "ImageStoreFailed",
            Self::Unpack(_) => "ImageInvalid",
            Self::Store(StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. }) => {
                "ImageInvalid"
            }
            Self::Store(_) | Self::Image(ImageError::Store(_)) => "ImageStoreFailed",
            Self::Paused => "PullDeferred",
            Self::Client(_) => "RegistryUnusable",
        }
    }

    /// Whether the same may succeed in a moment, on the same link.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Timeout { .. }
            | Self::Interrupted { .. }
            | Self::Broken { .. } => true,
            Self::Refused { status, .. } => *status == 408 || *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Bytes that have to be free before the same may succeed, if it was room on the disk that was wanting; 0 where nobody knows.
    pub fn room_needed(&self) -> Option<u64> {
        match self {
            Self::Store(error) | Self::Image(ImageError::Store(error)) => error.room_needed(),
            Self::Unpack(error) => error.room_needed(),
            _ => None,
        }
    }

    /// Whether it was room on the disk that was wanting.
    pub fn is_disk_full(&self) -> bool {
        self.room_needed().is_some()
    }
}
