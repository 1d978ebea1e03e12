//! The catalog: every resource of the hub, kept in the store and served from memory.
//!
//! ```text
//! transact ─▶ queue ─▶ the one writer: decide on the state as it is ─▶ commit to the store ─▶ publish, remember, answer
//! state, watch ◀───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Takes: transactions, each a function of the state. Gives: the state through a watch, and the latest changes for
//! clients that follow them. Whatever is published is on the disk. Must not know HTTP, nor what a resource means: it
//! numbers versions, gives identity to what is new, and counts generations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tombolo_api::meta::{ObjectMeta, Status};
use tombolo_hub_core::{Key, Kind, Object, Snapshot};
use tombolo_store::{Batch, CommitError, ReadError, Recovery, Store};

use crate::clock;

mod history;

use history::History;
pub(crate) use history::{Event, Expired, VersionError};

/// Transactions that may wait for the writer; further callers wait to be let in.
const QUEUE: usize = 256;

/// The namespace that is always there.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Key prefix of resources: `r/{plural}/{namespace}/{name}`.
const RESOURCES: &str = "r/";
/// Key prefix of namespaces.
const NAMESPACES: &str = "meta/namespace/";
/// Key of the last version given away.
const VERSION: &str = "meta/version";

/// Versions skipped after the store lost something, so that no client sees one number for two contents.
const VERSIONS_SKIPPED: u64 = 1 << 20;

/// Everything the catalog holds at one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) snapshot: Snapshot,
    /// By name, with their metadata.
    pub(crate) namespaces: BTreeMap<String, Arc<ObjectMeta>>,
    /// The `resourceVersion` of the newest change.
    pub(crate) version: u64,
}

impl State {
    /// The changes that remove an object and all it owns.
    pub(crate) fn removal(&self, object: &Object) -> Vec<Change> {
        let owned = self.snapshot.owned_by(&object.metadata().uid);
        std::iter::once(object)
            .chain(&owned)
            .map(|object| Change::Remove(object.kind(), object.key()))
            .collect()
    }
}

/// One step of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Creates or replaces. Version, generation and, for what is new, identity are the catalog's to set.
    Put(Object),
    Remove(Kind, Key),
    PutNamespace(Box<ObjectMeta>),
    RemoveNamespace(String),
}

/// Why a transaction took no effect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Refused(#[from] Box<Status>),
    #[error("cannot keep the change")]
    Store(#[source] CommitError),
    #[error("the hub is stopping")]
    Stopped,
}

/// Why the catalog cannot be read from the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the resources")]
    Store(#[from] ReadError),
    #[error("cannot make the default namespace")]
    Write(#[from] CommitError),
    #[error("the stored resource {key} cannot be read: {reason}")]
    Resource { key: String, reason: String },
}

/// A handle of the catalog.
#[derive(Clone, Debug)]
pub(crate) struct Catalog {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<Arc<State>>,
    history: Arc<Mutex<History>>,
}

/// The task that writes.
pub(crate) struct CatalogWriter {
    store: Store,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<Arc<State>>,
    history: Arc<Mutex<History>>,
}

type Decide = Box<dyn FnOnce(&State) -> Result<Vec<Change>, Box<Status>> + Send>;

struct Command {
    decide: Decide,
    reply: oneshot::Sender<Result<Vec<Object>, WriteError>>,
}

impl Catalog {
    /// Reads what the store has. The writer must be run for anything to be written. Blocks.
    pub(crate) fn open(store: Store, recovery: &Recovery) -> Result<(Self, CatalogWriter), LoadError> {
        let mut state = load(&store, recovery)?;
        if !state.namespaces.contains_key(DEFAULT_NAMESPACE) {
            state = with_default_namespace(state, &store)?;
        }
        let state = Arc::new(state);
        let history = Arc::new(Mutex::new(History::starting_at(state.version)));
        let (state_sender, state) = watch::channel(state);
        let (sender, commands) = mpsc::channel(QUEUE);
        let writer = CatalogWriter { store, commands, state: state_sender, history: history.clone() };
        Ok((Self { commands: sender, state, history }, writer))
    }

    /// The state as it is now.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// What changed after `version`, oldest first.
    pub(crate) fn since(&self, version: u64) -> Result<Vec<Arc<Event>>, Expired> {
        lock(&self.history).since(version)
    }

    /// Whether a client may follow changes from `version` on.
    pub(crate) fn check(&self, version: u64) -> Result<(), VersionError> {
        let current = self.state().version;
        if version > current {
            return Err(VersionError::TooLarge { asked: version, current });
        }
        self.since(version)?;
        Ok(())
    }

    /// The resources as they were at `version`: those of now, with everything undone that came after.
    pub(crate) fn at(&self, version: u64) -> Result<Snapshot, VersionError> {
        let state = self.state();
        if version > state.version {
            return Err(VersionError::TooLarge { asked: version, current: state.version });
        }
        let mut snapshot = state.snapshot.clone();
        // Changes are remembered a moment before the state has them.
        let undone = self.since(version)?.into_iter().filter(|event| event.version <= state.version);
        for event in undone.rev() {
            match (&event.before, &event.after) {
                (Some(before), _) => snapshot.put(before.clone()),
                (None, Some(after)) => snapshot.remove(after.kind(), &after.key()),
                (None, None) => {}
            }
        }
        Ok(snapshot)
    }

    /// Has `decide` look at the newest state and makes its changes durable, all or none. Returns what was put, as
    /// stored, and what else `decide` returned.
    pub(crate) async fn transact<R: Send + 'static>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Vec<Change>, R), Box<Status>> + Send + 'static,
    ) -> Result<(Vec<Object>, R), WriteError> {
        let (extra_sender, mut extra) = oneshot::channel();
        let decide: Decide = Box::new(move |state| {
            let (changes, extra) = decide(state)?;
            let _ = extra_sender.send(extra);
            Ok(changes)
        });
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { decide, reply }).await.map_err(|_| WriteError::Stopped)?;
        let objects = answer.await.map_err(|_| WriteError::Stopped)??;
        Ok((objects, extra.try_recv().map_err(|_| WriteError::Stopped)?))
    }
}

impl CatalogWriter {
    /// Runs until `stop`, or until every handle is gone.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let command = tokio::select! {
                () = stop.cancelled() => return,
                command = self.commands.recv() => command,
            };
            let Some(command) = command else { return };
            let result = self.execute(command.decide).await;
            // Whoever asked may have gone: the change stands all the same.
            let _ = command.reply.send(result);
        }
    }

    async fn execute(&mut self, decide: Decide) -> Result<Vec<Object>, WriteError> {
        let before = self.state.borrow().clone();
        let changes = decide(&before)?;
        let mut draft = Draft::of(&before);
        let put = changes.into_iter().filter_map(|change| draft.apply(change)).collect();
        if draft.batch.is_empty() {
            return Ok(put);
        }
        draft.batch.put(VERSION, draft.state.version.to_string());
        self.store.commit_async(draft.batch).await.map_err(WriteError::Store)?;
        lock(&self.history).add(draft.events);
        self.state.send_replace(Arc::new(draft.state));
        Ok(put)
    }
}

/// A transaction being worked out.
struct Draft {
    state: State,
    batch: Batch,
    events: Vec<Event>,
}

impl Draft {
    fn of(state: &State) -> Self {
        Self { state: state.clone(), batch: Batch::new(), events: Vec::new() }
    }

    fn apply(&mut self, change: Change) -> Option<Object> {
        match change {
            Change::Put(object) => return Some(self.put(object)),
            Change::Remove(kind, key) => self.remove(kind, &key),
            Change::PutNamespace(mut metadata) => {
                metadata.resource_version = self.next_version().to_string();
                let bytes = serde_json::to_vec(&metadata).expect("metadata is plain data");
                self.batch.put(format!("{NAMESPACES}{}", metadata.name), bytes);
                self.state.namespaces.insert(metadata.name.clone(), Arc::from(metadata));
            }
            Change::RemoveNamespace(name) => {
                if self.state.namespaces.remove(&name).is_some() {
                    self.next_version();
                    self.batch.delete(format!("{NAMESPACES}{name}"));
                }
            }
        }
        None
    }

    fn put(&mut self, mut object: Object) -> Object {
        let (kind, key) = (object.kind(), object.key());
        let before = self.state.snapshot.get(kind, &key);
        identify(&mut object, before.as_ref());
        if let Some(before) = &before {
            object.metadata_mut().resource_version.clone_from(&before.metadata().resource_version);
            if object == *before {
                return object;
            }
        }
        let version = self.next_version();
        object.metadata_mut().resource_version = version.to_string();
        self.batch.put(store_key(kind, &key), object.to_bytes());
        self.state.snapshot.put(object.clone());
        self.events.push(Event { version, before, after: Some(object.clone()) });
        object
    }

    fn remove(&mut self, kind: Kind, key: &Key) {
        let Some(before) = self.state.snapshot.get(kind, key) else { return };
        let version = self.next_version();
        self.batch.delete(store_key(kind, key));
        self.state.snapshot.remove(kind, key);
        self.events.push(Event { version, before: Some(before), after: None });
    }

    fn next_version(&mut self) -> u64 {
        self.state.version += 1;
        self.state.version
    }
}

/// Sets what only the catalog decides of an object's metadata, its version aside.
fn identify(object: &mut Object, before: Option<&Object>) {
    let same_spec = before.is_some_and(|before| before.same_spec(object));
    let metadata = object.metadata_mut();
    match before.map(Object::metadata) {
        None => {
            if metadata.uid.is_empty() {
                metadata.uid = uuid::Uuid::new_v4().to_string();
            }
            metadata.creation_timestamp.get_or_insert_with(clock::now_rfc3339);
            metadata.generation = 1;
        }
        Some(before) => {
            metadata.uid.clone_from(&before.uid);
            metadata.creation_timestamp.clone_from(&before.creation_timestamp);
            metadata.generation = before.generation + i64::from(!same_spec);
        }
    }
}

fn load(store: &Store, recovery: &Recovery) -> Result<State, LoadError> {
    let mut state = State::default();
    let unreadable = |key: &str, reason: String| LoadError::Resource { key: key.to_owned(), reason };
    for kind in Kind::ALL {
        for (key, bytes) in store.scan(&format!("{RESOURCES}{}/", kind.plural()))? {
            let object = serde_json::from_slice(&bytes).and_then(|value| Object::from_json(kind, value));
            let object = object.map_err(|error| unreadable(&key, error.to_string()))?;
            if store_key(kind, &object.key()) != key {
                return Err(unreadable(&key, format!("it says that it is {}", object.key())));
            }
            state.version = state.version.max(version_of(object.metadata()));
            state.snapshot.put(object);
        }
    }
    for (key, bytes) in store.scan(NAMESPACES)? {
        let metadata: ObjectMeta =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(&key, error.to_string()))?;
        state.version = state.version.max(version_of(&metadata));
        state.namespaces.insert(metadata.name.clone(), Arc::new(metadata));
    }
    let stored = store.get(VERSION)?.and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    // Lists of version 0 would mean "any version" to clients.
    state.version = state.version.max(stored.unwrap_or(0)).max(1);
    if !recovery.is_complete() {
        state.version += VERSIONS_SKIPPED;
    }
    Ok(state)
}

fn with_default_namespace(state: State, store: &Store) -> Result<State, LoadError> {
    let mut draft = Draft::of(&state);
    draft.apply(Change::PutNamespace(Box::new(ObjectMeta {
        name: DEFAULT_NAMESPACE.into(),
        uid: uuid::Uuid::new_v4().to_string(),
        creation_timestamp: Some(clock::now_rfc3339()),
        ..ObjectMeta::default()
    })));
    draft.batch.put(VERSION, draft.state.version.to_string());
    store.commit(draft.batch)?;
    Ok(draft.state)
}

fn version_of(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.parse().unwrap_or(0)
}

fn store_key(kind: Kind, key: &Key) -> String {
    format!("{RESOURCES}{}/{}/{}", kind.plural(), key.namespace, key.name)
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
