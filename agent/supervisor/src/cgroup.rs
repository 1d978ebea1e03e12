//! An instance's control groups, on cgroup v1 (one hierarchy per controller), hybrid, and v2: plain file operations.
//!
//! Limits are set by the container runtime when it creates the container; this prepares the directories so that limits can
//! apply, freezes, kills, counts out-of-memory kills, and removes. It must not know what an instance is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use tombolo_agent_core::supervision::CGROUP_TOP;
use tombolo_api::Digest;

/// Where the container runtime expects cgroups.
const MOUNT: &str = "/sys/fs/cgroup";

/// Controllers that enforce what a revision may ask for.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// Controllers whose hierarchies a container sees on v1: the JVM heeds limits only where it finds all of these but `pids`.
const SHOWN: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// What one processor is worth beside the rest of the machine: the kernel's default for one cgroup, v1 `cpu.shares` and v2
/// `cpu.weight`. Kubernetes weighs all its pods by their node's processors too.
const SHARES_PER_CPU: u64 = 1024;
const WEIGHT_PER_CPU: u64 = 100;
const WEIGHT_MAX: u64 = 10_000;

/// First and longest pause between looks at a cgroup that is emptying or freezing.
const POLL_MIN: Duration = Duration::from_micros(100);
const POLL_MAX: Duration = Duration::from_millis(10);

/// Bytes taken back between two looks at the clock.
const RECLAIM_STEP: u64 = 8 << 20;

/// The cgroup hierarchies of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Hierarchies {
    unified: bool,
    /// Mount point of each hierarchy that instances are put into, with its controllers.
    roots: Vec<(PathBuf, Vec<String>)>,
}

/// A cgroup that a container sees, and where below [`MOUNT`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) directory: PathBuf,
    /// Of its hierarchy; empty on v2, which has but one.
    pub(crate) name: String,
    /// Other names that programs look for the hierarchy by.
    pub(crate) links: Vec<String>,
}

/// Path of a cgroup below every hierarchy's root; never empty, never upwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "PathBuf")]
pub(crate) struct CgroupPath(PathBuf);

impl TryFrom<PathBuf> for CgroupPath {
    type Error = &'static str;

    fn try_from(path: PathBuf) -> Result<Self, Self::Error> {
        let relative = path.strip_prefix("/").unwrap_or(&path);
        let is_plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
        if relative.as_os_str().is_empty() || !is_plain {
            return Err("a cgroup's path is not empty and has no `..`");
        }
        Ok(Self(relative.to_owned()))
    }
}

impl CgroupPath {
    /// The cgroup of all instances of the supervisor that serves `run_dir`, which is canonical: nobody else's are in it.
    pub(crate) fn of_supervisor(run_dir: &Path) -> Self {
        Self(Path::new(CGROUP_TOP).join(Digest::of(run_dir.as_os_str().as_encoded_bytes()).short()))
    }

    /// As the container runtime wants it.
    pub(crate) fn absolute(&self) -> PathBuf {
        Path::new("/").join(&self.0)
    }

    /// A cgroup below this one. `name` is one component.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Whether both are directly below the same cgroup.
    pub(crate) fn is_sibling(&self, other: &Self) -> bool {
        self.0.parent() == other.0.parent()
    }
}

impl Hierarchies {
    /// Finds what is mounted.
    pub(crate) fn detect() -> io::Result<Self> {
        let root = PathBuf::from(MOUNT);
        if statfs(&root)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
            let controllers = controllers.split_whitespace().map(str::to_owned).collect();
            return Ok(Self { unified: true, roots: vec![(root, controllers)] });
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(Self { unified: false, roots: mounts.lines().filter_map(v1_hierarchy).collect() })
    }

    /// As on cgroup v2, whatever this machine has.
    #[cfg(test)]
    pub(crate) fn unified_at(root: &Path) -> Self {
        Self { unified: true, roots: vec![(root.to_owned(), Vec::new())] }
    }

    pub(crate) fn is_unified(&self) -> bool {
        self.unified
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.roots.iter().any(|(_, controllers)| controllers.iter().any(|c| c == controller))
    }

    /// Controllers that instances' limits need and this machine has not.
    pub(crate) fn missing(&self) -> BTreeSet<&'static str> {
        WANTED.into_iter().filter(|controller| !self.has(controller)).collect()
    }

    /// Whether swap can be limited.
    pub(crate) fn limits_swap(&self, path: &CgroupPath) -> bool {
        let file = if self.unified { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        self.directory("memory", path).is_some_and(|directory| directory.join(file).exists())
    }

    /// The cgroup in the hierarchy that has `controller`.
    pub(crate) fn directory(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        let has = |(_, controllers): &&(PathBuf, Vec<String>)| controllers.iter().any(|c| c == controller);
        self.roots.iter().find(|root| self.unified || has(root)).map(|(root, _)| root.join(&path.0))
    }

    /// Makes the cgroup in every hierarchy. On v2 the controllers are handed down, without which a limit cannot be set.
    pub(crate) fn prepare(&self, path: &CgroupPath) -> io::Result<()> {
        for (root, controllers) in &self.roots {
            // A parent may be removed by somebody between its making and its child's.
            let mut attempts = 0;
            while let Err(error) = fs::create_dir_all(root.join(&path.0)) {
                attempts += 1;
                if error.kind() != io::ErrorKind::NotFound || attempts == 10 {
                    return Err(error);
                }
            }
            if self.unified {
                let mut parents: Vec<&Path> = path.0.ancestors().skip(1).collect();
                parents.reverse();
                for parent in parents {
                    hand_down(&root.join(parent), controllers);
                }
            }
            if self.unified {
                // A worker that is killed takes the whole instance with it, which is then told and made anew, as the kubelet
                // does. Without the memory controller there is no such file.
                let _ = fs::write(root.join(&path.0).join("memory.oom.group"), "1");
            }
            if controllers.iter().any(|controller| controller == "cpu") {
                self.weigh_parents(root, path);
            }
        }
        Ok(())
    }

    /// All instances together count for as much as the machine's processors: with the weight of one cgroup, a busy program
    /// outside would get as much as all of them.
    fn weigh_parents(&self, root: &Path, path: &CgroupPath) {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let (file, value) = match self.unified {
            true => ("cpu.weight", (WEIGHT_PER_CPU * processors).min(WEIGHT_MAX)),
            false => ("cpu.shares", SHARES_PER_CPU * processors),
        };
        for parent in path.0.ancestors().skip(1).take_while(|parent| !parent.as_os_str().is_empty()) {
            // Where it cannot be set instances run all the same, slower beside others.
            let _ = fs::write(root.join(parent).join(file), value.to_string());
        }
    }

    /// What a container may see: the cgroup and no other, where programs that size themselves by their limits look for it.
    pub(crate) fn shown(&self, path: &CgroupPath) -> Vec<Shown> {
        let show = |(root, controllers): &(PathBuf, Vec<String>)| {
            let directory = root.join(&path.0);
            if self.unified {
                return Some(Shown { directory, name: String::new(), links: Vec::new() });
            }
            let name = root.file_name()?.to_str()?.to_owned();
            // Options of the mount are among what it calls controllers.
            let mut links = controllers.clone();
            links.retain(|controller| SHOWN.contains(&controller.as_str()));
            let is_shown = !links.is_empty();
            links.retain(|controller| *controller != name);
            is_shown.then_some(Shown { directory, name, links })
        };
        self.roots.iter().filter_map(show).collect()
    }

    /// Stops every process, or lets them run again. Freezing waits until all have stopped.
    pub(crate) fn freeze(&self, path: &CgroupPath, deadline: Instant) -> io::Result<()> {
        let directory = self.freezer(path)?;
        let (file, value) = if self.unified { ("cgroup.freeze", "1") } else { ("freezer.state", "FROZEN") };
        fs::write(directory.join(file), value)?;
        let is_frozen = || -> io::Result<bool> {
            if self.unified {
                Ok(fs::read_to_string(directory.join("cgroup.events"))?
                    .lines()
                    .any(|line| line == "frozen 1"))
            } else {
                Ok(fs::read_to_string(directory.join("freezer.state"))?.trim() == "FROZEN")
            }
        };
        let mut pause = POLL_MIN;
        while !is_frozen()? {
            if Instant::now() >= deadline {
                self.thaw(path)?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not stop"));
            }
            sleep(pause);
            pause = (pause * 2).min(POLL_MAX);
            if !self.unified {
                // A task that was created meanwhile is caught by asking again.
                fs::write(directory.join(file), value)?;
            }
        }
        Ok(())
    }

    /// Takes back what memory of a frozen cgroup the kernel can write elsewhere or read again, until there is no more or
    /// the deadline. Best effort: v1 has nothing like it that spares what is in use elsewhere.
    pub(crate) fn reclaim(&self, path: &CgroupPath, deadline: Instant) {
        let Some(directory) = self.directory("memory", path).filter(|_| self.unified) else { return };
        let current = || -> Option<u64> {
            fs::read_to_string(directory.join("memory.current")).ok()?.trim().parse().ok()
        };
        while let Some(bytes) = current().filter(|bytes| *bytes > 0)
            && Instant::now() < deadline
            && fs::write(directory.join("memory.reclaim"), bytes.min(RECLAIM_STEP).to_string()).is_ok()
        {
        }
    }

    /// Sets how much memory the cgroup may have, swap included, where memory is limited at all. Refused if it has more.
    pub(crate) fn limit_memory(&self, path: &CgroupPath, bytes: u64) -> io::Result<()> {
        let Some(directory) = self.directory("memory", path) else { return Ok(()) };
        let set = |file: &str| fs::write(directory.join(file), bytes.to_string());
        if self.unified {
            // Here the kernel would kill rather than refuse.
            let current = fs::read_to_string(directory.join("memory.current"))?;
            if current.trim().parse().is_ok_and(|now: u64| now > bytes) {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it has more at the moment"));
            }
            return set("memory.max");
        }
        let (memory, both) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
        if !self.limits_swap(path) {
            return set(memory);
        }
        // Of the two the latter may never be the smaller.
        let read = fs::read_to_string(directory.join(memory))?;
        let order = if read.trim().parse().is_ok_and(|now: u64| now < bytes) {
            [both, memory]
        } else {
            [memory, both]
        };
        order.into_iter().try_for_each(set)
    }

    /// Whether memory of frozen instances can be taken back.
    pub(crate) fn reclaims(&self) -> bool {
        self.unified && self.has("memory")
    }

    pub(crate) fn thaw(&self, path: &CgroupPath) -> io::Result<()> {
        let (file, value) = if self.unified { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        fs::write(self.freezer(path)?.join(file), value)
    }

    fn freezer(&self, path: &CgroupPath) -> io::Result<PathBuf> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "this machine has no cgroup freezer");
        self.directory("freezer", path).ok_or_else(none)
    }

    /// Makes a cgroup below an instance's for what is to be killed apart from the instance. Whoever writes `0` to each of the
    /// files is in it, under the instance's limits. On v1 only the freezer's hierarchy is divided.
    pub(crate) fn divide(&self, path: &CgroupPath, name: &str) -> io::Result<Vec<fs::File>> {
        let freezer = self.freezer(path)?;
        let join = |(root, _): &(PathBuf, Vec<String>)| {
            let mut directory = root.join(&path.0);
            if directory == freezer {
                directory.push(name);
                fs::create_dir(&directory)?;
            }
            fs::File::options().write(true).open(directory.join("cgroup.procs"))
        };
        self.roots.iter().map(join).collect()
    }

    /// What the kernel says through, on v1, that memory runs out, just before it kills. None where it kills all that is in the
    /// cgroup, and where memory has no limits.
    pub(crate) fn watch_memory(&self, path: &CgroupPath) -> io::Result<Option<EventFd>> {
        let Some(directory) = self.directory("memory", path).filter(|_| !self.unified) else {
            return Ok(None);
        };
        let events = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let control = fs::File::open(directory.join("memory.oom_control"))?;
        let registration = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        fs::write(directory.join("cgroup.event_control"), registration)?;
        Ok(Some(events))
    }

    /// How many processes of the cgroup the kernel has killed for memory.
    pub(crate) fn oom_kills(&self, path: &CgroupPath) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let Some(directory) = self.directory("memory", path) else { return 0 };
        let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Kills everything in the cgroup, waits for its end, and removes the cgroup from every hierarchy.
    pub(crate) fn remove(&self, path: &CgroupPath, deadline: Instant) -> io::Result<()> {
        let mut pause = POLL_MIN;
        loop {
            // A frozen process does not die on v1.
            let _ = self.thaw(path);
            let killed = self.kill_all(path);
            let removed = self.roots.iter().try_for_each(|(root, _)| remove_tree(&root.join(&path.0)));
            match removed {
                Ok(()) => return Ok(()),
                // A process that has just died still counts for a moment.
                Err(_) if Instant::now() < deadline => sleep(pause),
                Err(_) if killed > 0 => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not die"));
                }
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// Sends SIGKILL to every process; how many there were.
    fn kill_all(&self, path: &CgroupPath) -> usize {
        let mut killed = 0;
        for (root, _) in &self.roots {
            let directory = root.join(&path.0);
            let processes = processes(&directory);
            killed += processes.len();
            if !processes.is_empty() && fs::write(directory.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            for pid in processes {
                // It may have ended by itself.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        killed
    }

    /// Removes the cgroups directly below `parent` that are not `kept` and hold no process. Returns the others.
    pub(crate) fn remove_strays(
        &self,
        parent: &CgroupPath,
        kept: &BTreeSet<&CgroupPath>,
    ) -> BTreeSet<CgroupPath> {
        let mut left = BTreeSet::new();
        for (root, _) in &self.roots {
            for directory in children(&root.join(&parent.0)) {
                let Some(path) = directory.file_name().map(|name| CgroupPath(parent.0.join(name))) else {
                    continue;
                };
                if !kept.contains(&path)
                    && (!processes(&directory).is_empty() || remove_tree(&directory).is_err())
                {
                    left.insert(path);
                }
            }
        }
        left
    }

    /// Removes the cgroups above an instance's that are empty now.
    pub(crate) fn remove_empty_parents(&self, path: &CgroupPath) {
        for (root, _) in &self.roots {
            for parent in path.0.ancestors().skip(1).take_while(|parent| !parent.as_os_str().is_empty()) {
                // Refused while somebody uses it.
                if fs::remove_dir(root.join(parent)).is_err() {
                    break;
                }
            }
        }
    }
}

/// `(mount point, controllers)` of a line of mountinfo, if that is a v1 hierarchy which the container runtime uses.
fn v1_hierarchy(line: &str) -> Option<(PathBuf, Vec<String>)> {
    let (mount, super_block) = line.split_once(" - ")?;
    let mount_point = mount.split(' ').nth(4)?;
    let mut super_block = super_block.split(' ');
    let (kind, options) = (super_block.next()?, super_block.nth(1)?);
    if kind != "cgroup" || options.contains("name=") || !mount_point.starts_with(MOUNT) {
        return None;
    }
    let controllers =
        options.split(',').filter(|option| !matches!(*option, "rw" | "ro")).map(str::to_owned).collect();
    Some((PathBuf::from(mount_point), controllers))
}

fn hand_down(directory: &Path, controllers: &[String]) {
    for controller in controllers {
        // One that cannot be handed down (a cpu controller while real-time processes run, say) is missed when a limit
        // is set, which then says so.
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn processes(directory: &Path) -> Vec<Pid> {
    let mut pids = Vec::new();
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
    for child in children(directory) {
        pids.extend(processes(&child));
    }
    pids
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_directory).map(|entry| entry.path()).collect()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let line = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        assert_eq!(v1_hierarchy(line), Some(("/sys/fs/cgroup/memory".into(), vec!["memory".into()])));
        let line =
            "35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let both = vec!["cpu".into(), "cpuacct".into()];
        assert_eq!(v1_hierarchy(line), Some(("/sys/fs/cgroup/cpu,cpuacct".into(), both)));
        for other in [
            "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd",
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
            "",
        ] {
            assert_eq!(v1_hierarchy(other), None, "{other}");
        }
    }

    #[test]
    fn a_container_sees_its_own_cgroup_of_each_hierarchy_that_limits_it() {
        let path = CgroupPath::try_from(PathBuf::from("tombolo/a/b")).unwrap();
        let of = |lines: &[&str]| {
            let roots = lines.iter().filter_map(|line| v1_hierarchy(line)).collect();
            Hierarchies { unified: false, roots }.shown(&path)
        };
        let both = "35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let memory = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x/y";
        let freezer = "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer";
        let shown = |name: &str, links: &[&str]| Shown {
            directory: Path::new("/sys/fs/cgroup").join(name).join("tombolo/a/b"),
            name: name.into(),
            links: links.iter().map(|link| (*link).into()).collect(),
        };
        let want = [shown("cpu,cpuacct", &["cpu", "cpuacct"]), shown("memory", &[])];
        assert_eq!(of(&[both, memory, freezer]), want);
        assert_eq!(of(&[freezer]), []);
        let unified = Hierarchies::unified_at(Path::new("/sys/fs/cgroup")).shown(&path);
        assert_eq!(unified, [shown("", &[])]);
    }

    #[test]
    fn on_v2_what_is_killed_for_memory_is_the_whole_instance() {
        let root = tempfile::tempdir().unwrap();
        let path = CgroupPath::try_from(PathBuf::from("a/b")).unwrap();
        Hierarchies::unified_at(root.path()).prepare(&path).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("a/b/memory.oom.group")).unwrap(), "1");
        assert!(!root.path().join("a/memory.oom.group").exists(), "and not its neighbours too");
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        for refused in ["", "/", "/a/../..", "..", "/a/../b"] {
            assert!(CgroupPath::try_from(PathBuf::from(refused)).is_err(), "{refused:?}");
        }
        let path = |text: &str| CgroupPath::try_from(PathBuf::from(text)).unwrap();
        assert!(path("/tombolo/a").is_sibling(&path("/tombolo/b")));
        assert!(!path("/tombolo/a").is_sibling(&path("/other/b")));
    }
}
