//! Ids of hardware and patterns of text as they stand in the file.

use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use tombolo_device_sdk::machine::hex4;

/// `vendor:product`, four hexadecimal digits each; `*` stands for every product of a vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareId {
    pub vendor: u16,
    pub product: Option<u16>,
}

/// The beginning of a PCI class: two digits for a base class, four with its subclass, six with its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciClass(String);

/// A path below `/dev`, with `*`, `?` and `[…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevPath(Pattern);

/// A text with `*`, `?` and `[…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Pattern);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error(
        "{0:?} is no id of hardware: write vendor:product as lsusb and lspci show it, like \"1a6e:089a\" or \"1a6e:*\""
    )]
    Id(String),
    #[error(
        "{0:?} is no PCI class: write 2, 4 or 6 hexadecimal digits as lspci -n shows them, like \"03\" or \"0302\""
    )]
    Class(String),
    #[error("{0:?} is no path of devices: write one below /dev without .., like \"/dev/video*\"")]
    Path(String),
    #[error("{text:?} is no pattern: {why}; write text with *, ? and [abc]")]
    Glob { text: String, why: String },
}

impl HardwareId {
    pub fn covers(self, vendor: u16, product: u16) -> bool {
        self.vendor == vendor && self.product.is_none_or(|own| own == product)
    }
}

impl PciClass {
    /// `class` has six digits.
    pub fn covers(&self, class: &str) -> bool {
        class.starts_with(&self.0)
    }
}

impl DevPath {
    /// With the part below `/dev` alone.
    pub fn below_dev(&self) -> &str {
        self.0.as_str().strip_prefix("/dev/").unwrap_or_default()
    }

    /// Whether there is one such path only.
    pub fn is_literal(&self) -> bool {
        !self.0.as_str().contains(['*', '?', '['])
    }
}

impl Text {
    pub fn covers(&self, text: &str) -> bool {
        self.0.matches(text)
    }
}

fn pattern(text: &str) -> Result<Pattern, PatternError> {
    Pattern::new(text)
        .map_err(|error| PatternError::Glob { text: text.to_owned(), why: error.msg.to_owned() })
}

impl FromStr for HardwareId {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || PatternError::Id(text.to_owned());
        let (vendor, product) = text.split_once(':').ok_or_else(bad)?;
        let product = if product == "*" { None } else { Some(hex4(product).ok_or_else(bad)?) };
        Ok(Self { vendor: hex4(vendor).ok_or_else(bad)?, product })
    }
}

impl FromStr for PciClass {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = matches!(text.len(), 2 | 4 | 6) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if good { Ok(Self(text.to_ascii_lowercase())) } else { Err(PatternError::Class(text.to_owned())) }
    }
}

impl FromStr for DevPath {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let below = text.strip_prefix("/dev/").filter(|below| !below.is_empty());
        match below {
            Some(below) if below.split('/').all(|part| !matches!(part, "" | "." | ".." | "**")) => {
                pattern(text).map(Self)
            }
            _ => Err(PatternError::Path(text.to_owned())),
        }
    }
}

impl FromStr for Text {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        pattern(text).map(Self)
    }
}

impl fmt::Display for DevPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_hardware() {
        let id: HardwareId = "1a6e:089A".parse().unwrap();
        assert!(id.covers(0x1a6e, 0x089a) && !id.covers(0x1a6e, 0x089b) && !id.covers(0x1a6f, 0x089a));
        let all: HardwareId = "1a6e:*".parse().unwrap();
        assert!(all.covers(0x1a6e, 1) && !all.covers(1, 1));
        for bad in ["1a6e", "1a6e:", "1a6e:89a", "*:089a", "1a6e:089g", "+a6e:089a", "0x1a6e:089a"] {
            assert_eq!(bad.parse::<HardwareId>(), Err(PatternError::Id(bad.to_owned())));
        }
    }

    #[test]
    fn classes_of_pci() {
        let covers = |class: &str, whole: &str| class.parse::<PciClass>().unwrap().covers(whole);
        assert!(covers("03", "030200") && covers("0302", "030200") && covers("0B40", "0b4000"));
        assert!(!covers("0300", "030200"));
        for bad in ["", "3", "0x03", "030", "gg"] {
            assert_eq!(bad.parse::<PciClass>(), Err(PatternError::Class(bad.to_owned())));
        }
    }

    #[test]
    fn paths_stay_below_dev() {
        assert_eq!(
            "/dev/dri/renderD*".parse::<DevPath>().map(|it| it.below_dev().to_owned()).as_deref(),
            Ok("dri/renderD*")
        );
        assert!("/dev/kfd".parse::<DevPath>().unwrap().is_literal());
        for bad in ["/dev", "/dev/", "video0", "/dev/../etc/*", "/etc/passwd", "/dev//a", "/dev/**"] {
            assert_eq!(bad.parse::<DevPath>(), Err(PatternError::Path(bad.to_owned())));
        }
        assert!(matches!("/dev/[a".parse::<DevPath>(), Err(PatternError::Glob { .. })));
    }
}
