//! Calls on the way of a request: a frozen instance is let go on from the thread that has the request, without a turn of any
//! task. Nobody waits for the answer; when it comes the reconciler is told, makes the same call, and sees what comes of it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::net::{SendFlags, send};
use tombolo_agent_core::supervision::{Call, InstanceId, Request};
use tombolo_router::Wake;

/// Number of the calls whose answers nobody waits for.
pub(super) const NOBODY: u64 = 0;

/// Sends beside the task that owns the connection: messages on a SEQPACKET socket do not mix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waker {
    /// `None` while there is no supervisor.
    socket: Arc<Mutex<Option<OwnedFd>>>,
    /// Woken, and the reconciler does not know yet. The request may be over by the time it looks.
    woken: Arc<Mutex<BTreeSet<InstanceId>>>,
}

impl Waker {
    pub(super) fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        *self.lock() = Some(socket.try_clone_to_owned()?);
        Ok(())
    }

    pub(super) fn detach(&self) {
        *self.lock() = None;
    }

    /// Those that were woken since the last call.
    pub(super) fn take_woken(&self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut *self.woken())
    }

    fn woken(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.woken.lock().expect("no panic under this lock")
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.socket.lock().expect("no panic under this lock")
    }
}

impl Wake for Waker {
    fn wake(&self, instance: &InstanceId) -> bool {
        let call = Call { seq: NOBODY, request: Request::Thaw { id: instance.clone() } };
        let Ok(message) = serde_json::to_vec(&call) else { return false };
        // Before the call: its answer may be here before this goes on.
        self.woken().insert(instance.clone());
        let sent = match &*self.lock() {
            Some(socket) => send(socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
            None => return false,
        };
        sent.is_ok_and(|length| length == message.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    use super::*;

    #[test]
    fn a_call_goes_out_at_once_or_not_at_all() {
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None).unwrap();
        let waker = Waker::default();
        let id = InstanceId("s-00001-abcde-1".into());
        assert!(!waker.wake(&id), "there is nobody to be asked");
        waker.attach(near.as_fd()).unwrap();
        assert!(waker.wake(&id));
        let mut buffer = [0; 256];
        let (length, _) = recv(&far, &mut buffer[..], RecvFlags::empty()).unwrap();
        let call: Call = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(call, Call { seq: NOBODY, request: Request::Thaw { id: id.clone() } });
        assert_eq!((waker.take_woken(), waker.take_woken()), ([id.clone()].into(), BTreeSet::new()));
        // A supervisor that reads nothing makes no request wait.
        while waker.wake(&id) {}
        waker.detach();
        assert!(!waker.wake(&id));
    }
}
