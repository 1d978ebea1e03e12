//! Names of resources, as Kubernetes names extended resources, and of the sockets at which they are served.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The longest domain, as DNS has it.
const DOMAIN_CHARS_MAX: usize = 253;

/// The longest part of a domain, as DNS has it.
const LABEL_CHARS_MAX: usize = 63;

/// The longest name after the domain, as Kubernetes has it.
const NAME_CHARS_MAX: usize = 63;

/// The longest socket name made of a resource's whole name. A socket's path ends at 107 bytes, and the directory is in it.
const SOCKET_STEM_CHARS_MAX: usize = 50;

/// Bytes of the digest that stands for the end of a longer name: two resources of one node never share them by chance.
const SOCKET_DIGEST_BYTES: usize = 6;

/// `vendor-domain/name`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceNameError {
    #[error("{0:?} names no resource: write vendor-domain/name, like \"example.com/camera\"")]
    NoDomain(String),
    #[error(
        "the domain of {0:?} is none: write lower-case letters, digits, - and . before the /, like \"example.com/camera\""
    )]
    BadDomain(String),
    #[error(
        "the name of {0:?} is none: write at most {NAME_CHARS_MAX} letters, digits, -, _ and . after the /, beginning and \
         ending with a letter or digit, like \"example.com/camera\""
    )]
    BadName(String),
    #[error(
        "{0:?} is in a domain that is Kubernetes' own: write a domain of yours, like \"example.com/camera\""
    )]
    Reserved(String),
}

impl ResourceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The socket of this resource in the plugins' directory.
    pub fn socket(&self) -> String {
        let stem = self.0.replacen('/', "_", 1);
        if stem.len() <= SOCKET_STEM_CHARS_MAX {
            return format!("{stem}.sock");
        }
        let digest = Sha256::digest(&stem);
        let end: String = digest.iter().take(SOCKET_DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{end}.sock", &stem[..SOCKET_STEM_CHARS_MAX - 2 * SOCKET_DIGEST_BYTES - 1])
    }
}

impl FromStr for ResourceName {
    type Err = ResourceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let own = || text.to_owned();
        let (domain, name) = text.split_once('/').ok_or_else(|| ResourceNameError::NoDomain(own()))?;
        let ends = |text: &str| {
            text.starts_with(|end: char| end.is_ascii_alphanumeric())
                && text.ends_with(|end: char| end.is_ascii_alphanumeric())
        };
        let label = |label: &str| {
            label.len() <= LABEL_CHARS_MAX
                && ends(label)
                && label.chars().all(|char| matches!(char, 'a'..='z' | '0'..='9' | '-'))
        };
        if domain.len() > DOMAIN_CHARS_MAX || !domain.split('.').all(label) {
            return Err(ResourceNameError::BadDomain(own()));
        }
        let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
        if name.len() > NAME_CHARS_MAX || !ends(name) || !name.chars().all(plain) {
            return Err(ResourceNameError::BadName(own()));
        }
        if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") {
            return Err(ResourceNameError::Reserved(own()));
        }
        Ok(Self(own()))
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_kubernetes_has_them() {
        let long = format!("example.com/{}", "a".repeat(63));
        for good in
            ["nvidia.com/gpu", "google.com/edgetpu", "tombolo.dev/gpu-memory", "a/b", "a.b-c.d/X_9.z", &long]
        {
            assert_eq!(good.parse::<ResourceName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        let own = |text: &str| text.to_owned();
        for (bad, error) in [
            ("camera", ResourceNameError::NoDomain(own("camera"))),
            ("", ResourceNameError::NoDomain(own(""))),
            ("Example.com/camera", ResourceNameError::BadDomain(own("Example.com/camera"))),
            ("/camera", ResourceNameError::BadDomain(own("/camera"))),
            ("a..b/camera", ResourceNameError::BadDomain(own("a..b/camera"))),
            ("example.com/", ResourceNameError::BadName(own("example.com/"))),
            ("example.com/a/b", ResourceNameError::BadName(own("example.com/a/b"))),
            ("example.com/-a", ResourceNameError::BadName(own("example.com/-a"))),
            ("node.kubernetes.io/a", ResourceNameError::Reserved(own("node.kubernetes.io/a"))),
        ] {
            assert_eq!(bad.parse::<ResourceName>(), Err(error.clone()));
            assert!(error.to_string().contains("example.com/camera"), "{error}");
        }
        assert!(format!("{long}a").parse::<ResourceName>().is_err());
    }

    #[test]
    fn sockets_are_short_and_of_one_resource() {
        let socket = |text: &str| text.parse::<ResourceName>().unwrap().socket();
        assert_eq!(socket("nvidia.com/gpu"), "nvidia.com_gpu.sock");
        let long = "a.very.long.domain.of.a.vendor.example.com/with-a-long-name";
        let (one, other) = (socket(&format!("{long}-1")), socket(&format!("{long}-2")));
        assert_ne!(one, other);
        assert!(one.len() <= SOCKET_STEM_CHARS_MAX + ".sock".len(), "{one}");
        assert!(one.starts_with("a.very.long.domain.of.a.vendor"), "{one}");
    }
}
