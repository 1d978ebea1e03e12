//! Programs of other people that build things: found on the PATH, run with their messages passed through.
//!
//! What they write to standard output goes to standard error too: ours holds nothing but the result.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::interrupt;

/// A program by its name, as a shell would find it.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| is_program(program))
}

pub(super) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end; `what` says in an error what it was for.
pub(super) fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = io::stderr().as_fd().try_clone_to_owned().context("standard error cannot be written")?;
    let done = interrupt::to_end(command.stdin(Stdio::null()).stdout(output));
    let status = done.with_context(|| format!("{name} cannot be run"))?.status;
    if !status.success() {
        bail!("{what} failed ({name}: {status}): its messages are above");
    }
    Ok(())
}

/// What a command says on standard output.
pub(super) fn answer(command: &mut Command, what: &str) -> anyhow::Result<Vec<u8>> {
    let name = Path::new(command.get_program()).display().to_string();
    let asked = interrupt::to_end(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    let output = asked.with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        bail!("{what} failed ({name}: {}): its messages are above", output.status);
    }
    Ok(output.stdout)
}
