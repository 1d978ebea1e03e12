//! Commands inside running instances.

use std::fs;
use std::path::Path;

use tombolo_agent_core::supervision::{
    Answer, EXEC_OUTPUT_MAX, EXEC_TIMEOUT_MS_MAX, InstancePhase, Refusal, Request,
};

use crate::machine::{Client, Machine, is_root, patience, until};

/// How a command ended.
#[derive(Debug)]
struct End {
    code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    output: String,
}

fn request(machine: &Machine, name: &str, command: &[&str], timeout_ms: u64) -> Request {
    let args = command.iter().map(|text| (*text).into()).collect();
    Request::Exec { id: machine.id(name), args, timeout_ms }
}

fn exec(machine: &Machine, client: &mut Client, name: &str, command: &[&str], timeout_ms: u64) -> End {
    match client.call(request(machine, name, command, timeout_ms)) {
        Ok(Answer::Executed { code, signal, timed_out, output }) => End { code, signal, timed_out, output },
        other => panic!("{command:?} in {name}: {other:?}"),
    }
}

fn guest(machine: &Machine, client: &mut Client, name: &str, acts: &[&str]) -> End {
    let timeout_ms = u64::try_from(patience().as_millis()).unwrap().min(EXEC_TIMEOUT_MS_MAX);
    exec(machine, client, name, &[&["/guest"], acts].concat(), timeout_ms)
}

/// Processes of an instance's cgroup and those below it, in whichever hierarchy has them.
fn processes(machine: &Machine, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for parent in machine.cgroups() {
        collect(&parent.join(machine.id(name).0), &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn collect(directory: &Path, found: &mut Vec<String>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().map(str::to_owned));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect(&entry.path(), found);
        }
    }
}

#[test]
fn a_command_runs_as_the_program_does() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let looks = [
        "link:/proc/self/ns/user",
        "link:/proc/self/ns/mnt",
        "link:/proc/self/ns/pid",
        "link:/proc/self/ns/net",
        "link:/proc/self/ns/ipc",
        "link:/proc/self/ns/uts",
        "link:/proc/self/ns/cgroup",
        "cat:/proc/self/oom_score_adj",
        "cat:/etc/marker",
        "environment",
        "status",
        "try",
    ];
    for (name, user) in [("root", 0), ("other", 1234)] {
        let acts = [&["/guest"], &looks[..], &["print:ready", "sleep"]].concat();
        let spec = machine.spec(name, &acts, |config| {
            config["process"]["user"] = serde_json::json!({ "uid": user, "gid": user });
            if user != 0 {
                let none: [&str; 0] = [];
                config["process"]["capabilities"] =
                    serde_json::json!({ "bounding": none, "effective": none, "permitted": none });
            }
        });
        client.create(&machine.id(name), spec);
        client.start(&machine.id(name));
        let program = until("the program to have looked", || {
            let printed = machine.printed(name, "stdout");
            printed.last().is_some_and(|line| line == "ready").then_some(printed)
        });
        let end = guest(&machine, &mut client, name, &[&looks[..], &["exit:0"]].concat());
        assert_eq!(end.code, Some(0), "{end:?}");
        let command: Vec<&str> = end.output.lines().collect();
        assert_eq!(command, program[..program.len() - 1], "{name}");
    }
}

#[test]
fn an_end_is_told_with_the_beginning_of_the_output() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    client.create(&machine.id("a"), machine.guest("a", &["sleep"]));
    client.start(&machine.id("a"));
    let end = guest(&machine, &mut client, "a", &["print:out", "error:err", "stdin:", "exit:3"]);
    assert_eq!((end.code, end.signal, end.timed_out), (Some(3), None, false), "{end:?}");
    assert_eq!(end.output, "out\nerr in 2 pieces\nstdin has 0 bytes\n");
    let end = guest(&machine, &mut client, "a", &["raise:9"]);
    assert_eq!((end.code, end.signal, end.timed_out), (None, Some(9), false), "{end:?}");
    let end = guest(&machine, &mut client, "a", &["lines:200000", "exit:4"]);
    assert_eq!((end.code, end.output.len()), (Some(4), EXEC_OUTPUT_MAX));
    assert!(end.output.starts_with("line 0\nline 1\n"));
    let end = exec(&machine, &mut client, "a", &["/nothing"], 5000);
    assert_eq!(end.code, Some(127), "{end:?}");
    assert!(end.output.contains("/nothing"), "{end:?}");
    assert_eq!(processes(&machine, "a").len(), 1, "only the program is left");
}

#[test]
fn a_command_dies_at_its_deadline_with_all_it_forked() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let pid = client.create(&machine.id("a"), machine.guest("a", &["sleep"]));
    client.start(&machine.id("a"));
    let end = exec(&machine, &mut client, "a", &["/guest", "print:one", "child", "sleep"], 1000);
    assert!(end.timed_out, "{end:?}");
    assert_eq!((end.code, end.signal, end.output.as_str()), (None, Some(9), "one\n"));
    assert_eq!(processes(&machine, "a"), [pid.to_string()]);
    // And what it leaves behind when it ends by itself.
    let end = guest(&machine, &mut client, "a", &["child", "exit:0"]);
    assert_eq!((end.code, end.timed_out), (Some(0), false), "{end:?}");
    assert_eq!(processes(&machine, "a"), [pid.to_string()]);
    assert_eq!(client.phase(&machine.id("a")), Some(InstancePhase::Running));
    client.delete(&machine.id("a"));
    assert!(machine.cgroups().is_empty());
}

#[test]
fn a_command_holds_up_nothing_else() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    client.create(&machine.id("a"), machine.guest("a", &["sleep"]));
    client.start(&machine.id("a"));
    // More than run at a time.
    let long: Vec<u64> = (0..20)
        .map(|_| client.send(request(&machine, "a", &["/guest", "sleep"], EXEC_TIMEOUT_MS_MAX)))
        .collect();
    client.create(&machine.id("b"), machine.guest("b", &["exit:0"]));
    client.start(&machine.id("b"));
    assert_eq!(client.exit(&machine.id("b")).code, Some(0));
    client.delete(&machine.id("a"));
    for seq in long {
        // Those under way were killed with it, the others have nowhere to run.
        match client.answer(seq) {
            Ok(Answer::Executed { signal: Some(9), timed_out: false, .. }) | Err(Refusal::Runtime(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    client.delete(&machine.id("b"));
    assert!(machine.cgroups().is_empty());
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let missing = client.call(request(&machine, "a", &["/guest"], 1000));
    assert_eq!(missing, Err(Refusal::NotFound(machine.id("a"))));
    client.create(&machine.id("a"), machine.guest("a", &["sleep"]));
    let in_phase = |phase| Err(Refusal::WrongPhase { id: machine.id("a"), phase });
    let command = || request(&machine, "a", &["/guest", "exit:0"], 20_000);
    assert_eq!(client.call(command()), in_phase(InstancePhase::Created));
    client.start(&machine.id("a"));
    assert!(client.call(command()).is_ok());
    for (args, timeout_ms) in
        [(&[][..], 1000), (&[""], 1000), (&["/guest"], 0), (&["/guest"], EXEC_TIMEOUT_MS_MAX + 1)]
    {
        let refused = client.call(request(&machine, "a", args, timeout_ms));
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{refused:?}");
    }
    assert_eq!(client.call(Request::Freeze { id: machine.id("a") }), Ok(Answer::Done));
    assert_eq!(client.call(command()), in_phase(InstancePhase::Frozen));
    assert_eq!(client.call(Request::Thaw { id: machine.id("a") }), Ok(Answer::Done));
    client.signal(&machine.id("a"), libc::SIGKILL);
    client.exit(&machine.id("a"));
    assert_eq!(client.call(command()), in_phase(InstancePhase::Ended));
}
