//! Processes that have ended: reaped, told apart, recorded, reported.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tombolo_agent_core::supervision::{ExitRecord, InstanceId, InstancePhase, Message};

use super::Supervisor;

/// Most unknown processes remembered: an init that ends before its worker has said its name is among the last few.
const REMEMBERED_MAX: usize = 64;

/// How a process ended, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    code: Option<i32>,
    signal: Option<i32>,
}

impl Status {
    /// None: it has not ended.
    fn of(wait: WaitStatus) -> Option<Self> {
        match wait {
            WaitStatus::Exited(_, code) => Some(Self { code: Some(code), signal: None }),
            WaitStatus::Signaled(_, signal, _) => Some(Self { code: None, signal: Some(signal as i32) }),
            _ => None,
        }
    }

    /// Of a process that runs no more; unknown unless it is this one's child.
    pub(super) fn of_ended(pid: Pid) -> Self {
        waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok().and_then(Self::of).unwrap_or_default()
    }

    /// Whether it was killed, or says so of what it ran, as shells do, or nobody tells how it ended.
    fn may_be_kill(self) -> bool {
        const SHELL: i32 = 128 + libc::SIGKILL;
        matches!((self.code, self.signal), (None, None | Some(libc::SIGKILL)) | (Some(SHELL), _))
    }
}

/// Processes that ended and belonged to nobody yet. The container runtime leaves one behind with every creation.
#[derive(Debug, Default)]
pub(super) struct Reaped(VecDeque<(Pid, Status)>);

impl Reaped {
    fn remember(&mut self, pid: Pid, status: Status) {
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((pid, status));
    }
}

impl Supervisor {
    /// Reaps every child that has ended.
    pub(super) fn reap(&mut self) {
        loop {
            let wait = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(wait) => wait,
            };
            let (Some(pid), Some(status)) = (wait.pid(), Status::of(wait)) else { continue };
            let is_worker = self.worker_ended(pid);
            // From now on its id may be another's.
            let reclaimer = self.instances.values_mut().find(|other| other.reclaimer == Some(pid));
            let is_reclaimer = reclaimer.map(|instance| instance.reclaimer = None).is_some();
            if is_worker || is_reclaimer {
                continue;
            }
            match self.instance_of_process(pid) {
                Some(id) => self.ended(&id, status),
                None => self.reaped.remember(pid, status),
            }
        }
    }

    fn instance_of_process(&self, pid: Pid) -> Option<InstanceId> {
        let is_it = |instance: &&crate::instance::Instance| {
            instance.pidfd.is_some()
                && instance.record.process.as_ref().is_some_and(|process| process.id() == pid)
        };
        self.instances.values().find(is_it).map(|instance| instance.record.id.clone())
    }

    /// The init of the instance in `slot` has ended, says its pidfd. It may be another's child: then nobody tells how.
    pub(super) fn collect(&mut self, slot: u16) {
        let Some(id) = self.slots.get(&slot).cloned() else { return };
        let instance = &self.instances[&id];
        let Some(process) = instance.record.process.as_ref().filter(|_| instance.pidfd.is_some()) else {
            return;
        };
        let status = match waitpid(process.id(), Some(WaitPidFlag::WNOHANG)) {
            Ok(wait) => Status::of(wait),
            Err(_) if process.is_alive() => return,
            Err(_) => Some(Status::default()),
        };
        let Some(status) = status else { return };
        self.ended(&id, status);
    }

    pub(super) fn ended(&mut self, id: &InstanceId, status: Status) {
        let Some(mut instance) = self.instances.remove(id) else { return };
        instance.drain();
        instance.log.close();
        for source in [instance.output.take(), instance.error.take()].into_iter().flatten() {
            self.unwatch(&source);
        }
        if let Some(pidfd) = instance.pidfd.take() {
            self.unwatch(&pidfd);
        }
        let memory = instance.memory.take();
        let slot = instance.record.slot;
        let has_run_out = memory.as_ref().is_some_and(|events| self.has_just_run_out(slot, events));
        if let Some(memory) = &memory {
            self.unwatch(memory);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let exit = ExitRecord {
            code: status.code,
            signal: status.signal,
            // Where kills are watched for, one that was counted just now was to end it, however it has ended meanwhile.
            out_of_memory: (status.may_be_kill() || has_run_out)
                && self.hierarchies.oom_kills(&instance.record.cgroup) > instance.oom_kills_before,
            time_ms: u64::try_from(now).unwrap_or(u64::MAX),
        };
        instance.record.exit = Some(exit.clone());
        instance.enter(InstancePhase::Ended);
        self.instances.insert(id.clone(), instance);
        if let Some(agent) = self.agent {
            self.send(agent, &Message::Exited { id: id.clone(), exit }, None);
        }
    }
}
