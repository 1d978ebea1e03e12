//! The CDI specifications of a node, as they are now: read when a file of theirs has changed, whether a container needs them or not,
//! so that what is wrong with them is known before a start fails. Gives no device away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tombolo_cdi::{Cache, ContainerEdits, QualifiedName, Unresolved};

/// After a file has changed: a vendor's tool writes several, or one several times.
const SETTLE: Duration = Duration::from_millis(200);

/// Room for what is read at once. What the events say is not looked at.
const EVENTS_BYTES: usize = 4096;

/// Troubles that are told; the rest is counted.
const TOLD_MAX: usize = 8;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Specifications {
    directories: Arc<[PathBuf]>,
    read: Arc<Mutex<Read>>,
}

#[derive(Debug, Default)]
struct Read {
    /// Read for the first time when it is first needed.
    cache: Option<Cache>,
    /// What is wrong with it, a sentence each.
    troubles: Vec<String>,
}

impl Specifications {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories: directories.into(), read: Arc::default() }
    }

    /// What they say of `names`. May block.
    pub(crate) fn edits(&self, names: &[QualifiedName]) -> Result<ContainerEdits, Unresolved> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.refresh(&self.directories).edits(names)
    }

    /// What is wrong with them. May block.
    fn troubles(&self) -> Vec<String> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.refresh(&self.directories);
        read.troubles.clone()
    }

    /// Looks at every change, and tells what is wrong; until nobody wants to know.
    pub(crate) async fn watch(self, told: watch::Sender<Arc<Vec<String>>>) {
        loop {
            // Before they are looked at, so that no change is between the two.
            let changes = arm(&self.directories);
            let this = self.clone();
            // A fault of the look is told by what it panics with; the next change may do without.
            if let Ok(troubles) = tokio::task::spawn_blocking(move || this.troubles()).await {
                told.send_if_modified(|current| {
                    let changed = **current != troubles;
                    if changed {
                        *current = Arc::new(troubles);
                    }
                    changed
                });
            }
            tokio::select! {
                () = changed(changes) => tokio::time::sleep(SETTLE).await,
                () = told.closed() => return,
            }
        }
    }
}

impl Read {
    /// As the files are now. What is wrong that was not before is in the log.
    fn refresh(&mut self, directories: &[PathBuf]) -> &Cache {
        let is_new = match &mut self.cache {
            Some(cache) => cache.refresh(),
            None => true,
        };
        let cache = self.cache.get_or_insert_with(|| Cache::read(directories));
        if is_new {
            let troubles = troubles(cache);
            for trouble in troubles.iter().filter(|trouble| !self.troubles.contains(trouble)) {
                tracing::warn!("{trouble}");
            }
            self.troubles = troubles;
        }
        cache
    }
}

fn troubles(cache: &Cache) -> Vec<String> {
    let errors = cache.errors().iter();
    let mut all: Vec<String> = errors
        .map(|(path, error)| format!("a CDI specification is not used: {}: {error}", path.display()))
        .collect();
    // A file that is there twice has all its devices twice.
    let mut conflicts: BTreeMap<&[PathBuf], BTreeSet<&QualifiedName>> = BTreeMap::new();
    for (name, conflict) in cache.conflicts() {
        conflicts.entry(&conflict.0).or_default().insert(name);
    }
    for (paths, names) in conflicts {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        let first = names.first().map(ToString::to_string).unwrap_or_default();
        let more = match names.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        all.push(format!(
            "CDI devices cannot be given: several files describe {first}{more}, remove all but one: {}",
            paths.join(", ")
        ));
    }
    if all.len() > TOLD_MAX {
        let more = all.len() - TOLD_MAX;
        all.truncate(TOLD_MAX);
        all.push(format!("{more} more CDI specifications are not used or contradict others"));
    }
    all
}

/// Watches the directories, and of one that is not there the nearest that is. An inotify instance is read like a pipe.
fn arm(directories: &[PathBuf]) -> io::Result<Receiver> {
    let coming = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    let of_files = WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB | WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    let notify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    for directory in directories {
        for there in directory.ancestors() {
            // What else is beside a directory that is not there is nobody's matter.
            let flags = if there == directory { coming | of_files } else { coming };
            // Also what is watched already for another directory, which may be below this one.
            match inotify::add_watch(&notify, there, flags | WatchFlags::MASK_ADD) {
                Ok(_) => break,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Receiver::from_file_unchecked(File::from(notify))
}

async fn changed(changes: io::Result<Receiver>) {
    let happened = async |changes: Receiver| loop {
        changes.readable().await?;
        match changes.try_read(&mut [0; EVENTS_BYTES]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(drop),
        }
    };
    let happened = match changes {
        Ok(changes) => happened(changes).await,
        Err(error) => Err(error),
    };
    if let Err(error) = happened {
        tracing::warn!(%error, "changes of CDI specifications are noticed only when a container needs them");
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(path: &Path, device: &str) {
        let spec = format!(
            r#"{{"cdiVersion":"0.6.0","kind":"v.example/c","devices":[
                {{"name":"{device}","containerEdits":{{"env":["A=1"]}}}},
                {{"name":"{device}-2","containerEdits":{{"env":["A=2"]}}}}]}}"#
        );
        fs::write(path, spec).unwrap();
    }

    /// Waits until what is told is `troubles`, each a part of a sentence.
    async fn tells(told: &mut watch::Receiver<Arc<Vec<String>>>, troubles: &[&str]) {
        let is_it = |told: &Arc<Vec<String>>| {
            told.len() == troubles.len() && told.iter().zip(troubles).all(|(told, part)| told.contains(part))
        };
        let found = tokio::time::timeout(Duration::from_secs(20), told.wait_for(is_it)).await;
        assert!(found.is_ok(), "not {troubles:?}");
    }

    #[tokio::test]
    async fn what_is_wrong_with_specifications_is_told_when_it_happens_and_until_it_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let (early, late) = (dir.path().join("etc/cdi"), dir.path().join("run/cdi"));
        let specifications = Specifications::new(vec![early.clone(), late.clone()]);
        let (sender, mut told) = watch::channel(Arc::default());
        let task = tokio::spawn(specifications.clone().watch(sender));
        tells(&mut told, &[]).await;
        // Directories that come, one below the other.
        fs::create_dir_all(&late).unwrap();
        write(&late.join("a.json"), "one");
        fs::write(late.join("broken.yaml"), "kind: [").unwrap();
        tells(&mut told, &["broken.yaml"]).await;
        write(&late.join("b.json"), "one");
        tells(&mut told, &["broken.yaml", "several files describe v.example/c=one and 1 more"]).await;
        assert!(told.borrow()[1].ends_with(&format!("{0}/a.json, {0}/b.json", late.display())));
        // One that is written anew in its place, and one that goes.
        write(&late.join("b.json"), "other");
        tells(&mut told, &["broken.yaml"]).await;
        fs::remove_file(late.join("broken.yaml")).unwrap();
        tells(&mut told, &[]).await;
        // Directories that go and come again.
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        fs::create_dir_all(&early).unwrap();
        fs::write(early.join("broken.json"), "{").unwrap();
        tells(&mut told, &["broken.json"]).await;
        let gone = specifications.edits(&["v.example/c=one".parse().unwrap()]);
        assert!(gone.is_err());
        drop(told);
        tokio::time::timeout(Duration::from_secs(20), task).await.expect("nobody wants to know").unwrap();
    }

    #[test]
    fn no_more_is_told_than_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20 {
            fs::write(dir.path().join(format!("{number}.json")), "{").unwrap();
        }
        let troubles = troubles(&Cache::read(&[dir.path().to_owned()]));
        assert_eq!(troubles.len(), TOLD_MAX + 1);
        assert!(troubles[TOLD_MAX].starts_with("12 more"), "{troubles:?}");
    }
}
