//! A build that somebody breaks off: the programs it runs end, and nothing but finished layers is left of it.
//!
//! Must not know what is built.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// Attempts to remove a directory into which a thread may still write.
const ATTEMPTS: usize = 5;

/// What has to end with this process.
#[derive(Debug, Default)]
struct Underway {
    is_over: bool,
    programs: BTreeSet<i32>,
    directories: BTreeSet<PathBuf>,
}

static UNDERWAY: Mutex<Option<Underway>> = Mutex::new(None);

/// Waits for a signal that ends a program; its number.
pub(crate) async fn signalled() -> u8 {
    let kinds = [(SignalKind::interrupt(), 2), (SignalKind::terminate(), 15)];
    let waits = kinds.map(|(kind, number)| {
        Box::pin(async move {
            match signal(kind) {
                Ok(mut signal) => drop(signal.recv().await),
                // It ends the process as ever.
                Err(_) => std::future::pending::<()>().await,
            }
            number
        })
    });
    futures_util::future::select_all(waits).await.0
}

/// Ends the programs that run, and lets no other begin.
pub(crate) fn stop() {
    let mut underway = lock();
    let underway = underway.get_or_insert_default();
    underway.is_over = true;
    for program in &underway.programs {
        // It may have ended by itself, and by the terminal's own signal.
        let _ = kill(Pid::from_raw(*program), Signal::SIGTERM);
    }
}

/// Removes what is left of work that did not come to its end.
pub(crate) fn tidy_up() {
    let mut underway = lock();
    for directory in std::mem::take(&mut underway.get_or_insert_default().directories) {
        for _ in 0..ATTEMPTS {
            if !directory.exists() || std::fs::remove_dir_all(&directory).is_ok() {
                break;
            }
        }
    }
}

/// A directory that goes with this process, however it ends.
pub(super) fn goes_with_us(directory: &Path) {
    lock().get_or_insert_default().directories.insert(directory.to_owned());
}

/// Runs a command to its end, or until the build is broken off.
pub(super) fn to_end(command: &mut Command) -> io::Result<Output> {
    let child = {
        let mut underway = lock();
        let underway = underway.get_or_insert_default();
        if underway.is_over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let child = command.spawn()?;
        underway.programs.extend(i32::try_from(child.id()));
        child
    };
    let pid = i32::try_from(child.id());
    let output = child.wait_with_output();
    if let Ok(pid) = pid {
        lock().get_or_insert_default().programs.remove(&pid);
    }
    output
}

fn lock() -> MutexGuard<'static, Option<Underway>> {
    UNDERWAY.lock().unwrap_or_else(PoisonError::into_inner)
}
