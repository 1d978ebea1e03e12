//! Images: which digest each name in a spec means now.
//!
//! ```text
//! catalog ─▶ wanted names ─┬─ hub.tombolo/… ─▶ the own registry, at once; again whenever something is pushed
//!                          ├─ …@sha256:…    ─▶ known as it is
//!                          └─ others        ─▶ their registry, with a deadline; again after a failure, later each time
//! ```
//!
//! Takes: the catalog's state, pushes. Gives: results through a watch, of wanted names only. A name that is not wanted any
//! more is forgotten: the next one who wants it gets what it means then. Must not know what a result is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_api::Digest;
use tombolo_hub_core::images::{Images, Resolution, wanted};
use tombolo_oci::{Client, Endpoint, HUB_HOST, ImageReference, Scheme, Target, TransferError};

use crate::catalog::State;
use crate::registry::Registry;

/// Lookups at other registries at one time.
const LOOKUPS_MAX: usize = 4;

/// Longest wait for another registry's answer, redirections and tokens included.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(30);

/// Pauses after failures: the first, and the longest. A registry that is down must not be hammered, one that is back must
/// be found soon.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// The task that resolves.
pub(crate) struct Resolver {
    registry: Registry,
    state: watch::Receiver<Arc<State>>,
    images: watch::Sender<Arc<Images>>,
    /// Names at other registries.
    foreign: BTreeMap<String, Lookup>,
    running: JoinSet<(String, Resolution)>,
}

/// A name at another registry.
struct Lookup {
    reference: ImageReference,
    /// The last result, if there was one.
    result: Option<Resolution>,
    /// Failures in a row.
    failures: u32,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    Waiting { due: Instant },
    Running,
    Done,
}

impl Resolver {
    /// The results, and the task that brings them.
    pub(crate) fn new(
        registry: Registry,
        state: watch::Receiver<Arc<State>>,
    ) -> (watch::Receiver<Arc<Images>>, Self) {
        let (images, receiver) = watch::channel(Arc::default());
        let resolver = Self { registry, state, images, foreign: BTreeMap::new(), running: JoinSet::new() };
        (receiver, resolver)
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pushes = self.registry.changes();
        loop {
            pushes.mark_unchanged();
            let state = self.state.borrow_and_update().clone();
            let due = self.pass(wanted(&state.snapshot)).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                changed = pushes.changed() => if changed.is_err() { return },
                Some(done) = self.running.join_next() => self.take(done),
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Looks at every wanted name once. Returns when the next one is due.
    async fn pass(&mut self, wanted: BTreeSet<String>) -> Instant {
        self.foreign.retain(|name, _| wanted.contains(name));
        let mut images = Images::new();
        let mut own = Vec::new();
        for name in wanted {
            match name.parse::<ImageReference>() {
                Err(error) => drop(images.insert(name, Resolution::Missing(error.to_string()))),
                Ok(reference) if reference.host == HUB_HOST => own.push((name, reference)),
                Ok(reference) if reference.target.digest().is_some() => {
                    images.insert(name, Resolution::Resolved(pinned(&reference, reference.target.clone())));
                }
                Ok(reference) => {
                    let lookup = self.foreign.entry(name.clone()).or_insert_with(|| Lookup::new(reference));
                    images.extend(lookup.result.clone().map(|result| (name, result)));
                }
            }
        }
        images.extend(self.own(own).await);
        self.images.send_if_modified(|known| {
            let changed = **known != images;
            if changed {
                *known = Arc::new(images);
            }
            changed
        });
        self.start_due()
    }

    /// Resolves names of the hub's own registry.
    async fn own(&self, names: Vec<(String, ImageReference)>) -> Images {
        if names.is_empty() {
            return Images::new();
        }
        let registry = self.registry.clone();
        let looked = tokio::task::spawn_blocking(move || {
            names.into_iter().map(|(name, reference)| (name, look(&registry, &reference))).collect()
        });
        looked.await.unwrap_or_else(|error| {
            tracing::error!(%error, "looking up images failed");
            Images::new()
        })
    }

    /// Starts the lookups that are due, as many as may run. Returns when the next one is due.
    fn start_due(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (name, lookup) in &mut self.foreign {
            let Step::Waiting { due } = lookup.step else { continue };
            if due > now {
                next = next.min(due);
            } else if self.running.len() < LOOKUPS_MAX {
                lookup.step = Step::Running;
                let (name, reference) = (name.clone(), lookup.reference.clone());
                self.running.spawn(async move { (name, look_elsewhere(&reference).await) });
            }
        }
        // With all places taken, the next one begins when one ends.
        next
    }

    fn take(&mut self, done: Result<(String, Resolution), tokio::task::JoinError>) {
        let (name, result) = match done {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "looking up an image failed");
                // It does not say which one: all are tried again, later.
                let failed = Resolution::Unreachable("the hub failed to look it up".into());
                return self.foreign.values_mut().for_each(|lookup| lookup.finish(failed.clone()));
            }
        };
        if let Some(lookup) = self.foreign.get_mut(&name) {
            tracing::debug!(image = name, ?result, "looked up an image");
            lookup.finish(result);
        }
    }
}

impl Lookup {
    fn new(reference: ImageReference) -> Self {
        Self { reference, result: None, failures: 0, step: Step::Waiting { due: Instant::now() } }
    }

    fn finish(&mut self, result: Resolution) {
        if !matches!(self.step, Step::Running) {
            return;
        }
        self.step = if matches!(result, Resolution::Resolved(_)) {
            Step::Done
        } else {
            let due = Instant::now() + pause(self.failures);
            self.failures = self.failures.saturating_add(1);
            Step::Waiting { due }
        };
        self.result = Some(result);
    }
}

/// The pause after so many failures in a row before this one.
fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(16)).min(PAUSE_MAX)
}

fn look(registry: &Registry, reference: &ImageReference) -> Resolution {
    match registry.resolve(reference) {
        Ok(Some(digest)) => Resolution::Resolved(pinned(reference, Target::Digest(digest))),
        Ok(None) => Resolution::Missing(format!(
            "{reference} is not in the hub's registry: push it with `tombolo deploy`, or correct the name"
        )),
        Err(error) => Resolution::Unreachable(format!("the hub's registry cannot be read: {error}")),
    }
}

async fn look_elsewhere(reference: &ImageReference) -> Resolution {
    let asked = tokio::time::timeout(LOOKUP_DEADLINE, ask(reference)).await;
    match asked {
        Ok(Ok(digest)) => Resolution::Resolved(pinned(reference, Target::Digest(digest))),
        Ok(Err(error @ TransferError::NotFound { .. })) => {
            Resolution::Missing(format!("{reference}: {error}"))
        }
        Ok(Err(error)) => Resolution::Unreachable(format!("{reference}: {error}")),
        Err(_) => {
            let limit = LOOKUP_DEADLINE.as_secs();
            Resolution::Unreachable(format!("{reference}: the registry did not answer within {limit} s"))
        }
    }
}

async fn ask(reference: &ImageReference) -> Result<Digest, TransferError> {
    client_of(&reference.host).await?.resolve(&reference.repository, &reference.target).await
}

/// A client of another registry.
pub(crate) async fn client_of(host: &str) -> Result<Client, TransferError> {
    let scheme = if is_this_machine(host) {
        Scheme::Http
    } else {
        let tls = tokio::task::spawn_blocking(system_tls).await;
        Scheme::Https(Arc::new(tls.map_err(|error| TransferError::Client(error.to_string()))??))
    };
    Client::new(Endpoint { scheme, address: host.to_owned(), auth: None, server_name: None })
}

/// Registries of this machine speak plain HTTP, as every container tool assumes.
fn is_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// TLS that believes the authorities this machine believes. Reads files.
fn system_tls() -> Result<rustls::ClientConfig, TransferError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TransferError::Client(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// `host/repository@sha256:…`
fn pinned(reference: &ImageReference, target: Target) -> String {
    ImageReference { target, ..reference.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit() {
        assert_eq!(pause(0), PAUSE_MIN);
        assert_eq!(pause(1), PAUSE_MIN * 2);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for (host, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
        ] {
            assert_eq!(is_this_machine(host), plain, "{host}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_tried_again_later() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Nothing listens on the discard port.
        let mut lookup = Lookup::new("127.0.0.1:9/a:v1".parse().unwrap());
        lookup.step = Step::Running;
        lookup.finish(look_elsewhere(&lookup.reference).await);
        assert!(matches!(lookup.result, Some(Resolution::Unreachable(_))), "{:?}", lookup.result);
        assert!(matches!(lookup.step, Step::Waiting { due } if due > Instant::now()));
    }
}
