//! Listening sockets that outlive the agent which brought them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;

use tombolo_agent_core::supervision::{Answer, Refusal, Request, SOCKETS_MAX};

use crate::machine::{Client, Machine, is_root, supervisor, until};

/// Gives the supervisor a new listening socket to keep; nobody else has it.
fn keep(client: &mut Client, name: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let kept = client.call_with(Request::Keep { name: name.into() }, listener.as_fd());
    assert_eq!(kept, Ok(Answer::Done));
    listener.local_addr().unwrap()
}

fn is_refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn who_connects_while_there_is_no_agent_is_served_by_the_next() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut first = machine.connect();
    let address = keep(&mut first, "router");
    drop(first);
    let mut waiting = TcpStream::connect(address).unwrap();
    waiting.write_all(b"a question").unwrap();

    let mut second = machine.connect();
    assert!(second.take("another").is_none());
    let listener = second.take("router").unwrap();
    assert_eq!(listener.local_addr().unwrap(), address);
    let (mut accepted, _) = listener.accept().unwrap();
    let mut question = [0; 10];
    accepted.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"a question");
    // Taking leaves it where it is.
    drop(listener);
    assert!(second.take("router").is_some());
}

#[test]
fn a_released_socket_listens_no_more() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let address = keep(&mut client, "router");
    drop(TcpStream::connect(address).unwrap());
    let release = || Request::Release { name: "router".into() };
    assert_eq!(client.call(release()), Ok(Answer::Done));
    assert!(is_refused(address));
    assert!(client.take("router").is_none());
    assert_eq!(client.call(release()), Ok(Answer::Done), "there is none any more");
    // A newer one takes the older's place, and the end takes all.
    let older = keep(&mut client, "router");
    let newer = keep(&mut client, "router");
    assert!(is_refused(older));
    assert_eq!(client.take("router").unwrap().local_addr().unwrap(), newer);
    assert_eq!(client.call(Request::Shutdown), Ok(Answer::Done));
    until("its end", || machine.process.try_wait().unwrap());
    assert!(is_refused(newer));
}

#[test]
fn only_a_few_listening_sockets_are_kept() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let request = |name: &str| Request::Keep { name: name.into() };
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", machine.process.id())).unwrap().count();
    let before = descriptors();
    let missing = client.call(request("router"));
    assert!(matches!(missing, Err(Refusal::Malformed(_))), "{missing:?}");
    let file = fs::File::open("/dev/null").unwrap();
    let useless = client.call_with(request("router"), file.as_fd());
    assert!(matches!(useless, Err(Refusal::Malformed(_))), "{useless:?}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nameless = client.call_with(request("../x"), listener.as_fd());
    assert!(matches!(nameless, Err(Refusal::Malformed(_))), "{nameless:?}");
    // One that comes with another call is closed.
    assert!(client.call_with(Request::List, listener.as_fd()).is_ok());
    until("what came along to be closed", || (descriptors() == before).then_some(()));
    for number in 0..SOCKETS_MAX {
        keep(&mut client, &format!("s{number}"));
    }
    assert_eq!(client.call_with(request("more"), listener.as_fd()), Err(Refusal::TooManySockets));
    keep(&mut client, "s0");
    assert_eq!(descriptors(), before + SOCKETS_MAX);
}

#[test]
fn an_upgrade_keeps_the_sockets() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let address = keep(&mut client, "router");
    let _waiting = TcpStream::connect(address).unwrap();
    let binary = machine.path("newer-supervisor");
    fs::copy(supervisor(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(client.call(Request::Upgrade { binary }), Ok(Answer::Hello { .. })));
    let listener = client.take("router").unwrap();
    assert_eq!(listener.local_addr().unwrap(), address);
    listener.accept().unwrap();
}
