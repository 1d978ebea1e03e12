//! The members of a tar archive, one after the other, with names and attributes put together from its GNU and PAX
//! extensions.
//!
//! Written here on the `tar` crate's header, not on its archive reader: that one reads extension headers of any size
//! into memory. Must not know where members go: names are handed on as they stand.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::UnpackError;
use super::decode::stream_error;

const BLOCK: usize = 512;
/// All extension headers of one member hold a path, a link and a few attributes: the largest attribute the kernel takes
/// is 64 KiB.
const MAX_EXTENSION: u64 = 1 << 20;

/// One member of an archive.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970.
    pub(super) mtime: i64,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its content is what the reader gives next.
    File {
        size: u64,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    Device,
}

/// Reads an archive. Between two members, reading gives the content of the former.
pub(super) struct Members<R> {
    stream: R,
    limit: u64,
    count: u64,
    /// Content and padding of the present member that were not read yet.
    content: u64,
    padding: u64,
    /// For messages.
    place: String,
}

/// What extension headers said of the member that follows.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(stream: R, limit: u64) -> Self {
        Self { stream, limit, count: 0, content: 0, padding: 0, place: "its start".into() }
    }

    /// Members so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The next member, or `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, UnpackError> {
        self.skip_content()?;
        let mut extensions = Extensions::default();
        let mut bytes = 0;
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            self.count += 1;
            if self.count > self.limit {
                return Err(UnpackError::TooManyEntries(self.limit));
            }
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => {
                    extensions.path = Some(until_nul(self.extension(&header, &mut bytes)?))
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(until_nul(self.extension(&header, &mut bytes)?))
                }
                EntryType::XHeader => read_pax(&self.extension(&header, &mut bytes)?, &mut extensions)?,
                // Global headers carry comments (git) and nothing that concerns a single member.
                EntryType::XGlobalHeader => drop(self.extension(&header, &mut bytes)?),
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member, UnpackError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        self.place = String::from_utf8_lossy(&path).chars().take(200).collect();
        let size = match extensions.size {
            Some(size) => size,
            None => self.field(&header.as_old().size, header.entry_size())?,
        };
        let link =
            || extensions.link.clone().or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let kind = match header.entry_type() {
            // Before POSIX, a directory was a file with a slash at the end of its name.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { size },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link().unwrap_or_default()),
            EntryType::Link => Kind::HardLink(link().unwrap_or_default()),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            EntryType::GNUSparse => {
                return Err(self.refused("sparse files are not supported, write it in full"));
            }
            _ => return Err(self.refused("its type is not known")),
        };
        // Links and devices have no content, whatever their size field says.
        self.content = if matches!(kind, Kind::File { .. } | Kind::Directory) { size } else { 0 };
        self.padding = padding(self.content);
        Ok(Member {
            path,
            kind,
            mode: self.field(&header.as_old().mode, header.mode())? & 0o7777,
            uid: extensions.uid.map_or_else(|| self.field(&header.as_old().uid, header.uid()), Ok)?,
            gid: extensions.gid.map_or_else(|| self.field(&header.as_old().gid, header.gid()), Ok)?,
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                None => self.field(&header.as_old().mtime, header.mtime())?.try_into().unwrap_or(0),
            },
            xattrs: extensions.xattrs,
        })
    }

    /// The next header block; `None` at the end: a block of zeros, or nothing more.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(UnpackError::Truncated(format!("the header after {}", self.place))),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stream_error(error, &self.place)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum's own eight bytes count as spaces.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&block[..148]) + sum(&block[156..]) + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(stated) if stated == expected => Ok(Some(header)),
            _ => Err(UnpackError::Malformed(format!("wrong header checksum after {}", self.place))),
        }
    }

    /// The content of an extension header; `bytes` counts those of one member.
    fn extension(&mut self, header: &Header, bytes: &mut u64) -> Result<Vec<u8>, UnpackError> {
        let size = header.entry_size().map_err(|error| self.malformed(&error))?;
        *bytes = bytes.saturating_add(size);
        if *bytes > MAX_EXTENSION {
            return Err(UnpackError::Malformed(format!(
                "extension headers of {bytes} bytes after {}",
                self.place
            )));
        }
        let mut content = Vec::new();
        (self.content, self.padding) = (size, padding(size));
        self.read_to_end(&mut content).map_err(|error| stream_error(error, &self.place))?;
        self.skip_content()?;
        Ok(content)
    }

    /// Passes what is left of the present member.
    fn skip_content(&mut self) -> Result<(), UnpackError> {
        let mut piece = [0; 8192];
        let place = std::mem::take(&mut self.place);
        while self.content > 0 {
            self.read(&mut piece).map_err(|error| stream_error(error, &place))?;
        }
        let padding =
            usize::try_from(std::mem::take(&mut self.padding)).expect("padding is less than a block");
        self.stream.read_exact(&mut piece[..padding]).map_err(|error| stream_error(error, &place))?;
        self.place = place;
        Ok(())
    }

    /// A number of a header. Some writers leave a field blank that is nothing to them, and every reader takes it for 0.
    fn field<T: Default>(&self, field: &[u8], number: io::Result<T>) -> Result<T, UnpackError> {
        match number {
            Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(T::default()),
            number => number.map_err(|error| self.malformed(&error)),
        }
    }

    fn malformed(&self, error: &io::Error) -> UnpackError {
        UnpackError::Malformed(format!("{error}, at {}", self.place))
    }

    fn refused(&self, reason: &'static str) -> UnpackError {
        UnpackError::Refused { path: self.place.clone(), reason }
    }
}

impl<R: Read> Read for Members<R> {
    /// Gives the content of the present member; an archive that ends within it is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.stream.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.content -= count as u64;
                Ok(count)
            }
        }
    }
}

/// PAX records: `length key=value\n`, where the length counts the whole record.
fn read_pax(mut content: &[u8], extensions: &mut Extensions) -> Result<(), UnpackError> {
    let malformed = || UnpackError::Malformed("extended header with a malformed record".into());
    while !content.is_empty() && content[0] != 0 {
        let space = content.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length: usize = number(&content[..space]).ok_or_else(malformed)?;
        if length <= space + 1 || length > content.len() || content[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &content[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let key = std::str::from_utf8(key).map_err(|_| malformed())?;
        match key {
            "path" => extensions.path = Some(value.to_vec()),
            "linkpath" => extensions.link = Some(value.to_vec()),
            "size" => extensions.size = Some(number(value).ok_or_else(malformed)?),
            "uid" => extensions.uid = Some(number(value).ok_or_else(malformed)?),
            "gid" => extensions.gid = Some(number(value).ok_or_else(malformed)?),
            // Fractions are cut off: whole seconds are what images are compared by.
            "mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                extensions.mtime = Some(number(seconds).ok_or_else(malformed)?);
            }
            _ if key.starts_with("GNU.sparse.") => {
                let path = extensions.path.as_deref().unwrap_or_default();
                return Err(UnpackError::Refused {
                    path: String::from_utf8_lossy(path).into_owned(),
                    reason: "sparse files are not supported, write it in full",
                });
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    extensions.xattrs.insert(name.into(), value.to_vec());
                }
            }
        }
        content = &content[length..];
    }
    Ok(())
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}
