//! Memory, processes, processor, and the writable layer: each bound holds, and what it says when it is met.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use serde_json::json;
use tombolo_agent_core::supervision::{Answer, InstanceId, InstancePhase, Refusal, Request};

use crate::machine::{Client, Machine, is_root, supervisor, until};

#[test]
fn too_much_memory_is_killed_and_said() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let limit = 32 << 20;
    let limited = |config: &mut serde_json::Value| {
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit })
    };
    let spec = machine.spec("eats", &["/guest", "eat:8", "eat:200"], limited);
    client.create(&machine.id("eats"), spec);
    let file = machine.cgroup_file("eats", ("memory", "memory.limit_in_bytes"), "memory.max").unwrap();
    assert_eq!(file.trim(), limit.to_string());
    client.start(&machine.id("eats"));
    let exit = client.exit(&machine.id("eats"));
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (None, Some(libc::SIGKILL), true));
    assert_eq!(machine.printed("eats", "stdout"), ["ate 8"]);

    let (exit, _) =
        machine.run_spec(&mut client, "fits", machine.spec("fits", &["/guest", "eat:8"], limited));
    assert_eq!((exit.code, exit.out_of_memory), (Some(0), false));
}

/// A configuration with little memory.
fn little(config: &mut serde_json::Value) {
    config["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 })
}

/// The kernel sees to it on cgroup v2, the supervisor on v1.
#[test]
fn a_worker_killed_for_memory_takes_its_instance_with_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let killed = (None, Some(libc::SIGKILL), true);
    let id = machine.id("lives");
    client.create(&id, machine.spec("lives", &["/guest", "worker:eat:200", "sleep"], little));
    client.start(&id);
    let exit = client.exit(&id);
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), killed, "its init would live on");
    // One that notices may be quicker.
    let id = machine.id("ends");
    client.create(&id, machine.spec("ends", &["/guest", "worker:eat:200", "exit:1"], little));
    client.start(&id);
    assert!(client.exit(&id).out_of_memory);
    // Also what others run in it.
    let (id, other) = (machine.id("probed"), machine.id("other"));
    client.create(&id, machine.spec("probed", &["/guest", "sleep"], little));
    client.create(&other, machine.spec("other", &["/guest", "sleep"], little));
    client.start(&id);
    client.start(&other);
    eat_inside(&mut client, &id);
    let exit = client.exit(&id);
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), killed);
    // And nobody else.
    assert_eq!(client.phase(&other), Some(InstancePhase::Running));
    client.signal(&other, libc::SIGKILL);
    assert!(!client.exit(&other).out_of_memory, "it was told to end");
}

/// Runs a command in an instance that takes more memory than there is.
fn eat_inside(client: &mut Client, id: &InstanceId) {
    let args = vec!["/guest".into(), "eat:200".into()];
    // What becomes of the command depends on who is quicker.
    drop(client.call(Request::Exec { id: id.clone(), args, timeout_ms: 20_000 }));
}

#[test]
fn what_is_killed_for_memory_is_told_by_a_successor_too() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let names = ["unseen", "frozen", "forgiven", "adopted", "upgraded", "other"];
    for name in names {
        client.create(&machine.id(name), machine.spec(name, &["/guest", "sleep"], little));
        client.start(&machine.id(name));
    }
    assert_eq!(client.call(Request::Freeze { id: machine.id("frozen") }), Ok(Answer::Done));
    machine.process.kill().unwrap();
    machine.process.wait().unwrap();
    let procs = |name: &str| machine.cgroup_path(name, ("memory", "cgroup.procs"), "cgroup.procs");
    // Whoever enters a frozen cgroup is frozen, but for v1, where that is another cgroup.
    let unseen: &[&str] = if procs("frozen").starts_with("/sys/fs/cgroup/memory") {
        &["unseen", "frozen", "forgiven"]
    } else {
        &["unseen"]
    };
    // While nobody is there.
    for name in unseen {
        let mut eats = std::process::Command::new("sh");
        eats.args(["-c", "echo $$ > \"$0\" && exec \"$1\" eat:200"]);
        let status = eats.arg(procs(name)).arg(machine.path("layer/guest")).status().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }
    // One was made by a release that let it go on, as its record says.
    let record = machine.record("forgiven");
    let text = fs::read_to_string(&record).unwrap();
    let former = text.replacen(",\"endsWithKills\":true", "", 1);
    assert_ne!(former, text);
    fs::write(&record, former).unwrap();
    machine.restart();
    let mut client = machine.connect();
    let ends = |client: &mut Client, name: &str| {
        let id = machine.id(name);
        let exit = until("its end", || client.list().into_iter().find(|record| record.id == id)?.exit);
        assert!(exit.out_of_memory, "{name}: {exit:?}");
    };
    unseen.iter().filter(|name| **name != "forgiven").for_each(|name| ends(&mut client, name));
    eat_inside(&mut client, &machine.id("adopted"));
    ends(&mut client, "adopted");
    client.call(Request::Upgrade { binary: supervisor() }).unwrap();
    eat_inside(&mut client, &machine.id("upgraded"));
    ends(&mut client, "upgraded");
    for name in ["forgiven", "other"] {
        assert_eq!(client.phase(&machine.id(name)), Some(InstancePhase::Running), "{name}");
    }
    eat_inside(&mut client, &machine.id("forgiven"));
    ends(&mut client, "forgiven");
    for name in names {
        client.delete(&machine.id(name));
    }
    assert!(machine.cgroups().is_empty());
}

#[test]
fn a_fork_bomb_meets_its_bound() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let spec = machine.spec("bomb", &["/guest", "fork:500"], |config| {
        config["linux"]["resources"]["pids"] = json!({ "limit": 20 })
    });
    let (_, lines) = machine.run_spec(&mut client, "bomb", spec);
    assert_eq!(lines, ["threads 19"]);
}

#[test]
fn processor_time_is_bounded() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("slow");
    let spec = machine.spec("slow", &["/guest", "spin"], |config| {
        config["linux"]["resources"]["cpu"] = json!({ "shares": 102, "quota": 10_000, "period": 100_000 });
    });
    client.create(&id, spec);
    client.start(&id);
    let throttled = |text: &str| {
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?;
        count.trim().parse::<u64>().ok().filter(|count| *count > 1)
    };
    until("it to be throttled", || {
        throttled(&machine.cgroup_file("slow", ("cpu", "cpu.stat"), "cpu.stat")?)
    });
    client.delete(&id);
}

/// The JVM, Go, Node.js and the like size themselves by what they read there.
#[test]
fn a_program_sees_its_own_limits_and_nobody_elses_and_cannot_change_them() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let limit = 48 << 20;
    let bytes = limit.to_string();
    let is_v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
    let (memory, cpu, pids, processes) = match is_v1 {
        true => {
            ("memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us", "pids/pids.max", "memory/cgroup.procs")
        }
        false => ("memory.max", "cpu.max", "pids.max", "cgroup.procs"),
    };
    let cpu_max = if is_v1 { "25000" } else { "25000 100000" };
    let seen = [(memory, bytes.as_str()), (cpu, cpu_max), (pids, "77"), (processes, "1")];
    let mut acts: Vec<String> = seen.iter().map(|(file, _)| format!("cat:/sys/fs/cgroup/{file}")).collect();
    acts.extend(seen.iter().map(|(file, _)| format!("write:/sys/fs/cgroup/{file}")));
    acts.extend(
        ["ls:/sys/fs/cgroup", "cat:/proc/self/mountinfo", "cat:/proc/self/cgroup", "sleep"].map(Into::into),
    );
    let acts: Vec<&str> = std::iter::once("/guest").chain(acts.iter().map(String::as_str)).collect();
    // Root inside is nobody outside, and root.
    for (name, user_namespace) in [("mapped", true), ("root", false)] {
        let id = machine.id(name);
        let mut spec = machine.spec(name, &acts, |config| {
            let resources = &mut config["linux"]["resources"];
            resources["memory"] = json!({ "limit": limit, "swap": limit });
            resources["cpu"] = json!({ "shares": 102, "quota": 25_000, "period": 100_000 });
            resources["pids"] = json!({ "limit": 77 });
        });
        spec.user_namespace = user_namespace;
        client.create(&id, spec);
        client.start(&id);
        let lines = until("what it sees", || {
            Some(machine.printed(name, "stdout")).filter(|lines| lines.len() == 2 * seen.len() + 3)
        });
        for (index, (file, value)) in seen.iter().enumerate() {
            assert_eq!(lines[index], format!("/sys/fs/cgroup/{file}={value}"), "{name}");
            let written = lines[seen.len() + index].strip_prefix(&format!("write /sys/fs/cgroup/{file}: "));
            // A mapped root is not the owner, and may hear of that first.
            let refused = [libc::EROFS, libc::EACCES].map(|error| format!("error {error}"));
            let refused = if user_namespace { &refused[..] } else { &refused[..1] };
            assert!(refused.iter().any(|refused| written == Some(refused)), "{name}: {file}: {written:?}");
        }
        let listed = lines[2 * seen.len()].strip_prefix("/sys/fs/cgroup=").unwrap();
        let unlisted = ["tombolo", "devices", "freezer", "unified", "systemd", "system.slice"];
        assert!(!listed.split(',').any(|name| unlisted.contains(&name)), "{listed}");
        assert_mounts_are_closed(&lines[2 * seen.len() + 1]);
        // Programs look for their limits where these two say.
        let paths = lines[2 * seen.len() + 2].strip_prefix("/proc/self/cgroup=").unwrap();
        assert!(paths.split('|').all(|line| line.ends_with(":/")), "{paths}");

        // A command inside sees the same, and nothing that looks on keeps the cgroup from going.
        let args = vec!["/guest".to_owned(), format!("cat:/sys/fs/cgroup/{memory}")];
        let Ok(Answer::Executed { output, .. }) =
            client.call(Request::Exec { id: id.clone(), args, timeout_ms: 10_000 })
        else {
            panic!("{name}: no command inside")
        };
        assert_eq!(output.trim_end(), format!("/sys/fs/cgroup/{memory}={bytes}"));
        client.delete(&id);
        assert_eq!(machine.cgroup_file(name, ("memory", "memory.limit_in_bytes"), "memory.max"), None);
    }
}

/// `mountinfo` is as the guest prints it.
fn assert_mounts_are_closed(mountinfo: &str) {
    let mounts: Vec<Vec<&str>> = mountinfo.split('|').map(|line| line.split(' ').collect()).collect();
    let mut cgroups = 0;
    for mount in mounts.iter().filter(|mount| mount[4].starts_with("/sys/fs/cgroup")) {
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(mount[5].split(',').any(|has| has == option), "{mount:?}");
        }
        if mount.iter().any(|field| field.starts_with("cgroup")) {
            assert_eq!(mount[3], "/", "of its cgroup namespace: {mount:?}");
            cgroups += 1;
        }
    }
    assert!(cgroups > 0, "{mountinfo}");
}

/// A busy program outside gets no more of the processors than one instance does that has them to itself.
#[test]
fn all_instances_together_weigh_as_much_as_the_processors() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("waits");
    client.create(&id, machine.guest("waits", &["/guest", "spin"]));
    let processors = std::thread::available_parallelism().unwrap().get();
    let weight = |path: &Path| {
        let read = |name: &str| fs::read_to_string(path.join(name)).ok();
        let v1 = read("cpu.shares").map(|shares| (shares.trim() == (1024 * processors).to_string(), shares));
        v1.or_else(|| {
            read("cpu.weight").map(|weight| (weight.trim() == (100 * processors).to_string(), weight))
        })
    };
    let weights: Vec<_> = machine.cgroups().iter().filter_map(|path| weight(path)).collect();
    assert!(!weights.is_empty() && weights.iter().all(|(right, _)| *right), "{weights:?}");
    client.delete(&id);
}

#[test]
fn the_writable_layer_is_bounded_and_the_image_untouched() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let acts =
        ["/guest", "cat:/etc/marker", "write:/etc/marker", "cat:/etc/marker", "write:/new", "fill:/big"];
    let mut spec = machine.spec("writes", &acts, |_| {});
    spec.upper_bytes = 1 << 20;
    let (exit, lines) = machine.run_spec(&mut client, "writes", spec);
    assert_eq!(exit.code, Some(0), "{:?}", machine.printed("writes", "stderr"));
    assert_eq!(
        lines[..4],
        ["/etc/marker=of the image", "write /etc/marker: ok", "/etc/marker=x", "write /new: ok"]
    );
    let (written, error) = lines[4].strip_prefix("filled ").unwrap().split_once(": ").unwrap();
    let written: u64 = written.parse().unwrap();
    assert!((900_000..=1 << 20).contains(&written), "{written}");
    assert_eq!(error, format!("error {}", libc::ENOSPC));
    let mut names: Vec<String> = fs::read_dir(machine.path("layer"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["etc", "guest", "hello"]);
    assert_eq!(fs::read_to_string(machine.path("layer/etc/marker")).unwrap(), "of the image\n");
}

#[test]
fn without_a_writable_layer_the_root_is_read_only() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut spec = machine
        .guest("read", &["write:/x", "write:/etc/marker", "write:/tmp/x", "write:/var/log/x", "ls:/etc"]);
    spec.upper_bytes = 0;
    let (_, lines) = machine.run_spec(&mut client, "read", spec);
    let erofs = libc::EROFS;
    let want = [format!("write /x: error {erofs}"), format!("write /etc/marker: error {erofs}")];
    assert_eq!(lines[..2], want);
    assert_eq!(lines[2..], ["write /tmp/x: ok", "write /var/log/x: ok", "/etc=hosts,marker,resolv.conf"]);
}

#[test]
fn a_working_directory_that_the_image_lacks_is_made_within_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let outside = machine.path("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, machine.path("layer/out")).unwrap();
    for (name, cwd, upper_bytes) in [("new", "/srv/app/x", 1 << 20), ("closed", "/srv/app/x", 0)] {
        let acts = ["/guest", "link:/proc/self/cwd", "owner:/srv/app/x", "owner:/srv"];
        let mut spec = machine.spec(name, &acts, |config| config["process"]["cwd"] = cwd.into());
        spec.upper_bytes = upper_bytes;
        let (_, lines) = machine.run_spec(&mut client, name, spec);
        assert_eq!(lines, ["/proc/self/cwd=/srv/app/x", "owner /srv/app/x: 0:0", "owner /srv: 0:0"]);
    }
    let spec =
        machine.spec("link", &["/guest", "print:x"], |config| config["process"]["cwd"] = "/out/x".into());
    let id = machine.id("link");
    let made = client.call(Request::Create { id, spec: Box::new(spec) });
    assert!(made.is_err(), "{made:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!machine.path("layer/srv").exists());
}

#[test]
fn layers_cover_one_another_topmost_first() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let top = machine.path("top");
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("etc/marker"), "of the top\n").unwrap();
    // As many as overlayfs takes, and with paths that mount(2) could not take.
    let mut layers = vec![top];
    for number in 0..498 {
        let long = machine.path(&format!("{}:{number}, x", "long".repeat(20)));
        fs::create_dir_all(&long).unwrap();
        fs::write(long.join(format!("file-{number}")), "").unwrap();
        layers.push(long);
    }
    layers.push(machine.path("layer"));
    let mut spec = machine.guest("layers", &["cat:/etc/marker", "cat:/file-0", "cat:/file-497"]);
    spec.layers = layers;
    let mut more = spec.clone();
    let (_, lines) = machine.run_spec(&mut client, "layers", spec);
    assert_eq!(lines, ["/etc/marker=of the top", "/file-0=", "/file-497="]);
    client.delete(&machine.id("layers"));
    more.layers.push(machine.path("layer"));
    let refused = client.call(Request::Create { id: machine.id("layers"), spec: Box::new(more) });
    assert!(
        matches!(&refused, Err(Refusal::Runtime(reason)) if reason.contains("501 layers")),
        "{refused:?}"
    );
}

/// What an accelerator's driver moves into an instance's memory is beside its limit, and a supervisor that follows knows of it.
#[test]
fn an_instance_has_more_memory_while_what_it_has_on_accelerators_is_in_it() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("moves");
    let limit: u64 = 32 << 20;
    let spec = machine.spec("moves", &["/guest", "print:waiting", "sleep"], |config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit })
    });
    client.create(&id, spec);
    let begin =
        Request::BeginMove { id: id.clone(), moved_bytes: 64 << 20, memory_bytes: Some(limit + (64 << 20)) };
    let (suspend, thaw) = (Request::Suspend { id: id.clone() }, Request::Thaw { id: id.clone() });
    let end = |memory_bytes| Request::EndMove { id: id.clone(), memory_bytes: Some(memory_bytes) };
    let wrong = |phase| Err(Refusal::WrongPhase { id: id.clone(), phase });
    assert_eq!(client.call(begin.clone()), wrong(InstancePhase::Created));
    client.start(&id);
    until("it to run", || (machine.printed("moves", "stdout") == ["waiting"]).then_some(()));
    let has = |machine: &Machine| -> u64 {
        let file = machine.cgroup_file("moves", ("memory", "memory.limit_in_bytes"), "memory.max").unwrap();
        file.trim().parse().unwrap()
    };
    assert_eq!(client.call(suspend.clone()), wrong(InstancePhase::Running), "nothing was moved");
    for round in 0..2 {
        assert_eq!(client.call(begin.clone()), Ok(Answer::Done));
        assert_eq!((client.phase(&id), has(&machine)), (Some(InstancePhase::Moving), limit + (64 << 20)));
        assert_eq!(client.call(Request::Freeze { id: id.clone() }), wrong(InstancePhase::Moving));
        if round == 1 {
            // Also in the middle of a move.
            client = successor(&mut machine);
            assert_eq!(client.phase(&id), Some(InstancePhase::Moving));
        }
        assert_eq!(client.call(suspend.clone()), Ok(Answer::Done));
        assert_eq!(client.call(suspend.clone()), Ok(Answer::Done), "again");
        client = successor(&mut machine);
        let [record] = &client.list()[..] else { panic!("one is held") };
        assert_eq!((record.phase, record.moved_bytes), (InstancePhase::Suspended, 64 << 20));
        assert_eq!(client.call(end(limit)), wrong(InstancePhase::Suspended));
        assert_eq!(client.call(thaw.clone()), Ok(Answer::Done));
        assert_eq!(client.phase(&id), Some(InstancePhase::Moving));
        assert_eq!(client.call(end(limit)), Ok(Answer::Done));
        let [record] = &client.list()[..] else { panic!("one is held") };
        assert_eq!((record.phase, record.moved_bytes, has(&machine)), (InstancePhase::Running, 0, limit));
    }
    // It runs, and may be stopped as any other; a suspended one that is killed dies.
    assert_eq!(client.call(begin), Ok(Answer::Done));
    assert_eq!(client.call(suspend), Ok(Answer::Done));
    client.signal(&id, libc::SIGKILL);
    client.exit(&id);
    client.delete(&id);
    assert!(machine.cgroups().is_empty());
}

/// Another supervisor, in place of one that was killed.
fn successor(machine: &mut Machine) -> Client {
    machine.process.kill().unwrap();
    machine.process.wait().unwrap();
    machine.restart();
    machine.connect()
}

#[test]
fn a_limit_that_is_exceeded_is_not_set_and_kills_nobody() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("holds");
    let spec = machine.spec("holds", &["/guest", "hold:48", "print:waiting", "sleep"], |config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 96 << 20, "swap": 96 << 20 })
    });
    client.create(&id, spec);
    client.start(&id);
    until("it to have it", || {
        machine.printed("holds", "stdout").last().filter(|line| *line == "waiting").map(drop)
    });
    let begin = Request::BeginMove { id: id.clone(), moved_bytes: 1, memory_bytes: None };
    assert_eq!(client.call(begin), Ok(Answer::Done));
    let end = |memory_bytes| Request::EndMove { id: id.clone(), memory_bytes: Some(memory_bytes) };
    let refused = client.call(end(16 << 20));
    assert!(
        matches!(&refused, Err(Refusal::Runtime(why)) if why.contains("limit its memory")),
        "{refused:?}"
    );
    assert_eq!(client.phase(&id), Some(InstancePhase::Running), "that is all that is left to do");
    assert_eq!(client.call(end(80 << 20)), Ok(Answer::Done));
    client.signal(&id, libc::SIGKILL);
    client.exit(&id);
    client.delete(&id);
}
