//! What a program inside sees and may do.

use std::collections::BTreeMap;
use std::fs;

use crate::machine::{Machine, is_root};

/// `NAME=VALUE` and `NAME: VALUE` lines.
fn facts(lines: &[String]) -> BTreeMap<&str, &str> {
    lines.iter().filter_map(|line| line.split_once('=').or_else(|| line.rsplit_once(": "))).collect()
}

/// A field of `/proc/PID/status` as the guest prints it.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.split('|').find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim_start_matches(':').trim()
}

#[test]
fn namespaces_are_its_own() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let kinds = ["mnt", "pid", "ipc", "uts", "net", "cgroup", "user"];
    let paths = kinds.map(|kind| format!("/proc/self/ns/{kind}"));
    let mut acts: Vec<String> = paths.iter().map(|path| format!("link:{path}")).collect();
    acts.extend(
        [
            "cat:/proc/self/uid_map",
            "cat:/proc/self/gid_map",
            "self",
            "stdin",
            "cat:/proc/sys/kernel/hostname",
        ]
        .map(Into::into),
    );
    acts.extend(
        [
            "owner:/etc/marker",
            "owner:/",
            "owner:/etc/resolv.conf",
            "cat:/etc/resolv.conf",
            "link:/proc/self",
            "ls:/proc/self/fd",
        ]
        .map(Into::into),
    );
    let acts: Vec<&str> = acts.iter().map(String::as_str).collect();
    let (exit, lines) = machine.run(&mut client, "own", &acts);
    assert_eq!(exit.code, Some(0), "{:?}", machine.printed("own", "stderr"));
    let facts = facts(&lines);
    for path in &paths {
        let ours = fs::read_link(path).unwrap().display().to_string();
        assert!(facts[path.as_str()].contains(":["), "{lines:?}");
        assert_ne!(facts[path.as_str()], ours, "{path}");
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let fields: Vec<&str> = facts[map].split_whitespace().collect();
        assert_eq!((fields[0], fields[2]), ("0", "65536"), "{fields:?}");
        assert!(fields[1].parse::<u32>().unwrap() >= 1_000_000, "{fields:?}");
    }
    assert_eq!(facts["loopback"], "ok");
    assert!(lines.contains(&"stdin has 0 bytes".to_owned()), "{lines:?}");
    assert_eq!(facts["/proc/sys/kernel/hostname"], machine.id("own").0);
    for path in ["owner /etc/marker", "owner /", "owner /etc/resolv.conf"] {
        assert_eq!(facts[path], "0:0", "{path}: layers and host files keep their owner inside");
    }
    assert_eq!(facts["/etc/resolv.conf"], "# resolv.conf");
    assert_eq!(facts["/proc/self/fd"], "0,1,2,3", "three and the one that reads the directory");
    assert_eq!(facts["/proc/self"], "1", "the program is the first process of its namespace");
}

#[test]
fn instances_have_different_users_on_the_host() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let owners = ["a", "b"].map(|name| {
        let pid = client.create(&machine.id(name), machine.guest(name, &["sleep"]));
        client.start(&machine.id(name));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        field(&status.replace('\n', "|"), "Uid").split_whitespace().next().unwrap().to_owned()
    });
    assert_ne!(owners[0], owners[1]);
    let mut spec = machine.guest("c", &["cat:/proc/self/uid_map"]);
    spec.user_namespace = false;
    let (_, lines) = machine.run_spec(&mut client, "c", spec);
    assert!(lines[0].split_whitespace().nth(1) == Some("0"), "asked for none: {lines:?}");
}

#[test]
fn the_default_confinement_is_in_force() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let acts = [
        "cat:/proc/self/status",
        "try",
        "write:/proc/sys/kernel/hostname",
        "cat:/proc/keys",
        "cat:/proc/timer_list",
    ];
    let more = [
        "ls:/proc/acpi",
        "ls:/sys/firmware",
        "write:/sys/kernel/x",
        "write:/proc/sysrq-trigger",
        "cat:/proc/self/oom_score_adj",
    ];
    let (exit, lines) = machine.run(&mut client, "bound", &[&acts[..], &more[..]].concat());
    assert_eq!(exit.code, Some(0), "{:?}", machine.printed("bound", "stderr"));
    let status = lines[0].strip_prefix("/proc/self/status=").unwrap();
    assert_eq!(field(status, "Seccomp:"), "2");
    assert_eq!(field(status, "NoNewPrivs"), "1");
    for (set, bits) in [("CapInh", 0), ("CapAmb", 0), ("CapPrm", 0x5fb), ("CapEff", 0x5fb), ("CapBnd", 0x5fb)]
    {
        let value = u64::from_str_radix(field(status, set), 16).unwrap();
        // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service.
        assert_eq!(value, bits, "{set} is {value:x}");
    }
    assert_eq!(field(status, "SigBlk"), "0000000000000000");
    let ignored = u64::from_str_radix(field(status, "SigIgn"), 16).unwrap();
    // Bits 31 and 32 are the C library's own.
    assert_eq!(ignored & !(3 << 31), 1 << (libc::SIGPIPE - 1), "only what Rust's own start-up ignores");

    let facts = facts(&lines);
    for name in [
        "unshare",
        "setns",
        "keyctl",
        "bpf",
        "userfaultfd",
        "io_uring_setup",
        "clone-newuser",
        "vsock",
        "reboot",
        "swapon",
        "open_by_handle_at",
        "perf_event_open",
        "init_module",
        "mount",
        "mknod",
    ] {
        if let Some(outcome) = facts.get(format!("try {name}").as_str()) {
            assert_eq!(*outcome, libc::EPERM.to_string(), "{name}");
        }
    }
    assert_eq!(facts["try mount"], libc::EPERM.to_string());
    assert_eq!(facts["try clone3"], libc::ENOSYS.to_string());
    assert_eq!(facts["try newer"], libc::ENOSYS.to_string());
    assert_eq!(facts["try getpid"], "0");

    for path in ["/proc/keys", "/proc/timer_list"] {
        assert!(facts[path].is_empty() || facts[path] == "error 2", "{path}={}", facts[path]);
    }
    for path in ["/proc/acpi", "/sys/firmware"] {
        assert!(facts[path].is_empty() || facts[path] == "error 2", "{path}={}", facts[path]);
    }
    for path in ["write /proc/sys/kernel/hostname", "write /sys/kernel/x", "write /proc/sysrq-trigger"] {
        assert!(facts[path].starts_with("error"), "{path}: {}", facts[path]);
    }
    assert_eq!(facts["/proc/self/oom_score_adj"], "500");
}

#[test]
fn devices_are_the_usual_ones_only() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let usual = ["null", "zero", "full", "random", "urandom"].map(|name| format!("open:/dev/{name}"));
    let mut acts: Vec<&str> = usual.iter().map(String::as_str).collect();
    acts.extend(["write:/dev/null", "ls:/dev", "write:/dev/full"]);
    let (exit, lines) = machine.run(&mut client, "usual", &acts);
    assert_eq!(exit.code, Some(0), "{:?}", machine.printed("usual", "stderr"));
    let facts = facts(&lines);
    for name in &usual {
        assert_eq!(facts[format!("open {}", &name[5..]).as_str()], "ok", "{name}");
    }
    assert_eq!(facts["write /dev/null"], "ok");
    assert_eq!(facts["write /dev/full"], format!("error {}", libc::ENOSPC));
    let listed = facts["/dev"];
    for absent in ["kmsg", "mem", "vda", "sda", "net"] {
        assert!(!listed.split(',').any(|name| name == absent), "{listed}");
    }

    // One of the host's devices, bound to a place where nothing but the cgroup's rules decides.
    let mut outcome = |name: &str, rule: Option<serde_json::Value>| {
        let mut spec = machine.spec(name, &["/guest", "write:/dev/x/kmsg"], |config| {
            let bind = serde_json::json!({ "destination": "/dev/x/kmsg", "type": "bind", "source": "/dev/kmsg", "options": ["bind"] });
            config["mounts"].as_array_mut().unwrap().push(bind);
            config["linux"]["resources"]["devices"].as_array_mut().unwrap().extend(rule);
        });
        spec.user_namespace = false;
        machine.run_spec(&mut client, name, spec).1
    };
    let rule = |access: &str| {
        Some(serde_json::json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": access }))
    };
    let refused = format!("write /dev/x/kmsg: error {}", libc::EPERM);
    assert_eq!(outcome("none", None), [refused.as_str()]);
    assert_eq!(outcome("read", rule("r")), [refused.as_str()]);
    assert_eq!(outcome("write", rule("w")), ["write /dev/x/kmsg: ok"]);
}

#[test]
fn another_user_keeps_its_standard_output_and_no_capabilities() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let acts = ["/guest", "cat:/proc/self/status", "write:/dev/stdout", "write:/etc/marker", "write:/tmp/x"];
    let spec = machine.spec("user", &acts, |config| {
        config["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
        config["process"]["capabilities"] = serde_json::json!({});
    });
    let (_, lines) = machine.run_spec(&mut client, "user", spec);
    let status = lines[0].strip_prefix("/proc/self/status=").unwrap();
    assert!(field(status, "Uid").starts_with("1000"), "{status}");
    assert_eq!((field(status, "CapEff"), field(status, "CapBnd")), ("0000000000000000", "0000000000000000"));
    let text = lines[1..].join("|");
    assert!(text.contains("xwrite /dev/stdout: ok"), "{text}");
    assert!(text.contains(&format!("write /etc/marker: error {}", libc::EACCES)), "{text}");
    assert!(text.contains("write /tmp/x: ok"), "{text}");
}
