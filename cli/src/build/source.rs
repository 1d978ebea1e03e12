//! Where a project comes from: a directory, or a git repository.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use super::cache::Cache;
use super::git;
use crate::exit::WrongUse;

/// A directory with a project in it.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) dir: PathBuf,
    /// Its own name, whatever that is good for.
    pub(crate) name: String,
    /// Of a repository: which commit it is.
    pub(super) commit: Option<String>,
    /// Goes with it, before the cache that it is in can be cleaned.
    pub(super) _checkout: Option<(TempDir, Cache)>,
}

impl Tree {
    /// A directory by its path.
    pub(crate) fn of_directory(path: &Path) -> anyhow::Result<Self> {
        match path.metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                return Err(
                    WrongUse(format!("{} is a file: name the directory it is in", path.display())).into()
                );
            }
            Err(_) => return Err(WrongUse(format!("there is no directory {}", path.display())).into()),
        }
        // So that `.` has a name.
        let dir = path.canonicalize().with_context(|| format!("{} cannot be opened", path.display()))?;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { dir, name, commit: None, _checkout: None })
    }

    /// `URL[#REV[:DIR]]`, fetched.
    pub(crate) async fn of_git(text: &str) -> anyhow::Result<Self> {
        let text = text.to_owned();
        tokio::task::spawn_blocking(move || git::fetch(&text)).await.context("fetching was broken off")?
    }
}
