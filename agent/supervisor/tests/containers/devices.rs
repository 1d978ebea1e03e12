//! Which devices a container opens, and what becomes of that while it runs. The devices are harmless, and no container has
//! them by default: the kernel's log (written to only) and the file that asks for quick wake-ups.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::{Value, json};
use tombolo_agent_core::supervision::{Answer, CreateSpec, InstancePhase, Refusal, Request};

use crate::machine::{Client, Machine, is_root, until};

const KMSG: (u32, u32) = (1, 11);

/// The minor number that this kernel gave the misc device.
fn wake_ups() -> (u32, u32) {
    let text = fs::read_to_string("/proc/misc").unwrap();
    let line = text.lines().find(|line| line.ends_with(" cpu_dma_latency"));
    (10, line.expect("every kernel has it").split_whitespace().next().unwrap().parse().unwrap())
}

fn node(path: &str, (major, minor): (u32, u32)) -> Value {
    json!({ "path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o600 })
}

fn rule((major, minor): (u32, u32), access: &str) -> Value {
    json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": access })
}

/// Makes the specification's devices these.
fn set(config: &mut Value, devices: &[(&str, (u32, u32))]) {
    let nodes: Vec<Value> = devices.iter().map(|(path, number)| node(path, *number)).collect();
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(devices.iter().map(|(_, number)| rule(*number, "rw")));
    config["linux"]["devices"] = nodes.into();
    config["linux"]["resources"]["devices"] = rules.into();
}

/// A container that waits, with these devices, in a user namespace of its own or not.
fn waiting(machine: &Machine, name: &str, devices: &[(&str, (u32, u32))], has_users: bool) -> CreateSpec {
    let mut spec = machine.spec(name, &["/guest", "sleep"], |config| set(config, devices));
    spec.user_namespace = has_users;
    spec
}

/// Asks for other devices by another specification.
fn refit(
    machine: &Machine,
    client: &mut Client,
    name: &str,
    devices: &[(&str, (u32, u32))],
) -> Result<Answer, Refusal> {
    let path: PathBuf = machine.path(&format!("{name}-other.json"));
    let mut config: Value =
        serde_json::from_slice(&fs::read(machine.path(&format!("{}.json", machine.id(name)))).unwrap())
            .unwrap();
    set(&mut config, devices);
    fs::write(&path, config.to_string()).unwrap();
    client.call(Request::Refit { id: machine.id(name), config: path })
}

/// What acts inside print, by `act path`.
fn inside(machine: &Machine, client: &mut Client, name: &str, acts: &[&str]) -> Vec<String> {
    let args = ["/guest"].iter().chain(acts).map(|text| (*text).to_owned()).collect();
    match client.call(Request::Exec { id: machine.id(name), args, timeout_ms: 30_000 }) {
        Ok(Answer::Executed { output, .. }) => output.lines().map(str::to_owned).collect(),
        other => panic!("{acts:?} in {name}: {other:?}"),
    }
}

fn error(number: i32) -> String {
    format!("error {number}")
}

#[test]
fn a_running_container_gets_other_devices_in_place_of_its_own() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let (first, second) = ("/dev/bus/usb/001/004", "/dev/bus/usb/002/001");
    for (name, has_users) in [("plain", false), ("users", true)] {
        let spec = waiting(&machine, name, &[(first, KMSG)], has_users);
        let pid = client.create(&machine.id(name), spec);
        client.start(&machine.id(name));
        // An act that writes would make a file where there is nothing.
        let writes =
            |client: &mut Client, path: &str| inside(&machine, client, name, &[&format!("write:{path}")]);
        let acts = ["ls:/dev/bus/usb/001", "open:/dev/bus/usb/002/001", "write:/dev/null"];
        assert_eq!(writes(&mut client, first), [format!("write {first}: ok")], "{name}");
        let seen = inside(&machine, &mut client, name, &acts);
        assert_eq!(seen[..2], ["/dev/bus/usb/001=004", &format!("open {second}: {}", error(libc::ENOENT))]);
        // Twice: the second finds everything as it is to be.
        for _ in 0..2 {
            assert_eq!(refit(&machine, &mut client, name, &[(second, wake_ups())]), Ok(Answer::Done));
            let seen = inside(&machine, &mut client, name, &acts);
            let expected =
                ["/dev/bus/usb/001=", &format!("open {second}: ok"), "write /dev/null: ok"].map(String::from);
            assert_eq!(seen, expected, "{name}");
        }
        // The same path, and another device there.
        assert_eq!(refit(&machine, &mut client, name, &[(second, KMSG)]), Ok(Answer::Done));
        assert_eq!(writes(&mut client, second), [format!("write {second}: ok")], "{name}");
        let record = client.list().into_iter().find(|record| record.id == machine.id(name)).unwrap();
        assert_eq!((record.pid, record.phase), (pid, InstancePhase::Running), "{name}");
    }
}

/// The nodes stay visible by another way, so that nothing but the cgroup's rules decides.
#[test]
fn what_was_lost_is_refused_even_where_its_node_is() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let host = machine.path("hardware");
    fs::create_dir(&host).unwrap();
    for (name, number) in [("kmsg", KMSG), ("wake-ups", wake_ups())] {
        let device = libc::makedev(number.0, number.1);
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::sys::stat::mknod(&host.join(name), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
    }
    let mut spec = machine.spec("a", &["/guest", "sleep"], |config| {
        set(config, &[("/dev/x", KMSG)]);
        let bind = json!({ "destination": "/hardware", "type": "bind", "source": host, "options": ["bind"] });
        config["mounts"].as_array_mut().unwrap().push(bind);
    });
    spec.user_namespace = false;
    client.create(&machine.id("a"), spec);
    client.start(&machine.id("a"));
    let acts = ["write:/hardware/kmsg", "open:/hardware/wake-ups"];
    let refused = |line: &str| format!("{line}: {}", error(libc::EPERM));
    let seen = inside(&machine, &mut client, "a", &acts);
    assert_eq!(seen, ["write /hardware/kmsg: ok".to_owned(), refused("open /hardware/wake-ups")]);
    assert_eq!(refit(&machine, &mut client, "a", &[("/dev/x", wake_ups())]), Ok(Answer::Done));
    let seen = inside(&machine, &mut client, "a", &acts);
    assert_eq!(seen, [refused("write /hardware/kmsg"), "open /hardware/wake-ups: ok".to_owned()]);
    assert_eq!(refit(&machine, &mut client, "a", &[]), Ok(Answer::Done));
    let seen = inside(&machine, &mut client, "a", &acts);
    assert_eq!(seen, [refused("write /hardware/kmsg"), refused("open /hardware/wake-ups")]);
}

/// With the power to make nodes, which no function has, one cannot make those that it was not given.
#[test]
fn a_node_that_a_container_makes_itself_is_refused() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut outcome = |name: &str, rules: &[Value]| {
        let mut spec = machine.spec(name, &["/guest", "node:/dev/own", "write:/dev/own"], |config| {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set].as_array_mut().unwrap().push("CAP_MKNOD".into());
            }
            config["linux"]["resources"]["devices"].as_array_mut().unwrap().extend(rules.to_vec());
        });
        spec.user_namespace = false;
        machine.run_spec(&mut client, name, spec).1
    };
    let refused = format!("node /dev/own: {}", error(libc::EPERM));
    assert_eq!(outcome("none", &[])[0], refused);
    assert_eq!(outcome("other", &[rule(wake_ups(), "rwm")])[0], refused);
    assert_eq!(outcome("given", &[rule(KMSG, "rwm")]), ["node /dev/own: ok", "write /dev/own: ok"]);
}

/// The device is the one of the specification, whatever the host has at that path.
#[test]
fn a_device_of_another_path_of_the_host_is_opened_in_a_user_namespace() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let devices = [("/dev/null0", KMSG), ("/dev/lens/eye", wake_ups())];
    let mut spec = machine.spec("a", &["/guest", "sleep"], |config| {
        set(config, &devices);
        config["linux"]["devices"][1]["gid"] = 44.into();
    });
    spec.user_namespace = true;
    client.create(&machine.id("a"), spec);
    client.start(&machine.id("a"));
    let acts = ["write:/dev/null0", "open:/dev/lens/eye", "owner:/dev/lens/eye", "link:/proc/self/ns/user"];
    let seen = inside(&machine, &mut client, "a", &acts);
    assert_eq!(seen[..3], ["write /dev/null0: ok", "open /dev/lens/eye: ok", "owner /dev/lens/eye: 0:44"]);
    let ours = fs::read_link("/proc/self/ns/user").unwrap().display().to_string();
    assert!(!seen[3].contains(&ours), "it has a user namespace of its own: {seen:?}");
}

#[test]
fn no_node_is_made_where_a_container_leads_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let host = machine.path("host");
    fs::create_dir(&host).unwrap();
    for (name, has_users) in [("plain", false), ("users", true)] {
        let mut spec = machine.spec(name, &["/guest", "sleep"], |config| {
            set(config, &[]);
            let bind =
                json!({ "destination": "/dev/bus", "type": "bind", "source": host, "options": ["bind"] });
            config["mounts"].as_array_mut().unwrap().push(bind);
        });
        spec.user_namespace = has_users;
        let pid = client.create(&machine.id(name), spec);
        client.start(&machine.id(name));
        let dev = PathBuf::from(format!("/proc/{pid}/root/dev"));
        symlink("/host", dev.join("link")).unwrap_or_else(|_| assert!(has_users));
        for path in ["/dev/bus/usb/1", "/dev/link/1", "/dev/../tmp/1", "/etc/1"] {
            // In a user namespace nobody but its own users makes the link.
            if has_users && path.starts_with("/dev/link") {
                continue;
            }
            let refused = refit(&machine, &mut client, name, &[(path, KMSG)]);
            assert!(matches!(&refused, Err(Refusal::Runtime(_))), "{name}: {path}: {refused:?}");
        }
        assert_eq!(fs::read_dir(&host).unwrap().count(), 0, "{name}");
        // What was refused leaves nothing that could not be undone.
        assert_eq!(refit(&machine, &mut client, name, &[("/dev/eye", KMSG)]), Ok(Answer::Done));
        assert_eq!(inside(&machine, &mut client, name, &["write:/dev/eye"]), ["write /dev/eye: ok"]);
    }
}

#[test]
fn devices_change_before_the_start_and_in_the_freezer_and_not_after_the_end() {
    if !is_root() {
        return;
    }
    let mut machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("a");
    client.create(&id, waiting(&machine, "a", &[("/dev/eye", wake_ups())], false));
    assert_eq!(refit(&machine, &mut client, "a", &[("/dev/eye", KMSG)]), Ok(Answer::Done));
    client.start(&id);
    assert_eq!(inside(&machine, &mut client, "a", &["write:/dev/eye"]), ["write /dev/eye: ok"]);
    assert_eq!(client.call(Request::Freeze { id: id.clone() }), Ok(Answer::Done));
    // Its successor knows what there is to take away.
    machine.process.kill().unwrap();
    machine.process.wait().unwrap();
    machine.restart();
    let mut client = machine.connect();
    assert_eq!(refit(&machine, &mut client, "a", &[("/dev/ear", wake_ups())]), Ok(Answer::Done));
    assert_eq!(client.call(Request::Thaw { id: id.clone() }), Ok(Answer::Done));
    let seen = inside(&machine, &mut client, "a", &["open:/dev/eye", "open:/dev/ear"]);
    assert_eq!(seen, [format!("open /dev/eye: {}", error(libc::ENOENT)), "open /dev/ear: ok".into()]);
    client.signal(&id, libc::SIGKILL);
    until("the end", || (client.phase(&id) == Some(InstancePhase::Ended)).then_some(()));
    let late = refit(&machine, &mut client, "a", &[]);
    assert_eq!(late, Err(Refusal::WrongPhase { id, phase: InstancePhase::Ended }));
}
