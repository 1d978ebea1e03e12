//! The set of resources of one program. It takes changes of the set and runs one scanner and one session for each.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Resource;
use crate::metrics::Metrics;
use crate::name::ResourceName;
use crate::paths::Paths;
use crate::scanner::{Listing, Scanner};
use crate::service::{Followers, Service};
use crate::session::Session;
use crate::socket::SOCKET_PATH_BYTES_MAX;

/// A change of the set of resources that a program serves.
pub enum Change {
    /// One more; it takes the place of the one with the same name, if there is one.
    Add(Resource),
    /// One less. The kubelet sees its devices go.
    Remove(ResourceName),
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "the socket {} would have a path of more than {SOCKET_PATH_BYTES_MAX} bytes: give a shorter --directory", .0.display()
    )]
    PathTooLong(PathBuf),
}

struct Running {
    cancel: CancellationToken,
    tasks: JoinSet<()>,
}

/// A set of resources that never changes.
pub fn fixed(resources: Vec<Resource>) -> mpsc::Receiver<Change> {
    let (changes, receiver) = mpsc::channel(resources.len().max(1));
    for resource in resources {
        let sent = changes.try_send(Change::Add(resource));
        debug_assert!(sent.is_ok(), "there is room for all");
    }
    receiver
}

/// Serves resources in `directory` until `shutdown`; then removes its sockets. The set is what `changes` makes of it, also
/// after the channel's end. Whatever is in the way, an absent kubelet above all, is waited for.
///
/// # Errors
/// A resource can never be served in this directory.
pub async fn serve(
    directory: &Path,
    mut changes: mpsc::Receiver<Change>,
    metrics: Metrics,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (tick, ticks) = watch::channel(0);
    let ticking = tokio::spawn(tell_changes(directory.to_owned(), tick));
    let mut running: BTreeMap<ResourceName, Running> = BTreeMap::new();
    let mut result = Ok(());
    tokio::pin!(shutdown);
    while result.is_ok() {
        tokio::select! {
            Some(change) = changes.recv() => {
                let name = match &change {
                    Change::Add(resource) => &resource.name,
                    Change::Remove(name) => name,
                };
                if let Some(before) = running.remove(name) {
                    stop(before).await;
                    metrics.forget(name);
                }
                if let Change::Add(resource) = change {
                    let name = resource.name.clone();
                    result = start(directory, resource, &ticks, &metrics)
                        .map(|started| drop(running.insert(name, started)));
                }
            }
            () = &mut shutdown => break,
        }
    }
    for one in running.values() {
        one.cancel.cancel();
    }
    for one in running.into_values() {
        stop(one).await;
    }
    ticking.abort();
    result
}

fn start(
    directory: &Path,
    resource: Resource,
    ticks: &watch::Receiver<u64>,
    metrics: &Metrics,
) -> Result<Running, ServeError> {
    let socket = directory.join(resource.name.socket());
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(ServeError::PathTooLong(socket));
    }
    let cancel = CancellationToken::new();
    let (listing, listed) = watch::channel(Listing::Unknown);
    let counters = metrics.observe(resource.name.clone(), listed.clone());
    let accelerator = resource.scan.accelerator();
    let scan = Arc::new(Mutex::new(resource.scan));
    let rescan = Arc::new(Notify::new());
    let service = Service {
        resource: resource.name.clone(),
        scan: Arc::clone(&scan),
        listing: listed,
        followers: watch::Sender::new(Followers { count: 0, since: Instant::now() }),
        rescan: Arc::clone(&rescan),
        counters: Arc::clone(&counters),
        cancel: cancel.clone(),
    };
    let scanner = Scanner {
        resource: resource.name,
        scan,
        watched: resource.watched,
        interval: resource.interval,
        listing,
        rescan,
        counters,
        cancel: cancel.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(scanner.run());
    tasks.spawn(Session::new(directory, service, accelerator, ticks.clone(), cancel.clone()).run());
    Ok(Running { cancel, tasks })
}

async fn stop(running: Running) {
    running.cancel.cancel();
    running.tasks.join_all().await;
}

/// Counts the changes in the directory.
async fn tell_changes(directory: PathBuf, tick: watch::Sender<u64>) {
    let paths = match Paths::watch(vec![directory.clone()]) {
        Ok(paths) => paths,
        Err(error) => {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "cannot watch the directory; looking at intervals only");
            return;
        }
    };
    while paths.changed().await.is_ok() {
        tick.send_modify(|count| *count += 1);
    }
}
