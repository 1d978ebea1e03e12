//! The socket: who is heard, what is refused, and that nothing said there ends the supervisor.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tombolo_agent_core::supervision::{Answer, MESSAGE_MAX, Message, Refusal, Request, VERSION};

use crate::machine::{Machine, is_root, until};

#[test]
fn a_greeting_says_who_is_there() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.dial();
    assert!(
        matches!(client.call(Request::List), Err(Refusal::Malformed(_))),
        "before hello nothing is answered"
    );
    let other = client.call(Request::Hello { version: VERSION + 1 });
    assert_eq!(other, Err(Refusal::Version { supervisor: VERSION, agent: VERSION + 1 }));
    assert!(matches!(client.call(Request::List), Err(Refusal::Malformed(_))));
    match client.call(Request::Hello { version: VERSION }) {
        Ok(Answer::Hello { version, program, pid, limitations }) => {
            assert_eq!((version, program.as_str()), (VERSION, env!("CARGO_PKG_VERSION")));
            assert_eq!(pid, machine.process.id().cast_signed());
            eprintln!("limitations: {limitations:?}");
        }
        other => panic!("{other:?}"),
    }
    let mode = fs::metadata(machine.run_dir().join("supervisor.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_newer_connection_replaces_the_older() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut first = machine.connect();
    let id = machine.id("kept");
    let pid = first.create(&id, machine.guest("kept", &["sleep"]));
    // One that says nothing replaces nobody.
    let silent = machine.dial();
    assert_eq!(first.list().len(), 1);
    let mut second = machine.connect();
    assert!(first.receive().is_none(), "the older is closed");
    let records = second.list();
    assert_eq!((records.len(), records[0].pid), (1, pid));
    second.start(&id);
    second.signal(&id, libc::SIGKILL);
    assert_eq!(second.exit(&id).signal, Some(libc::SIGKILL));
    drop(silent);
}

#[test]
fn malformed_messages_are_answered_and_harmless() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    for (bytes, seq) in [
        (&b"garbage"[..], 0),
        (b"{}", 0),
        (b"{\"seq\":77}", 77),
        (b"{\"seq\":78,\"request\":{\"op\":\"dance\"}}", 78),
        (b"{\"seq\":79,\"request\":{\"op\":\"start\",\"id\":\"a\",\"more\":1}}", 79),
        (&[0xff; 100], 0),
        (&vec![b' '; MESSAGE_MAX + 1], 0),
    ] {
        client.send_bytes(bytes);
        match client.receive() {
            Some(Message::Reply { seq: answered, result: Err(Refusal::Malformed(_)) }) => {
                assert_eq!(answered, seq)
            }
            other => panic!("{other:?}"),
        }
    }
    for name in ["", "..", "a/b", "UPPER", &"x".repeat(64)] {
        let id = tombolo_agent_core::supervision::InstanceId(name.into());
        let answer = client.call(Request::Create { id, spec: Box::new(machine.guest("x", &["exit:0"])) });
        assert!(matches!(answer, Err(Refusal::Malformed(_))), "{name:?}: {answer:?}");
    }
    let mut spec = machine.guest("x", &["exit:0"]);
    spec.log.max_files = 0;
    let answer = client.call(Request::Create { id: machine.id("x"), spec: Box::new(spec) });
    assert!(matches!(answer, Err(Refusal::Malformed(_))), "{answer:?}");
    assert_eq!(client.list(), []);
}

#[test]
fn one_run_directory_has_one_supervisor() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut command = std::process::Command::new(crate::machine::supervisor());
    let output = command.arg("--run-dir").arg(machine.run_dir()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("another runtime supervisor serves"), "{errors}");
    assert_eq!(client.list(), []);
}

#[test]
fn being_told_to_end_takes_everything_along() {
    if !is_root() {
        return;
    }
    for by_signal in [false, true] {
        let mut machine = Machine::start();
        let mut client = machine.connect();
        let pids =
            ["a", "b", "c"].map(|name| client.create(&machine.id(name), machine.guest(name, &["spin"])));
        client.start(&machine.id("a"));
        client.start(&machine.id("b"));
        assert_eq!(client.call(Request::Freeze { id: machine.id("b") }), Ok(Answer::Done));
        if by_signal {
            let pid = nix::unistd::Pid::from_raw(machine.process.id().cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        } else {
            let seq = client.send(Request::Shutdown);
            assert_eq!(client.answer(seq), Ok(Answer::Done));
        }
        let status = until("its end", || machine.process.try_wait().unwrap());
        assert!(status.success(), "{status}");
        for pid in pids {
            assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
        }
        assert!(machine.cgroups().is_empty());
        let left: Vec<String> = fs::read_dir(machine.run_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, ["instances"]);
    }
}
