//! How `tombolo-agent import` and the running agent speak: by files in the agent's import directory, which only root may enter.
//!
//! ```text
//! command: NAME.request ─▶ agent: imports, NAME.result again and again ─▶ command: reads the last one, removes it
//! ```
//!
//! A request outlives both: an agent that was killed finds it when it starts, and goes on. A request that is taken away
//! meanwhile is broken off. Must not know what importing is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Report;

/// Largest request read: a path.
const REQUEST_MAX: u64 = 16 * 1024;

const REQUEST: &str = "request";
const RESULT: &str = "result";

/// How long a result waits for whoever asked: an agent may have ended just after it said what came of an import.
const UNREAD_MAX: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct Content {
    bundle: PathBuf,
}

/// A request to import a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Its own file.
    file: PathBuf,
    pub(super) bundle: PathBuf,
}

impl Request {
    /// Places a request.
    pub(super) fn place(directory: &Path, bundle: &Path) -> io::Result<Self> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let file = directory.join(name).with_extension(REQUEST);
        let content = Content { bundle: bundle.to_owned() };
        write(&file, &serde_json::to_vec(&content)?)?;
        Ok(Self { file, bundle: bundle.to_owned() })
    }

    /// Whether this is the name of one.
    pub(super) fn is_one(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension == REQUEST)
    }

    /// Reads one; what cannot be read is none.
    pub(super) fn read(file: &Path) -> Option<Self> {
        let is_small =
            file.symlink_metadata().is_ok_and(|about| about.is_file() && about.len() <= REQUEST_MAX);
        let content: Content = serde_json::from_slice(&is_small.then(|| fs::read(file).ok())??).ok()?;
        Some(Self { file: file.to_owned(), bundle: content.bundle })
    }

    /// Whether somebody still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        self.file.exists()
    }

    /// Takes it back.
    pub(super) fn withdraw(&self) {
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(self.result());
    }

    /// Says how far it is.
    pub(super) fn tell(&self, report: &Report) -> io::Result<()> {
        write(&self.result(), &serde_json::to_vec(report)?)
    }

    /// Says what came of it; it is done with.
    pub(super) fn answer(&self, report: &Report) -> io::Result<()> {
        if !self.is_wanted() {
            return Ok(());
        }
        self.tell(report)?;
        fs::remove_file(&self.file)
    }

    /// What was said last.
    pub(super) fn told(&self) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.result()).ok()?).ok()
    }

    fn result(&self) -> PathBuf {
        self.file.with_extension(RESULT)
    }
}

/// Removes results that nobody has read for long: whoever asked is gone.
pub(super) fn forget_results(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let age = entry.metadata().and_then(|file| file.modified()).ok().and_then(|at| at.elapsed().ok());
        if path.extension().is_some_and(|extension| extension == RESULT)
            && !path.with_extension(REQUEST).exists()
            && age.is_some_and(|age| age >= UNREAD_MAX)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whole or not at all. That a power cut loses it costs asking again.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}
