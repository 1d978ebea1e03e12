//! Memory of the node and of its instances, as the kernel says it. Reads files; what they mean is decided in
//! `tombolo_agent_core::memory`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tombolo_agent_core::memory::{NodeMemory, held_bytes};
use tombolo_agent_core::supervision::{InstanceId, memory_cgroup};

/// Where control groups are, as on every distribution.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Reads what the kernel says of memory.
pub(crate) struct Gauge {
    meminfo: PathBuf,
    /// Of each instance that was asked for and told, its `memory.stat`.
    files: BTreeMap<InstanceId, PathBuf>,
}

impl Gauge {
    /// `meminfo`: where the kernel says what memory there is.
    pub(crate) fn new(meminfo: &Path) -> Self {
        Self { meminfo: meminfo.to_owned(), files: BTreeMap::new() }
    }

    /// `None`: the kernel does not say.
    pub(crate) fn node(&self) -> Option<NodeMemory> {
        NodeMemory::parse(&fs::read_to_string(&self.meminfo).ok()?)
    }

    /// What these instances hold, by the pid of each one's init, bytes. `None`: the kernel does not say. It has ended, or there is
    /// no memory controller.
    pub(crate) fn held<'a>(
        &mut self,
        instances: impl Iterator<Item = (&'a InstanceId, i32)>,
    ) -> Vec<(InstanceId, Option<u64>)> {
        let mut read = |id: &InstanceId, pid| {
            let file = self.files.remove(id).or_else(|| memory_stat(id, pid))?;
            let bytes = held_bytes(&fs::read_to_string(&file).ok()?)?;
            self.files.insert(id.clone(), file);
            Some(bytes)
        };
        instances.map(|(id, pid)| (id.clone(), read(id, pid))).collect()
    }

    /// Forgets instances that are gone.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&InstanceId) -> bool) {
        self.files.retain(|id, _| is_there(id));
    }
}

fn memory_stat(id: &InstanceId, pid: i32) -> Option<PathBuf> {
    let cgroup = memory_cgroup(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, id)?;
    Some(Path::new(CGROUPS).join(cgroup).join("memory.stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_says_what_it_has() {
        let node = Gauge::new(Path::new("/proc/meminfo")).node().unwrap();
        assert!(node.total_bytes > node.available_bytes && node.available_bytes > 1 << 20, "{node:?}");
        assert_eq!(Gauge::new(Path::new("/proc/version")).node(), None);
        assert_eq!(Gauge::new(Path::new("/proc/none")).node(), None);
    }

    #[test]
    fn a_process_that_is_of_no_instance_says_nothing() {
        let mut gauge = Gauge::new(Path::new("/proc/meminfo"));
        let id = InstanceId("a-00001-abcde-1".into());
        let me = i32::try_from(std::process::id()).unwrap();
        let held = gauge.held([(&id, me), (&id, i32::MAX)].into_iter());
        assert_eq!(held, [(id.clone(), None), (id.clone(), None)]);
    }
}
