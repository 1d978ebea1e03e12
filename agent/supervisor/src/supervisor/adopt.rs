//! Taking over instances: with the descriptors that a predecessor handed over, or from their records alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use tombolo_agent_core::supervision::InstancePhase;

use super::exits::Status;
use super::{Supervisor, Token};
use crate::cgroup::CgroupPath;
use crate::handover::{Descriptors, Handover};
use crate::instance::Instance;
use crate::output::{Log, Source};
use crate::record::{Process, Record};
use crate::{sys, worker};

/// How long removing what a crash left of one creation may take; nobody is served meanwhile.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(3);

impl Supervisor {
    /// Takes over every instance with a record; removes what is left of interrupted creations and of lost records.
    pub(super) fn adopt(&mut self, handover: &mut Handover) {
        let directories = match self.directories.all() {
            Ok(directories) => directories,
            Err(error) => return tracing::error!(%error, "cannot read the records"),
        };
        for directory in directories {
            match Record::read(&directory) {
                Ok(record) if record.phase == InstancePhase::Creating => {
                    self.remove_interrupted(&directory, Some(&record.cgroup));
                }
                Ok(record) if self.slots.contains_key(&record.slot) => {
                    tracing::error!(instance = %record.id, "its record has another's place");
                    self.remove_interrupted(&directory, Some(&record.cgroup));
                }
                Ok(record) => {
                    let descriptors = handover.instances.remove(&record.id).unwrap_or_default();
                    self.adopt_one(record, &directory, descriptors);
                }
                Err(error) => {
                    tracing::warn!(directory = %directory.display(), %error, "no record can be read");
                    self.remove_interrupted(&directory, None);
                }
            }
        }
        self.remove_stray_cgroups();
    }

    /// No record names them, so nobody else would ever remove them. One with processes may be seen to by a person.
    fn remove_stray_cgroups(&self) {
        let kept: BTreeSet<&CgroupPath> =
            self.instances.values().map(|instance| &instance.record.cgroup).collect();
        for cgroup in self.hierarchies.remove_strays(&self.cgroup, &kept) {
            tracing::warn!(cgroup = %cgroup.absolute().display(), "a cgroup with processes and without a record is left");
        }
    }

    fn remove_interrupted(&self, directory: &Path, cgroup: Option<&CgroupPath>) {
        tracing::warn!(directory = %directory.display(), "removing what is left of an interrupted creation");
        worker::kill_strays(directory);
        if let Some(cgroup) = cgroup {
            if let Err(error) = self.hierarchies.remove(cgroup, Instant::now() + CLEAN_UP_DEADLINE) {
                tracing::error!(directory = %directory.display(), %error, "cannot remove its cgroup");
            }
            self.hierarchies.remove_empty_parents(cgroup);
        }
        if let Err(error) = fs::remove_dir_all(directory) {
            tracing::error!(directory = %directory.display(), %error, "cannot remove it");
        }
    }

    fn adopt_one(&mut self, record: Record, directory: &Path, descriptors: Descriptors) {
        let id = record.id.clone();
        let slot = record.slot;
        let log = Log::unopened(record.log.clone());
        let mut instance = Instance::new(record, directory.to_owned(), log);
        instance.output = descriptors.output.map(Source::from);
        instance.error = descriptors.error.map(Source::from);
        let has_ended = instance.phase() == InstancePhase::Ended;
        if !has_ended {
            if instance.output.is_none()
                && instance.error.is_none()
                && let Err(error) = instance.open_output()
            {
                tracing::error!(instance = %id, %error, "cannot open its output");
            }
            let process = instance.record.process.clone();
            let opened = descriptors.pidfd.or_else(|| sys::pidfd_open(process.as_ref()?.id()).ok());
            // Asked after opening: then what was opened is it, or has its id no more.
            instance.pidfd = opened.filter(|_| process.as_ref().is_some_and(|process| process.is_alive()));
        }
        let init = instance.record.process.as_ref().map(Process::id);
        let runs = matches!(instance.phase(), InstancePhase::Running | InstancePhase::Moving);
        // A predecessor that was killed may have begun to stop its processes.
        if runs
            && let Err(error) = self.hierarchies.thaw(&instance.record.cgroup)
            && error.kind() != io::ErrorKind::Unsupported
        {
            tracing::warn!(instance = %id, %error, "cannot make sure that it is not frozen");
        }
        let watched = instance.pidfd.as_ref().map(|pidfd| self.watch(pidfd, Token::Process(slot)));
        let is_gone = !has_ended && instance.pidfd.is_none();
        self.slots.insert(slot, id.clone());
        self.instances.insert(id.clone(), instance);
        if let Some(Err(error)) = watched {
            tracing::error!(instance = %id, %error, "cannot watch its init");
        }
        if is_gone {
            // A child of this one's, if the predecessor was replaced and not killed.
            self.ended(&id, init.map_or_else(Status::default, Status::of_ended));
        } else if !has_ended {
            self.watch_output(&id);
            self.watch_memory(&id);
            self.forgive_kills(&id);
            self.suspect_kill(slot);
        }
    }
}
