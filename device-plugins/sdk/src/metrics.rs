//! What a plugin counts, in Prometheus' text format, and the endpoint that shows it. A plugin adds what it knows of its
//! hardware. It must not know any hardware itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::device::Health;
use crate::name::ResourceName;
use crate::scanner::Listing;

/// The format's own name.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4";

/// All that one plugin program counts.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Inner>>);

type Source = Box<dyn Fn(&mut String) + Send>;

#[derive(Default)]
struct Inner {
    resources: BTreeMap<ResourceName, Observed>,
    sources: Vec<Source>,
}

struct Observed {
    counters: Arc<Counters>,
    listing: watch::Receiver<Listing>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    registered: AtomicBool,
    registrations: AtomicU64,
    scans_failed: AtomicU64,
    allocations: AtomicU64,
    refusals: AtomicU64,
}

impl Counters {
    pub(crate) fn registered(&self, now: bool) {
        if now {
            self.registrations.fetch_add(1, Ordering::Relaxed);
        }
        self.registered.store(now, Ordering::Relaxed);
    }

    pub(crate) fn scan_failed(&self) {
        self.scans_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn allocated(&self) {
        self.allocations.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn allocation_refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Has `source` append lines of its own, each ended, whenever somebody asks. It must not block.
    pub fn add(&self, source: impl Fn(&mut String) + Send + 'static) {
        self.inner().sources.push(Box::new(source));
    }

    pub fn text(&self) -> String {
        let inner = self.inner();
        let mut text = String::new();
        devices(&mut text, &inner.resources);
        for (name, kind, help, value) in FAMILIES {
            family(&mut text, name, kind, help);
            for (resource, observed) in &inner.resources {
                let value = value(&observed.counters);
                let _ = writeln!(text, "{name}{{resource=\"{resource}\"}} {value}");
            }
        }
        for source in &inner.sources {
            source(&mut text);
        }
        text
    }

    /// Answers at `/metrics` until `shutdown`.
    ///
    /// # Errors
    /// Nothing can be accepted any more.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let answer = async move || ([(CONTENT_TYPE, TEXT_FORMAT)], self.text());
        let router = Router::new().route("/metrics", get(answer));
        axum::serve(listener, router).with_graceful_shutdown(shutdown).await
    }

    pub(crate) fn observe(&self, resource: ResourceName, listing: watch::Receiver<Listing>) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.inner().resources.insert(resource, Observed { counters: Arc::clone(&counters), listing });
        counters
    }

    pub(crate) fn forget(&self, resource: &ResourceName) {
        self.inner().resources.remove(resource);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in it is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Family = (&'static str, &'static str, &'static str, fn(&Counters) -> u64);

const FAMILIES: [Family; 5] = [
    (
        "tombolo_device_plugin_registered",
        "gauge",
        "Whether the kubelet accepted the resource and has not gone since.",
        |counters| counters.registered.load(Ordering::Relaxed).into(),
    ),
    (
        "tombolo_device_plugin_registrations_total",
        "counter",
        "How often the kubelet accepted the resource.",
        |counters| counters.registrations.load(Ordering::Relaxed),
    ),
    (
        "tombolo_device_plugin_scan_failures_total",
        "counter",
        "Scans that could not tell what devices there are.",
        |counters| counters.scans_failed.load(Ordering::Relaxed),
    ),
    ("tombolo_device_plugin_allocations_total", "counter", "Allocations that were granted.", |counters| {
        counters.allocations.load(Ordering::Relaxed)
    }),
    (
        "tombolo_device_plugin_allocation_refusals_total",
        "counter",
        "Allocations that were refused.",
        |counters| counters.refusals.load(Ordering::Relaxed),
    ),
];

fn devices(text: &mut String, resources: &BTreeMap<ResourceName, Observed>) {
    family(text, "tombolo_device_plugin_devices", "gauge", "Devices there are, by health.");
    for (resource, observed) in resources {
        let listing = observed.listing.borrow();
        let healthy = listing.devices().filter(|device| device.health == Health::Healthy).count();
        let unhealthy = listing.devices().count() - healthy;
        for (health, count) in [("healthy", healthy), ("unhealthy", unhealthy)] {
            let labels = format!("resource=\"{resource}\",health=\"{health}\"");
            let _ = writeln!(text, "tombolo_device_plugin_devices{{{labels}}} {count}");
        }
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
