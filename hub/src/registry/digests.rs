//! How clients may name content: by its sha256, under which everything is kept, or by its sha512, another name of the same.
//!
//! Must not know what is kept.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;

/// Read from disk in pieces of this size.
const PIECE: usize = 64 * 1024;

/// The SHA-512 digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sha512([u8; 64]);

/// A digest as a client gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnyDigest {
    Sha256(Digest),
    Sha512(Sha512),
}

/// Why a text is not a digest.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a digest: expected `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits"
)]
pub(crate) struct AnyDigestError(String);

impl Sha512 {
    pub(super) fn of(content: &[u8]) -> Self {
        Self(sha2::Sha512::digest(content).into())
    }

    pub(super) fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl AnyDigest {
    /// The digits alone: fit for a file name, and as long as no other kind's.
    pub(super) fn hex(&self) -> String {
        match self {
            Self::Sha256(digest) => digest.hex(),
            Self::Sha512(digest) => digest.hex(),
        }
    }

    /// Whether this is `content`'s.
    pub(super) fn is_of(&self, content: &[u8]) -> bool {
        match self {
            Self::Sha256(digest) => *digest == Digest::of(content),
            Self::Sha512(digest) => *digest == Sha512::of(content),
        }
    }
}

/// Both digests of a file's content. Blocks.
pub(super) fn of_file(path: &Path) -> io::Result<(Digest, Sha512)> {
    let mut file = File::open(path)?;
    let (mut short, mut long) = (Sha256::new(), sha2::Sha512::new());
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((Digest::from_bytes(short.finalize().into()), Sha512(long.finalize().into())));
        }
        short.update(&piece[..read]);
        long.update(&piece[..read]);
    }
}

impl fmt::Display for Sha512 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha512:{}", self.hex())
    }
}

impl fmt::Debug for Sha512 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for AnyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Sha512(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Sha512 {
    type Err = AnyDigestError;

    fn from_str(text: &str) -> Result<Self, AnyDigestError> {
        let refuse = || AnyDigestError(text.chars().take(150).collect());
        let digits = text.strip_prefix("sha512:").ok_or_else(refuse)?;
        let mut bytes = [0; 64];
        if digits.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(digits, &mut bytes).is_err()
        {
            return Err(refuse());
        }
        Ok(Self(bytes))
    }
}

impl FromStr for AnyDigest {
    type Err = AnyDigestError;

    fn from_str(text: &str) -> Result<Self, AnyDigestError> {
        match text.parse() {
            Ok(digest) => Ok(Self::Sha256(digest)),
            Err(_) => text.parse().map(Self::Sha512),
        }
    }
}

impl From<Digest> for AnyDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_prints_and_nothing_else() {
        let (short, long) = (Digest::of(b"tombolo"), Sha512::of(b"tombolo"));
        for digest in [AnyDigest::Sha256(short), AnyDigest::Sha512(long)] {
            assert_eq!(digest.to_string().parse::<AnyDigest>().unwrap(), digest);
            assert!(digest.is_of(b"tombolo") && !digest.is_of(b"tombola"));
        }
        let hex = long.hex();
        for bad in [
            "",
            "sha512:",
            &hex,
            &format!("sha256:{hex}"),
            &format!("sha512:{}", short.hex()),
            &format!("sha512:{hex}00"),
            &format!("sha512:{}", hex.to_uppercase()),
        ] {
            assert!(bad.parse::<AnyDigest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_the_digests_of_its_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in [vec![], vec![7; PIECE + 1]] {
            std::fs::write(file.path(), &content).unwrap();
            assert_eq!(of_file(file.path()).unwrap(), (Digest::of(&content), Sha512::of(&content)));
        }
    }
}
