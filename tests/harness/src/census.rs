//! Counting what exists on this machine because of a node: processes, mounts, cgroups, network namespaces, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::descendants;

/// What exists at one moment. Two of them, taken in rest, tell what was left behind in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Command lines of processes below the test, each with its pid.
    pub processes: BTreeSet<(i32, String)>,
    /// Mount points below the node's directory, or in instances' namespaces.
    pub mounts: BTreeSet<String>,
    /// cgroup directories of the node's instances, on every hierarchy.
    pub cgroups: BTreeSet<PathBuf>,
    /// Network namespaces of processes below the test.
    pub namespaces: BTreeSet<String>,
    /// Files and directories below the node's directory, except the store's own and logs of the node's own programs.
    pub files: BTreeSet<PathBuf>,
}

impl Census {
    /// Counts for what keeps its files in `dir`; `service` is the beginning of its instances' names.
    pub fn take(dir: &Path, service: &str) -> Self {
        let processes: BTreeSet<_> = descendants().into_iter().collect();
        let namespaces = processes
            .iter()
            .filter_map(|(pid, _)| fs::read_link(format!("/proc/{pid}/ns/net")).ok())
            .map(|link| link.display().to_string())
            .collect();
        let mut files = BTreeSet::new();
        walk(dir, &mut files);
        files.retain(|path| !is_own(dir, path));
        Self { namespaces, mounts: mounts(dir, &processes), cgroups: cgroups(service), files, processes }
    }

    /// What is here and was not in `before`; the fields that are equal come out empty.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            processes: &self.processes - &before.processes,
            mounts: &self.mounts - &before.mounts,
            cgroups: &self.cgroups - &before.cgroups,
            namespaces: &self.namespaces - &before.namespaces,
            files: &self.files - &before.files,
        }
    }
}

/// Mount points with the node's directory in them, as this process and every process below it see them.
fn mounts(dir: &Path, processes: &BTreeSet<(i32, String)>) -> BTreeSet<String> {
    let text = dir.display().to_string();
    let pids = std::iter::once(std::process::id().to_string())
        .chain(processes.iter().map(|(pid, _)| pid.to_string()));
    let infos = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok());
    infos
        .flat_map(|info| {
            info.lines().filter(|line| line.contains(&text)).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

fn cgroups(service: &str) -> BTreeSet<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup/tombolo")];
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        roots.push(entry.path().join("tombolo"));
    }
    let inside = |dirs: Vec<PathBuf>| {
        let entries = dirs.into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        entries.collect::<Vec<_>>()
    };
    // One for each supervisor, and in it one for each instance.
    let supervisors = inside(roots).iter().map(fs::DirEntry::path).collect();
    inside(supervisors)
        .into_iter()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(service))
        .map(|entry| entry.path())
        .collect()
}

fn walk(dir: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, files);
        }
        files.insert(path);
    }
}

/// Whether a file belongs to the node itself, whatever runs on it: its database, its programs' logs and sockets.
fn is_own(dir: &Path, path: &Path) -> bool {
    let Ok(path) = path.strip_prefix(dir) else { return false };
    let own = [
        "state/store",
        "state/desired.export",
        "state/identity",
        "state/images.json",
        "agent.log",
        "agent.toml",
    ];
    // Made with the first function, and the node's own from then on; what is in them is the functions'.
    let made_once = ["state/logs", "state/images/deltas", "run/bundles"];
    own.iter().any(|prefix| path.starts_with(prefix)) || made_once.iter().any(|dir| path == Path::new(dir))
}
