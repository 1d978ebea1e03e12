//! What is known to be on the disk of a download: a small file beside it, a line for each sync.
//!
//! ```text
//! boot 5f0c…            the boot in which what follows was written
//! 16777216 sha256:1d…   so many bytes were synced, and had this digest
//! ```
//!
//! Must not know the download itself. A line that is torn or missing costs what came after the line before it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tombolo_api::Digest;

use super::{StoreError, failed};

/// How the file's name ends.
pub(super) const SUFFIX: &str = ".marks";

/// Bytes of the file that are read: a hundred thousand marks, of more than a terabyte.
const READ_MAX: u64 = 8 << 20;

/// The first `len` bytes were on the disk, and had this digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) len: u64,
    pub(super) digest: Digest,
}

/// The marks of one download, the shortest first.
#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    all: Vec<Mark>,
    /// Open once they were begun.
    file: Option<File>,
}

impl Marks {
    /// Of the download at `download`, and whether they were written in `boot`.
    pub(super) fn open(download: &Path, boot: &str) -> Result<(Self, bool), StoreError> {
        let path = beside(download);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(READ_MAX).read_to_string(&mut text));
        match read {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                return Err(failed("read", &path)(error));
            }
            _ => {}
        }
        let mut lines = text.lines();
        let of_this_boot = lines.next().and_then(|line| line.strip_prefix("boot ")) == Some(boot);
        let mut all: Vec<Mark> = Vec::new();
        for mark in lines.map_while(parse) {
            if all.last().is_some_and(|last| mark.len <= last.len) {
                break;
            }
            all.push(mark);
        }
        Ok((Self { path, all, file: None }, of_this_boot))
    }

    pub(super) fn all(&self) -> &[Mark] {
        &self.all
    }

    /// Keeps the marks of the first `len` bytes, and goes on in `boot`.
    pub(super) fn begin(&mut self, len: u64, boot: &str) -> Result<(), StoreError> {
        self.all.retain(|mark| mark.len <= len);
        let mut text = format!("boot {boot}\n");
        self.all.iter().for_each(|mark| text.push_str(&line(mark)));
        let fresh = self.path.with_extension("marks.new");
        let write = || {
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            if !self.all.is_empty() {
                file.sync_data()?;
            }
            fs::rename(&fresh, &self.path)?;
            Ok(file)
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        self.file = Some(written.map_err(failed("write", &self.path))?);
        Ok(())
    }

    /// Adds what was just synced.
    pub(super) fn add(&mut self, mark: Mark) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.all.last().is_some_and(|last| last.len >= mark.len) {
            return Ok(());
        }
        let end = file.metadata().map_err(failed("read", &self.path))?.len();
        let added = file.write_all(line(&mark).as_bytes()).and_then(|()| file.sync_data());
        if let Err(error) = added {
            // Nothing may follow half a line.
            let _ = file.set_len(end);
            let _ = io::Seek::seek(file, io::SeekFrom::Start(end));
            return Err(failed("write", &self.path)(error));
        }
        self.all.push(mark);
        Ok(())
    }

    /// The download is over.
    pub(super) fn remove(self) {
        // What is left of it is read by nobody, and goes with the next collection.
        let _ = fs::remove_file(&self.path);
    }
}

/// Where the marks of a download are.
pub(super) fn beside(download: &Path) -> PathBuf {
    let mut name = download.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn line(mark: &Mark) -> String {
    format!("{} {}\n", mark.len, mark.digest)
}

fn parse(line: &str) -> Option<Mark> {
    let (len, digest) = line.split_once(' ')?;
    Some(Mark { len: len.parse().ok()?, digest: digest.parse().ok()? })
}
