//! The system calls that neither the standard library nor `nix` has, as safe functions. All of the crate's unsafe code
//! is here and in [`crate::bpf`]; it knows nothing of instances.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::Pid;

/// Which side of a fork this is.
pub(crate) enum Fork {
    Child,
    Parent(Pid),
}

/// Forks this process, which must have one thread only.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the process is single-threaded (the crate starts no thread), so the child may do whatever the parent may.
    match unsafe { nix::unistd::fork()? } {
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}

/// Forks a child into a new user namespace, where it only sleeps until it is killed or this process ends.
pub(crate) fn fork_sleeper_in_user_namespace() -> io::Result<Pid> {
    let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
    let parent = nix::unistd::getpid();
    // SAFETY: without CLONE_VM and a stack this is fork(2); the child calls only async-signal-safe functions.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The parent may have ended before it was asked.
            if die_with_parent().is_err() || nix::unistd::getppid() != parent {
                exit_now(1);
            }
            loop {
                // SAFETY: pause takes no argument.
                unsafe { libc::pause() };
            }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).expect("a process id is an i32"))),
    }
}

/// Ends this process at once, without running what is registered for exit.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

fn result(value: libc::c_long) -> io::Result<libc::c_long> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn new_fd(value: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result(value)?).expect("a file descriptor is an i32");
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Opens the directory `path` below `root`, which no link and no `..` leads out of.
pub(crate) fn open_directory_in(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let fd = openat2(root.as_raw_fd(), path, how)?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Opens the directory `name` in `parent`, if it is no link and on the same mount.
pub(crate) fn open_child_directory(parent: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let fd = openat2(parent.as_raw_fd(), name, how)?;
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Takes ownership of a descriptor inherited over `execve`, if it is open.
pub(crate) fn inherited_fd(fd: RawFd) -> Option<OwnedFd> {
    let is_open = fd > 2 && nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok();
    // SAFETY: it is open, and whoever passed its number over `execve` gave it to this program, once.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of a descriptor that has just come with a message or from a call.
pub(crate) fn received_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for us when it delivered the message or answered, nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Accepts a connection, non-blocking and closed on exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: with null pointers the peer's address is not written.
    new_fd(unsafe { libc::accept4(listener.as_raw_fd(), no_address, no_length, flags) }.into())
}

/// A handle on process `pid` that never means another process.
pub(crate) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// Sends `signal` to the process behind `pidfd`.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the pointer is null, which the kernel takes as "none".
    result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) })
        .map(drop)
}

/// Closes every descriptor from `first` on. What owned one of them must not be used or dropped afterwards.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointer; called only in a forked child that never returns to the owners of these descriptors.
    result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, 0) }).map(drop)
}

/// Asks for SIGKILL when the parent process ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes no pointer.
    result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into()).map(drop)
}

/// Makes this process the one that orphans below it are given to.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointer.
    result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }.into()).map(drop)
}

/// A detached copy of the mount tree at `path`.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    let path = c_path(path)?;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    new_fd(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Sets attributes (`MOUNT_ATTR_*`) of a detached mount; `users` is the user namespace of `MOUNT_ATTR_IDMAP`.
pub(crate) fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    recursive: bool,
    attributes: u64,
    users: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let userns_fd = users.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into());
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: path and attributes outlive the call, and the size given is that of the attributes.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount at `target`.
pub(crate) fn attach_tree(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    move_mount(tree, libc::AT_FDCWD, target)
}

/// Attaches a detached mount at `name` in `directory`, and nowhere else if that is a link.
pub(crate) fn attach_tree_at(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    move_mount(tree, directory.as_raw_fd(), name)
}

fn move_mount(tree: BorrowedFd<'_>, directory: RawFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both paths are NUL-terminated strings that outlive the call.
    result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            directory,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Brings the loopback interface of the present network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    // SAFETY: takes no pointer.
    let socket =
        new_fd(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: `ifreq` is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which outlives the call.
    result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
        .map(drop)
}

/// Gives every signal its default meaning back for the program about to be executed: Rust programs ignore SIGPIPE, and
/// whoever started the supervisor may have ignored others.
pub(crate) fn default_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition, and no handler is depended on any more. Those that cannot be set refuse.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
