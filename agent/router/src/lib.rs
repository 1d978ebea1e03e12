//! Tombolo's data plane: takes HTTP requests on a node and passes them to the instances of the revisions they are meant for.
//!
//! It is told routes ([`tombolo_agent_core::routes`]) and network namespaces ([`Dialer`]), and tells what it counts
//! ([`Meter`]) and which revisions need an instance. It starts and stops nothing, and never reads the store.
//!
//! ```text
//! server ─▶ worker ─▶ session ─▶ exchange ──▶ reply ─▶ client
//!   │                   │          │  └────▶ tunnel (switched protocols)
//!   ▼                   ▼          ▼
//! table ───────────▶ revision ─▶ instance ─▶ dialer ─▶ the instance's network namespace
//!
//! HTTP/1 is spoken by http1, with clients (session) and with instances (instance); HTTP/2 by hyper.
//! ```

mod activations;
mod answer;
mod body;
mod deadline;
mod dialer;
mod exchange;
mod grpc;
mod headers;
mod http1;
mod instance;
mod meter;
mod metrics;
mod random;
mod reply;
mod revision;
mod sample;
mod server;
mod session;
mod steering;
mod stream;
mod table;
mod tally;
mod tls;
mod tunnel;
mod wake;
mod worker;

pub use activations::{Activations, Stage};
pub use answer::REASON_HEADER;
pub use dialer::Dialer;
pub use meter::{Meter, TUNNEL_GRACE};
pub use metrics::{render as render_metrics, render_activations};
pub use sample::{Histogram, Refused, RevisionMeter, RevisionSpan, Sampler};
pub use server::Router;
pub use tls::server_config;
pub use wake::Wake;
