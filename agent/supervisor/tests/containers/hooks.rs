//! Hooks of a specification, as vendors' specifications of devices have them: programs of the machine that finish a container's
//! root file system. Here they are scripts of the shell's own words, for they get no `PATH`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;

use serde_json::{Value, json};
use tombolo_agent_core::supervision::{Answer, CreateSpec, InstancePhase, Refusal, Request};

use crate::machine::{Client, Machine, is_root, until};

fn script(machine: &Machine, name: &str, text: &str) -> PathBuf {
    let path = machine.path(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn with_hooks(machine: &Machine, name: &str, acts: &[&str], hooks: &Value) -> CreateSpec {
    let mut spec =
        machine.spec(name, &[&["/guest"], acts].concat(), |config| config["hooks"] = hooks.clone());
    // As the agent has it of functions with devices.
    spec.user_namespace = false;
    spec
}

fn refused(machine: &Machine, client: &mut Client, name: &str, hooks: &Value) -> String {
    let spec = Box::new(with_hooks(machine, name, &["sleep"], hooks));
    match client.call(Request::Create { id: machine.id(name), spec }) {
        Err(Refusal::Runtime(why)) => why,
        other => panic!("{name}: {other:?}"),
    }
}

/// Also where its program is started only later.
#[test]
fn hooks_finish_the_root_file_system_before_the_program_runs() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    // What a hook is told of the container comes by its standard input; the specification in the bundle says where its root is.
    let inside = script(
        &machine,
        "inside",
        "read -r state\ncase \"$state\" in *'\"bundle\":\"/run/bundle\"'*) ;; *) exit 9;; esac\n\
         read -r config < /run/bundle/config.json || :\n\
         echo \"$1 $LIBRARIES\" > /run/rootfs/etc/ld.so.cache",
    );
    let outside = script(&machine, "outside", "echo outside > /run/rootfs/etc/runtime");
    let hooks = json!({
        "createRuntime": [{ "path": outside }],
        "createContainer": [{ "path": inside, "args": ["hook", "update-ldcache"], "env": ["LIBRARIES=/usr/lib"], "timeout": 3 }],
    });
    let acts = ["cat:/etc/ld.so.cache", "cat:/etc/runtime"];
    let id = machine.id("hooked");
    client.create(&id, with_hooks(&machine, "hooked", &acts, &hooks));
    client.start(&id);
    assert_eq!(client.exit(&id).code, Some(0), "{:?}", machine.printed("hooked", "stderr"));
    let printed = machine.printed("hooked", "stdout");
    assert_eq!(printed, ["/etc/ld.so.cache=update-ldcache /usr/lib", "/etc/runtime=outside"]);
    assert!(!machine.path("layer").join("etc/runtime").exists(), "the image is as it was");
}

/// One that fails changes nothing: the program runs, and the instance goes.
#[test]
fn hooks_are_told_of_the_start_and_of_the_end() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let told = machine.path("told");
    let tells = script(
        &machine,
        "tells",
        &format!("read -r state\necho \"$1 $state\" >> {}\n[ \"$1\" != fail ]", told.display()),
    );
    let tell = |word: &str| json!({ "path": tells, "args": ["hook", word] });
    let hooks = json!({ "poststart": [tell("fail"), tell("started")], "poststop": [tell("gone")] });
    let id = machine.id("a");
    let pid = client.create(&id, with_hooks(&machine, "a", &["sleep"], &hooks));
    assert!(!told.exists());
    client.start(&id);
    let lines = || -> Vec<String> {
        fs::read_to_string(&told).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    until("the hooks of the start", || (lines().len() == 2).then_some(()));
    assert_eq!(client.phase(&id), Some(InstancePhase::Running));
    // Whoever ends it need not be who started it.
    machine.process.kill().unwrap();
    machine.process.wait().unwrap();
    machine.restart();
    let mut client = machine.connect();
    client.delete(&id);
    let lines = lines();
    let said = |line: &str, word: &str, status: &str| {
        line.starts_with(&format!("{word} {{")) && line.contains(&id.0) && line.contains(status)
    };
    assert!(said(&lines[0], "fail", "running") && said(&lines[1], "started", "running"), "{lines:?}");
    assert!(lines[1].contains(&pid.to_string()), "{lines:?}");
    assert!(said(&lines[2], "gone", "stopped") && lines.len() == 3, "{lines:?}");
    assert!(client.list().is_empty());
}

#[test]
fn a_hook_that_fails_or_hangs_is_named_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let fails = script(&machine, "fails", "exit 7");
    let hangs = script(&machine, "hangs", "while :; do :; done");
    for (phase, program, timeout, expected) in [
        ("createContainer", &fails, 5, "NonZeroExitCode(7)"),
        ("createRuntime", &fails, 5, "exit code: 7"),
        ("prestart", &fails, 5, "exit code: 7"),
        ("createContainer", &hangs, 1, "err=Timeout"),
    ] {
        let hook = json!({ "path": program, "args": ["hook", "update-ldcache", "--folder", "/x"], "timeout": timeout });
        let why = refused(&machine, &mut client, "bad", &json!({ phase: [hook] }));
        let named = format!("{} update-ldcache:", program.display());
        assert!(why.contains(&named) && why.contains(expected), "{phase}: {why}");
        assert!(client.list().is_empty(), "{phase}");
    }
    assert_eq!(client.call(Request::Delete { id: machine.id("bad") }), Ok(Answer::Done));
}

#[test]
fn a_hook_that_anybody_could_change_does_not_run() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let open = script(&machine, "open", "");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let foreign = script(&machine, "foreign", "");
    chown(&foreign, Some(1234), None).unwrap();
    let plain = script(&machine, "plain", "");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    let absent = machine.path("absent");
    for (phase, path, expected) in [
        ("createContainer", &open, "only root can change"),
        ("createContainer", &foreign, "only root can change"),
        ("createRuntime", &plain, "only root can change"),
        ("prestart", &absent, "cannot be found"),
        ("poststart", &open, "only root can change"),
        ("poststop", &absent, "cannot be found"),
    ] {
        let why = refused(&machine, &mut client, "bad", &json!({ phase: [{ "path": path }] }));
        assert!(why.contains(expected) && why.contains(&path.display().to_string()), "{phase}: {why}");
    }
    // A list that is there and empty is none.
    client.create(&machine.id("none"), with_hooks(&machine, "none", &["sleep"], &json!({ "poststop": [] })));
}

/// As the function's program would be: in its place, as its user, under its filter, and only once it is started.
#[test]
fn hooks_of_the_start_are_programs_of_the_image_and_run_as_its_own_does() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let tell = |file: &str| json!({ "path": "/guest", "args": ["guest", format!("report:/tmp/{file}")], "env": ["FROM=hook"] });
    let hooks = json!({ "startContainer": [tell("first"), { "path": "/guest", "args": ["guest", "report:/tmp/second"] }] });
    let acts = ["wait:100", "cat:/tmp/first", "cat:/tmp/second", "report:/tmp/own", "cat:/tmp/own"];
    let id = machine.id("hooked");
    let mut spec = machine.spec("hooked", &[&["/guest"], &acts[..]].concat(), |config| {
        config["hooks"] = hooks.clone();
        config["process"]["env"] = json!(["PATH=/", "FROM=function"]);
    });
    spec.user_namespace = false;
    let pid = client.create(&id, spec);
    assert!(!PathBuf::from(format!("/proc/{pid}/root/tmp/first")).exists(), "it is not started yet");
    client.start(&id);
    assert_eq!(client.exit(&id).code, Some(0), "{:?}", machine.printed("hooked", "stderr"));
    let printed = machine.printed("hooked", "stdout");
    let of = |file: &str| {
        let line = printed.iter().find_map(|line| line.strip_prefix(&format!("/tmp/{file}=")));
        line.unwrap_or_else(|| panic!("{file} in {printed:?}")).to_owned()
    };
    let (first, second, own) = (of("first"), of("second"), of("own"));
    // User, capabilities, no new privileges and filter; then what it was told.
    let held_to = |text: &str| {
        text.split('|').take_while(|line| !line.starts_with("FROM")).collect::<Vec<_>>().join("|")
    };
    assert!(own.contains("Seccomp:\t2") && own.contains("NoNewPrivs:\t1"), "{own}");
    assert_eq!([held_to(&first), held_to(&second)], [held_to(&own), held_to(&own)]);
    assert!(first.contains("FROM=hook") && second.contains("FROM=function"), "{first} {second}");
    // What is there before the program is the supervisor's own: nothing of that is for them.
    assert!(own.contains("first: [true, true, true, true] true"), "{own}");
    for told in [&first, &second] {
        assert!(told.contains("first: [false, false, false, false] false"), "{told}");
        assert!(
            told.contains(&format!("\"id\":\"{}\"", id.0)) && told.contains("\"status\":\"created\""),
            "{told}"
        );
        assert!(told.contains("\"pid\":1,") || told.contains("\"pid\":1}"), "{told}");
    }
}

#[test]
fn a_hook_of_the_start_that_fails_or_hangs_keeps_the_program_from_running() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    for (name, act, expected) in [
        (
            "fails",
            "exit:7",
            "the hook /guest of its start failed: hook command exited with non-zero exit code: 7",
        ),
        (
            "hangs",
            "sleep",
            "the hook /guest of its start failed: failed to execute hook command due to a timeout",
        ),
        ("absent", "", "the hook /absent of its start failed: failed to execute hook command"),
    ] {
        let path = if act.is_empty() { "/absent" } else { "/guest" };
        let hook = json!({ "path": path, "args": ["guest", act], "timeout": 1 });
        let hooks = json!({ "startContainer": [hook] });
        let id = machine.id(name);
        client.create(&id, with_hooks(&machine, name, &["print:it runs"], &hooks));
        client.start(&id);
        assert_ne!(client.exit(&id).code, Some(0), "{name}");
        let said = machine.printed(name, "stderr").join("|");
        assert!(said.contains(expected), "{name}: {said}");
        assert!(machine.printed(name, "stdout").is_empty(), "{name}");
        client.delete(&id);
    }
}
