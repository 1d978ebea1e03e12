//! Golden encodings of what agent and supervisor say to each other, one message a line: an agent and a supervisor of different
//! releases must understand each other, for the supervisor outlives the agent. A line changes only with the protocol's version.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tombolo_agent_core::supervision::{
    Answer, Call, CreateSpec, ExitRecord, InstanceId, InstancePhase, InstanceRecord, LogSpec, Message,
    Refusal, Request, VERSION,
};

/// Every line of `golden` is what the value of the same place is written as, and reads back as it.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(golden: &str, values: &[T]) {
    let lines: Vec<_> = golden.lines().collect();
    let written: Vec<_> = values.iter().map(|value| serde_json::to_string(value).unwrap()).collect();
    assert_eq!(written, lines);
    for (line, value) in lines.iter().zip(values) {
        assert_eq!(&serde_json::from_str::<T>(line).unwrap(), value);
    }
}

fn id() -> InstanceId {
    InstanceId("hello-00001-abcde-1".into())
}

fn log() -> LogSpec {
    LogSpec { path: "/var/lib/x/logs/1.log".into(), max_bytes: 1 << 20, max_files: 3 }
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("tombolo.dev/revision".into(), "hello-00001".into())])
}

#[test]
fn calls() {
    let spec = CreateSpec {
        config: "/run/x/bundles/1/config.json".into(),
        layers: vec!["/var/lib/x/layers/b".into(), "/var/lib/x/layers/a".into()],
        upper_bytes: 64 << 20,
        user_namespace: true,
        log: log(),
        labels: labels(),
    };
    let requests = [
        Request::Hello { version: VERSION },
        Request::Create { id: id(), spec: Box::new(spec) },
        Request::Start { id: id() },
        Request::Signal { id: id(), signal: 15 },
        Request::Freeze { id: id() },
        Request::Thaw { id: id() },
        Request::Delete { id: id() },
        Request::List,
        Request::Shutdown,
        Request::Upgrade { binary: "/usr/bin/x".into() },
        Request::Keep { name: "router".into() },
        Request::Take { name: "router".into() },
        Request::Release { name: "router".into() },
        Request::Suspend { id: id() },
        Request::BeginMove { id: id(), moved_bytes: 3 << 30, memory_bytes: Some(4 << 30) },
        Request::EndMove { id: id(), memory_bytes: Some(1 << 30) },
        Request::Exec { id: id(), args: vec!["/bin/check".into(), "-q".into()], timeout_ms: 1000 },
        Request::Refit { id: id(), config: "/run/x/bundles/1/config.json".into() },
    ];
    let calls: Vec<_> = (1..).zip(requests).map(|(seq, request)| Call { seq, request }).collect();
    check(include_str!("golden/calls.jsonl"), &calls);
}

#[test]
fn messages() {
    let exit = |code, signal| ExitRecord { code, signal, out_of_memory: false, time_ms: 1_767_225_600_000 };
    let record = |phase, pid, exit| InstanceRecord {
        id: id(),
        phase,
        pid,
        exit,
        log: log(),
        labels: labels(),
        moved_bytes: 0,
    };
    let records = vec![
        record(InstancePhase::Creating, 0, None),
        record(InstancePhase::Created, 7, None),
        record(InstancePhase::Running, 7, None),
        record(InstancePhase::Frozen, 7, None),
        record(InstancePhase::Ended, 7, Some(exit(Some(3), None))),
    ];
    let hello = Answer::Hello {
        version: VERSION,
        program: "0.1.0".into(),
        pid: 4711,
        limitations: vec!["containers run without a user namespace".into()],
    };
    let results = [
        Ok(hello),
        Ok(Answer::Created { pid: 7 }),
        Ok(Answer::Done),
        Ok(Answer::Instances(records)),
        Err(Refusal::Version { supervisor: 1, agent: 2 }),
        Err(Refusal::NotFound(id())),
        Err(Refusal::Exists(id())),
        Err(Refusal::TooMany),
        Err(Refusal::WrongPhase { id: id(), phase: InstancePhase::Ended }),
        Err(Refusal::Malformed("no specification".into())),
        Err(Refusal::Runtime("no such executable".into())),
        Err(Refusal::Timeout(20)),
        Ok(Answer::Taken { found: true }),
        Err(Refusal::TooManySockets),
        Ok(Answer::Executed { code: Some(1), signal: None, timed_out: false, output: "no\n".into() }),
    ];
    let mut messages: Vec<_> =
        (1..).zip(results).map(|(seq, result)| Message::Reply { seq, result }).collect();
    let killed = ExitRecord { out_of_memory: true, ..exit(None, Some(9)) };
    messages.push(Message::Exited { id: id(), exit: killed });
    check(include_str!("golden/messages.jsonl"), &messages);
}
