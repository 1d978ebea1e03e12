//! The file of a bundle, written so that a command that was broken off goes on: into `FILE.partial`, whose every byte is known
//! before it is there but for the layers', which have digests. It is `FILE` once it is whole and on the disk.
//!
//! What is there of another state gives its layers. Nothing here waits for anybody but the hub, so files are written as they are.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tombolo_api::Digest;
use tombolo_api::bundle::member::{self, BLOCK, END};
use tombolo_api::bundle::{LAYOUT, MEMBERS_MAX, Member};
use tombolo_oci::Archive;
use tombolo_oci::store::sync_directory;

use super::contents::{Contents, Layer};
use super::fetch;
use crate::hub::Hub;
use crate::steps::Steps;

/// Read and hashed at once.
const PIECE: usize = 256 * 1024;

/// One member of the file as it is to be.
struct Item<'a> {
    member: Member,
    size: u64,
    source: Source<'a>,
}

enum Source<'a> {
    Here(&'a [u8]),
    Layer(Digest, &'a Layer),
}

/// What of an earlier attempt is as it should be.
#[derive(Default)]
struct Kept {
    /// Whole members.
    items: usize,
    /// Where the next one begins.
    at: u64,
    /// Bytes of the next one's content, which is a layer.
    inside: Option<(u64, Sha256)>,
    /// The rest is of another state: another `index.json`.
    is_other: bool,
}

/// Writes `contents` to `output`. Returns the size of the file.
pub(super) async fn write(
    hub: &Hub,
    steps: Steps,
    contents: &Contents,
    output: &Path,
) -> anyhow::Result<u64> {
    let index = contents.index.to_bytes();
    let items = plan(contents, &index);
    if items.len() > MEMBERS_MAX {
        bail!("{} blobs are more than a bundle holds: make one for fewer nodes", items.len());
    }
    let (partial, other) = (beside(output, ".partial"), beside(output, ".other"));
    let written = async {
        let mut file = open(&partial)?;
        let mut kept = kept(&file, &items)?;
        if kept.is_other {
            fs::rename(&partial, &other)?;
            file = open(&partial)?;
            kept = Kept::default();
        }
        let here = kept.at + kept.inside.as_ref().map_or(0, |(here, _)| BLOCK as u64 + here);
        if here > 0 {
            steps.say(&format!("going on after {} of an earlier attempt", size(here)));
        }
        file.set_len(here)?;
        // What cannot be opened has nothing to give.
        let quarries: Vec<Archive> =
            [other.as_path(), output].into_iter().filter_map(|path| Archive::open(path).ok()).collect();
        let mut writer = Writer { hub, steps, file, at: here, quarries };
        writer.members(&items, kept).await?;
        writer.append(&END)?;
        writer.file.sync_all()?;
        anyhow::Ok(writer.at)
    };
    let size = written.await.with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, output).with_context(|| format!("renaming to {}", output.display()))?;
    sync_directory(output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let _ = fs::remove_file(&other);
    Ok(size)
}

/// Bytes for a person.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn plan<'a>(contents: &'a Contents, index: &'a [u8]) -> Vec<Item<'a>> {
    let here = |member, content: &'a [u8]| Item {
        member,
        size: content.len() as u64,
        source: Source::Here(content),
    };
    let documents = contents.documents.iter().map(|(digest, content)| here(Member::Blob(*digest), content));
    let layers = contents.layers.iter().map(|(digest, layer)| Item {
        member: Member::Blob(*digest),
        size: layer.size,
        source: Source::Layer(*digest, layer),
    });
    let head = [here(Member::Layout, LAYOUT.as_bytes()), here(Member::Index, index)];
    head.into_iter().chain(documents).chain(layers).collect()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Opens the partial file for this process alone.
fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another command is writing it: wait for that one"),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Reads what is there as far as it is what should be there.
fn kept(file: &File, items: &[Item<'_>]) -> io::Result<Kept> {
    let mut at = 0;
    for (number, item) in items.iter().enumerate() {
        let here = Kept { items: number, at, ..Kept::default() };
        let content = at + BLOCK as u64;
        let has_head = is_same(file, at, &member::header(&item.member, item.size))?;
        match &item.source {
            Source::Here(bytes) if has_head && is_same(file, content, bytes)? => {}
            Source::Here(bytes) => {
                let is_whole = file.metadata()?.len() >= content + bytes.len() as u64;
                let is_begun = has_head && !is_whole && begins(file, content, bytes)?;
                let is_other = item.member == Member::Index && file.metadata()?.len() > content && !is_begun;
                return Ok(Kept { is_other, ..here });
            }
            Source::Layer(..) if !has_head => return Ok(here),
            Source::Layer(digest, _) => {
                let (length, hasher) = hash(file, content, item.size)?;
                if length < item.size {
                    return Ok(Kept { inside: Some((length, hasher)), ..here });
                }
                if digest_of(hasher) != *digest {
                    return Ok(here);
                }
            }
        }
        at += member::span(item.size);
    }
    Ok(Kept { items: items.len(), at, ..Kept::default() })
}

fn is_same(file: &File, at: u64, expected: &[u8]) -> io::Result<bool> {
    let mut found = vec![0; expected.len()];
    match file.read_exact_at(&mut found, at) {
        Ok(()) => Ok(found == expected),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether what there is from `at` on begins as it should.
fn begins(file: &File, at: u64, expected: &[u8]) -> io::Result<bool> {
    let there = file.metadata()?.len().saturating_sub(at).min(expected.len() as u64);
    is_same(file, at, &expected[..usize::try_from(there).unwrap_or(expected.len())])
}

/// Hashes up to `size` bytes from `at` on. Returns how many there are.
fn hash(file: &File, at: u64, size: u64) -> io::Result<(u64, Sha256)> {
    let (mut piece, mut length, mut hasher) = (vec![0; PIECE], 0, Sha256::new());
    while length < size {
        let most = piece.len().min(usize::try_from(size - length).unwrap_or(usize::MAX));
        match file.read_at(&mut piece[..most], at + length)? {
            0 => break,
            count => {
                hasher.update(&piece[..count]);
                length += count as u64;
            }
        }
    }
    Ok((length, hasher))
}

fn digest_of(hasher: Sha256) -> Digest {
    Digest::from_bytes(hasher.finalize().into())
}

/// Appends to the file.
struct Writer<'a> {
    hub: &'a Hub,
    steps: Steps,
    file: File,
    at: u64,
    /// Other bundles that may have a layer already.
    quarries: Vec<Archive>,
}

impl Writer<'_> {
    /// Writes what is missing.
    async fn members(&mut self, items: &[Item<'_>], mut kept: Kept) -> anyhow::Result<()> {
        let layers = items.iter().filter(|item| matches!(item.source, Source::Layer(..))).count();
        let documents = items.len() - layers;
        for (number, item) in items.iter().enumerate().skip(kept.items) {
            let inside = kept.inside.take();
            if inside.is_none() {
                self.append(&member::header(&item.member, item.size))?;
            }
            match item.source {
                Source::Here(content) => self.append(content)?,
                Source::Layer(digest, layer) => {
                    self.layer(&digest, layer, inside).await?;
                    let count = number + 1 - documents;
                    self.steps.say(&format!("layer {count} of {layers}: {}", size(layer.size)));
                }
            }
            self.append(&[0; BLOCK][..member::padding(item.size)])?;
        }
        Ok(())
    }

    /// Writes a layer's content, of which `inside` is there. One that is damaged is fetched anew once.
    async fn layer(
        &mut self,
        digest: &Digest,
        layer: &Layer,
        inside: Option<(u64, Sha256)>,
    ) -> anyhow::Result<()> {
        let is_begun = inside.is_some();
        let (mut here, mut hasher) = inside.unwrap_or_default();
        let start = self.at - here;
        if !is_begun && self.quarried(digest, layer.size)? {
            return Ok(());
        }
        for again in [true, false] {
            let (hub, file, at) = (self.hub, &mut self.file, &mut self.at);
            let mut take = |piece: &[u8]| {
                file.write_all_at(piece, *at)?;
                *at += piece.len() as u64;
                hasher.update(piece);
                anyhow::Ok(())
            };
            fetch::rest(hub, &layer.path, here, layer.size, &mut take).await?;
            if digest_of(std::mem::take(&mut hasher)) == *digest {
                return Ok(());
            }
            self.back_to(start)?;
            here = 0;
            if again {
                self.steps.say(&format!("{digest} came damaged, fetching it again"));
            }
        }
        bail!("{digest} is damaged at the hub's registry: push the image again")
    }

    /// Copies a layer from another bundle, if one has it undamaged.
    fn quarried(&mut self, digest: &Digest, size: u64) -> anyhow::Result<bool> {
        let start = self.at;
        let having: Vec<usize> = (0..self.quarries.len())
            .filter(|index| self.quarries[*index].size(digest) == Some(size))
            .collect();
        let mut piece = vec![0; PIECE];
        for index in having {
            let mut hasher = Sha256::new();
            while self.at - start < size {
                let Ok(count) = self.quarries[index].read(digest, self.at - start, &mut piece) else { break };
                hasher.update(&piece[..count]);
                self.append(&piece[..count])?;
            }
            if self.at - start == size && digest_of(hasher) == *digest {
                return Ok(true);
            }
            self.back_to(start)?;
        }
        Ok(false)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn back_to(&mut self, at: u64) -> io::Result<()> {
        self.at = at;
        self.file.set_len(at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tombolo_api::bundle::Index;

    use super::*;

    fn contents(layers: &[&[u8]], documents: &[&[u8]]) -> Contents {
        let layer = |content: &&[u8]| {
            let layer = Layer { size: content.len() as u64, path: "/nowhere".into() };
            (Digest::of(content), layer)
        };
        Contents {
            index: Index::new([], None),
            documents: documents.iter().map(|content| (Digest::of(content), content.to_vec())).collect(),
            layers: layers.iter().map(layer).collect::<BTreeMap<_, _>>(),
            left_out: 0,
        }
    }

    /// The file as it should be.
    fn whole(items: &[Item<'_>], layers: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for item in items {
            bytes.extend(member::header(&item.member, item.size));
            match item.source {
                Source::Here(content) => bytes.extend(content),
                Source::Layer(digest, _) => {
                    bytes.extend(*layers.iter().find(|layer| Digest::of(layer) == digest).unwrap())
                }
            }
            bytes.extend(vec![0; member::padding(item.size)]);
        }
        bytes.extend(END);
        bytes
    }

    #[test]
    fn an_earlier_attempt_is_kept_as_far_as_it_goes() {
        let layers: [&[u8]; 2] = [&[1; 700], &[2; 300]];
        let contents = contents(&layers, &[b"document"]);
        let index = contents.index.to_bytes();
        let items = plan(&contents, &index);
        let bytes = whole(&items, &layers);
        let file = tempfile::tempfile().unwrap();
        for cut in 0..bytes.len() {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes[..cut], 0).unwrap();
            let kept = kept(&file, &items).unwrap();
            let here = kept.at + kept.inside.as_ref().map_or(0, |(here, _)| BLOCK as u64 + here);
            assert!(!kept.is_other, "{cut}");
            // At most one header, document or padding is written again; of a layer nothing is.
            assert!(here.abs_diff(cut as u64) <= 1024, "{here} of {cut}");
            file.set_len(here).unwrap();
            let mut again = vec![0; usize::try_from(here).unwrap()];
            file.read_exact_at(&mut again, 0).unwrap();
            assert_eq!(again, bytes[..again.len()], "{cut}");
        }
        // A damaged layer is not kept; another state is.
        let last = (bytes.len() - END.len()) as u64 - member::span(items.last().unwrap().size);
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&[9], last + BLOCK as u64).unwrap();
        let found = kept(&file, &items).unwrap();
        assert_eq!((found.items, found.at, found.is_other), (items.len() - 1, last, false));
        file.write_all_at(b"x", 1024 + 512).unwrap();
        assert!(kept(&file, &items).unwrap().is_other);
    }
}
