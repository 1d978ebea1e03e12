//! Device access on cgroup v2: a small program that the kernel asks at every opening of a device by the cgroup.
//!
//! On v1 the container runtime writes the rules into the devices controller; v2 has no such controller. Rules are read
//! as on v1: of several that match, the last decides. The program lives as long as its cgroup.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// `linux/bpf.h`: kinds of device and of access in the program's context.
const DEVICE_BLOCK: i32 = 1;
const DEVICE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

/// Registers: result, argument (the context), and what the context says.
const R0: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Devices that every container may use: null, zero, full, tty, random, urandom, ptmx, and its own terminals.
pub(crate) const ALWAYS: [(i64, Option<i64>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

/// What the last matching rule of a list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    access: i32,
    major: Option<i32>,
    minor: Option<i32>,
}

/// Lets the processes of the cgroup at `directory` open the devices that `rules` allow and the usual ones, nothing else.
pub(crate) fn restrict_devices(directory: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let cgroup = File::open(directory)?;
    let program = load(&program(&all_rules(rules)))?;
    attach(&program, &cgroup)
}

fn all_rules(rules: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let usual = ALWAYS.iter().map(|(major, minor)| Rule {
        allow: true,
        kind: Some(DEVICE_CHAR),
        access: ACCESS_READ | ACCESS_WRITE | ACCESS_MKNOD,
        major: number(Some(*major)),
        minor: number(*minor),
    });
    rules.iter().map(rule).chain(usual).collect()
}

fn rule(rule: &LinuxDeviceCgroup) -> Rule {
    let access = rule.access().as_deref().unwrap_or("rwm");
    let bit = |letter, bit| if access.contains(letter) { bit } else { 0 };
    Rule {
        allow: rule.allow(),
        kind: match rule.typ() {
            Some(LinuxDeviceType::B) => Some(DEVICE_BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DEVICE_CHAR),
            _ => None,
        },
        access: bit('r', ACCESS_READ) | bit('w', ACCESS_WRITE) | bit('m', ACCESS_MKNOD),
        major: number(rule.major()),
        minor: number(rule.minor()),
    }
}

/// Negative means any, as in the runtime specification.
fn number(number: Option<i64>) -> Option<i32> {
    number.and_then(|number| i32::try_from(number).ok()).filter(|number| *number >= 0)
}

/// One instruction: `opcode:8 source:4 destination:4 offset:16 immediate:32`, from the high end of the immediate down.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

/// The program: for each rule, the last first, a block that either decides or falls through to the next.
fn program(rules: &[Rule]) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE_REGISTER: u8 = 0xbf;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    let mut code = vec![
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, TYPE, 0, 0),
        instruction(AND, TYPE, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        code.extend(block(*rule));
    }
    code.extend(decide(false));
    code
}

fn decide(allow: bool) -> [u64; 2] {
    const MOVE: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    [instruction(MOVE, R0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn block(rule: Rule) -> Vec<u64> {
    const MOVE_REGISTER: u8 = 0xbf;
    const AND: u8 = 0x57;
    const JUMP_IF_EQUAL: u8 = 0x15;
    const JUMP_IF_NOT_EQUAL: u8 = 0x55;
    // `(code, register, immediate)` of the tests; each one that holds jumps past the block.
    let mut tests = Vec::new();
    let mut prologue = Vec::new();
    let mut exact = |register, value: Option<i32>| {
        if let Some(value) = value {
            tests.push((JUMP_IF_NOT_EQUAL, register, value));
        }
    };
    exact(TYPE, rule.kind);
    exact(MAJOR, rule.major);
    exact(MINOR, rule.minor);
    // Allowing needs all of the access asked for; denying, any of it.
    let (mask, test) =
        if rule.allow { (!rule.access, JUMP_IF_NOT_EQUAL) } else { (rule.access, JUMP_IF_EQUAL) };
    prologue.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
    prologue.push(instruction(AND, SCRATCH, 0, 0, mask));
    tests.push((test, SCRATCH, 0));
    let count = tests.len();
    let mut code = prologue;
    for (index, (code_of_jump, register, value)) in tests.into_iter().enumerate() {
        // Over the tests that remain and the decision.
        let offset = i16::try_from(count - index - 1 + 2).expect("a block has a few instructions");
        code.push(instruction(code_of_jump, register, 0, offset, value));
    }
    code.extend(decide(rule.allow));
    code
}

/// The fields of `union bpf_attr` that `BPF_PROG_LOAD` needs; the kernel takes the missing rest as zero.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(code: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        code: code.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let size = size_of::<LoadAttributes>();
    // SAFETY: the attributes, the code and the licence they point to outlive the call; `size` is that of the attributes.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).expect("a file descriptor is an i32");
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: &OwnedFd, cgroup: &File) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    let size = size_of::<AttachAttributes>();
    // SAFETY: the attributes outlive the call and `size` is theirs.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;
    use crate::sys::{self, Fork};

    /// Enforced on any cgroup2 hierarchy, so a hybrid machine can show it too.
    #[test]
    fn a_cgroup_opens_only_what_it_was_given() {
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let Some(root) = roots
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists() && nix::unistd::geteuid().is_root())
        else {
            eprintln!("SKIPPED: needs root and a cgroup2 hierarchy");
            return;
        };
        let cgroup = root.join(format!("tombolo-test-devices-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let kmsg_read: LinuxDeviceCgroup =
            serde_json::from_str(r#"{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}"#).unwrap();
        let nothing: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow":false,"access":"rwm"}"#).unwrap();
        let opens = |rules: &[LinuxDeviceCgroup], device: &str, write: bool| {
            restrict_devices(&cgroup, rules).unwrap();
            opened_in(&cgroup, device, write)
        };
        let none = std::slice::from_ref(&nothing);
        let some = [nothing.clone(), kmsg_read.clone()];
        let results = [
            opens(none, "/dev/null", true),
            opens(none, "/dev/zero", false),
            opens(none, "/dev/kmsg", false),
            opens(&some, "/dev/kmsg", false),
            opens(&some, "/dev/kmsg", true),
            opens(&[kmsg_read, nothing.clone()], "/dev/kmsg", false),
        ];
        fs::remove_dir(&cgroup).unwrap();
        let refused = Err(libc::EPERM);
        assert_eq!(results, [Ok(()), Ok(()), refused, Ok(()), refused, refused]);
    }

    /// What a process of the cgroup has of opening `device`: nothing, or the kernel's error. Root may read all that a file's mode says.
    fn opened_in(cgroup: &Path, device: &str, write: bool) -> Result<(), i32> {
        let procs = cgroup.join("cgroup.procs");
        match sys::fork().unwrap() {
            Fork::Child => {
                let opened = fs::write(procs, "0")
                    .and_then(|()| File::options().read(!write).write(write).open(device));
                sys::exit_now(opened.err().map_or(0, |error| error.raw_os_error().unwrap_or(255)));
            }
            Fork::Parent(child) => match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, 0) => Ok(()),
                WaitStatus::Exited(_, code) => Err(code),
                other => panic!("{other:?}"),
            },
        }
    }
}
