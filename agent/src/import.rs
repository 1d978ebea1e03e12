//! Bundles: desired state, objects and images that come as a file instead of over the link.
//!
//! ```text
//! `import FILE` ─▶ request ┐
//!                          ├─▶ one at a time ─▶ take: judge ─▶ images ─▶ sync ─▶ events, status, answer
//! medium plugged in ───────┘
//! ```
//!
//! Takes: files that appear. Gives: manifests to `sync`, content to the image store. One task, asleep while nothing appears. It
//! must not know the link: whatever comes first, the generation rule is `sync`'s.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tombolo_api::report::EventKind;
use tombolo_oci::ArchiveError;

use crate::accepted::Accepted;
use crate::enrol::causes;
use crate::outbox::Outbox;

mod command;
mod error;
mod images;
mod record;
mod request;
mod take;
mod watch_files;

pub use command::run as command;
pub(crate) use record::{Bundles, Pins};
pub(crate) use take::{Ground, RoomWanted};

use error::ImportError;
use images::Copying;
use request::Request;
use take::Outcome;
use watch_files::{Stamp, Watcher};

/// After something appeared, so that what comes with it is there too.
const SETTLE: Duration = Duration::from_millis(50);

/// How often progress is told.
const TELL: Duration = Duration::from_millis(500);

/// Before a file is looked at again that failed for a reason that may pass: a full disk, no key yet.
const RETRY: Duration = Duration::from_secs(60);

/// Where requests are placed, and bundles may be.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("import")
}

/// How far an import is, or what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Report {
    pub(crate) bundle: PathBuf,
    pub(crate) state: State,
    /// One CamelCase word if it was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// Of the layers that the node lacked.
    pub(crate) copied_bytes: u64,
    pub(crate) total_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    #[default]
    Importing,
    Imported,
    Refused,
}

/// The task.
pub(crate) struct Import {
    pub(crate) ground: Ground,
    pub(crate) bundles: Bundles,
    pub(crate) state_dir: PathBuf,
    /// Where media are mounted.
    pub(crate) media: Vec<PathBuf>,
    pub(crate) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(crate) outbox: Outbox,
    /// The last import, for whoever shows it.
    pub(crate) report: watch::Sender<Option<Report>>,
}

/// A file that was looked at and is not to be looked at again before it changes, or before a moment.
struct Seen {
    stamp: Stamp,
    again: Option<Instant>,
}

impl Import {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let own = directory(&self.state_dir);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&own);
        let watcher = match made.and_then(|()| Watcher::start(&own, &self.media)) {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::error!(%error, directory = %own.display(), "no bundle can be imported");
                return std::future::pending().await;
            }
        };
        request::forget_results(&own);
        let mut seen = BTreeMap::new();
        loop {
            let again = self.look(&watcher, &mut seen).await;
            let version = self.accepted.borrow_and_update().as_ref().map(|accepted| accepted.serving.version);
            if let Some(version) = version {
                self.bundles.in_force(version).await;
            }
            tokio::select! {
                () = watcher.changed() => tokio::time::sleep(SETTLE).await,
                Ok(()) = self.accepted.changed() => {}
                () = until(again) => {}
            }
        }
    }

    /// Imports what there is to import. Returns when the next one is due.
    async fn look(&mut self, watcher: &Watcher, seen: &mut BTreeMap<PathBuf, Seen>) -> Option<Instant> {
        let found = tokio::task::spawn_blocking(watcher.look()).await.unwrap_or_default();
        for request in found.requests {
            self.serve(&request).await;
        }
        seen.retain(|path, _| found.bundles.contains_key(path));
        for (path, stamp) in found.bundles {
            let now = Instant::now();
            let is_known = |seen: &Seen| seen.stamp == stamp && seen.again.is_none_or(|again| again > now);
            if seen.get(&path).is_some_and(is_known) {
                continue;
            }
            let again = self.consider(&path).await.then(|| Instant::now() + RETRY);
            seen.insert(path, Seen { stamp, again });
        }
        seen.values().filter_map(|seen| seen.again).min()
    }

    /// Does what somebody asked for, and tells how far it is meanwhile.
    async fn serve(&mut self, request: &Request) {
        let (copying, bundle) = (Copying::default(), request.bundle.clone());
        let report = self.report.clone();
        let telling = async {
            loop {
                tokio::time::sleep(TELL).await;
                if !request.is_wanted() {
                    copying.cancel();
                }
                let now = Report::under_way(&bundle, &copying);
                report.send_replace(Some(now.clone()));
                // Whoever waits sees the result at the latest.
                let _ = request.tell(&now);
            }
        };
        let outcome = tokio::select! {
            outcome = self.ground.import(&bundle, &mut self.bundles, false, &copying) => outcome,
            () = telling => unreachable!("it runs for ever"),
        };
        let Some(outcome) = outcome else { return };
        let report = Report::of(&bundle, &outcome, &copying);
        self.tell(&bundle, &outcome, &report);
        if let Err(error) = request.answer(&report) {
            tracing::warn!(%error, "cannot answer who asked for an import");
        }
    }

    /// Imports a bundle that appeared, unless it is done with. Returns whether to look again after a while.
    async fn consider(&mut self, path: &Path) -> bool {
        let copying = Copying::default();
        let (report, before) = (self.report.clone(), self.report.borrow().clone());
        let telling = async {
            loop {
                tokio::time::sleep(TELL).await;
                report.send_replace(Some(Report::under_way(path, &copying)));
            }
        };
        let outcome = tokio::select! {
            outcome = self.ground.import(path, &mut self.bundles, true, &copying) => outcome,
            () = telling => unreachable!("it runs for ever"),
        };
        let Some(outcome) = outcome else {
            self.report.send_replace(before);
            return false;
        };
        let is_tar = path.extension().is_some_and(|extension| extension == "tar");
        if is_tar && matches!(outcome, Err(ImportError::Archive(ArchiveError::NotABundle(_)))) {
            // Whatever it is, nobody said it was one.
            return false;
        }
        self.tell(path, &outcome, &Report::of(path, &outcome, &copying));
        outcome.is_err_and(|error| error.is_passing())
    }

    fn tell(&self, bundle: &Path, outcome: &Outcome, report: &Report) {
        self.report.send_replace(Some(report.clone()));
        tell(&self.outbox, bundle, outcome, report);
    }
}

/// Says what came of it: in the log, and at the hub once there is a link.
fn tell(outbox: &Outbox, bundle: &Path, outcome: &Outcome, report: &Report) {
    let told = format!("{}: {}", bundle.display(), report.message);
    match outcome {
        Ok(imported) if imported.is_same && imported.copied == 0 => {
            tracing::info!(bundle = %bundle.display(), "a bundle has nothing new");
        }
        Ok(_) => {
            tracing::info!(bundle = %bundle.display(), message = report.message, "imported a bundle");
            outbox.push(EventKind::Normal, "BundleImported", "node", told);
        }
        Err(error) => {
            let reason = error.reason();
            tracing::warn!(bundle = %bundle.display(), reason, %error, "a bundle was not imported");
            outbox.push(EventKind::Warning, "BundleRefused", "node", format!("{reason}: {told}"));
        }
    }
}

impl Report {
    fn under_way(bundle: &Path, copying: &Copying) -> Self {
        let (copied_bytes, total_bytes) = copying.bytes();
        Self { bundle: bundle.to_owned(), copied_bytes, total_bytes, ..Self::default() }
    }

    fn of(bundle: &Path, outcome: &Outcome, copying: &Copying) -> Self {
        let (state, reason, message) = match outcome {
            Ok(imported) => (State::Imported, String::new(), imported.to_string()),
            Err(error) => (State::Refused, error.reason().to_owned(), causes(error)),
        };
        Self { state, reason, message, ..Self::under_way(bundle, copying) }
    }
}

/// Never, without a moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
