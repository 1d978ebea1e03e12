//! What this machine can and cannot do, found by trying once at the start.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};

use crate::cgroup::Hierarchies;
use crate::sys::{self, Fork};
use crate::user_namespace;

/// What creations may use.
#[derive(Clone, Debug)]
pub(crate) struct Abilities {
    pub(crate) user_namespaces: bool,
    /// Soft and hard limit of open files that programs get.
    pub(crate) open_files: (u64, u64),
}

/// Tries, and says what is missing, a sentence each. `open_files`: what programs get, if a predecessor knew.
pub(crate) fn probe(hierarchies: &Hierarchies, open_files: Option<(u64, u64)>) -> (Abilities, Vec<String>) {
    let mut limitations = Vec::new();
    let users = user_namespace::probe();
    if let Err(reason) = &users {
        limitations.push(format!("containers run without a user namespace: {reason}"));
    }
    for controller in hierarchies.missing() {
        limitations.push(format!(
            "{controller} limits are not enforced: this machine has no cgroup controller for it"
        ));
    }
    if !hierarchies.reclaims() {
        limitations.push(
            "memory of frozen instances is not taken back: this machine has no cgroup v2 for memory".into(),
        );
    }
    if !can_lower_oom_score() {
        limitations.push("oom_score_adj cannot be lowered: CAP_SYS_RESOURCE is missing".into());
    }
    let open_files = open_files.unwrap_or_else(raise_open_files);
    (Abilities { user_namespaces: users.is_ok(), open_files }, limitations)
}

/// Every instance costs four descriptors, on cgroup v1 five, more than the usual limit allows for all. What it was before.
fn raise_open_files() -> (u64, u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    (soft, hard)
}

/// Tried in a child, because it may not be possible to raise the score again by as little.
fn can_lower_oom_score() -> bool {
    const FILE: &str = "/proc/self/oom_score_adj";
    let Ok(score) = fs::read_to_string(FILE).unwrap_or_default().trim().parse::<i32>() else { return false };
    match sys::fork() {
        Ok(Fork::Child) => {
            let lowered = fs::write(FILE, (score - 1).max(-1000).to_string());
            sys::exit_now(i32::from(lowered.is_err()));
        }
        Ok(Fork::Parent(child)) => matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0))),
        Err(_) => false,
    }
}
