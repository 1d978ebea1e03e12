//! The one thread that writes, and what readers see meanwhile.
//!
//! Before a group of batches is applied, the values it replaces are put over the engine for readers; they are taken away
//! when the group is on the disk. So nothing is ever seen that a power cut could still undo, and after a failed commit
//! readers go on seeing the state before it. The next commit then opens the engine anew, and undoes what of the failed one
//! reached the disk after all. Knows nothing of files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use nix::sys::statvfs::statvfs;

use crate::engine::{Engine, EngineError};
use crate::open::{Opened, reopen, write_mark};
use crate::record::{self, ROOT_KEY, Root};
use crate::{Batch, COMMIT_DEADLINE, CommitError, ReadError};

/// Commits that may wait; more callers wait to be let in.
const QUEUE_MAX: usize = 1024;

/// Most batches and bytes written as one: bounds how long the first of them waits for the others.
const GROUP_MAX: usize = 256;
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Room that must be left on the disk beside a group itself: a segment of the log, pages rewritten, a snapshot.
const ROOM_BYTES: u64 = 2 << 20;

type Changes = BTreeMap<String, Option<Vec<u8>>>;
type Answer = Box<dyn FnOnce(Result<(), CommitError>) + Send>;
type Request = (Batch, Answer);

/// The store behind its handles.
#[derive(Debug)]
pub(crate) struct Writer {
    view: Arc<RwLock<View>>,
    /// `None` only while being dropped.
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// What readers see.
#[derive(Debug)]
struct View {
    engine: Result<Engine, String>,
    /// Records over the engine's; `None`: absent.
    over: Changes,
}

impl Writer {
    pub(crate) fn start(opened: Opened) -> std::io::Result<Self> {
        let (requests, inbox) = sync_channel(QUEUE_MAX);
        let Opened { dir, engine, root, mark, lock } = opened;
        let view = Arc::new(RwLock::new(View { engine: Ok(engine), over: BTreeMap::new() }));
        let mut task = Task { dir, view: view.clone(), root, failed: None };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || {
            while let Some(group) = next_group(&inbox) {
                let (changes, answers) = merge(group);
                let result = task.commit(changes);
                if result.is_ok() {
                    write_mark(&mark, task.root.commit);
                }
                for answer in answers {
                    answer(result.clone());
                }
            }
            // Closed here, so that whoever waited for this thread can open the store again.
            task.write_view(|view| view.engine = Err("it was closed".into()));
            drop(lock);
        })?;
        Ok(Self { view, requests: Some(requests), thread: Some(thread) })
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let view = read_view(&self.view);
        let record = match view.over.get(key) {
            Some(record) => record.clone(),
            None => {
                view.engine()?.get(key.as_bytes()).map_err(|error| ReadError::Engine(error.to_string()))?
            }
        };
        drop(view);
        record.map(|record| payload(key, record)).transpose()
    }

    pub(crate) fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let view = read_view(&self.view);
        let stored =
            view.engine()?.scan(prefix.as_bytes()).map_err(|error| ReadError::Engine(error.to_string()))?;
        let over: Vec<_> =
            view.over.iter().filter(|(key, _)| key.starts_with(prefix)).map(clone_pair).collect();
        drop(view);
        let mut items: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, record) in stored.into_iter().filter(|(key, _)| key != ROOT_KEY) {
            let key =
                String::from_utf8(key).map_err(|error| ReadError::Damaged { key: error.to_string() })?;
            items.insert(key, record);
        }
        for (key, record) in over {
            match record {
                Some(record) => items.insert(key, record),
                None => items.remove(&key),
            };
        }
        items.into_iter().map(|(key, record)| Ok((key.clone(), payload(&key, record)?))).collect()
    }

    pub(crate) fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let (answer, result) = sync_channel(1);
        let answer: Answer = Box::new(move |result| drop(answer.send(result)));
        self.requests().send((batch, answer)).map_err(|_| CommitError::Closed)?;
        result.recv_timeout(COMMIT_DEADLINE).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => CommitError::Deadline,
                RecvTimeoutError::Disconnected => CommitError::Closed,
            })
        })
    }

    pub(crate) async fn commit_async(&self, batch: Batch) -> Result<(), CommitError> {
        let (answer, result) = tokio::sync::oneshot::channel();
        let answer: Answer = Box::new(move |result| drop(answer.send(result)));
        match self.requests().try_send((batch, answer)) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => return Err(CommitError::Closed),
            Err(TrySendError::Full(request)) => {
                let requests = self.requests().clone();
                let sent = tokio::task::spawn_blocking(move || requests.send(request)).await;
                sent.map_err(|_| CommitError::Closed)?.map_err(|_| CommitError::Closed)?;
            }
        }
        match tokio::time::timeout(COMMIT_DEADLINE, result).await {
            Ok(result) => result.unwrap_or(Err(CommitError::Closed)),
            Err(_) => Err(CommitError::Deadline),
        }
    }

    fn requests(&self) -> &SyncSender<Request> {
        self.requests.as_ref().expect("taken only by drop")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writer thread's own state.
struct Task {
    dir: PathBuf,
    view: Arc<RwLock<View>>,
    /// As of the last commit that is on the disk.
    root: Root,
    /// The root that a failed commit tried to write, until the engine has been opened anew.
    failed: Option<Root>,
}

impl Task {
    fn commit(&mut self, mut changes: Changes) -> Result<(), CommitError> {
        let size: usize =
            changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        self.require_room(size as u64)?;
        if let Some(failed) = self.failed {
            let undo = self.revive(failed)?;
            for (key, record) in undo {
                changes.entry(key).or_insert(record);
            }
        }
        let (root, before) = self.prepare(&changes)?;
        self.write_view(|view| view.over = before);
        match self.apply(&changes, &root) {
            Ok(()) => {
                self.root = root;
                self.write_view(|view| view.over.clear());
                Ok(())
            }
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "a commit failed");
                self.failed = Some(root);
                Err(self.commit_error(error, size as u64))
            }
        }
    }

    /// The root after `changes`, and the records that `changes` replace.
    fn prepare(&self, changes: &Changes) -> Result<(Root, Changes), CommitError> {
        let view = read_view(&self.view);
        let engine = view.engine.as_ref().map_err(|reason| CommitError::Engine(reason.clone()))?;
        let mut root = Root { commit: self.root.commit + 1, ..self.root };
        let mut before = BTreeMap::new();
        for (key, record) in changes {
            let old = engine.get(key.as_bytes()).map_err(|error| CommitError::Engine(error.to_string()))?;
            if let Some(old) = &old {
                root.remove(key.as_bytes(), old);
            }
            if let Some(record) = record {
                root.add(key.as_bytes(), record);
            }
            before.insert(key.clone(), old);
        }
        Ok((root, before))
    }

    fn apply(&self, changes: &Changes, root: &Root) -> Result<(), EngineError> {
        let view = read_view(&self.view);
        let engine = view.engine.as_ref().map_err(|reason| EngineError::Failed(reason.clone()))?;
        let encoded = root.encode();
        let changes = changes.iter().map(|(key, record)| (key.as_bytes(), record.as_deref()));
        engine.apply(changes.chain([(ROOT_KEY, Some(encoded.as_slice()))]))
    }

    /// Opens the engine anew after a failed commit. What is to be written to undo that commit, if it took effect after all.
    fn revive(&mut self, failed: Root) -> Result<Changes, CommitError> {
        self.write_view(|view| view.engine = Err("it is being opened again".into()));
        match reopen(&self.dir) {
            Ok((engine, root)) if root == failed || root == self.root => {
                tracing::info!(dir = %self.dir.display(), "the store works again");
                self.root = root;
                self.failed = None;
                let undo = if root == failed { read_view(&self.view).over.clone() } else { BTreeMap::new() };
                let keep = root == failed;
                self.write_view(|view| {
                    view.engine = Ok(engine);
                    if !keep {
                        view.over.clear();
                    }
                });
                Ok(undo)
            }
            Ok(_) => {
                Err(self
                    .stay_closed("its contents changed while it was closed: restart to check them".into()))
            }
            Err(error) => Err(self.stay_closed(error.to_string())),
        }
    }

    fn stay_closed(&self, reason: String) -> CommitError {
        self.write_view(|view| view.engine = Err(reason.clone()));
        CommitError::Engine(reason)
    }

    /// Refuses early what would not fit: a failed write costs more than a question.
    fn require_room(&self, size: u64) -> Result<(), CommitError> {
        let need = ROOM_BYTES + 2 * size;
        match self.free_bytes() {
            Some(free) if free < need => Err(CommitError::DiskFull { dir: self.dir.clone(), free, need }),
            _ => Ok(()),
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let stat = statvfs(&self.dir).ok()?;
        let blocks =
            if nix::unistd::geteuid().is_root() { stat.blocks_free() } else { stat.blocks_available() };
        Some(blocks * stat.fragment_size())
    }

    fn commit_error(&self, error: EngineError, size: u64) -> CommitError {
        match error {
            EngineError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                CommitError::DiskFull {
                    dir: self.dir.clone(),
                    free: self.free_bytes().unwrap_or(0),
                    need: ROOM_BYTES + 2 * size,
                }
            }
            error => CommitError::Engine(error.to_string()),
        }
    }

    fn write_view(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().expect("no thread panics while holding this lock"));
    }
}

impl View {
    fn engine(&self) -> Result<&Engine, ReadError> {
        self.engine.as_ref().map_err(|reason| ReadError::Closed(reason.clone()))
    }
}

fn read_view(view: &RwLock<View>) -> RwLockReadGuard<'_, View> {
    view.read().expect("no thread panics while holding this lock")
}

fn clone_pair((key, record): (&String, &Option<Vec<u8>>)) -> (String, Option<Vec<u8>>) {
    (key.clone(), record.clone())
}

fn payload(key: &str, record: Vec<u8>) -> Result<Vec<u8>, ReadError> {
    match record::unseal(&record) {
        Some(payload) => Ok(payload.to_vec()),
        None => Err(ReadError::Damaged { key: key.to_owned() }),
    }
}

/// Waits for a request and takes the others that wait already. `None` when there will be no more.
fn next_group(inbox: &Receiver<Request>) -> Option<Vec<Request>> {
    let first = inbox.recv().ok()?;
    let mut bytes = size_of_batch(&first.0);
    let mut group = vec![first];
    while group.len() < GROUP_MAX && bytes < GROUP_BYTES_MAX {
        let Ok(request) = inbox.try_recv() else { break };
        bytes += size_of_batch(&request.0);
        group.push(request);
    }
    Some(group)
}

fn size_of_batch(batch: &Batch) -> usize {
    batch.changes.values().flatten().map(Vec::len).sum()
}

/// One set of changes of sealed records, the later batches' over the earlier ones'.
fn merge(group: Vec<Request>) -> (Changes, Vec<Answer>) {
    let mut changes = BTreeMap::new();
    let mut answers = Vec::with_capacity(group.len());
    for (batch, answer) in group {
        changes.extend(
            batch.changes.into_iter().map(|(key, value)| (key, value.map(|value| record::seal(&value)))),
        );
        answers.push(answer);
    }
    (changes, answers)
}
