//! Work that takes a worker: started when one is free, finished by its message, its death or its deadline.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::AsFd as _;
use std::time::Instant;

use tombolo_agent_core::supervision::{Answer, InstanceId, InstancePhase, Refusal, Request};

use super::{Ending, Supervisor, Token};
use crate::instance::Caller;
use crate::record::Process;
use crate::sys;
use crate::worker::hooks::{self, HooksTask, Moment};
use crate::worker::{Outcome, Report, Task, Worker};

/// Workers at the same time. Each costs about a megabyte and some processor time for 5 ms; more would only be slower.
const WORKERS_MAX: usize = 8;

/// Commands inside instances at the same time, beside the other workers: most of their time is their own programs', and a
/// probe that hangs must not keep an instance from being made.
const COMMANDS_MAX: usize = 16;

/// A worker under way, and for what.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) worker: Worker,
    id: InstanceId,
    purpose: Purpose,
}

/// A job that waits for a worker to be free.
#[derive(Debug)]
pub(super) struct Planned {
    id: InstanceId,
    task: Task,
    purpose: Purpose,
}

/// What an outcome means, and who waits for it.
#[derive(Debug)]
pub(super) enum Purpose {
    Create {
        caller: Caller,
    },
    /// Removing what there is of a creation that failed; the refusal is said when it is gone.
    CleanUp {
        caller: Caller,
        refusal: Refusal,
    },
    Freeze {
        caller: Caller,
    },
    Suspend {
        caller: Caller,
    },
    Refit {
        caller: Caller,
    },
    /// Hooks that are told of its start: nobody waits for them but the next call about it.
    Started,
    Delete {
        caller: Option<Caller>,
    },
    /// Hooks that are told of its end; nothing else is left of it.
    Gone {
        caller: Option<Caller>,
    },
    /// A command inside it, beside whatever else happens to it.
    Exec {
        caller: Caller,
    },
}

impl Purpose {
    fn is_command(&self) -> bool {
        matches!(self, Self::Exec { .. })
    }
}

impl Supervisor {
    /// Gives the instance a worker as soon as one is free.
    pub(super) fn plan(&mut self, id: &InstanceId, task: Task, purpose: Purpose) {
        if let Some(instance) = self.instances.get_mut(id).filter(|_| !purpose.is_command()) {
            instance.is_busy = true;
            instance.is_going |=
                matches!(purpose, Purpose::Delete { .. } | Purpose::CleanUp { .. } | Purpose::Gone { .. });
        }
        self.planned.push_back(Planned { id: id.clone(), task, purpose });
        self.settle();
    }

    /// Starts what waits, as far as workers are free.
    pub(super) fn settle(&mut self) {
        while let Some(next) = self.next_planned()
            && let Some(Planned { id, task, purpose }) = self.planned.remove(next)
        {
            match Worker::start(task, &self.hierarchies) {
                Ok(worker) => {
                    self.last_job = self.last_job.wrapping_add(1);
                    let number = self.last_job;
                    if let Err(error) = self.watch(&worker.result, Token::Job(number)) {
                        // Its death or its deadline will be noticed.
                        tracing::error!(%error, "cannot watch a worker");
                    }
                    self.jobs.insert(number, Job { worker, id, purpose });
                }
                Err(error) => {
                    self.finish(
                        &id,
                        purpose,
                        Err(Refusal::Runtime(format!("cannot start a worker: {error}"))),
                    );
                }
            }
        }
    }

    /// The first for which a worker is free.
    fn next_planned(&self) -> Option<usize> {
        let commands = self.jobs.values().filter(|job| job.purpose.is_command()).count();
        let others = self.jobs.len() - commands;
        self.planned.iter().position(|planned| {
            if planned.purpose.is_command() { commands < COMMANDS_MAX } else { others < WORKERS_MAX }
        })
    }

    /// Whether nothing is under way and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && self.planned.is_empty()
            && self.instances.values().all(|instance| !instance.is_busy && instance.waiting.is_empty())
    }

    /// Whether the caller has been sent all that there was for it, or is gone.
    pub(super) fn has_told(&self, caller: &Caller) -> bool {
        self.connections.get(&caller.connection).is_none_or(|connection| !connection.has_waiting())
    }

    pub(super) fn take_outcome(&mut self, number: u32) {
        let Some(job) = self.jobs.get(&number) else { return };
        match job.worker.report() {
            Report::None => {}
            Report::Outcome(outcome) => self.finish_job(number, Ok(outcome)),
            Report::Lost => self.finish_job(number, Err(Refusal::Runtime("the worker died".into()))),
        }
    }

    /// The worker with this process id has ended, if there is one.
    pub(super) fn worker_ended(&mut self, pid: nix::unistd::Pid) -> bool {
        let Some(number) = self.jobs.iter().find(|(_, job)| job.worker.pid == pid).map(|(number, _)| *number)
        else {
            return false;
        };
        self.take_outcome(number);
        if self.jobs.contains_key(&number) {
            self.finish_job(number, Err(Refusal::Runtime("the worker died".into())));
        }
        true
    }

    pub(super) fn give_up_late_jobs(&mut self, now: Instant) {
        let late: Vec<u32> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.worker.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            let refusal = Refusal::Timeout(self.jobs[&number].worker.allowed.as_secs());
            self.finish_job(number, Err(refusal));
        }
    }

    fn finish_job(&mut self, number: u32, result: Result<Outcome, Refusal>) {
        let Some(job) = self.jobs.remove(&number) else { return };
        self.unwatch(&job.worker.result);
        if result.is_err() {
            job.worker.kill();
        }
        let result = match result {
            Ok(Outcome::Failed(reason)) => Err(Refusal::Runtime(reason)),
            other => other,
        };
        if let (Purpose::Freeze { .. }, Ok(_)) = (&job.purpose, &result)
            && let Some(instance) = self.instances.get_mut(&job.id)
        {
            instance.reclaimer = Some(job.worker.pid);
        }
        self.finish(&job.id, job.purpose, result);
    }

    fn finish(&mut self, id: &InstanceId, purpose: Purpose, result: Result<Outcome, Refusal>) {
        if let Purpose::Exec { caller } = purpose {
            return self.executed(caller, result);
        }
        if let Some(instance) = self.instances.get_mut(id) {
            instance.is_busy = false;
        }
        match (purpose, result) {
            (Purpose::Create { caller }, Ok(Outcome::Created { pid, limitation })) => {
                self.note(limitation);
                match self.created(id, pid) {
                    Ok(()) => {
                        self.reply(caller, Ok(Answer::Created { pid }));
                        self.watch_memory(id);
                    }
                    Err(refusal) => self.clean_up(id, caller, refusal),
                }
            }
            (Purpose::Create { caller }, Err(refusal)) => self.clean_up(id, caller, refusal),
            (Purpose::Create { caller }, Ok(_)) => {
                self.clean_up(id, caller, Refusal::Runtime("the worker made no container".into()));
            }
            (Purpose::CleanUp { caller, refusal }, cleaned) => {
                if let Err(error) = cleaned {
                    tracing::error!(instance = %id, %error, "cannot remove what a failed creation left");
                }
                let waiting = self.forget(id);
                self.reply(caller, Err(refusal));
                self.call_again(waiting);
            }
            (Purpose::Freeze { caller }, result) => {
                let result = self.stopped(id, result, InstancePhase::Running, InstancePhase::Frozen);
                self.reply(caller, result);
            }
            (Purpose::Suspend { caller }, result) => {
                let result = self.stopped(id, result, InstancePhase::Moving, InstancePhase::Suspended);
                self.reply(caller, result);
            }
            (Purpose::Refit { caller }, result) => self.reply(caller, result.map(|_| Answer::Done)),
            (Purpose::Started, result) => tell_hooks(id, result),
            (Purpose::Gone { caller }, result) => {
                tell_hooks(id, result);
                self.gone(id, caller);
            }
            (Purpose::Delete { caller }, result) => self.deleted(id, caller, result),
            (Purpose::Exec { .. }, _) => {}
        }
        self.go_on(id);
    }

    fn created(&mut self, id: &InstanceId, pid: i32) -> Result<(), Refusal> {
        let Some(instance) = self.instances.get_mut(id) else { return Err(Refusal::NotFound(id.clone())) };
        let gone =
            |error: std::io::Error| Refusal::Runtime(format!("the container's init ended at once: {error}"));
        // The process cannot be another one: only we could have reaped it, and then there is none.
        let process = Process::of(pid).map_err(gone)?;
        let pidfd = sys::pidfd_open(process.id()).map_err(gone)?;
        instance.record.process = Some(process);
        instance.enter(InstancePhase::Created);
        let token = Token::Process(instance.record.slot);
        let watched = self.watch(&pidfd.as_fd(), token);
        if let Some(instance) = self.instances.get_mut(id) {
            instance.pidfd = Some(pidfd);
        }
        watched.map_err(|error| Refusal::Runtime(format!("cannot watch the container's init: {error}")))
    }

    /// Adds to what this machine cannot do; said to the next agent that connects.
    pub(super) fn note(&mut self, limitation: Option<String>) {
        if let Some(limitation) = limitation
            && !self.limitations.contains(&limitation)
        {
            tracing::warn!("{limitation}");
            self.limitations.push(limitation);
        }
    }

    fn clean_up(&mut self, id: &InstanceId, caller: Caller, refusal: Refusal) {
        let Some(instance) = self.instances.get(id) else { return self.reply(caller, Err(refusal)) };
        tracing::warn!(instance = %id, reason = %refusal, "cannot be created");
        let task = Task::Remove(instance.record.cgroup.clone());
        self.plan(id, task, Purpose::CleanUp { caller, refusal });
    }

    fn executed(&mut self, caller: Caller, result: Result<Outcome, Refusal>) {
        let result = match result {
            Ok(Outcome::Executed { code, signal, timed_out, output }) => {
                Ok(Answer::Executed { code, signal, timed_out, output })
            }
            Ok(_) => Err(Refusal::Runtime("the worker ran no command".into())),
            Err(refusal) => Err(refusal),
        };
        self.reply(caller, result);
    }

    fn stopped(
        &mut self,
        id: &InstanceId,
        result: Result<Outcome, Refusal>,
        from: InstancePhase,
        to: InstancePhase,
    ) -> Result<Answer, Refusal> {
        result?;
        let instance = self.instances.get_mut(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        match instance.phase() {
            phase if phase == from => instance.enter(to),
            phase => return Err(Refusal::WrongPhase { id: id.clone(), phase }),
        }
        Ok(Answer::Done)
    }

    fn deleted(&mut self, id: &InstanceId, caller: Option<Caller>, result: Result<Outcome, Refusal>) {
        let Err(refusal) = result else {
            return match self.hooks(id, Moment::Gone) {
                Some(task) => self.plan(id, task, Purpose::Gone { caller }),
                None => self.gone(id, caller),
            };
        };
        tracing::error!(instance = %id, reason = %refusal, "cannot be deleted");
        if let Some(Ending::Shutdown { failures, .. }) = &mut self.ending {
            failures.push(format!("instance {id} cannot be deleted: {refusal}"));
            // Nothing waits for it any more.
            drop(self.forget(id));
        } else if let Some(instance) = self.instances.get_mut(id) {
            instance.is_going = false;
        }
        if let Some(caller) = caller {
            self.reply(caller, Err(refusal));
        }
    }

    fn gone(&mut self, id: &InstanceId, caller: Option<Caller>) {
        let waiting = self.forget(id);
        if let Some(caller) = caller {
            self.reply(caller, Ok(Answer::Done));
        }
        self.call_again(waiting);
    }

    /// The hooks that the instance has for a moment, if it has any.
    pub(super) fn hooks(&self, id: &InstanceId, moment: Moment) -> Option<Task> {
        let directory = &self.instances.get(id)?.directory;
        let task = || HooksTask { moment, id: id.0.clone(), directory: directory.clone() };
        hooks::are_kept(directory).then(|| Task::Hooks(task()))
    }

    /// Nothing is left of the instance but its directory: removes that too. Returns the calls that waited for it.
    fn forget(&mut self, id: &InstanceId) -> VecDeque<(Caller, Request)> {
        let Some(slot) = self.instances.get(id).map(|instance| instance.record.slot) else {
            return VecDeque::new();
        };
        // Its init is dead, though perhaps the kernel has not said so yet.
        self.collect(slot);
        let Some(instance) = self.instances.remove(id) else { return VecDeque::new() };
        self.slots.remove(&slot);
        for source in [&instance.output, &instance.error].into_iter().flatten() {
            self.unwatch(source);
        }
        if let Some(pidfd) = &instance.pidfd {
            self.unwatch(pidfd);
        }
        if let Some(memory) = &instance.memory {
            self.unwatch(memory);
        }
        if let Err(error) = fs::remove_dir_all(&instance.directory) {
            tracing::error!(instance = %id, %error, "cannot remove its directory");
        }
        let cgroup = &instance.record.cgroup;
        if !self.instances.values().any(|other| other.record.cgroup.is_sibling(cgroup)) {
            self.hierarchies.remove_empty_parents(cgroup);
        }
        instance.waiting
    }

    /// Calls that waited for an instance which is gone find none, or make it anew.
    fn call_again(&mut self, waiting: VecDeque<(Caller, Request)>) {
        for (caller, request) in waiting {
            self.about_instance(caller, request);
        }
    }

    /// The instance's next calls, until one takes a worker.
    fn go_on(&mut self, id: &InstanceId) {
        if matches!(self.ending, Some(Ending::Shutdown { .. })) {
            if self.instances.get(id).is_some_and(|instance| !instance.is_busy) {
                self.delete(None, id);
            }
            return;
        }
        while let Some(instance) = self.instances.get_mut(id)
            && !instance.is_busy
            && let Some((caller, request)) = instance.waiting.pop_front()
        {
            self.perform(caller, request);
        }
    }
}

/// They could not have changed anything any more.
fn tell_hooks(id: &InstanceId, result: Result<Outcome, Refusal>) {
    if let Err(reason) = result {
        tracing::warn!(instance = %id, %reason, "a hook failed");
    }
}
