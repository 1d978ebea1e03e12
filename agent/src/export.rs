//! The accepted manifest and its objects in one file, `desired.export`: a node boots offline from it after a store that had
//! to start empty. Written after each acceptance, read when the store has nothing or something older.
//!
//! Form: a line that names it, the manifest's size as 8 bytes (big endian), the manifest as signed, then the objects' bytes
//! in the manifest's order and sizes. Not trusted: whoever reads it verifies signature and digests.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tombolo_api::Digest;
use tombolo_api::frame::CONTENT_MAX;
use tombolo_api::manifest::ENTRIES_MAX;

use crate::accepted::unverified;
use crate::identity::write_atomically;
use crate::keep::Kept;

const MAGIC: &[u8] = b"tombolo desired state 1\n";

/// Largest file read: ten times what a manifest of the most entries has in practice.
const FILE_MAX: u64 = ENTRIES_MAX as u64 * 16 * 1024;

/// Where the export lies.
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("desired.export")
}

/// Replaces the export; on the disk when this returns.
pub(crate) fn write(state_dir: &Path, kept: &Kept) -> io::Result<()> {
    let manifest = unverified(&kept.manifest).ok_or(io::ErrorKind::InvalidData)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend((kept.manifest.len() as u64).to_be_bytes());
    bytes.extend(&kept.manifest);
    for entry in &manifest.objects {
        bytes.extend(kept.contents.get(&entry.digest).ok_or(io::ErrorKind::NotFound)?);
    }
    write_atomically(&path(state_dir), &bytes, 0o600)
}

/// [`write`] for async callers. That it failed is no reason to serve anything else.
pub(crate) async fn write_behind(state_dir: PathBuf, kept: Kept) {
    let written = tokio::task::spawn_blocking(move || write(&state_dir, &kept)).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "cannot export the desired state");
    }
}

/// The export, if there is one of this form.
pub(crate) fn read(state_dir: &Path) -> Option<Kept> {
    let mut bytes = Vec::new();
    File::open(path(state_dir)).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Kept> {
    let (size, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let size = u64::from_be_bytes(*size);
    if size > CONTENT_MAX {
        return None;
    }
    let (manifest, mut rest) = rest.split_at_checked(usize::try_from(size).ok()?)?;
    let mut kept = Kept { manifest: manifest.to_vec(), ..Kept::default() };
    for entry in unverified(manifest)?.objects {
        let (content, after) = rest.split_at_checked(usize::try_from(entry.size).ok()?)?;
        rest = after;
        if Digest::of(content) != entry.digest {
            return None;
        }
        kept.contents.insert(entry.digest, content.to_vec());
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accepted::Accepted;
    use crate::keep::tests::{kept, key, me};

    #[test]
    fn reads_back_what_it_wrote_and_nothing_damaged() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(read(state.path()), None);
        let kept = kept(3, &["a", "b"]);
        write(state.path(), &kept).unwrap();
        let read_back = read(state.path()).unwrap();
        assert_eq!(read_back, kept);
        let accepted =
            Accepted::verify(&read_back.manifest, &key().verifying_key(), &me(), &read_back.contents);
        assert_eq!(accepted.unwrap().serving.version.generation, 3);
        let bytes = std::fs::read(path(state.path())).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "cut at {cut}");
        }
        for position in bytes.len() - 40..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert_eq!(parse(&damaged), None, "damaged at {position}");
        }
    }
}
