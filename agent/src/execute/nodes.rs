//! Notices that the device nodes which instances were given are not what they were: a device that was plugged again, or goes on
//! under another id, has another node, whether its plugin tells of that or not. One task; without instances that have devices it
//! sleeps. Says which instances, and does nothing to them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tombolo_agent_core::supervision::InstanceId;

use super::{Inner, Outcome, devices, launch};

/// After something changed: a device that comes is several nodes, links and permissions, one after the other.
const SETTLE: Duration = Duration::from_millis(200);

/// Room for what is read at once. What the events say is not looked at.
const EVENTS_BYTES: usize = 4096;

/// The task; ends with the executor.
pub(super) async fn run(inner: Weak<Inner>, mut holders: watch::Receiver<BTreeSet<InstanceId>>) {
    let mut nodes = None;
    loop {
        let now = holders.borrow_and_update().clone();
        if now.is_empty() {
            nodes = None;
        } else if nodes.is_none() {
            nodes = watch();
        }
        let Some(inner) = inner.upgrade() else { return };
        look(&inner, &now, nodes.as_ref()).await;
        drop(inner);
        tokio::select! {
            () = changed(nodes.as_ref()) => tokio::time::sleep(SETTLE).await,
            changed = holders.changed() => if changed.is_err() { return },
        }
    }
}

fn watch() -> Option<Nodes> {
    let told = |error: &io::Error| {
        tracing::warn!(%error, "devices that get other nodes are noticed only if their plugins tell");
    };
    Nodes::watch().inspect_err(told).ok()
}

/// Watches what the holders have, and tells whose is not what it was. In this order, so that no change is between the two.
async fn look(inner: &Inner, holders: &BTreeSet<InstanceId>, nodes: Option<&Nodes>) {
    for instance in holders {
        let dir = launch::bundle_dir(&inner.tools.run_dir, instance);
        // One that is gone meanwhile has no devices.
        let Ok(kept) = devices::Kept::read(&dir) else { continue };
        if let Some(nodes) = nodes {
            kept.host_paths().for_each(|path| nodes.arm(path));
        }
        if !kept.is_current() {
            tracing::info!(%instance, "a device of it has another node");
            inner.tell(Outcome::NodesChanged { instance: instance.clone() }).await;
        }
    }
}

async fn changed(nodes: Option<&Nodes>) {
    if let Some(nodes) = nodes {
        match nodes.changed().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "devices that get other nodes are not noticed any more"),
        }
    }
    std::future::pending().await
}

/// Watched directories; an inotify instance is read like a pipe.
struct Nodes(Receiver);

impl Nodes {
    fn watch() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self(Receiver::from_file_unchecked(File::from(inotify))?))
    }

    async fn changed(&self) -> io::Result<()> {
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; EVENTS_BYTES]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }

    /// Watches the directories that a node is in: by its name, and where that leads if it is a link. Of one that is not there, the
    /// nearest that is. Watching a second time changes nothing.
    fn arm(&self, node: &Path) {
        let target = node.canonicalize().ok();
        for path in [Some(node), target.as_deref()].into_iter().flatten() {
            self.arm_above(path);
        }
    }

    fn arm_above(&self, path: &Path) {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        for directory in path.ancestors().skip(1) {
            match inotify::add_watch(&self.0, directory, flags) {
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Ok(_) => return,
                Err(error) => {
                    let path = directory.display();
                    return tracing::warn!(%path, %error, "cannot watch for devices that get other nodes (see fs.inotify.max_user_watches)");
                }
            }
        }
    }
}
