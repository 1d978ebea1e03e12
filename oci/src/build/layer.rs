//! Writing a layer: a compressed archive of its members, and the digests of both.
//!
//! Must not know why the members are in it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::TempPath;
use tombolo_api::Digest;

use super::BuildError;
use super::members::{Content, Kind, Members};
use crate::image::OCI_LAYER_GZIP;
use crate::store::failed;

/// A layer as an image's documents name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub media_type: String,
    pub digest: Digest,
    /// Digest of the archive without compression.
    pub diff_id: Digest,
    /// Compressed bytes.
    pub size: u64,
}

/// Writes the layer into a new file in `directory`, which is removed with the path that is returned. Blocks.
pub fn write_layer(members: &Members, directory: &Path) -> Result<(TempPath, Layer), BuildError> {
    let create = |source| BuildError::Store(failed("create a file in", directory)(source));
    let file = tempfile::NamedTempFile::new_in(directory).map_err(create)?;
    let path = file.path().to_owned();
    let write = |source| BuildError::Store(failed("write", &path)(source));
    let compressed = Hashing::new(io::BufWriter::new(file.reopen().map_err(write)?));
    // No time and no name in the header: it is part of the digest.
    let gzip = GzBuilder::new().mtime(0).write(compressed, Compression::default());
    let mut archive = tar::Builder::new(Hashing::new(gzip));
    for (name, kind) in members.sorted() {
        append(&mut archive, name, kind, &path)?;
    }
    let plain = archive.into_inner().map_err(write)?;
    let diff_id = plain.digest();
    let mut compressed = plain.inner.finish().map_err(write)?;
    compressed.flush().map_err(write)?;
    let layer = Layer {
        media_type: OCI_LAYER_GZIP.to_owned(),
        digest: compressed.digest(),
        diff_id,
        size: compressed.bytes,
    };
    Ok((file.into_temp_path(), layer))
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &Path,
    kind: &Kind,
    layer: &Path,
) -> Result<(), BuildError> {
    let write = |source| BuildError::Store(failed("write", layer)(source));
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match kind {
        Kind::Directory { mode } => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            archive.append_data(&mut header, name, io::empty()).map_err(write)
        }
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, name, target).map_err(write)
        }
        Kind::File { executable, content } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            match content {
                Content::InMemory(bytes) => {
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, name, bytes.as_slice()).map_err(write)
                }
                Content::OnDisk(path) => append_file(archive, &mut header, name, path, layer),
            }
        }
    }
}

fn append_file(
    archive: &mut tar::Builder<impl Write>,
    header: &mut Header,
    name: &Path,
    path: &Path,
    layer: &Path,
) -> Result<(), BuildError> {
    let read = |source| BuildError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    header.set_size(size);
    // A file that grows meanwhile is cut, one that shrinks is an error: the header's size is a promise.
    let mut content = Exactly { inner: file.take(size), missing: size };
    archive.append_data(header, name, &mut content).map_err(|source| match content.missing {
        0 => BuildError::Store(failed("write", layer)(source)),
        _ => read(source),
    })
}

/// A reader that must give so many bytes.
struct Exactly {
    inner: io::Take<File>,
    missing: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.missing -= count as u64;
        if count == 0 && self.missing > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        Ok(count)
    }
}

/// A writer that knows the digest of what went through it.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
