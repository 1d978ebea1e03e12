//! The default seccomp filter: system calls that a function has no business with fail with EPERM, those that this table
//! does not know yet with ENOSYS, so that a C library falls back to an older one.
//!
//! In spirit the default profile of Docker and containerd. `clone3` passes its flags in memory, where a filter cannot
//! see them, so it does not exist here. Programs of another architecture (32-bit on a 64-bit kernel) are killed.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// The newest system call that the lists below were checked against (`removexattrat`, Linux 6.13). Its number is the same
/// on every architecture, and so are all newer ones.
const NEWEST: u32 = 466;

/// Not named by every libc yet; the same number everywhere.
const STATMOUNT: i64 = 457;
const LISTMOUNT: i64 = 458;
const QUOTACTL_FD: i64 = 443;

/// Refused whatever their arguments are.
const REFUSED: &[i64] = &[
    // Mounts, and ways around a mount namespace.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    STATMOUNT,
    LISTMOUNT,
    // Namespaces.
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel itself: its code, its keys, its clock, its log, its power.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_settimeofday,
    libc::SYS_syslog,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    QUOTACTL_FD,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
    // Other processes, and where memory lies.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_ON_THIS_ARCHITECTURE: &[i64] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
/// `kexec_file_load`.
#[cfg(target_arch = "aarch64")]
const REFUSED_ON_THIS_ARCHITECTURE: &[i64] = &[294];

/// Flags of `clone` that make a namespace.
const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// `personality` values that change nothing about safety: Linux, 32-bit, and each with 2.6 in its version; and the question.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x0002_0000, 0x0002_0008, 0xffff_ffff];

/// The filters, in the order in which they are to be applied.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    unknown: BpfProgram,
    refused: BpfProgram,
}

impl Filters {
    pub(crate) fn compile() -> Result<Self, BackendError> {
        Ok(Self { unknown: unknown(), refused: refused()? })
    }

    /// From here on the process is under the filter. Sets `no_new_privs` too.
    pub(crate) fn apply(&self) -> Result<(), seccompiler::Error> {
        seccompiler::apply_filter(&self.unknown)?;
        seccompiler::apply_filter(&self.refused)
    }
}

fn refused() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for number in REFUSED.iter().chain(REFUSED_ON_THIS_ARCHITECTURE) {
        rules.insert(*number, Vec::new());
    }
    let condition =
        |argument, operator, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    let mut namespaces = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let flag = u64::from(flag.cast_unsigned());
        namespaces.push(SeccompRule::new(vec![condition(0, SeccompCmpOp::MaskedEq(flag), flag)?])?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    let mut odd = Vec::new();
    for value in PERSONALITIES {
        odd.push(condition(0, SeccompCmpOp::Ne, value)?);
    }
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(odd)?]);
    // The host's hypervisor answers on vsock, past every network namespace.
    let vsock = condition(0, SeccompCmpOp::Eq, u64::from(libc::AF_VSOCK.unsigned_abs()))?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![vsock])?]);
    // Typing into a terminal that was inherited.
    let typing = condition(1, SeccompCmpOp::Eq, libc::TIOCSTI)?;
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![typing])?]);
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, eperm, ARCH)?.try_into()
}

/// `clone3` and everything newer than [`NEWEST`] do not exist, nor do the x32 calls, whose numbers are higher still.
fn unknown() -> BpfProgram {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let clone3 = u32::try_from(libc::SYS_clone3).expect("a system call's number is small");
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_EQUAL, jt: 2, jf: 0, k: clone3 },
        sock_filter { code: JUMP_IF_GREATER, jt: 1, jf: 0, k: NEWEST },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: enosys },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiles_within_the_kernels_bound() {
        let filters = Filters::compile().unwrap();
        assert!(filters.refused.len() < 4096, "{}", filters.refused.len());
    }
}
