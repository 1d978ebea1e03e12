//! Network namespaces for tests. No thread of the tests themselves ever changes its namespace.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};

/// A new network namespace with its loopback interface up, and a listener on a port of 127.0.0.1 in it.
/// `kept`: what its sockets keep of what is to be sent and of what has come, bytes, instead of the usual megabytes.
pub(crate) fn listen(port: u16, kept: Option<u32>) -> io::Result<(OwnedFd, TcpListener)> {
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        loopback_up()?;
        if let Some(kept) = kept {
            // Of this thread's namespace.
            for file in ["/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_rmem"] {
                std::fs::write(file, format!("{kept} {kept} {kept}"))?;
            }
        }
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        Ok((File::open("/proc/thread-self/ns/net")?.into(), listener))
    };
    std::thread::spawn(make).join().expect("no panic in this thread")
}

fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all bytes of this plain C structure may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the socket is open and the request outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
