//! Building a one-layer image from a directory or from files in memory. The same input gives the same digest: members are
//! sorted, times are zero, owners are root, modes are one of two.
//!
//! Must not know languages or registries: what goes into the image, and how it is run, is the caller's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tombolo_api::Digest;

use crate::image::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, Platform, RunConfig};
use crate::layer::WHITEOUT;
use crate::store::{Store, StoreError, failed};

/// Files of one image: a function has a few thousand; a home directory chosen by mistake has more.
const ENTRIES_MAX: usize = 200_000;

/// Bytes of all files: beyond it the directory is not a function.
const BYTES_MAX: u64 = 8 << 30;

/// When every image was made, as far as its configuration says.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    pub source: Source,
    pub config: RunConfig,
    pub platform: Platform,
}

/// Where an image's files come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Everything below it, `.git` left out.
    Directory(PathBuf),
    Files(Vec<FileEntry>),
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct FileEntry {
    /// Below the image's root, without a leading `/`.
    pub path: String,
    pub executable: bool,
    pub content: Vec<u8>,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
    /// Compressed bytes of the layers.
    pub size: u64,
}

/// Why no image could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is {what}, which an image cannot hold: remove it")]
    Unsupported { path: PathBuf, what: &'static str },
    #[error("{path} has more than {ENTRIES_MAX} files: name the function's own directory")]
    TooManyEntries { path: PathBuf },
    #[error("{path} has more than {BYTES_MAX} bytes: name the function's own directory")]
    TooManyBytes { path: PathBuf },
    #[error("{0} holds no file")]
    Empty(PathBuf),
    #[error("{0:?} is no path below an image's root")]
    Path(String),
    #[error("{0:?} is given twice, or as a file and a directory at once")]
    Twice(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Builds the image and puts it into `store`. Blocks.
pub fn build_directory(options: &BuildOptions, store: &Store) -> Result<BuiltImage, BuildError> {
    let members = match &options.source {
        Source::Directory(directory) => members_of(directory)?,
        Source::Files(files) => members_in_memory(files)?,
    };
    let layer = write_layer(&members, store)?;
    let config = store.put(&json(&ConfigDocument::new(options, layer.diff_id)))?;
    let config_size = store.blob_size(&config).unwrap_or(0);
    let manifest = ManifestDocument {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: Descriptor { media_type: OCI_CONFIG, digest: config, size: config_size },
        layers: [Descriptor { media_type: OCI_LAYER_GZIP, digest: layer.digest, size: layer.size }],
    };
    let manifest = store.put(&json(&manifest))?;
    Ok(BuiltImage { manifest, config, layers: vec![layer.digest], size: layer.size })
}

/// One member of the layer, by its path in the image.
struct Member<'a> {
    path: PathBuf,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Directory,
    Symlink(PathBuf),
    File { executable: bool, content: Content<'a> },
}

enum Content<'a> {
    OnDisk(PathBuf),
    InMemory(&'a [u8]),
}

fn members_of(root: &Path) -> Result<Vec<Member<'static>>, BuildError> {
    let mut members = Vec::new();
    let mut bytes = 0;
    collect(root, Path::new(""), &mut members, &mut bytes)?;
    if !members.iter().any(|member| matches!(member.kind, Kind::File { .. })) {
        return Err(BuildError::Empty(root.to_owned()));
    }
    members.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(members)
}

fn collect(
    root: &Path,
    below: &Path,
    members: &mut Vec<Member<'static>>,
    bytes: &mut u64,
) -> Result<(), BuildError> {
    let directory = root.join(below);
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildError::Read { path, source }
    };
    for entry in fs::read_dir(&directory).map_err(read(&directory))? {
        let entry = entry.map_err(read(&directory))?;
        let (path, full) = (below.join(entry.file_name()), entry.path());
        if entry.file_name().as_bytes().starts_with(WHITEOUT) {
            return Err(BuildError::Unsupported { path: full, what: "named as deletions are" });
        }
        if below.as_os_str().is_empty() && entry.file_name() == ".git" {
            continue;
        }
        if members.len() >= ENTRIES_MAX {
            return Err(BuildError::TooManyEntries { path: root.to_owned() });
        }
        let metadata = full.symlink_metadata().map_err(read(&full))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            members.push(Member { path: path.clone(), kind: Kind::Directory });
            collect(root, &path, members, bytes)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&full).map_err(read(&full))?;
            members.push(Member { path, kind: Kind::Symlink(target) });
        } else if kind.is_file() {
            *bytes += metadata.len();
            if *bytes > BYTES_MAX {
                return Err(BuildError::TooManyBytes { path: root.to_owned() });
            }
            let executable = metadata.permissions().mode() & 0o111 != 0;
            members.push(Member { path, kind: Kind::File { executable, content: Content::OnDisk(full) } });
        } else {
            return Err(BuildError::Unsupported { path: full, what: "a socket, pipe or device" });
        }
    }
    Ok(())
}

fn members_in_memory(files: &[FileEntry]) -> Result<Vec<Member<'_>>, BuildError> {
    let mut members = Vec::new();
    for file in files {
        let plain = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && !part.as_bytes().starts_with(WHITEOUT)
        };
        if !file.path.split('/').all(plain) {
            return Err(BuildError::Path(file.path.clone()));
        }
        let mut parent = PathBuf::new();
        for part in Path::new(&file.path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            members.push(Member { path: parent.clone(), kind: Kind::Directory });
        }
        let content = Content::InMemory(&file.content);
        members.push(Member {
            path: file.path.clone().into(),
            kind: Kind::File { executable: file.executable, content },
        });
    }
    members.sort_by(|a, b| a.path.cmp(&b.path));
    let is_directory = |member: &Member<'_>| matches!(member.kind, Kind::Directory);
    members.dedup_by(|a, b| a.path == b.path && is_directory(a) && is_directory(b));
    match members.windows(2).find(|pair| pair[0].path == pair[1].path) {
        Some(pair) => Err(BuildError::Twice(pair[0].path.display().to_string())),
        None => Ok(members),
    }
}

/// A layer in the store.
struct Layer {
    digest: Digest,
    diff_id: Digest,
    size: u64,
}

fn write_layer(members: &[Member<'_>], store: &Store) -> Result<Layer, BuildError> {
    let file = store.temporary_file()?;
    let path = file.path().to_owned();
    let write = |source| BuildError::Store(failed("write", &path)(source));
    let compressed = Hashing::new(file.reopen().map_err(write)?);
    // No time and no name in the header: it is part of the digest.
    let gzip = GzBuilder::new().mtime(0).write(compressed, Compression::default());
    let mut archive = tar::Builder::new(Hashing::new(gzip));
    for member in members {
        append(&mut archive, member, &path)?;
    }
    let plain = archive.into_inner().map_err(write)?;
    let diff_id = plain.digest();
    let compressed = plain.inner.finish().map_err(write)?;
    let (digest, size) = (compressed.digest(), compressed.bytes);
    let (_, kept) = file.keep().map_err(|error| write(error.error))?;
    if store.contains(&digest) {
        // It is the very same content: what was written anew is not needed.
        fs::remove_file(&kept).map_err(write)?;
    } else {
        store.adopt(&kept, &digest)?;
    }
    Ok(Layer { digest, diff_id, size })
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    member: &Member<'_>,
    layer: &Path,
) -> Result<(), BuildError> {
    let write = |source| BuildError::Store(failed("write", layer)(source));
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match &member.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            archive.append_data(&mut header, &member.path, io::empty()).map_err(write)
        }
        Kind::Symlink(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            archive.append_link(&mut header, &member.path, target).map_err(write)
        }
        Kind::File { executable, content } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            match content {
                Content::InMemory(bytes) => {
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, &member.path, *bytes).map_err(write)
                }
                Content::OnDisk(path) => append_file(archive, &mut header, &member.path, path, layer),
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

// The documents, in the order in which their members are written: a digest depends on it.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestDocument {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: [Descriptor; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
}

#[derive(Serialize)]
struct ConfigDocument<'a> {
    created: &'static str,
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    os: &'a str,
    config: RunDocument<'a>,
    rootfs: RootFs,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunDocument<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    exposed_ports: std::collections::BTreeMap<&'a str, Empty>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    env: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    working_dir: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<&'a str>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: [Digest; 1],
}

impl<'a> ConfigDocument<'a> {
    fn new(options: &'a BuildOptions, diff_id: Digest) -> Self {
        let (run, platform) = (&options.config, &options.platform);
        Self {
            created: CREATED,
            architecture: &platform.architecture,
            variant: platform.variant.as_deref(),
            os: &platform.os,
            config: RunDocument {
                user: &run.user,
                exposed_ports: run.exposed_ports.iter().map(|port| (port.as_str(), Empty {})).collect(),
                env: &run.env,
                entrypoint: &run.entrypoint,
                cmd: &run.cmd,
                working_dir: &run.workdir,
                stop_signal: run.stop_signal.as_deref(),
            },
            rootfs: RootFs { kind: "layers", diff_ids: [diff_id] },
        }
    }
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("a document is plain data")
}

#[cfg(test)]
mod tests;
