//! Opens connections to instances, each from inside the instance's own network namespace.
//!
//! Takes namespaces and orders, gives connected streams. One resident thread changes its network namespace and makes the
//! sockets; a socket keeps the namespace it was made in, so connecting goes on in tokio and a slow instance delays nobody.
//! It must not know what is spoken on a connection. No other thread of the process ever changes its namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tombolo_agent_core::supervision::InstanceId;

/// Longest wait for a connection. On a loopback interface only a full accept queue takes time: its first retry comes after a second.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Sockets that may be on order. The thread makes one in about 10 µs, so a full queue is 40 ms of work.
const ORDERS_MAX: usize = 4096;

/// Handle of the dialling thread, which ends when the last clone is gone.
#[derive(Clone)]
pub struct Dialer {
    inner: Arc<Inner>,
}

struct Inner {
    spaces: RwLock<BTreeMap<InstanceId, Arc<OwnedFd>>>,
    orders: SyncSender<Order>,
}

struct Order {
    netns: Arc<OwnedFd>,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Dialer {
    /// Start the thread.
    pub fn start() -> io::Result<Self> {
        let (orders, queue) = sync_channel(ORDERS_MAX);
        let (opened, home) = sync_channel(1);
        std::thread::Builder::new().name("netns-dialer".into()).spawn(move || {
            match File::open("/proc/thread-self/ns/net") {
                Ok(file) => {
                    // The starter waits for this answer; if it is gone there is nobody to serve.
                    if opened.send(Ok(())).is_ok() {
                        make_sockets(&queue, file.as_fd());
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        home.recv().map_err(|_| io::Error::other("the dialling thread ended at its start"))??;
        Ok(Self { inner: Arc::new(Inner { spaces: RwLock::default(), orders }) })
    }

    /// Make an instance's network namespace known. Replaces an earlier one.
    pub fn add(&self, id: InstanceId, netns: OwnedFd) {
        self.inner.spaces.write().expect("no panic under this lock").insert(id, Arc::new(netns));
    }

    /// Forget an instance. Connections to it stay.
    pub fn remove(&self, id: &InstanceId) {
        self.inner.spaces.write().expect("no panic under this lock").remove(id);
    }

    /// Connect to `port` on the loopback address of the instance's network namespace.
    pub async fn dial(&self, id: &InstanceId, port: u16) -> io::Result<TcpStream> {
        let socket = TcpSocket::from_std_stream(StdTcpStream::from(self.socket(id).await?));
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream =
            tokio::time::timeout(CONNECT_DEADLINE, socket.connect(target)).await.map_err(|_| {
                io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_DEADLINE:?}"))
            })??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A TCP socket in the instance's network namespace: not connected, not blocking.
    pub async fn socket(&self, id: &InstanceId) -> io::Result<OwnedFd> {
        let netns = self.inner.spaces.read().expect("no panic under this lock").get(id).cloned();
        let netns = netns.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("instance {id} has no known network namespace"))
        })?;
        let (reply, made) = oneshot::channel();
        self.inner.orders.try_send(Order { netns, reply }).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::other("too many connections being opened"),
            TrySendError::Disconnected(_) => io::Error::other("the dialling thread has ended"),
        })?;
        made.await.map_err(|_| io::Error::other("the dialling thread has ended"))?
    }
}

/// The thread's work. Goes home when there is nothing to do, so that no instance's namespace outlives it here.
fn make_sockets(queue: &Receiver<Order>, home: BorrowedFd<'_>) {
    while let Ok(order) = queue.recv() {
        make_socket(order);
        while let Ok(order) = queue.try_recv() {
            make_socket(order);
        }
        if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            tracing::warn!(%error, "the dialling thread cannot return to its network namespace");
        }
    }
}

fn make_socket(Order { netns, reply }: Order) {
    let made = setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).and_then(|()| {
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
    });
    // Whoever ordered may have gone away; the socket closes then.
    drop(reply.send(made.map_err(io::Error::from)));
}
