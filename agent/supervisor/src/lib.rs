//! The runtime supervisor: the small process that holds a node's containers, so that agents can come and go.
//!
//! It speaks the protocol of `tombolo_agent_core::supervision` on a socket in its run directory, makes containers with
//! libcontainer in forked workers, is the parent of every container's init, writes what programs print into logs, and
//! remembers how they ended. It is one thread, knows no revisions and no network but the containers' loopback, and
//! decides nothing: what to run and for how long is the agent's business.
//!
//! Ending it ends its containers (SIGTERM, SIGINT and `Shutdown` are the same). A supervisor that is killed leaves them
//! running; the next one in the same run directory takes them over, though it cannot learn how they will exit.

mod bpf;
mod causes;
mod cgroup;
mod connection;
mod devices;
mod diagnostics;
mod executor;
mod handover;
mod instance;
mod limitations;
mod output;
mod record;
mod rootfs;
mod seccomp;
mod supervisor;
mod sys;
mod user_namespace;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::supervisor::Supervisor;

const USAGE: &str = "usage: tombolo-supervisor --run-dir DIR";

/// Runs a supervisor until it is told to end. `args`: what follows the program's (or the subcommand's) name.
///
/// Must be called in a process that has one thread, and takes it over.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let run_dir = match parse(args) {
        Ok(Some(run_dir)) => run_dir,
        Ok(None) => {
            println!("tombolo-supervisor {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(reason) => {
            eprintln!("tombolo-supervisor: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    diagnostics::start();
    let served = Supervisor::start(run_dir, handover::take()).map(Supervisor::serve);
    match served {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => fail(&error),
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("tombolo-supervisor: {}", causes::with_causes(error));
    ExitCode::FAILURE
}

/// The run directory; none: only the version is asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<PathBuf>, String> {
    let mut run_dir = None;
    while let Some(argument) = args.next() {
        match argument.to_str() {
            Some("--version") => return Ok(None),
            Some("--run-dir") => {
                run_dir = Some(PathBuf::from(args.next().ok_or("--run-dir needs a directory")?))
            }
            _ => return Err(format!("there is no option {}", argument.display())),
        }
    }
    run_dir.map(Some).ok_or_else(|| "--run-dir is missing".into())
}
