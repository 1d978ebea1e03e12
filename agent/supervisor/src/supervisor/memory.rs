//! On cgroup v1, what is killed for memory takes its whole instance with it, which the kernel sees to on v2.
//!
//! Here the kernel says through an eventfd that memory has run out, and that before it kills; whether it killed is told by
//! the cgroup's count of kills, which is looked at for a while. At rest nothing is looked at. Of what it kills because the whole
//! machine has no memory it says nothing: that is found with the next that an instance lacks, or by the next supervisor.

use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use tombolo_agent_core::supervision::InstanceId;

use super::{Supervisor, Token};

/// First and longest pause between two looks at a count.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a kill may take from when memory has run out: the kernel first describes it on a console, which may be a slow one.
const KILL_TIME: Duration = Duration::from_secs(5);

/// An instance that may have lost a process, or is to end for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) due: Instant,
    pause: Duration,
    /// When it is taken to have lost none.
    end: Instant,
}

impl Supervisor {
    /// Has the kernel say when the instance's memory runs out.
    pub(super) fn watch_memory(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id).filter(|instance| instance.pidfd.is_some()) else {
            return;
        };
        let token = Token::Memory(instance.record.slot);
        let watched = self.hierarchies.watch_memory(&instance.record.cgroup).and_then(|events| {
            events.as_ref().map_or(Ok(()), |events| self.watch(events, token)).map(|()| events)
        });
        match (watched, self.instances.get_mut(id)) {
            (Ok(events), Some(instance)) => instance.memory = events,
            (Err(error), _) => self.note(Some(format!(
                "a worker that is killed for memory does not end its instance: the kernel does not tell of it: {error}"
            ))),
            (Ok(_), None) => {}
        }
    }

    /// An instance that lost processes under a supervisor which let it go on is not ended for these by the next.
    pub(super) fn forgive_kills(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id).filter(|instance| !instance.record.ends_with_kills)
        {
            instance.record.ends_with_kills = true;
            instance.oom_kills_before = self.hierarchies.oom_kills(&instance.record.cgroup);
        }
    }

    /// The memory of the instance in `slot` has run out, or may have while nobody watched.
    pub(super) fn suspect_kill(&mut self, slot: u16) {
        let instance = self.slots.get(&slot).and_then(|id| self.instances.get(id));
        let Some(events) = instance.and_then(|instance| instance.memory.as_ref()) else { return };
        // There may be none yet.
        let _ = events.read();
        let now = Instant::now();
        let due = self.looks.get(&slot).map_or(now, |look| look.due.min(now + PAUSE_MIN));
        self.looks.insert(slot, Look { due, pause: PAUSE_MIN, end: now + KILL_TIME });
    }

    /// Looks at what is due. Whose processes were killed is killed, and again until it has ended: a freeze under way holds it.
    pub(super) fn look_for_kills(&mut self, now: Instant) {
        let due: Vec<(u16, Look)> = self.looks.extract_if(.., |_, look| look.due <= now).collect();
        for (slot, look) in due {
            let Some(id) = self.slots.get(&slot).cloned() else { continue };
            let pause = match self.has_lost_some(&id) {
                Some(true) => {
                    tracing::info!(instance = %id, "one of its processes was killed for memory, so all of it is");
                    self.kill_whole(&id);
                    PAUSE_MAX
                }
                Some(false) if now < look.end => look.pause,
                Some(false) | None => continue,
            };
            self.looks
                .insert(slot, Look { due: now + pause, pause: (pause * 2).min(PAUSE_MAX), end: look.end });
        }
    }

    /// Whether memory has run out a moment ago, in the instance that is in `slot` and told so by `events`.
    pub(super) fn has_just_run_out(&self, slot: u16, events: &EventFd) -> bool {
        self.looks.contains_key(&slot) || events.read().is_ok()
    }

    /// Whether processes of the instance were killed for memory; `None`: it has ended.
    fn has_lost_some(&self, id: &InstanceId) -> Option<bool> {
        let instance = self.instances.get(id).filter(|instance| instance.pidfd.is_some())?;
        Some(self.hierarchies.oom_kills(&instance.record.cgroup) > instance.oom_kills_before)
    }

    fn kill_whole(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let is_stopped = instance.phase().is_stopped();
        if let Err(error) = instance.signal(libc::SIGKILL) {
            tracing::error!(instance = %id, %error, "cannot kill it");
        }
        // A frozen process does not die.
        if is_stopped && let Err(error) = self.thaw(id) {
            tracing::error!(instance = %id, %error, "cannot thaw it");
        }
    }
}
