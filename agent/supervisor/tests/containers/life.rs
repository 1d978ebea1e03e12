//! Create, start, signal, freeze, delete: what each does, and that nothing is left.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_agent_core::supervision::{Answer, InstancePhase, Refusal, Request};

use crate::machine::{Machine, is_root, mounts, request, until};

#[test]
fn an_instance_answers_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let before = mounts();
    let id = machine.id("hello");
    let pid = client.create(&id, machine.spec("hello", &["/hello"], |_| {}));
    assert_eq!(client.phase(&id), Some(InstancePhase::Created));
    assert_eq!(request(pid, 8080), None, "no user code runs before the start");
    client.start(&id);
    let answer = until("an answer", || request(pid, 8080));
    assert!(answer.contains("Hello World from hello-00001!"), "{answer}");
    assert_eq!(mounts(), before, "the host's mount table shows nothing");
    let record = client.list().remove(0);
    assert_eq!((record.phase, record.pid, record.exit), (InstancePhase::Running, pid, None));
    assert_eq!(record.labels["revision"], "default/hello-00001");

    client.delete(&id);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    assert_eq!(client.list(), []);
    assert_eq!(fs::read_dir(machine.run_dir().join("instances")).unwrap().count(), 0);
    assert!(machine.cgroups().is_empty(), "{:?}", machine.cgroups());
    assert_eq!(mounts(), before);
    client.delete(&id);
}

#[test]
fn exit_status_and_signal_are_recorded() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let (exit, _) = machine.run(&mut client, "code", &["exit:42"]);
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (Some(42), None, false));
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
        - exit.time_ms;
    assert!(age < 60_000, "{age}");
    let record = client.list().remove(0);
    assert_eq!((record.phase, record.exit), (InstancePhase::Ended, Some(exit)));

    let id = machine.id("killed");
    client.create(&id, machine.guest("killed", &["sleep"]));
    client.start(&id);
    client.signal(&id, libc::SIGKILL);
    assert_eq!(client.exit(&id).signal, Some(libc::SIGKILL));
    // Signalling what has ended is done.
    client.signal(&id, libc::SIGTERM);

    let id = machine.id("term");
    client.create(&id, machine.guest("term", &["term:7", "print:ready", "sleep"]));
    client.start(&id);
    until("the handler", || (machine.printed("term", "stdout") == ["ready"]).then_some(()));
    client.signal(&id, libc::SIGTERM);
    assert_eq!(client.exit(&id).code, Some(7));
}

#[test]
fn an_instance_that_was_never_started_can_go() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("primed");
    let pid = client.create(&id, machine.guest("primed", &["print:ran"]));
    client.delete(&id);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    assert!(machine.cgroups().is_empty());
    assert!(machine.printed("primed", "stdout").is_empty());
}

#[test]
fn calls_that_do_not_fit_the_phase_are_refused() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("one");
    let not_found = Err(Refusal::NotFound(id.clone()));
    assert_eq!(client.call(Request::Start { id: id.clone() }), not_found);
    assert_eq!(client.call(Request::Signal { id: id.clone(), signal: 15 }), not_found);
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), not_found);
    client.create(&id, machine.guest("one", &["exit:0"]));
    let again = Request::Create { id: id.clone(), spec: Box::new(machine.guest("one", &["exit:0"])) };
    assert_eq!(client.call(again), Err(Refusal::Exists(id.clone())));
    let wrong = |phase| Err(Refusal::WrongPhase { id: id.clone(), phase });
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), wrong(InstancePhase::Created));
    client.start(&id);
    client.exit(&id);
    assert_eq!(client.call(Request::Start { id: id.clone() }), wrong(InstancePhase::Ended));
    assert_eq!(client.call(Request::Thaw { id: id.clone() }), wrong(InstancePhase::Ended));
    let bad_signal = client.call(Request::Signal { id: id.clone(), signal: 99 });
    assert!(matches!(bad_signal, Err(Refusal::Malformed(_))), "{bad_signal:?}");
}

#[test]
fn a_failed_creation_says_why_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("bad");
    let mut refused = |spec| match client.call(Request::Create { id: id.clone(), spec: Box::new(spec) }) {
        Err(Refusal::Runtime(reason) | Refusal::Malformed(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let reason = refused(machine.spec("bad", &["/no-such-program"], |_| {}));
    assert!(reason.contains("/no-such-program"), "{reason}");
    let mut spec = machine.guest("bad", &["exit:0"]);
    spec.layers = vec![machine.path("no-such-layer")];
    assert!(refused(spec).contains("no-such-layer"));
    let mut spec = machine.guest("bad", &["exit:0"]);
    spec.config = machine.path("no-such-config");
    assert!(refused(spec).contains("no-such-config"));
    let reason = refused(machine.spec("bad", &["/guest"], |config| {
        config["hooks"] = serde_json::json!({ "startContainer": [{ "path": "bin/true" }] });
    }));
    assert!(reason.contains("the hook bin/true has no absolute path"), "{reason}");
    assert_eq!(client.list(), []);
    assert_eq!(fs::read_dir(machine.run_dir().join("instances")).unwrap().count(), 0);
    assert!(machine.cgroups().is_empty(), "{:?}", machine.cgroups());
    // The name is free for another try.
    client.create(&id, machine.guest("bad", &["exit:0"]));
}

#[test]
fn a_frozen_instance_uses_no_processor_and_can_still_be_killed() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("spin");
    let pid = client.create(&id, machine.guest("spin", &["spin"]));
    client.start(&id);
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse::<u64>().unwrap()
    };
    until("it to spin", || (used() > 2).then_some(()));
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), Ok(Answer::Done));
    assert_eq!(client.phase(&id), Some(InstancePhase::Frozen));
    let before = used();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(used(), before);
    assert_eq!(client.call(Request::Thaw { id: id.clone() }), Ok(Answer::Done));
    until("it to spin again", || (used() > before + 2).then_some(()));

    assert_eq!(client.call(Request::Freeze { id: id.clone() }), Ok(Answer::Done));
    client.signal(&id, libc::SIGKILL);
    assert_eq!(client.exit(&id).signal, Some(libc::SIGKILL));
    client.delete(&id);

    let id = machine.id("frozen");
    client.create(&id, machine.guest("frozen", &["spin"]));
    client.start(&id);
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), Ok(Answer::Done));
    client.delete(&id);
    assert!(machine.cgroups().is_empty());
}

#[test]
fn memory_of_a_frozen_instance_is_taken_back() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("idle");
    // Read by nobody else, so that its cache is the instance's.
    let file = fs::File::create(machine.path("layer").join("big")).unwrap();
    file.write_all_at(&vec![7; 16 << 20], 0).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(file.as_raw_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    client.create(&id, machine.guest("idle", &["size:/big", "sleep"]));
    client.start(&id);
    until("it to have read", || (machine.printed("idle", "stdout") == ["/big has 16777216"]).then_some(()));
    if !fs::exists(format!("/sys/fs/cgroup/{}/{id}/memory.reclaim", machine.parent_cgroup)).unwrap() {
        eprintln!("SKIPPED: memory is taken back with cgroup v2 only, since Linux 5.19");
        return;
    }
    let cached = || -> u64 {
        let stat = machine.cgroup_file("idle", ("none", "none"), "memory.stat").unwrap();
        stat.lines().find_map(|line| line.strip_prefix("file ")?.parse().ok()).unwrap()
    };
    until("the cache to be counted", || (cached() > 8 << 20).then_some(()));
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), Ok(Answer::Done));
    until("the cache to be taken back", || (cached() < 2 << 20).then_some(()));
    assert_eq!(client.call(Request::Thaw { id: id.clone() }), Ok(Answer::Done));
    client.signal(&id, libc::SIGKILL);
    assert_eq!(client.exit(&id).signal, Some(libc::SIGKILL));
    client.delete(&id);
    assert!(machine.cgroups().is_empty());
}

#[test]
fn calls_about_one_instance_keep_their_order() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("order");
    let create = |machine: &Machine| Request::Create {
        id: id.clone(),
        spec: Box::new(machine.guest("order", &["sleep"])),
    };
    let calls = [
        client.send(create(&machine)),
        client.send(Request::Start { id: id.clone() }),
        client.send(Request::Freeze { id: id.clone() }),
        client.send(Request::Thaw { id: id.clone() }),
        client.send(Request::Delete { id: id.clone() }),
        client.send(create(&machine)),
        client.send(Request::Delete { id: id.clone() }),
        client.send(Request::Start { id: id.clone() }),
    ];
    let answers = calls.map(|seq| client.answer(seq));
    assert!(matches!(answers[0], Ok(Answer::Created { .. })), "{answers:?}");
    for done in [1, 2, 3, 4, 6] {
        assert_eq!(answers[done], Ok(Answer::Done), "{answers:?}");
    }
    assert!(matches!(answers[5], Ok(Answer::Created { .. })), "{answers:?}");
    assert_eq!(answers[7], Err(Refusal::NotFound(id.clone())));
}

/// Fifty creations one after the other, then fifty at once; times are printed for whoever looks.
#[test]
fn a_hundred_creations_never_hang() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let (mut create, mut start, mut delete) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..50 {
        let name = format!("n{number}");
        let id = machine.id(&name);
        let spec = machine.spec(&name, &["/hello"], |_| {});
        let began = Instant::now();
        let pid = client.create(&id, spec);
        create.push(began.elapsed());
        let began = Instant::now();
        client.start(&id);
        until("an answer", || request(pid, 8080));
        start.push(began.elapsed());
        let began = Instant::now();
        client.delete(&id);
        delete.push(began.elapsed());
    }
    for (what, times) in [("create", &mut create), ("start to answer", &mut start), ("delete", &mut delete)] {
        times.sort();
        println!("{what}: p50 {:?}, min {:?}, max {:?}", times[25], times[0], times[49]);
    }
    let specs = (0..50)
        .map(|number| (machine.id(&format!("m{number}")), machine.guest(&format!("m{number}"), &["sleep"])));
    let began = Instant::now();
    let calls: Vec<u64> =
        specs.map(|(id, spec)| client.send(Request::Create { id, spec: Box::new(spec) })).collect();
    let mut answered = Vec::new();
    while answered.len() < calls.len() {
        if let Some(tombolo_agent_core::supervision::Message::Reply { seq, result }) = client.receive() {
            assert!(matches!(result, Ok(Answer::Created { .. })), "{result:?}");
            answered.push(seq);
        }
    }
    println!("fifty at once: {:?}", began.elapsed());
    answered.sort_unstable();
    assert_eq!(answered, calls);
    assert_eq!(client.list().len(), 50);
    let seq = client.send(Request::Shutdown);
    assert_eq!(client.answer(seq), Ok(Answer::Done));
    assert!(machine.cgroups().is_empty());
}

/// What the container runtime did now and then in a process with threads: it never came back.
#[test]
fn a_creation_that_hangs_is_given_up_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let other = machine.id("other");
    client.create(&other, machine.guest("other", &["sleep"]));
    let stuck = (0..20).find_map(|attempt| {
        let name = format!("hangs{attempt}");
        let id = machine.id(&name);
        let worker = machine.run_dir().join("instances").join(&id.0).join("worker.json");
        let seq =
            client.send(Request::Create { id: id.clone(), spec: Box::new(machine.guest(&name, &["sleep"])) });
        let pid = until("the worker", || {
            let text = fs::read_to_string(&worker).ok()?;
            serde_json::from_str::<serde_json::Value>(&text).ok()?["pid"].as_i64()
        });
        // It may have been too fast to be stopped.
        let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(500));
        let record = client.list().into_iter().find(|record| record.id == id).unwrap();
        (record.phase == InstancePhase::Creating).then_some(seq)
    });
    // Others are served meanwhile.
    client.start(&other);
    client.delete(&other);
    assert_eq!(client.answer(stuck.expect("one of them was stopped")), Err(Refusal::Timeout(20)));
    for record in client.list() {
        assert_eq!(record.phase, InstancePhase::Created);
        client.delete(&record.id);
    }
    assert!(machine.cgroups().is_empty(), "{:?}", machine.cgroups());
    assert_eq!(fs::read_dir(machine.run_dir().join("instances")).unwrap().count(), 0);
}
