//! Ctrl-C and its relatives: the first one asks for an orderly stop, the second one ends at once.

use std::io::{self, Write as _};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// What a shell reports of a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// The signals that came.
pub(super) struct Signals(watch::Receiver<Option<&'static str>>);

impl Signals {
    /// Takes the signals over for the rest of the process's life.
    pub(super) fn listen() -> io::Result<Self> {
        let mut kinds = [
            ("Ctrl-C", signal(SignalKind::interrupt())?),
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("the terminal is gone", signal(SignalKind::hangup())?),
        ];
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(async move {
            sender.send_replace(Some(next(&mut kinds).await));
            loop {
                // A terminal that goes away after Ctrl-C is no second wish.
                if next(&mut kinds).await != kinds[2].0 {
                    break;
                }
            }
            let _ = writeln!(
                io::stderr(),
                "stopped at once: the next `tombolo up` with these directories cleans up"
            );
            std::process::exit(INTERRUPTED);
        });
        Ok(Self(receiver))
    }

    /// Waits for the first signal and tells which it was.
    pub(super) async fn received(&mut self) -> &'static str {
        match self.0.wait_for(Option::is_some).await {
            Ok(name) => name.expect("waited for"),
            // The task that listens ends only with the process.
            Err(_) => std::future::pending().await,
        }
    }
}

async fn next(kinds: &mut [(&'static str, Signal); 3]) -> &'static str {
    let [(interrupt_name, interrupt), (terminate_name, terminate), (hangup_name, hangup)] = kinds;
    tokio::select! {
        _ = interrupt.recv() => interrupt_name,
        _ = terminate.recv() => terminate_name,
        _ = hangup.recv() => hangup_name,
    }
}
