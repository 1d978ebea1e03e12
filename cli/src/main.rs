//! `tombolo`: the one command a person types. Reads the command line, hands over, and turns errors into exit codes.

mod accelerators;
mod apply;
mod args;
mod build;
mod bundle;
mod create;
mod delete;
mod deploy;
mod describe;
mod documents;
mod exit;
mod fields;
mod get;
mod hub;
mod kinds;
mod logs;
mod new;
mod output;
mod probe;
mod ready;
mod steps;
mod tls;
mod traffic;
mod up;
mod version;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Arguments, Command};
use crate::exit::Interrupted;
use crate::hub::Hub;

/// The runtime supervisor of `up`, started by its agent. For no person to type, so the command line does not list it.
const SUPERVISOR: &str = "runtime-supervisor";

/// For the programs of a build that is broken off: compilers and installers end at once.
const GRACE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    // Before anything else: the supervisor forks, and must never have had a thread or a runtime.
    let mut typed = std::env::args_os().skip(1).peekable();
    if typed.next_if(|first| first == SUPERVISOR).is_some() {
        return tombolo_supervisor::main(typed);
    }
    // Fails only if there is one already, which then is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::with(&error),
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Completion { shell } => return completion(*shell),
        // Refusals that need no runtime come first.
        Command::Up(args) => up::check(args)?,
        Command::New(args) => return new::run(args),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no asynchronous runtime can be made")?;
    let builds = matches!(arguments.command, Command::Build(_) | Command::Deploy(_));
    let done = runtime.block_on(async {
        tokio::select! {
            done = dispatch(arguments) => done,
            signal = build::signalled(), if builds => {
                build::stop();
                Err(Interrupted(signal).into())
            }
        }
    });
    if done.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
        // What was running notices, and removes its own.
        runtime.shutdown_timeout(GRACE);
        build::tidy_up();
    } else {
        // A name lookup that hangs in a thread of its own is nothing to wait for.
        runtime.shutdown_background();
    }
    done
}

async fn dispatch(arguments: &Arguments) -> anyhow::Result<()> {
    let hub = || Hub::trusting(arguments.hub_url(), &arguments.trust());
    match &arguments.command {
        Command::Up(args) => up::run(args).await,
        Command::New(args) => new::run(args),
        Command::Build(args) => build::run(&hub()?, args).await,
        Command::Deploy(args) => deploy::run(&hub()?, args).await,
        Command::Apply(args) => apply::run(&hub()?, args).await,
        Command::Create(args) => create::run(&hub()?, args).await,
        Command::Get(args) => get::run(&hub()?, args).await,
        Command::Describe(args) => describe::run(&hub()?, args).await,
        Command::Delete(args) => delete::run(&hub()?, args).await,
        Command::Traffic(args) => traffic::run(&hub()?, args).await,
        Command::Logs(args) => logs::run(&hub()?, args).await,
        Command::Bundle(args) => bundle::run(hub, args).await,
        Command::Version => version::run(arguments.hub.as_ref().map(|_| hub()).transpose()?).await,
        Command::Completion { shell } => completion(*shell),
    }
}

/// Prints a completion script. Made in memory first: clap panics when standard output is closed.
fn completion(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = io::Cursor::new(Vec::new());
    clap_complete::generate(shell, &mut Arguments::command(), "tombolo", &mut script);
    output::print(&String::from_utf8_lossy(script.get_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_without_the_hidden_command() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Fish, clap_complete::Shell::Zsh] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tombolo", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("deploy") && !script.contains(SUPERVISOR), "{shell}");
        }
    }
}
