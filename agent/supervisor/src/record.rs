//! What a supervisor must know of an instance to take it over from one that is gone: one file for each, replaced whole.
//!
//! Not synced to the disk: after a power loss there is no instance either, and what a record says of a process is only
//! believed together with the boot and the start time of that process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tombolo_agent_core::supervision::{ExitRecord, InstanceId, InstancePhase, InstanceRecord, LogSpec};

use crate::cgroup::CgroupPath;

const FILE: &str = "record.json";

/// Version of the file. Another one is not read; its instance is taken for one whose creation was interrupted.
const VERSION: u32 = 1;

/// An instance as it is kept in its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: InstanceId,
    /// Which range of host users it has; unique among the instances held.
    pub(crate) slot: u16,
    pub(crate) phase: InstancePhase,
    pub(crate) process: Option<Process>,
    pub(crate) exit: Option<ExitRecord>,
    pub(crate) log: LogSpec,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) cgroup: CgroupPath,
    #[serde(default)]
    pub(crate) moved_bytes: u64,
    /// Whether supervisors have ended it, since it was made, for processes killed for memory. Earlier releases did not.
    #[serde(default)]
    pub(crate) ends_with_kills: bool,
}

/// One certain process, not merely whichever has its id today.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Clock ticks since the boot.
    pub(crate) start_time: u64,
    pub(crate) boot: String,
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let start_time = Stat::of(pid)?.start_time;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, start_time, boot })
    }

    /// Whether this very process runs. One that has ended and waits for its parent to ask how does not.
    pub(crate) fn is_alive(&self) -> bool {
        Stat::of(self.pid).is_ok_and(|stat| !stat.has_ended())
            && Self::of(self.pid).is_ok_and(|process| process == *self)
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.pid)
    }
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: String,
    state: u8,
    pub(crate) group: i32,
    pub(crate) start_time: u64,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is malformed");
        Self::parse(&fs::read(format!("/proc/{pid}/stat"))?).ok_or_else(malformed)
    }

    fn parse(stat: &[u8]) -> Option<Self> {
        let stat = String::from_utf8_lossy(stat);
        // The second field is the program's name in parentheses, and may contain anything.
        let (head, rest) = stat.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = rest.split(' ').collect();
        let state = *fields.first()?.as_bytes().first()?;
        Some(Self {
            name,
            state,
            group: fields.get(2)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

impl Record {
    pub(crate) fn new(
        id: InstanceId,
        slot: u16,
        log: LogSpec,
        labels: BTreeMap<String, String>,
        cgroup: CgroupPath,
    ) -> Self {
        let phase = InstancePhase::Creating;
        Self {
            version: VERSION,
            id,
            slot,
            phase,
            process: None,
            exit: None,
            log,
            labels,
            cgroup,
            moved_bytes: 0,
            ends_with_kills: true,
        }
    }

    /// As the agent sees it.
    pub(crate) fn public(&self) -> InstanceRecord {
        InstanceRecord {
            id: self.id.clone(),
            phase: self.phase,
            pid: self.process.as_ref().map_or(0, |process| process.pid),
            exit: self.exit.clone(),
            log: self.log.clone(),
            labels: self.labels.clone(),
            moved_bytes: self.moved_bytes,
        }
    }

    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("record.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, directory.join(FILE))
    }

    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(directory.join(FILE))?)?;
        if record.version != VERSION {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("its version is {}", record.version),
            ));
        }
        Ok(record)
    }
}

/// Directories of instances below the run directory.
#[derive(Clone, Debug)]
pub(crate) struct InstanceDirectories(PathBuf);

impl InstanceDirectories {
    pub(crate) fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("instances");
        fs::create_dir_all(&path)?;
        Ok(Self(path.canonicalize()?))
    }

    pub(crate) fn of(&self, id: &InstanceId) -> PathBuf {
        self.0.join(&id.0)
    }

    /// The run directory itself.
    pub(crate) fn run_dir(&self) -> &Path {
        self.0.parent().unwrap_or(&self.0)
    }

    pub(crate) fn all(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.0)?.map(|entry| Ok(entry?.path())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_id() {
        let me = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot: "another".into(), ..me.clone() }.is_alive());
        assert!(!Process { pid: 0, ..me }.is_alive());
    }

    #[test]
    fn a_process_that_nobody_has_reaped_does_not_run() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        let process = Process::of(pid).unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        assert!(Stat::of(pid).is_ok_and(|stat| stat.has_ended()));
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_programs_name_cannot_pretend_to_be_fields() {
        let rest = "S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0";
        let stat = Stat::parse(format!("12 (a) Z 9 (b) {rest}").as_bytes()).unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.state, stat.group, stat.start_time),
            ("a) Z 9 (b", b'S', 77, 4242)
        );
        for broken in ["", "12", "12 (a) S 1", "12 (a) S x y z"] {
            assert_eq!(Stat::parse(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn records_survive_their_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Record::read(directory.path()).is_err());
        let log = LogSpec { path: "/var/log/x".into(), max_bytes: 1 << 20, max_files: 2 };
        let cgroup = CgroupPath::try_from(PathBuf::from("/tombolo/x")).unwrap();
        let mut record = Record::new(InstanceId("x".into()), 3, log, BTreeMap::new(), cgroup);
        record.process = Some(Process::of(1).unwrap());
        record.write(directory.path()).unwrap();
        let read = Record::read(directory.path()).unwrap();
        assert_eq!((read.public(), read.slot, &read.process), (record.public(), 3, &record.process));
        record.version = 2;
        record.write(directory.path()).unwrap();
        assert!(Record::read(directory.path()).is_err());
    }

    #[test]
    fn the_file_of_today_is_read_tomorrow() {
        let directory = tempfile::tempdir().unwrap();
        let golden = r#"{"version":1,"id":"a-1","slot":7,"phase":"running",
            "process":{"pid":12,"startTime":345,"boot":"b"},"exit":null,
            "log":{"path":"/l","maxBytes":65536,"maxFiles":2},"labels":{"k":"v"},"cgroup":"tombolo/a-1"}"#;
        fs::write(directory.path().join(FILE), golden).unwrap();
        let record = Record::read(directory.path()).unwrap();
        assert_eq!((record.slot, record.phase, record.process.unwrap().pid), (7, InstancePhase::Running, 12));
    }
}
