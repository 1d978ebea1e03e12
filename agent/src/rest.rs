//! When the agent has come to rest after a burst of work: its start, or a new desired state and the instances it brought.
//!
//! Takes: the accepted desired state, the report (what runs). It must not know what is done at rest.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tombolo_api::report::Report;

use crate::accepted::Accepted;

/// Without a change of the desired state or of what runs for this long the work is over. Longer than any one step of it: a
/// start, a probe, an image's layer. A scale to zero after the usual idle time is work of its own, and not waited for.
const QUIET: Duration = Duration::from_secs(3);

/// Tells when a burst of work is over.
pub struct Rest {
    accepted: watch::Receiver<Option<Arc<Accepted>>>,
    report: watch::Receiver<Report>,
    /// Something came that makes work.
    awake: bool,
}

impl Rest {
    /// At first the agent is at work: it starts.
    pub(crate) fn new(
        accepted: watch::Receiver<Option<Arc<Accepted>>>,
        report: watch::Receiver<Report>,
    ) -> Self {
        Self { accepted, report, awake: true }
    }

    /// Resolves once the work begun by the start, or by a desired state that was accepted since the last call, is over. Never
    /// while instances come and go without a pause. `None`: the agent has ended.
    pub async fn reached(&mut self) -> Option<()> {
        if !self.awake {
            self.accepted.changed().await.ok()?;
        }
        self.awake = true;
        loop {
            self.accepted.mark_unchanged();
            self.report.mark_unchanged();
            tokio::select! {
                changed = self.accepted.changed() => changed.ok()?,
                changed = self.report.changed() => changed.ok()?,
                () = tokio::time::sleep(QUIET) => break,
            }
        }
        self.awake = false;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rest_comes_once_after_each_burst() {
        let (accepted, report) = (watch::Sender::default(), watch::Sender::new(Report::default()));
        let mut rest = Rest::new(accepted.subscribe(), report.subscribe());
        let long = QUIET * 10;
        assert_eq!(timeout(long, rest.reached()).await, Ok(Some(())), "after the start");
        report.send_modify(|_| ());
        assert!(timeout(long, rest.reached()).await.is_err(), "scaling alone is no burst");

        accepted.send_replace(None);
        let begun = Instant::now();
        let busy = async {
            for _ in 0..5 {
                sleep(QUIET / 2).await;
                report.send_modify(|_| ());
            }
        };
        let (reached, ()) = tokio::join!(rest.reached(), busy);
        assert_eq!(reached, Some(()));
        assert!(begun.elapsed() >= QUIET * 7 / 2, "{:?}", begun.elapsed());
        assert!(timeout(long, rest.reached()).await.is_err(), "once for each burst");
        drop((accepted, report));
        assert_eq!(rest.reached().await, None);
    }
}
