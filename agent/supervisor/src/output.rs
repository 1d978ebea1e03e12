//! What a program writes: from its FIFOs into its log, in the CRI format (`time stream tag text`), rotated by size.
//!
//! Takes bytes when they are there, gives lines to a file. Nothing here may block a program or end the supervisor: a
//! line that cannot be written (a full disk) is dropped and counted, and the log says so when it can be written again.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use tombolo_agent_core::supervision::LogSpec;

use crate::diagnostics::Timestamp;

/// Longest piece of a line; a longer line is several pieces, all but the last tagged `P`. Also what is kept in memory of
/// a line whose end has not come yet.
const PIECE_MAX: usize = 8 * 1024;

/// Bytes taken from one stream before others get their turn.
const READ_MAX: usize = 16 * 1024;

/// Smallest size at which a log may be rotated: one piece must fit.
pub(crate) const LOG_BYTES_MIN: u64 = 2 * PIECE_MAX as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Error,
}

impl Stream {
    pub(crate) const BOTH: [Self; 2] = [Self::Out, Self::Error];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Error => "stderr",
        }
    }
}

/// The reading end of one of a program's streams.
#[derive(Debug)]
pub(crate) struct Source {
    fifo: File,
    /// A line's beginning.
    pending: Vec<u8>,
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

/// Whether a stream may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Empty,
    Ended,
}

impl Source {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::from(
            File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?,
        ))
    }

    pub(crate) fn from(fifo: File) -> Self {
        Self { fifo, pending: Vec::new() }
    }

    /// Takes what is there, up to a bound, into the log.
    pub(crate) fn pump(&mut self, stream: Stream, log: &mut Log) -> Progress {
        let mut buffer = [0; READ_MAX];
        let length = match self.fifo.read(&mut buffer) {
            Ok(0) => return Progress::Ended,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Progress::More,
            Err(_) => return Progress::Empty,
        };
        let mut rest = &buffer[..length];
        let mut batch = Batch::new(stream);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.append(&rest[..end], &mut batch, log);
            let line = std::mem::take(&mut self.pending);
            log.add(&mut batch, b'F', &line);
            rest = &rest[end + 1..];
        }
        self.append(rest, &mut batch, log);
        log.write(&mut batch);
        if length == READ_MAX { Progress::More } else { Progress::Empty }
    }

    fn append(&mut self, mut text: &[u8], batch: &mut Batch, log: &mut Log) {
        while self.pending.len() + text.len() > PIECE_MAX {
            let (fits, rest) = text.split_at(PIECE_MAX - self.pending.len());
            self.pending.extend_from_slice(fits);
            log.add(batch, b'P', &self.pending);
            self.pending.clear();
            text = rest;
        }
        self.pending.extend_from_slice(text);
    }

    /// Writes a line's beginning whose end will not come.
    pub(crate) fn finish(&mut self, stream: Stream, log: &mut Log) {
        let text = std::mem::take(&mut self.pending);
        if !text.is_empty() {
            let mut batch = Batch::new(stream);
            log.add(&mut batch, b'P', &text);
            log.write(&mut batch);
        }
    }
}

/// Lines of one stream that came together, and so at one time.
struct Batch {
    /// `time stream `, what every line begins with.
    head: String,
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    fn new(stream: Stream) -> Self {
        let head = format!("{} {} ", Timestamp(OffsetDateTime::now_utc()), stream.name());
        Self { head, bytes: Vec::new(), lines: 0 }
    }
}

/// An instance's log file.
#[derive(Debug)]
pub(crate) struct Log {
    spec: LogSpec,
    /// None: it could not be opened, which is tried again with the next line.
    file: Option<File>,
    size: u64,
    dropped: Dropped,
    /// The last line in the file is not whole.
    is_torn: bool,
}

/// Lines that could not be written, and why the last could not.
#[derive(Debug, Default)]
struct Dropped {
    lines: u64,
    reason: String,
}

impl Log {
    /// Opens the log, or makes it.
    pub(crate) fn open(spec: LogSpec) -> io::Result<Self> {
        let mut log = Self { spec, file: None, size: 0, dropped: Dropped::default(), is_torn: false };
        log.reopen()?;
        Ok(log)
    }

    /// A log that is opened with its first line.
    pub(crate) fn unopened(spec: LogSpec) -> Self {
        Self { spec, file: None, size: 0, dropped: Dropped::default(), is_torn: false }
    }

    /// No more lines are expected; one that comes all the same opens it again.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(directory) = self.spec.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = File::options().append(true).create(true).mode(0o640).open(&self.spec.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn add(&mut self, batch: &mut Batch, tag: u8, text: &[u8]) {
        let length = batch.head.len() + text.len() + 3;
        if self.size + (batch.bytes.len() + length) as u64 > self.spec.max_bytes {
            self.write(batch);
            self.rotate();
        }
        batch.bytes.extend_from_slice(batch.head.as_bytes());
        batch.bytes.extend_from_slice(&[tag, b' ']);
        batch.bytes.extend_from_slice(text);
        batch.bytes.push(b'\n');
        batch.lines += 1;
    }

    fn write(&mut self, batch: &mut Batch) {
        if batch.bytes.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut batch.bytes);
        let lines = std::mem::take(&mut batch.lines);
        if let Err(error) = self.write_notice(&batch.head).and_then(|()| self.write_bytes(&bytes)) {
            self.dropped.lines += lines;
            self.dropped.reason = error.to_string();
        }
    }

    /// Says how many lines are missing here. Until that can be written, nothing else is.
    fn write_notice(&mut self, head: &str) -> io::Result<()> {
        let Dropped { lines, reason } = &self.dropped;
        if *lines > 0 {
            let notice = format!("{head}F tombolo: {lines} lines of output were dropped here: {reason}\n");
            self.write_bytes(notice.as_bytes())?;
            self.dropped = Dropped::default();
        }
        Ok(())
    }

    fn write_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let file = self.file.as_mut().expect("it was opened just now");
        if self.is_torn {
            file.write_all(b"\n")?;
            self.size += 1;
            self.is_torn = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(written) => {
                    self.size += written as u64;
                    rest = &rest[written..];
                    self.is_torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.is_torn = false;
        Ok(())
    }

    /// `path` becomes `path.1`, that `path.2`, …; the oldest goes.
    fn rotate(&mut self) {
        if self.size == 0 {
            return;
        }
        self.file = None;
        self.is_torn = false;
        let numbered = |number: u32| match number {
            0 => self.spec.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.spec.path.display())),
        };
        let last = self.spec.max_files - 1;
        if last == 0 {
            // Missing is as good as removed.
            let _ = fs::remove_file(numbered(0));
        }
        for number in (0..last).rev() {
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        self.size = 0;
    }
}

#[cfg(test)]
mod tests;
