//! Names of images: `host/repository:tag` and `host/repository@sha256:…`, checked by the distribution specification's
//! grammar.
//!
//! Must not know where a host is: [`HUB_HOST`] is a name, its address is the caller's.

use std::fmt;
use std::str::FromStr;

use tombolo_api::Digest;

/// The logical name under which the hub's own registry stands in image references, whatever its address.
pub const HUB_HOST: &str = "hub.tombolo";

/// The specification's bound of a repository name, so that it fits into a host's path beside the other parts.
const MAX_REPOSITORY: usize = 255;
/// The specification's bound of a tag.
const MAX_TAG: usize = 128;

/// A repository name: path components of lower-case letters and digits, with single separators inside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

/// A tag: a name for a manifest that can be moved to another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// Which manifest of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Tag(Tag),
    Digest(Digest),
}

/// An image by its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// Host and, where given, port.
    pub host: String,
    pub repository: Repository,
    pub target: Target,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error(
        "{0:?} is not a repository name: expected lower-case letters and digits, `.`, `_`, `-` between them, `/` between parts"
    )]
    Repository(String),
    #[error(
        "{0:?} is not a tag: expected up to 128 letters, digits, `_`, `.`, `-`, not starting with `.` or `-`"
    )]
    Tag(String),
    #[error("{0:?} has a malformed digest: expected `@sha256:` and 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error("{0:?} names no registry: expected `host/repository:tag` or `host/repository@sha256:…`")]
    Host(String),
}

impl Repository {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag that is meant when none is written.
    pub fn latest() -> Self {
        Self("latest".into())
    }
}

impl Target {
    /// The digest, where the image is named by one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Digest(digest) => Some(*digest),
            Self::Tag(_) => None,
        }
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() <= MAX_REPOSITORY && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(ReferenceError::Repository(excerpt(text)))
        }
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = (1..=MAX_TAG).contains(&text.len())
            && word(text.as_bytes()[0])
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if valid { Ok(Self(text.into())) } else { Err(ReferenceError::Tag(excerpt(text))) }
    }
}

impl FromStr for Target {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(|_| ReferenceError::Digest(excerpt(text)))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    /// A reference without tag or digest means `latest`; one with both means the digest.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (host, rest) = text.split_once('/').ok_or_else(|| ReferenceError::Host(excerpt(text)))?;
        if !(host.contains(['.', ':']) || host == "localhost")
            || host.contains(|c: char| c.is_whitespace() || c == '@')
        {
            return Err(ReferenceError::Host(excerpt(text)));
        }
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| ReferenceError::Digest(excerpt(text)))?))
            }
            None => (rest, None),
        };
        let (repository, tag) = match name.split_once(':') {
            Some((repository, tag)) => (repository, tag.parse()?),
            None => (name, Tag::latest()),
        };
        let target = digest.map_or(Target::Tag(tag), Target::Digest);
        Ok(Self { host: host.into(), repository: repository.parse()?, target })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|b| alphanumeric(*b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn excerpt(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names() {
        let digest = Digest::of(b"x");
        for (text, host, repository, target) in [
            ("hub.tombolo/hello", "hub.tombolo", "hello", "latest"),
            ("127.0.0.1:7080/a/b-c__d:v1.0_x", "127.0.0.1:7080", "a/b-c__d", "v1.0_x"),
            (&format!("localhost/x@{digest}"), "localhost", "x", &digest.to_string()),
            (&format!("r.io/x:v1@{digest}"), "r.io", "x", &digest.to_string()),
        ] {
            let read: ImageReference = text.parse().unwrap();
            assert_eq!(
                (read.host.as_str(), read.repository.as_str(), read.target.to_string().as_str()),
                (host, repository, target)
            );
        }
    }

    #[test]
    fn refuses_what_could_leave_a_directory() {
        for bad in [
            "",
            "..",
            "a/../b",
            "A",
            "a//b",
            "/a",
            "a/",
            "_tags",
            "a/_manifests",
            "a.",
            "a..b",
            "a___b",
            "a b",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a:b", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        for bad in ["hello", "docker/hello", "h.io/x@sha256:00", "h.io/", "@h.io/x"] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }
}
