//! The members of a bundle's tar: their names, their order, their 512-byte headers. Pure.
//!
//! Only what a bundle holds can be said: regular files of three kinds of names, in the plain `ustar` form, with every other
//! field fixed. So the same content is the same bytes, and whoever reads a header need not ask what a hostile one could mean.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

/// Headers and contents are padded to a multiple of this.
pub const BLOCK: usize = 512;

/// Two empty blocks end a tar.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

const BLOBS: &str = "blobs/sha256/";

/// Sizes from here on do not fit 11 octal digits and are written in base 256, as GNU tar does.
const OCTAL_MAX: u64 = 1 << 33;

/// One file of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// `oci-layout`: the first.
    Layout,
    /// `index.json`: the second.
    Index,
    Blob(Digest),
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Member {
        member: Member,
        size: u64,
    },
    /// An empty block: there are no more.
    End,
}

/// Why a header is not a bundle's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("its tar is damaged: the checksum of a header is wrong")]
    Checksum,
    #[error("it holds {0:?}, which has no place in a bundle")]
    Name(String),
    #[error("{0} in it is no plain file")]
    Kind(String),
    #[error("the size of {0} cannot be read")]
    Size(String),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout => f.write_str("oci-layout"),
            Self::Index => f.write_str("index.json"),
            Self::Blob(digest) => write!(f, "{BLOBS}{}", digest.hex()),
        }
    }
}

impl FromStr for Member {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, HeaderError> {
        let blob = || format!("sha256:{}", text.strip_prefix(BLOBS)?).parse().ok();
        match text {
            "oci-layout" => Ok(Self::Layout),
            "index.json" => Ok(Self::Index),
            _ => blob().map(Self::Blob).ok_or_else(|| HeaderError::Name(text.chars().take(100).collect())),
        }
    }
}

/// The header of a member.
pub fn header(member: &Member, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, member.to_string().as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < OCTAL_MAX {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Reads a header.
pub fn parse(block: &[u8; BLOCK]) -> Result<Header, HeaderError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Header::End);
    }
    if octal(&block[148..156]) != Some(checksum(block)) {
        return Err(HeaderError::Checksum);
    }
    let name = |field: &[u8]| String::from_utf8_lossy(until_nul(field)).into_owned();
    let (prefix, name) = (name(&block[345..500]), name(&block[..100]));
    if !prefix.is_empty() {
        return Err(HeaderError::Name(format!("{prefix}/{name}")));
    }
    if !matches!(block[156], b'0' | 0) {
        return Err(HeaderError::Kind(format!("{name:?}")));
    }
    let member: Member = name.parse()?;
    let size = match &block[124..136] {
        [0x80, 0, 0, 0, rest @ ..] => rest.try_into().ok().map(u64::from_be_bytes),
        field => octal(field),
    };
    let size = size.filter(|size| *size < 1 << 62).ok_or_else(|| HeaderError::Size(member.to_string()))?;
    Ok(Header::Member { member, size })
}

/// Bytes of a member with its header and what fills its last block.
pub fn span(size: u64) -> u64 {
    BLOCK as u64 + size + padding(size) as u64
}

/// Bytes that fill the last block of a content.
pub fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| u64::from_str_radix(text, 8).ok()).flatten()
}

/// The sum of all bytes, those of the checksum itself counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    all - own + 8 * u64::from(b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back() {
        for (member, size) in [
            (Member::Layout, 30),
            (Member::Index, 0),
            (Member::Blob(Digest::of(b"x")), OCTAL_MAX - 1),
            (Member::Blob(Digest::of(b"y")), OCTAL_MAX),
            (Member::Blob(Digest::of(b"z")), 1 << 61),
        ] {
            assert_eq!(parse(&header(&member, size)), Ok(Header::Member { member, size }));
        }
        assert_eq!(parse(&[0; BLOCK]), Ok(Header::End));
        assert_eq!((padding(0), padding(1), padding(512), span(513)), (0, 511, 0, 1536));
    }

    #[test]
    fn the_form_is_stable() {
        let digest = Digest::of(&header(&Member::Blob(Digest::of(b"x")), 513));
        assert_eq!(digest.short(), "947fdc302d37");
    }

    /// With a right checksum, as whoever means harm would make it.
    fn forged(change: impl FnOnce(&mut [u8; BLOCK])) -> [u8; BLOCK] {
        let mut block = header(&Member::Layout, 30);
        change(&mut block);
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[test]
    fn hostile_headers_are_refused() {
        let named = |name: &str| {
            let name = name.as_bytes().to_vec();
            forged(move |block| {
                block[..100].fill(0);
                block[..name.len()].copy_from_slice(&name);
            })
        };
        let hex = Digest::of(b"x").hex();
        for name in [
            "",
            "/etc/passwd",
            "../oci-layout",
            "./oci-layout",
            "blobs",
            "blobs/sha256/",
            "blobs/sha256/..",
            &format!("blobs/sha256/{}", hex.to_uppercase()),
            &format!("blobs/sha256/{}", &hex[1..]),
            &format!("blobs/sha256//{hex}"),
            &format!("blobs/sha512/{hex}"),
        ] {
            assert!(matches!(parse(&named(name)), Err(HeaderError::Name(_))), "{name}");
        }
        // Hard link, symbolic link, devices, directory, FIFO, contiguous, GNU's and pax's extensions, sparse.
        for kind in *b"1234567LKxgSVMN" {
            assert!(matches!(parse(&forged(|block| block[156] = kind)), Err(HeaderError::Kind(_))), "{kind}");
        }
        for size in [*b"-0000000001\0", *b"0000000000x\0", *b"99999999999\0", [0xff; 12], [0x80; 12]] {
            let block = forged(|block| block[124..136].copy_from_slice(&size));
            assert!(matches!(parse(&block), Err(HeaderError::Size(_))), "{size:?}");
        }
        assert!(matches!(parse(&forged(|block| block[345] = b'/')), Err(HeaderError::Name(_))));
        let mut damaged = header(&Member::Index, 7);
        damaged[130] ^= 1;
        assert_eq!(parse(&damaged), Err(HeaderError::Checksum));
    }
}
