//! The store against kill -9: a child process (this very test binary) writes until it is killed; what it was told is
//! durable must be there, and every batch as a whole.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tombolo_store::{Batch, Recovery, Store};

const DIR: &str = "TOMBOLO_STORE_TEST_DIR";
const ROUNDS: u32 = 40;
/// Keys of one batch; they always carry the same number.
const KEYS: u64 = 8;

/// Not a test by itself: the writer that `acked_commits_survive_kill_9` kills.
#[test]
fn child_writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, recovery) = Store::open(Path::new(&dir)).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    let mut n = read_number(&store, 0).unwrap_or(0);
    let mut stdout = std::io::stdout();
    loop {
        n += 1;
        let mut batch = Batch::new();
        for key in 0..KEYS {
            batch.put(format!("key/{key}"), value(n, key));
        }
        // Some that come and go, large ones among them, so that pages split, merge and move.
        batch.put(format!("log/{n:010}"), vec![n as u8; (n * 7919 % 40_000) as usize]);
        if n > 20 {
            batch.delete(format!("log/{:010}", n - 20));
        }
        store.commit(batch).unwrap();
        writeln!(stdout, "acked {n}").unwrap();
        stdout.flush().unwrap();
    }
}

#[test]
fn acked_commits_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let store_dir = dir.path().join("store");
    let mut acked = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_writer", "--exact", "--nocapture"])
            .env(DIR, &store_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let numbers = stdout.lines().map_while(Result::ok);
            numbers.filter_map(|line| line.split("acked ").nth(1)?.parse::<u64>().ok()).max()
        });
        std::thread::sleep(Duration::from_millis(u64::from(40 + round * 37 % 160)));
        child.kill().unwrap();
        child.wait().unwrap();
        acked = reader.join().unwrap().unwrap_or(acked).max(acked);

        let (store, recovery) = Store::open(&store_dir).unwrap();
        assert_eq!(recovery, Recovery::Clean, "round {round}");
        let numbers: Vec<_> = (0..KEYS).map(|key| read_number(&store, key)).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] == pair[1]),
            "round {round}: half a batch: {numbers:?}"
        );
        let n = numbers[0].unwrap_or(0);
        assert!(n >= acked, "round {round}: commit {acked} was acked, found {n}");
        let logs = store.scan("log/").unwrap();
        assert_eq!(logs.len() as u64, n.min(20), "round {round}");
        for (key, value) in logs {
            let n: u64 = key["log/".len()..].parse().unwrap();
            assert_eq!(value, vec![n as u8; (n * 7919 % 40_000) as usize]);
        }
        acked = n;
    }
    assert!(acked > u64::from(ROUNDS), "the writer hardly wrote: {acked}");
}

fn value(n: u64, key: u64) -> Vec<u8> {
    format!("{n} {}", "x".repeat(((n + key) * 131 % 4000) as usize)).into_bytes()
}

fn read_number(store: &Store, key: u64) -> Option<u64> {
    let bytes = store.get(&format!("key/{key}")).unwrap()?;
    let n = String::from_utf8(bytes.clone()).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert_eq!(bytes, value(n, key));
    Some(n)
}
