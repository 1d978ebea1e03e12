//! What programs print, on its way into their logs.

use std::fs;

use crate::machine::{Machine, is_root};

#[test]
fn both_streams_come_as_whole_lines() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let (_, out) =
        machine.run(&mut client, "prints", &["print:one", "error:two", "print:", "partial:no end"]);
    assert_eq!(out, ["one", "", "no end"]);
    assert_eq!(machine.printed("prints", "stderr"), ["two in 2 pieces"]);
    let log = fs::read_to_string(machine.log("prints")).unwrap();
    let tags: Vec<&str> = log.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags.iter().filter(|tag| **tag == "P").count(), 1, "{log}");
}

#[test]
fn a_flood_is_rotated_and_its_end_is_kept() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let mut spec = machine.guest("flood", &["lines:50000", "print:the end"]);
    spec.log.max_bytes = 64 << 10;
    spec.log.max_files = 3;
    let (exit, lines) = machine.run_spec(&mut client, "flood", spec);
    assert_eq!(exit.code, Some(0));
    assert_eq!(lines.last().unwrap(), "the end");
    let files: Vec<u64> = fs::read_dir(machine.path("logs"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|length| *length <= 64 << 10), "{files:?}");
}

#[test]
fn a_log_that_cannot_be_written_blocks_nobody() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let id = machine.id("full");
    fs::create_dir_all(machine.path("logs")).unwrap();
    std::os::unix::fs::symlink("/dev/full", machine.log("full")).unwrap();
    client.create(&id, machine.guest("full", &["lines:50000", "exit:3"]));
    client.start(&id);
    assert_eq!(client.exit(&id).code, Some(3));
    // The supervisor is as well as before.
    let (_, lines) = machine.run(&mut client, "next", &["print:fine"]);
    assert_eq!(lines, ["fine"]);
}

#[test]
fn what_cannot_be_executed_is_explained_in_the_log() {
    if !is_root() {
        return;
    }
    let machine = Machine::start();
    let mut client = machine.connect();
    let program = machine.path("layer/garbage");
    fs::write(&program, "\u{7f}ELF but not really").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (exit, _) = machine.run_spec(&mut client, "garbage", machine.spec("garbage", &["/garbage"], |_| {}));
    assert_eq!(exit.code, Some(255));
    let errors = machine.printed("garbage", "stderr").join(" ");
    assert!(errors.contains("cannot be executed") && errors.contains("/garbage"), "{errors}");
}
