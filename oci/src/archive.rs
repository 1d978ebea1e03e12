//! A bundle's file, opened: what is inside and where, without having read more than headers and `index.json`.
//!
//! Nothing of it is believed. Sizes bound what is read, names are parsed and never used as paths, every content is verified by
//! whoever named its digest. A file that ends too early is as good as what is there of it. All calls block.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use tombolo_api::Digest;
use tombolo_api::bundle::member::{self, BLOCK, Header};
use tombolo_api::bundle::{INDEX_MAX, Index, LAYOUT, MEMBERS_MAX, Member};

/// Why a file, or something in it, cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it cannot be read ({0}): plug the medium in again, or copy the file anew")]
    Unreadable(#[from] io::Error),
    #[error("it is no bundle: {0}; make one with `tombolo bundle create`")]
    NotABundle(String),
    #[error("it ends within or before {0}: copy the file anew; what was taken of it is kept")]
    Truncated(Digest),
    #[error("{0} in it is damaged: copy the file anew; nothing of that blob was taken")]
    Corrupt(Digest),
    #[error("{digest} in it has {size} bytes, a document has at most {limit}")]
    TooLarge { digest: Digest, size: u64, limit: u64 },
    #[error("{digest} is not in it{}", lacking(.base.as_deref()))]
    Missing { digest: Digest, base: Option<String> },
}

/// An opened bundle.
#[derive(Debug)]
pub struct Archive {
    file: File,
    /// Position and size of every blob whose header is there.
    blobs: BTreeMap<Digest, (u64, u64)>,
    pub index: Index,
    /// Digest of `index.json`, which names this very bundle.
    pub id: Digest,
    /// Whether the tar's end was found.
    is_whole: bool,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        // What is no file must not make the agent wait for somebody to write into it.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(ArchiveError::NotABundle("it is no file".into()));
        }
        let mut at = 0;
        let layout = content(&file, &mut at, Member::Layout, LAYOUT.len() as u64)?;
        if layout != LAYOUT.as_bytes() {
            return Err(ArchiveError::NotABundle("its oci-layout is another one".into()));
        }
        let index = content(&file, &mut at, Member::Index, INDEX_MAX)?;
        let id = Digest::of(&index);
        let index: Index = serde_json::from_slice(&index)
            .map_err(|error| ArchiveError::NotABundle(format!("its index.json cannot be read: {error}")))?;
        if index.nodes().is_empty() {
            return Err(ArchiveError::NotABundle("it is an image layout without a node's manifest".into()));
        }
        let mut blobs = BTreeMap::new();
        let is_whole = loop {
            match header(&file, at)? {
                None => break false,
                Some(Header::End) => break true,
                Some(Header::Member { member: Member::Blob(digest), size }) => {
                    if blobs.len() >= MEMBERS_MAX {
                        return Err(ArchiveError::NotABundle(format!(
                            "it has more than {MEMBERS_MAX} blobs"
                        )));
                    }
                    if blobs.insert(digest, (at + BLOCK as u64, size)).is_some() {
                        return Err(ArchiveError::NotABundle(format!("it has {digest} twice")));
                    }
                    at = at.saturating_add(member::span(size));
                }
                Some(Header::Member { member, .. }) => {
                    return Err(ArchiveError::NotABundle(format!("it has {member} where a blob should be")));
                }
            }
        };
        Ok(Self { file, blobs, index, id, is_whole })
    }

    /// How large a blob is by its header; `None` if it is not there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|(_, size)| *size)
    }

    /// Every blob with its size.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, u64)> {
        self.blobs.iter().map(|(digest, (_, size))| (*digest, *size))
    }

    /// Whether the file ends where a bundle does.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Why a blob that somebody wants is not there.
    pub fn lacks(&self, digest: &Digest) -> ArchiveError {
        if !self.is_whole {
            return ArchiveError::Truncated(*digest);
        }
        ArchiveError::Missing { digest: *digest, base: self.index.base().map(str::to_owned) }
    }

    /// A small blob, verified.
    pub fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let (at, size) = *self.blobs.get(digest).ok_or_else(|| self.lacks(digest))?;
        if size > limit {
            return Err(ArchiveError::TooLarge { digest: *digest, size, limit });
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut content, at).map_err(|error| cut(error, digest))?;
        if Digest::of(&content) != *digest {
            return Err(ArchiveError::Corrupt(*digest));
        }
        Ok(content)
    }

    /// Reads a piece of a blob from `position` on; not verified. At least one byte, unless the blob ends there.
    pub fn read(&self, digest: &Digest, position: u64, piece: &mut [u8]) -> Result<usize, ArchiveError> {
        let (at, size) = *self.blobs.get(digest).ok_or_else(|| self.lacks(digest))?;
        let left = usize::try_from(size.saturating_sub(position)).unwrap_or(usize::MAX);
        let most = piece.len().min(left);
        loop {
            match self.file.read_at(&mut piece[..most], at + position) {
                Ok(0) if most > 0 => return Err(ArchiveError::Truncated(*digest)),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The content of the member that must stand at `at`; afterwards `at` is behind it.
fn content(file: &File, at: &mut u64, wanted: Member, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    match header(file, *at)? {
        Some(Header::Member { member, size }) if member == wanted && size <= limit => {
            let mut content = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut content, *at + BLOCK as u64).map_err(|error| early(error, wanted))?;
            *at += member::span(size);
            Ok(content)
        }
        Some(Header::Member { member, .. }) if member != wanted => {
            Err(ArchiveError::NotABundle(format!("it has {member} where {wanted} should be")))
        }
        Some(_) => {
            Err(ArchiveError::NotABundle(format!("its {wanted} is missing or longer than {limit} bytes")))
        }
        None => Err(ArchiveError::NotABundle(format!("it ends before its {wanted}"))),
    }
}

/// The header at a position; `None` where the file ends.
fn header(file: &File, at: u64) -> Result<Option<Header>, ArchiveError> {
    let mut block = [0; BLOCK];
    match file.read_exact_at(&mut block, at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    member::parse(&block).map(Some).map_err(|error| ArchiveError::NotABundle(error.to_string()))
}

fn early(error: io::Error, member: Member) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::NotABundle(format!("it ends within its {member}")),
        _ => error.into(),
    }
}

fn cut(error: io::Error, digest: &Digest) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated(*digest),
        _ => error.into(),
    }
}

fn lacking(base: Option<&str>) -> String {
    match base {
        Some(base) => format!(
            ", which goes on from the bundle {}: import that one first, or make one without --without-images-of",
            base.get(..19).unwrap_or(base)
        ),
        None => ", nor on this node: make the bundle anew".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_api::bundle::{Descriptor, MANIFEST_TYPE, NODE};

    type Blobs = BTreeMap<Digest, Vec<u8>>;

    fn tar(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (member, content) in members {
            bytes.extend(member::header(member, content.len() as u64));
            bytes.extend(content);
            bytes.extend(vec![0; member::padding(content.len() as u64)]);
        }
        bytes.extend(member::END);
        bytes
    }

    fn bundle() -> (Vec<u8>, Blobs) {
        let blobs: Blobs =
            [&b"manifest"[..], &[7; 700], b""].map(|content| (Digest::of(content), content.to_vec())).into();
        let manifest = Descriptor {
            media_type: MANIFEST_TYPE.into(),
            digest: Digest::of(b"manifest"),
            size: 8,
            annotations: BTreeMap::from([(NODE.to_owned(), "a".to_owned())]),
        };
        let mut members =
            vec![(Member::Layout, LAYOUT.into()), (Member::Index, Index::new([manifest], None).to_bytes())];
        members.extend(blobs.iter().map(|(digest, content)| (Member::Blob(*digest), content.clone())));
        (tar(&members), blobs)
    }

    fn open(bytes: &[u8]) -> Result<Archive, ArchiveError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Archive::open(file.path())
    }

    #[test]
    fn finds_what_is_inside_however_much_is_there() {
        let (whole, blobs) = bundle();
        for cut in (0..=whole.len()).step_by(13) {
            let archive = match open(&whole[..cut]) {
                Ok(archive) => archive,
                Err(error) => {
                    assert!(matches!(error, ArchiveError::NotABundle(_)), "{cut}: {error}");
                    continue;
                }
            };
            // What the headers say is whole or said to be cut off, never anything else.
            for (digest, content) in &blobs {
                match archive.document(digest, 1 << 20) {
                    Ok(found) => assert_eq!(found, *content),
                    Err(error) => assert!(matches!(error, ArchiveError::Truncated(_)), "{cut}: {error}"),
                }
            }
        }
        let archive = open(&whole).unwrap();
        assert!(archive.is_whole);
        let absent = Digest::of(b"absent");
        assert!(matches!(archive.document(&absent, 1), Err(ArchiveError::Missing { .. })));
        let large = Digest::of(&[7; 700]);
        assert!(matches!(archive.document(&large, 1), Err(ArchiveError::TooLarge { .. })));
    }

    #[test]
    fn hostile_files_are_refused() {
        let layout = || (Member::Layout, LAYOUT.as_bytes().to_vec());
        let (whole, blobs) = bundle();
        let index = {
            let archive = open(&whole).unwrap();
            (Member::Index, archive.index.to_bytes())
        };
        let some: Vec<_> =
            blobs.iter().map(|(digest, content)| (Member::Blob(*digest), content.clone())).collect();
        let many = |parts: Vec<Vec<(Member, Vec<u8>)>>| tar(&parts.concat());
        let huge = [member::header(&Member::Layout, 1 << 60).to_vec(), vec![0; 1024]].concat();
        let mut far = tar(&[layout(), index.clone()]);
        far.truncate(far.len() - 1024);
        far.extend(member::header(&Member::Blob(Digest::of(b"x")), 1 << 61));
        for (what, bytes, named) in [
            ("empty", vec![], "ends before"),
            ("zeros", vec![0; 4096], "oci-layout"),
            ("text", b"hello".repeat(300), "checksum"),
            ("no index", tar(&[layout()]), "index.json is missing"),
            ("the wrong order", tar(&[index.clone(), layout()]), "index.json where oci-layout"),
            ("another layout", tar(&[(Member::Layout, b"{}".to_vec()), index.clone()]), "oci-layout"),
            ("a huge layout", huge, "longer than"),
            ("no JSON", tar(&[layout(), (Member::Index, b"{".to_vec())]), "cannot be read"),
            (
                "an image alone",
                tar(&[layout(), (Member::Index, br#"{"schemaVersion":2,"manifests":[]}"#.to_vec())]),
                "without a node's manifest",
            ),
            ("an index twice", tar(&[layout(), index.clone(), index.clone()]), "index.json where a blob"),
            ("a blob twice", many(vec![vec![layout(), index.clone()], some.clone(), some]), "twice"),
        ] {
            let error = open(&bytes).unwrap_err();
            assert!(matches!(error, ArchiveError::NotABundle(_)), "{what}: {error}");
            assert!(error.to_string().contains(named), "{what}: {error}");
        }
        // A size beyond the file is a file that is not whole.
        let archive = open(&far).unwrap();
        let mut piece = [0; 8];
        assert!(matches!(archive.read(&Digest::of(b"x"), 0, &mut piece), Err(ArchiveError::Truncated(_))));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("a.tombolo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        assert!(matches!(Archive::open(&fifo), Err(ArchiveError::NotABundle(_))));
        assert!(matches!(Archive::open(dir.path()), Err(ArchiveError::NotABundle(_))));
        assert!(matches!(Archive::open(&dir.path().join("absent")), Err(ArchiveError::Unreadable(_))));
    }
}
