//! From one supervisor to the next: killed, or replaced in place.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tombolo_agent_core::supervision::{Answer, InstancePhase, Refusal, Request};

use crate::machine::{Client, Machine, is_root, request, supervisor, until};

fn kill(machine: &mut Machine) {
    machine.process.kill().unwrap();
    machine.process.wait().unwrap();
}

#[test]
fn instances_outlive_a_killed_supervisor() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let names = ["running", "created", "frozen", "short", "ended"];
    let hello = |machine: &Machine, name: &str| machine.spec(name, &["/hello"], |_| {});
    let running = client.create(&machine.id("running"), hello(&machine, "running"));
    let created = client.create(&machine.id("created"), hello(&machine, "created"));
    client.create(&machine.id("frozen"), machine.guest("frozen", &["spin"]));
    client
        .create(&machine.id("short"), machine.guest("short", &["wait:300", "print:printed alone", "exit:9"]));
    client.create(&machine.id("ended"), machine.guest("ended", &["exit:5"]));
    for name in ["running", "frozen", "short", "ended"] {
        client.start(&machine.id(name));
    }
    assert_eq!(client.exit(&machine.id("ended")).code, Some(5));
    assert_eq!(client.call(Request::Freeze { id: machine.id("frozen") }), Ok(Answer::Done));
    until("an answer", || request(running, 8080));
    let pids: Vec<i32> = client.list().iter().map(|record| record.pid).collect();

    kill(&mut machine);
    assert!(client.receive().is_none(), "the agent sees it at once, though containers live");
    assert!(request(running, 8080).is_some(), "and they answer");

    // One of them ends with nobody there.
    let short = pids[client_index(&names, "short")];
    until("the end of one", || (!is_running(short)).then_some(()));
    machine.restart();
    let mut client = machine.connect();
    let records = client.list();
    assert_eq!(records.iter().map(|record| record.pid).collect::<Vec<_>>(), pids);
    let phase = |client: &mut Client, name: &str| client.phase(&machine.id(name)).unwrap();
    assert_eq!(phase(&mut client, "running"), InstancePhase::Running);
    assert_eq!(phase(&mut client, "created"), InstancePhase::Created);
    assert_eq!(phase(&mut client, "frozen"), InstancePhase::Frozen);
    let exit_of = |name: &str| {
        records.iter().find(|record| record.id == machine.id(name)).unwrap().exit.clone().unwrap()
    };
    assert_eq!(exit_of("ended").code, Some(5));
    assert_eq!((exit_of("short").code, exit_of("short").signal), (None, None), "nobody was there to see it");
    assert_eq!(records[0].labels["revision"], "default/hello-00001");

    assert!(request(running, 8080).is_some());
    client.start(&machine.id("created"));
    until("an answer", || request(created, 8080));
    until("the log to go on", || (machine.printed("created", "stdout").len() == 1).then_some(()));
    assert_eq!(client.call(Request::Thaw { id: machine.id("frozen") }), Ok(Answer::Done));
    client.signal(&machine.id("running"), libc::SIGKILL);
    let exit = client.exit(&machine.id("running"));
    assert_eq!((exit.code, exit.signal), (None, None), "it is another's child");
    for name in names {
        client.delete(&machine.id(name));
    }
    assert!(machine.cgroups().is_empty());
    assert_eq!(fs::read_dir(machine.run_dir().join("instances")).unwrap().count(), 0);
}

/// Records are listed in the order of their ids.
fn client_index(names: &[&str], name: &str) -> usize {
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    sorted.iter().position(|other| *other == name).unwrap()
}

fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Processes of this machine's supervisor, and those that it has forked and that have executed nothing else.
fn supervisors(machine: &Machine) -> Vec<u32> {
    let run_dir = machine.run_dir().display().to_string();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&run_dir)
    })
    .collect()
}

#[test]
fn what_an_interrupted_creation_left_is_removed() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    // Killed at moments all over a creation.
    for round in 0..20 {
        let mut client = machine.connect();
        let name = format!("half{round}");
        client.send(Request::Create {
            id: machine.id(&name),
            spec: Box::new(machine.guest(&name, &["sleep"])),
        });
        std::thread::sleep(std::time::Duration::from_micros(700 * round));
        kill(&mut machine);
        machine.restart();
        let mut client = machine.connect();
        for record in client.list() {
            assert_ne!(record.phase, InstancePhase::Creating, "{record:?}");
            client.delete(&record.id);
        }
        assert_eq!(fs::read_dir(machine.run_dir().join("instances")).unwrap().count(), 0);
        until("the workers to go", || (supervisors(&machine) == [machine.process.id()]).then_some(()));
        until("the workers' remains to go", || {
            let has_any = machine.cgroups().iter().any(|parent| {
                fs::read_dir(parent).is_ok_and(|mut entries| {
                    entries.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir()))
                })
            });
            (!has_any).then_some(())
        });
    }
}

#[test]
fn cgroups_of_lost_records_are_removed_unless_something_runs_in_them() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let kept = client.create(&machine.id("kept"), machine.guest("kept", &["sleep"]));
    // Some hierarchies have two names.
    let mine: BTreeSet<PathBuf> = machine.cgroups().iter().map(|path| path.canonicalize().unwrap()).collect();
    let other = |parent: &Path| parent.with_file_name(format!("other-{kept}")).join("a");
    kill(&mut machine);
    let mut sleeper = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
    let mut used = BTreeSet::new();
    for parent in &mine {
        fs::create_dir_all(parent.join("half/exec")).unwrap();
        fs::create_dir_all(parent.join("used")).unwrap();
        fs::create_dir_all(other(parent)).unwrap();
        // Not every hierarchy takes a process into a cgroup that nobody has set up.
        if fs::write(parent.join("used/cgroup.procs"), sleeper.id().to_string()).is_ok() {
            used.insert(parent);
        }
    }
    assert!(!used.is_empty());
    machine.restart();
    let mut client = machine.connect();
    client.list();
    for parent in &mine {
        let is_there = |name: &str| parent.join(name).exists();
        let found = (is_there(&machine.id("kept").0), is_there("half"), is_there("used"));
        assert_eq!(found, (true, false, used.contains(parent)), "{}", parent.display());
        assert!(other(parent).exists(), "another supervisor's");
    }
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    kill(&mut machine);
    machine.restart();
    let mut client = machine.connect();
    assert_eq!(client.phase(&machine.id("kept")), Some(InstancePhase::Created));
    client.delete(&machine.id("kept"));
    assert!(machine.cgroups().is_empty());
    for other in mine.iter().map(|parent| other(parent)) {
        fs::remove_dir(&other).unwrap();
        fs::remove_dir(other.parent().unwrap()).unwrap();
    }
}

#[test]
fn an_upgrade_in_place_keeps_everything() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let hello = machine.spec("hello", &["/hello"], |_| {});
    let pid = client.create(&machine.id("hello"), hello);
    client.start(&machine.id("hello"));
    client.create(
        &machine.id("code"),
        machine.guest("code", &["print:before", "wait:700", "print:after", "exit:6"]),
    );
    client.start(&machine.id("code"));
    until("its first line", || (machine.printed("code", "stdout") == ["before"]).then_some(()));

    let binary = machine.path("newer-supervisor");
    fs::copy(supervisor(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    for _ in 0..2 {
        // A call behind the upgrade is heard by the new program.
        let upgrade = client.send(Request::Upgrade { binary: binary.clone() });
        let list = client.send(Request::List);
        match client.answer(upgrade) {
            Ok(Answer::Hello { pid, .. }) => assert_eq!(pid, machine.process.id().cast_signed()),
            other => panic!("{other:?}"),
        }
        match client.answer(list) {
            Ok(Answer::Instances(list)) => {
                assert_eq!(list.iter().find(|r| r.id == machine.id("hello")).unwrap().pid, pid)
            }
            other => panic!("{other:?}"),
        }
    }
    let running = fs::read_link(format!("/proc/{}/exe", machine.process.id())).unwrap();
    assert_eq!(running, binary);
    // Still their parent: it learns how they end.
    assert_eq!(client.exit(&machine.id("code")).code, Some(6));
    assert_eq!(machine.printed("code", "stdout"), ["before", "after"]);
    assert!(request(pid, 8080).is_some());
    let descriptors = fs::read_dir(format!("/proc/{}/fd", machine.process.id())).unwrap().count();
    client.call(Request::Upgrade { binary }).unwrap();
    assert_eq!(
        fs::read_dir(format!("/proc/{}/fd", machine.process.id())).unwrap().count(),
        descriptors,
        "none leaks"
    );
    client.delete(&machine.id("hello"));
    let mut again = machine.connect();
    again.delete(&machine.id("code"));
    assert!(machine.cgroups().is_empty());
}

/// Between two programs nobody hears of an end, and the agent's connection stays: it does not ask.
#[test]
fn an_instance_that_ends_during_an_upgrade_is_reported() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("ends");
    let pid = client.create(&id, machine.guest("ends", &["sleep"]));
    client.start(&id);
    let binary = machine.path("slow-supervisor");
    // Built-in commands only: the shell would ask how any child has ended.
    let ends = format!("kill -KILL {pid}; while read -r pid name state rest < /proc/{pid}/stat");
    let script =
        format!("#!/bin/sh\n{ends} && [ $state != Z ]; do :; done\nexec {} \"$@\"\n", supervisor().display());
    fs::write(&binary, script).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let upgraded = client.call(Request::Upgrade { binary });
    assert!(matches!(upgraded, Ok(Answer::Hello { .. })), "{upgraded:?}");
    // A call whose answer comes behind whatever was to be said.
    let [record] = &client.list()[..] else { panic!("one is held") };
    assert_eq!(record.phase, InstancePhase::Ended);
    assert_eq!(record.exit.as_ref().and_then(|exit| exit.signal), Some(libc::SIGKILL), "still its child");
    assert!(client.was_told(&id), "and the agent is told");
    client.delete(&id);
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let pid = client.create(&machine.id("kept"), machine.guest("kept", &["sleep"]));
    let missing = client.call(Request::Upgrade { binary: machine.path("nothing") });
    assert!(matches!(missing, Err(Refusal::Malformed(_))), "{missing:?}");
    let garbage = machine.path("garbage");
    fs::write(&garbage, "not a program").unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = client.call(Request::Upgrade { binary: garbage });
    assert!(matches!(refused, Err(Refusal::Runtime(_))), "{refused:?}");
    assert_eq!(client.list()[0].pid, pid);
    client.start(&machine.id("kept"));
    client.signal(&machine.id("kept"), libc::SIGKILL);
    assert_eq!(client.exit(&machine.id("kept")).signal, Some(libc::SIGKILL));
}

/// Killed after a worker has begun to stop the processes and before that is written down: nobody would ever let them go on.
#[test]
fn a_freeze_that_a_killed_supervisor_had_begun_is_taken_back() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let pid = client.create(&machine.id("half"), machine.spec("half", &["/hello"], |_| {}));
    client.start(&machine.id("half"));
    until("an answer", || request(pid, 8080));
    kill(&mut machine);
    machine.freeze("half").unwrap();
    let state = || machine.cgroup_file("half", ("freezer", "freezer.state"), "cgroup.freeze").unwrap();
    until("the freeze", || ["FROZEN", "1"].contains(&state().trim()).then_some(()));
    machine.restart();
    let mut client = machine.connect();
    assert_eq!(client.phase(&machine.id("half")), Some(InstancePhase::Running));
    let state = machine.cgroup_file("half", ("freezer", "freezer.state"), "cgroup.freeze").unwrap();
    assert!(["THAWED", "0"].contains(&state.trim()), "{state}");
    assert!(request(pid, 8080).is_some());
    client.delete(&machine.id("half"));
}
