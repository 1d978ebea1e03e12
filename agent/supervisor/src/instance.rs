//! One instance as the supervisor holds it: its record, its process, its output, and the calls that wait for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_agent_core::supervision::{InstancePhase, Request};

use crate::output::{Log, Progress, Source, Stream};
use crate::record::Record;
use crate::sys;

/// Reads of what is left in a stream whose writers are gone: a pipe holds less than these take.
const DRAIN_READS: usize = 128;

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) connection: u32,
    pub(crate) seq: u64,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) record: Record,
    /// Its directory below the run directory.
    pub(crate) directory: PathBuf,
    /// Of its init; none before it is created and after it has ended.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) output: Option<Source>,
    pub(crate) error: Option<Source>,
    /// Says on cgroup v1, while it lives, that its memory has run out.
    pub(crate) memory: Option<EventFd>,
    pub(crate) log: Log,
    /// Its record says less than what has happened.
    pub(crate) is_behind: bool,
    /// The worker that froze it and takes its memory back; stopped before it thaws.
    pub(crate) reclaimer: Option<Pid>,
    /// A worker is at it, or is to be.
    pub(crate) is_busy: bool,
    /// Its processes that the kernel had killed for memory when it was sent SIGKILL: what ends it then is not one of these.
    pub(crate) oom_kills_before: u64,
    /// It is being removed: its record is not written any more.
    pub(crate) is_going: bool,
    /// Calls that came while it was busy.
    pub(crate) waiting: VecDeque<(Caller, Request)>,
}

impl Instance {
    pub(crate) fn new(record: Record, directory: PathBuf, log: Log) -> Self {
        Self {
            record,
            directory,
            pidfd: None,
            output: None,
            error: None,
            memory: None,
            log,
            is_behind: false,
            reclaimer: None,
            is_busy: false,
            oom_kills_before: 0,
            is_going: false,
            waiting: VecDeque::new(),
        }
    }

    /// Opens the reading ends of its FIFOs.
    pub(crate) fn open_output(&mut self) -> std::io::Result<()> {
        self.output = Some(Source::open(&self.directory.join(Stream::Out.name()))?);
        self.error = Some(Source::open(&self.directory.join(Stream::Error.name()))?);
        Ok(())
    }

    pub(crate) fn source(&self, stream: Stream) -> Option<&Source> {
        match stream {
            Stream::Out => self.output.as_ref(),
            Stream::Error => self.error.as_ref(),
        }
    }

    pub(crate) fn source_mut(&mut self, stream: Stream) -> &mut Option<Source> {
        match stream {
            Stream::Out => &mut self.output,
            Stream::Error => &mut self.error,
        }
    }

    /// Takes some of what a stream has into the log.
    pub(crate) fn pump(&mut self, stream: Stream) -> Progress {
        let source = match stream {
            Stream::Out => self.output.as_mut(),
            Stream::Error => self.error.as_mut(),
        };
        let Some(source) = source else { return Progress::Ended };
        let progress = source.pump(stream, &mut self.log);
        if progress == Progress::Ended {
            source.finish(stream, &mut self.log);
        }
        progress
    }

    /// Takes everything that is left of both streams into the log.
    pub(crate) fn drain(&mut self) {
        for stream in Stream::BOTH {
            for _ in 0..DRAIN_READS {
                if self.pump(stream) != Progress::More {
                    break;
                }
            }
            let source = match stream {
                Stream::Out => self.output.as_mut(),
                Stream::Error => self.error.as_mut(),
            };
            if let Some(source) = source {
                source.finish(stream, &mut self.log);
            }
        }
    }

    /// Its memory is needed again, or the instance goes.
    pub(crate) fn stop_reclaiming(&mut self) {
        if let Some(worker) = self.reclaimer.take() {
            // Not reaped yet, so it is no other process.
            let _ = kill(worker, Signal::SIGKILL);
        }
    }

    pub(crate) fn phase(&self) -> InstancePhase {
        self.record.phase
    }

    /// Goes to another phase and keeps it for a successor.
    pub(crate) fn enter(&mut self, phase: InstancePhase) {
        self.record.phase = phase;
        self.keep();
    }

    /// Goes to another phase; whoever waits for that is told before it is kept. A successor that reads the older phase only
    /// starts or thaws once more.
    pub(crate) fn enter_at_once(&mut self, phase: InstancePhase) {
        self.record.phase = phase;
        self.is_behind = true;
    }

    pub(crate) fn keep(&mut self) {
        self.is_behind = false;
        if self.is_going {
            return;
        }
        if let Err(error) = self.record.write(&self.directory) {
            tracing::error!(instance = %self.record.id, %error, "cannot write the record");
        }
    }

    /// Sends a signal to its init; one that has ended is as good as signalled.
    pub(crate) fn signal(&self, signal: i32) -> std::io::Result<()> {
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }
}
