//! The protocol between the agent and the runtime supervisor: JSON messages on a unix SEQPACKET socket.
//!
//! One connection serves one agent at a time; a newer connection replaces the older. The supervisor answers every
//! [`Call`] with one [`Message::Reply`] of the same `seq` and sends [`Message::Event`]s in between. Calls about different
//! instances run at the same time (a fork each); calls about one instance run in order. Everything an agent must know
//! after its own restart comes back from [`Request::List`].
//!
//! Listening sockets travel beside the messages ([`Request::Keep`], [`Answer::Taken`]), one descriptor at most with each
//! (`SCM_RIGHTS`). As long as the supervisor keeps one, who connects waits for the next agent instead of being refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of this protocol. A supervisor refuses another with [`Refusal::Version`].
pub const VERSION: u32 = 1;

/// Largest message, bytes. Specifications travel as files, so messages stay small; a list of 500 instances fits.
pub const MESSAGE_MAX: usize = 192 * 1024;

/// Most instances one supervisor holds.
pub const INSTANCES_MAX: usize = 500;

/// Most sockets one supervisor keeps. An agent has one for each address that it listens on.
pub const SOCKETS_MAX: usize = 8;

/// Most of a command's output that comes back, bytes: its beginning. Enough for the words of a failed probe.
pub const EXEC_OUTPUT_MAX: usize = 4096;

/// Longest time of a command, milliseconds: below the agent's wait for any answer.
pub const EXEC_TIMEOUT_MS_MAX: u64 = 50_000;

/// The control group below which supervisors put theirs, and below that each instance's: `TOP/SUPERVISOR/INSTANCE`, in every
/// hierarchy.
pub const CGROUP_TOP: &str = "tombolo";

/// The instance that a process belongs to, by what `/proc/PID/cgroup` says; `None`: to none.
pub fn instance_of_cgroups(text: &str) -> Option<InstanceId> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let mut parts = path.split('/').skip_while(|part| *part != CGROUP_TOP).skip(2);
        Some(InstanceId(parts.next().filter(|part| !part.is_empty())?.to_owned()))
    })
}

/// The control group that counts the memory of `instance`, below where these are, for a process in it by what `/proc/PID/cgroup`
/// says; `None`: it is in another. A supervisor makes them at the top of what it sees, whatever it is in itself.
pub fn memory_cgroup(text: &str, instance: &InstanceId) -> Option<PathBuf> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    // Of v1 it says the controllers; of v2, which counts all, none.
    let is_v1 = |(controllers, _): &(&str, &str)| controllers.split(',').any(|one| one == "memory");
    let (below, path) = match lines().find(is_v1) {
        Some((_, path)) => ("memory", path),
        None => ("", lines().find(|(controllers, _)| controllers.is_empty())?.1),
    };
    let own: Vec<&str> = path.split('/').skip_while(|part| *part != CGROUP_TOP).take(3).collect();
    (own.len() == 3 && own[2] == instance.0)
        .then(|| own.iter().fold(PathBuf::from(below), |path, part| path.join(part)))
}

/// Name of an instance: a DNS label, unique on its node for ever (it contains randomness).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub String);

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Agent to supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub seq: u64,
    pub request: Request,
}

/// What can be asked of the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// First message of a connection. Answered with [`Answer::Hello`].
    Hello {
        version: u32,
    },
    /// Make namespaces, cgroup, root file system and the container's init, which waits; no user code runs.
    /// Answered with [`Answer::Created`].
    Create {
        id: InstanceId,
        spec: Box<CreateSpec>,
    },
    /// Let a created instance's program run. Answered with [`Answer::Done`].
    Start {
        id: InstanceId,
    },
    /// Send a signal to the instance's init. [`Answer::Done`] also when it has ended already.
    Signal {
        id: InstanceId,
        signal: i32,
    },
    /// Stop the instance's processes from running at all (cgroup freezer), or let them again.
    Freeze {
        id: InstanceId,
    },
    Thaw {
        id: InstanceId,
    },
    /// What a running instance has on accelerators is about to be moved into its memory: its phase says so from now on, also to an
    /// agent that was started again, and it may have more memory.
    BeginMove {
        id: InstanceId,
        moved_bytes: u64,
        /// Its limit meanwhile, swap included. None: it stays as it is.
        memory_bytes: Option<u64>,
    },
    /// All that it had there is in its memory. As freeze, but that memory is left where it is.
    Suspend {
        id: InstanceId,
    },
    /// All that it had there is there again. Refused if it still has more memory than the limit; then that is all that is left to do.
    EndMove {
        id: InstanceId,
        memory_bytes: Option<u64>,
    },
    /// Its devices are those of the specification at `config` from now on: what it may open, and the nodes below its `/dev`.
    /// Nothing else of the specification counts. What it has open of a device that it loses stays open.
    Refit {
        id: InstanceId,
        config: PathBuf,
    },
    /// Kill whatever is left of the instance and remove its cgroup, runtime directory and record. Succeeds when there is none.
    Delete {
        id: InstanceId,
    },
    /// Everything held, ended instances that were not deleted included. Answered with [`Answer::Instances`].
    List,
    /// Kill and delete every instance, answer, and exit.
    Shutdown,
    /// Replace the supervisor's program by the one at `binary` (`execve`), keeping children, sockets and pidfds.
    /// The connection stays; [`Answer::Hello`] comes from the new program.
    Upgrade {
        binary: PathBuf,
    },
    /// Keep the listening socket that comes along, in place of an older one of this name, so that whoever connects while
    /// there is no agent waits. Answered with [`Answer::Done`]. Outlives the agent and an upgrade, not the supervisor.
    Keep {
        name: String,
    },
    /// The socket of this name: another descriptor of it comes along with [`Answer::Taken`]. It stays kept.
    Take {
        name: String,
    },
    /// Keep the socket of this name no more. [`Answer::Done`] also when there is none.
    Release {
        name: String,
    },
    /// Run a command inside a running instance as its program runs: same namespaces, limits, root, user, environment, and
    /// no more privileges. When it ends or its time is up, whatever it has forked and still runs is killed. Runs beside
    /// other calls about the instance. Answered with [`Answer::Executed`].
    Exec {
        id: InstanceId,
        args: Vec<String>,
        timeout_ms: u64,
    },
}

/// How to make an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateSpec {
    /// File holding the OCI runtime specification (`config.json`). `root.path` and user-namespace mappings are filled in by the supervisor.
    pub config: PathBuf,
    /// Unpacked image layers, the topmost first; each an overlayfs lower directory. Read only.
    pub layers: Vec<PathBuf>,
    /// Bound of the writable layer (a tmpfs), bytes. 0: no writable layer, the root file system is read only.
    pub upper_bytes: u64,
    /// Run in a user namespace of its own if this machine can.
    pub user_namespace: bool,
    /// Where standard output and error go.
    pub log: LogSpec,
    /// Opaque to the supervisor; given back by [`Request::List`]. Holds what a restarted agent must know.
    pub labels: BTreeMap<String, String>,
}

/// A log in the CRI format (`time stream tag text`), rotated by size: `path`, then `path.1`, ….
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSpec {
    pub path: PathBuf,
    /// Size at which the file is rotated, bytes.
    pub max_bytes: u64,
    /// Files kept, the current one included; at least 1.
    pub max_files: u32,
}

/// Supervisor to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    Reply {
        seq: u64,
        result: Result<Answer, Refusal>,
    },
    /// An instance's init has ended. Sent once to the connected agent; in any case kept in the record until deleted.
    Exited {
        id: InstanceId,
        exit: ExitRecord,
    },
}

/// A successful reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Hello {
        version: u32,
        /// The supervisor's program version.
        program: String,
        pid: i32,
        /// What this machine cannot do, one sentence each, e.g. user namespaces, lowering oom_score_adj.
        limitations: Vec<String>,
    },
    /// `pid` of the instance's init in the host's pid namespace; `/proc/{pid}/ns/net` is its network namespace, loopback up.
    Created {
        pid: i32,
    },
    Done,
    Instances(Vec<InstanceRecord>),
    /// Whether there is such a socket, which then comes along.
    Taken {
        found: bool,
    },
    /// How a command ended. One that cannot be executed has code 127 and says why in its output, as in a shell.
    #[serde(rename_all = "camelCase")]
    Executed {
        code: Option<i32>,
        signal: Option<i32>,
        /// It was killed because its time was up.
        timed_out: bool,
        /// The beginning of what it printed to standard output and standard error; what is no UTF-8 is replaced.
        output: String,
    },
}

/// Why a request was not carried out. Nothing is left of a refused `Create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    #[error("the supervisor speaks protocol {supervisor}, the agent {agent}: restart the older one")]
    Version { supervisor: u32, agent: u32 },
    #[error("there is no instance {0}")]
    NotFound(InstanceId),
    #[error("there is an instance {0} already")]
    Exists(InstanceId),
    #[error("the supervisor holds {INSTANCES_MAX} instances, its limit")]
    TooMany,
    /// The request does not fit the instance's phase, e.g. starting one that has ended.
    #[error("instance {id} is {phase:?}")]
    WrongPhase { id: InstanceId, phase: InstancePhase },
    #[error("the request is malformed: {0}")]
    Malformed(String),
    /// The container runtime failed: what it said, the innermost cause last.
    #[error("{0}")]
    Runtime(String),
    /// No answer from the runtime in time; what there was of it has been killed.
    #[error("the container runtime did not finish within {0} s")]
    Timeout(u64),
    #[error("the supervisor keeps {SOCKETS_MAX} sockets, its limit: release one first")]
    TooManySockets,
}

/// An instance the supervisor holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceRecord {
    pub id: InstanceId,
    pub phase: InstancePhase,
    /// Of the init; 0 while creating.
    pub pid: i32,
    pub exit: Option<ExitRecord>,
    pub log: LogSpec,
    pub labels: BTreeMap<String, String>,
    /// What [`Request::BeginMove`] said, until the move has ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub moved_bytes: u64,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Where an instance is in its life.
///
/// ```text
/// creating ─▶ created ─▶ running ⇄ frozen, or ⇄ moving ⇄ suspended
///     │          └──────────┴─────────┴───────────┴─────────┴──▶ ended ─▶ (deleted)
///     └─▶ (nothing: creation failed)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InstancePhase {
    Creating,
    Created,
    Running,
    Frozen,
    /// It runs, and what it has on accelerators is on its way, or nobody knows where.
    Moving,
    /// Its processes do not run, and what it had on accelerators is in its memory.
    Suspended,
    Ended,
}

impl InstancePhase {
    /// Its processes exist and do not run.
    pub fn is_stopped(self) -> bool {
        matches!(self, Self::Frozen | Self::Suspended)
    }
}

/// How an instance's init ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Exit status, if it exited.
    pub code: Option<i32>,
    /// Signal that ended it, if one did. Neither is known when the supervisor had to be replaced after a crash meanwhile.
    pub signal: Option<i32>,
    /// The kernel killed a process of the instance for memory.
    pub out_of_memory: bool,
    /// Milliseconds since 1970 (UTC).
    pub time_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_where_the_controller_is() {
        let id = InstanceId("hello-00001-abcde-1".into());
        let of = |text: &str| memory_cgroup(text, &id).map(|path| path.display().to_string());
        let own = "tombolo/0123456789ab/hello-00001-abcde-1";
        assert_eq!(of(&format!("0::/{own}\n")), Some(own.to_owned()));
        assert_eq!(of(&format!("0::/{own}/exec-1\n")), Some(own.to_owned()));
        let v1 = format!("9:pids:/x\n4:hugetlb,memory:/docker/7/{own}\n1:name=systemd:/\n0::/{own}\n");
        assert_eq!(of(&v1), Some(format!("memory/{own}")));
        for text in
            ["", "0::/\n", "0::/user.slice\n", &format!("4:memory:/\n0::/{own}\n"), &format!("0::/{own}2\n")]
        {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_process_is_of_the_instance_whose_cgroup_it_is_in() {
        let of = |text: &str| instance_of_cgroups(text).map(|id| id.0);
        let v2 = "0::/tombolo/0123456789ab/hello-00001-abcde-1\n";
        let v1 =
            "12:pids:/tombolo/0123456789ab/hello-00001-abcde-1/exec-1\n1:name=systemd:/user.slice\n0::/\n";
        let late = "4:devices:/user.slice\n3:memory:/docker/7/tombolo/0123456789ab/hello-00001-abcde-1\n";
        for text in [v2, v1, late] {
            assert_eq!(of(text).as_deref(), Some("hello-00001-abcde-1"), "{text}");
        }
        for text in [
            "",
            "0::/\n",
            "0::/tombolo\n",
            "0::/tombolo/0123456789ab\n",
            "0::/tombolo/0123456789ab/\n",
            "0::/tombolo.slice/a/b\n",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
