//! The runtime supervisor as a program of its own. `tombolo` carries the same as its hidden subcommand `runtime-supervisor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tombolo_supervisor::main(std::env::args_os().skip(1))
}
