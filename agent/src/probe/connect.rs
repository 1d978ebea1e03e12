//! Connections to an instance's port, made with as little work as can be while nothing listens there yet: the socket is used
//! again, and on a loopback interface two calls give the answer. It must not know what is spoken on a connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrIn, bind, connect, setsockopt, sockopt};
use tokio::net::TcpStream;

use super::Reach;

/// Where probes come from. Not the address they go to: the kernel could choose the very port that is probed as the local one,
/// and a socket that connects to itself looks like a program that listens.
const SOURCE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 0);

/// A connection that opened.
pub(super) struct Open(OwnedFd);

impl Open {
    pub(super) fn stream(self) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std(std::net::TcpStream::from(self.0))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Connects. `spare` holds a socket whose last attempt was refused, if there is one.
pub(super) async fn open(reach: &Reach, spare: &mut Option<OwnedFd>, port: u16) -> io::Result<Open> {
    let socket = match spare.take() {
        Some(socket) => socket,
        None => source((reach.socket)().await?)?,
    };
    let target = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    let attempt = || connect(socket.as_raw_fd(), &target);
    // The first call sends, and has the answer before it returns; the second one fetches it.
    let outcome = match attempt() {
        Err(Errno::EINPROGRESS) => attempt(),
        outcome => outcome,
    };
    match outcome {
        Ok(()) | Err(Errno::EISCONN) => Ok(Open(socket)),
        Err(Errno::EALREADY) => until_connected(socket).await,
        Err(refused) => {
            if refused == Errno::ECONNREFUSED {
                *spare = Some(socket);
            }
            Err(refused.into())
        }
    }
}

fn source(socket: OwnedFd) -> io::Result<OwnedFd> {
    setsockopt(&socket.as_fd(), sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SOURCE))?;
    Ok(socket)
}

/// The program listens, and its queue is full: the kernel tries again by itself.
async fn until_connected(socket: OwnedFd) -> io::Result<Open> {
    let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(Open(stream.into_std()?.into())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::probe::tests::{here, unused_port};

    #[tokio::test]
    async fn one_socket_serves_until_the_port_opens() {
        let (reach, made) = here();
        let port = unused_port().await;
        let mut spare = None;
        for _ in 0..50 {
            let refused = open(&reach, &mut spare, port).await.err().unwrap();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let stream = open(&reach, &mut spare, port).await.unwrap().stream().unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, stream.local_addr().unwrap());
        assert_eq!(made.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert!(spare.is_none());
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (reach, _) = here();
        let mut filling = Vec::new();
        for _ in 0..2 {
            filling.push(open(&reach, &mut None, port).await.unwrap());
        }
        let accept = async {
            // The third one waits in `open` by now.
            tokio::task::yield_now().await;
            for _ in 0..3 {
                listener.accept().await.unwrap();
            }
        };
        let mut spare = None;
        let (opened, ()) = tokio::join!(open(&reach, &mut spare, port), accept);
        opened.unwrap();
    }
}
