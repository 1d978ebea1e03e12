//! The names in the registry: which manifests each repository has, and what its tags mean. Small files, each written
//! under another name, synced and renamed. Must not know HTTP.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tombolo_api::Digest;
use tombolo_oci::store::sync_directory;
use tombolo_oci::{Repository, StoreError, Tag};

use super::digests::AnyDigest;

mod links;
mod others;

/// Largest name file that is read; the largest written holds a media type.
const FILE_MAX: u64 = 4096;

#[derive(Debug)]
pub(super) struct Names {
    root: PathBuf,
}

impl Names {
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        make_directories(root)?;
        Ok(Self { root: root.into() })
    }

    /// What `tag` means.
    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.tag_as_named(repository, tag)?.map_or(Ok(None), |named| self.resolve(&named))
    }

    /// The same, named as the client did that set it.
    pub(super) fn tag_as_named(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<AnyDigest>, StoreError> {
        let path = self.tags(repository).join(tag.as_str());
        let Some(text) = read(&path)? else { return Ok(None) };
        let digest = text.parse().inspect_err(
            |error| tracing::error!(%repository, %tag, %error, "a tag is damaged: push the image again"),
        );
        Ok(digest.ok())
    }

    pub(super) fn set_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        digest: &AnyDigest,
    ) -> Result<(), StoreError> {
        write(&self.tags(repository), tag.as_str(), &digest.to_string())
    }

    /// Removes a tag; whether it was there.
    pub(super) fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, StoreError> {
        remove(&self.tags(repository), tag.as_str())
    }

    /// All tags of a repository in the order of [`place`], or `None` if there never was such a repository.
    pub(super) fn list_tags(&self, repository: &Repository) -> Result<Option<Vec<String>>, StoreError> {
        let mut tags = list(&self.tags(repository))?;
        tags.sort_by_cached_key(|tag| place(tag));
        let is_own = |name: &String| name.starts_with('_');
        if tags.is_empty() && !list(&self.root.join(repository.as_str()))?.iter().any(is_own) {
            return Ok(None);
        }
        Ok(Some(tags))
    }

    /// The media type of a manifest that was pushed to the repository.
    pub(super) fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<String>, StoreError> {
        read(&self.manifests(repository).join(digest.hex()))
    }

    pub(super) fn add_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: &str,
    ) -> Result<(), StoreError> {
        write(&self.manifests(repository), &digest.hex(), media_type)
    }

    /// Removes a manifest and the tags that mean it; whether it was there.
    pub(super) fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        for tag in list(&self.tags(repository))? {
            let Ok(tag) = tag.parse::<Tag>() else { continue };
            if self.tag(repository, &tag)? == Some(*digest) {
                self.remove_tag(repository, &tag)?;
            }
        }
        let referring = self.referring(repository);
        for subject in list(&referring)? {
            remove(&referring.join(subject), &digest.hex())?;
        }
        remove(&self.manifests(repository), &digest.hex())
    }

    /// Remembers that a manifest names `subject` as what it belongs to.
    pub(super) fn add_referrer(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        write(&self.referring(repository).join(subject.hex()), &digest.hex(), "")
    }

    /// The manifests that name `subject`, by digest. Some may be gone.
    pub(super) fn referrers(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
    ) -> Result<Vec<Digest>, StoreError> {
        let names = list(&self.referring(repository).join(subject.hex()))?;
        let mut referrers: Vec<Digest> =
            names.iter().filter_map(|hex| format!("sha256:{hex}").parse().ok()).collect();
        referrers.sort_unstable();
        Ok(referrers)
    }

    /// The same, the one that was pushed last first.
    pub(super) fn newest_referrers(
        &self,
        repository: &Repository,
        subject: &AnyDigest,
    ) -> Result<Vec<Digest>, StoreError> {
        let directory = self.referring(repository).join(subject.hex());
        // One whose time cannot be read, as it was deleted meanwhile, comes last.
        let pushed =
            |digest: &Digest| directory.join(digest.hex()).metadata().and_then(|file| file.modified()).ok();
        let mut referrers = self.referrers(repository, subject)?;
        referrers.sort_by_cached_key(|digest| std::cmp::Reverse(pushed(digest)));
        Ok(referrers)
    }

    // No part of a repository's name starts with an underscore, so these never meet one.
    fn tags(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.as_str()).join("_tags")
    }

    fn manifests(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.as_str()).join("_manifests")
    }

    fn referring(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.as_str()).join("_referrers")
    }
}

/// Where a tag stands among others: lexical, and as the specification has it, whatever the case.
pub(super) fn place(tag: &str) -> (String, String) {
    (tag.to_ascii_lowercase(), tag.to_owned())
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    use io::Read as _;
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(FILE_MAX).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), StoreError> {
    make_directories(directory)?;
    let path = directory.join(name);
    // A tag never starts with a dot. Two writers of one name at once never share a file.
    let temporary = directory.join(format!(".{}", uuid::Uuid::new_v4()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(failed("write", &path)(error));
    }
    sync_directory(directory)
}

fn remove(directory: &Path, name: &str) -> Result<bool, StoreError> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Ok(()) => sync_directory(directory).map(|()| true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(failed("remove", &path)(error)),
    }
}

fn list(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", directory))?.file_name();
        names.extend(name.to_str().filter(|name| !name.starts_with('.')).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Creates a directory and its parents, each durable in its own parent.
fn make_directories(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent)?;
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", path)(error));
            }
            _ => sync_directory(parent)?,
        }
    }
    Ok(())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { path },
        _ => StoreError::Io { act, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::open(dir.path()).unwrap();
        let (repository, nested): (Repository, Repository) = ("a".parse().unwrap(), "a/b".parse().unwrap());
        let (latest, old) = (Tag::latest(), "old".parse::<Tag>().unwrap());
        let digest = Digest::of(b"m");
        assert_eq!(names.list_tags(&repository).unwrap(), None);
        names.add_manifest(&repository, &digest, "t/m").unwrap();
        assert_eq!(names.list_tags(&repository).unwrap(), Some(vec![]));
        names.set_tag(&repository, &old, &digest.into()).unwrap();
        names.set_tag(&repository, &latest, &digest.into()).unwrap();
        names.set_tag(&nested, &latest, &Digest::of(b"n").into()).unwrap();

        let names = Names::open(dir.path()).unwrap();
        assert_eq!(names.list_tags(&repository).unwrap(), Some(vec!["latest".to_owned(), "old".to_owned()]));
        assert_eq!(names.manifest(&repository, &digest).unwrap().as_deref(), Some("t/m"));
        assert_eq!(names.manifest(&nested, &digest).unwrap(), None);
        assert!(names.remove_manifest(&repository, &digest).unwrap());
        assert!(!names.remove_manifest(&repository, &digest).unwrap());
        assert_eq!(names.tag(&repository, &latest).unwrap(), None);
        assert_eq!(names.tag(&nested, &latest).unwrap(), Some(Digest::of(b"n")));
    }

    #[test]
    fn what_refers_to_a_manifest_is_listed_from_the_newest_on() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::open(dir.path()).unwrap();
        let (repository, subject): (Repository, Digest) = ("a".parse().unwrap(), Digest::of(b"m"));
        let mut expected = Vec::new();
        for second in 0..20_u8 {
            let referrer = Digest::of(&[second]);
            names.add_referrer(&repository, &subject.into(), &referrer).unwrap();
            let path = names.referring(&repository).join(subject.hex()).join(referrer.hex());
            let pushed = std::time::UNIX_EPOCH + std::time::Duration::from_secs(second.into());
            File::options().write(true).open(path).unwrap().set_modified(pushed).unwrap();
            expected.insert(0, referrer);
        }
        assert_eq!(names.newest_referrers(&repository, &subject.into()).unwrap(), expected);
        expected.sort();
        assert_eq!(names.referrers(&repository, &subject.into()).unwrap(), expected);
    }
}
