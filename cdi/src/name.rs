//! Names: `vendor/class=device`. What a name refers to is not known here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that breaks the rules for its part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("{0:?} is not of the form vendor/class=device")]
    Unqualified(String),
    #[error("{0:?} is not of the form vendor/class")]
    Kind(String),
    #[error(
        "{part} {name:?} has to start with a letter, end with a letter or digit, and hold only those, '_', '-' and '.'"
    )]
    VendorOrClass { part: &'static str, name: String },
    #[error(
        "device {0:?} has to start and end with a letter or digit, and hold only those, '_', '-', '.' and ':'"
    )]
    Device(String),
}

/// Whose devices, and which of theirs: `vendor/class`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kind {
    vendor: String,
    class: String,
}

impl Kind {
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    pub fn class(&self) -> &str {
        &self.class
    }

    /// The name of one of its devices.
    pub fn device(&self, device: DeviceName) -> QualifiedName {
        QualifiedName { kind: self.clone(), device }
    }
}

impl FromStr for Kind {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (vendor, class) = text.split_once('/').ok_or_else(|| InvalidName::Kind(text.to_owned()))?;
        for (part, name) in [("vendor", vendor), ("class", class)] {
            let starts = name.starts_with(|first: char| first.is_ascii_alphabetic());
            if !starts || !is_name(name, "_-.") {
                return Err(InvalidName::VendorOrClass { part, name: name.to_owned() });
            }
        }
        Ok(Self { vendor: vendor.to_owned(), class: class.to_owned() })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

/// The name of a device among those of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(String);

impl DeviceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let starts = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        if starts && is_name(text, "_-.:") {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Device(text.to_owned()))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device as it is asked for: `vendor/class=device`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct QualifiedName {
    pub kind: Kind,
    pub device: DeviceName,
}

impl FromStr for QualifiedName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (kind, device) = text.split_once('=').ok_or_else(|| InvalidName::Unqualified(text.to_owned()))?;
        Ok(Self { kind: kind.parse()?, device: device.parse()? })
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    )*};
}

as_text!(Kind, DeviceName, QualifiedName);

/// Letters, digits and `extra`, the last a letter or digit.
fn is_name(name: &str, extra: &str) -> bool {
    name.ends_with(|last: char| last.is_ascii_alphanumeric())
        && name.chars().all(|each| each.is_ascii_alphanumeric() || extra.contains(each))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qualified_name_is_read_and_written_as_one() {
        for text in [
            "nvidia.com/gpu=0",
            "nvidia.com/gpu=GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c",
            "nvidia.com/gpu=0:1",
            "vendor.com/class.sub=a_b-c.d:e",
            "v/c=d",
        ] {
            assert_eq!(text.parse::<QualifiedName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_that_breaks_a_rule_is_refused_with_its_part() {
        let refused = |text: &str| text.parse::<QualifiedName>().unwrap_err().to_string();
        for (text, said) in [
            ("", "not of the form vendor/class=device"),
            ("/dev/null", "not of the form vendor/class=device"),
            ("gpu=0", "not of the form vendor/class"),
            ("/gpu=0", "vendor \"\""),
            ("vendor.com/=0", "class \"\""),
            ("vendor.com/gpu=", "device \"\""),
            ("1vendor.com/gpu=0", "vendor \"1vendor.com\""),
            ("vendor.com-/gpu=0", "vendor \"vendor.com-\""),
            ("vendor.com/1gpu=0", "class \"1gpu\""),
            ("vendor.com/gpu_=0", "class \"gpu_\""),
            ("vendor.com/a/b=0", "class \"a/b\""),
            ("vendor.com/gpu=-0", "device \"-0\""),
            ("vendor.com/gpu=0:", "device \"0:\""),
            ("vendor.com/gpu=0 1", "device \"0 1\""),
            ("vendor.com/gpu=0=1", "device \"0=1\""),
            ("vendör.com/gpu=0", "vendor \"vendör.com\""),
        ] {
            assert!(refused(text).contains(said), "{text}: {}", refused(text));
        }
    }
}
