//! The API listener's paths: Kubernetes-shaped resources, Tombolo's own, the registry, and signs of life.
//!
//! Takes: requests. Gives: transactions to the catalog, answers from its state. Handlers decode, call and encode; what
//! is right or wrong in a resource is decided by `tombolo_api::serving::admission`. Must not know sockets.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::fleet::FleetHandle;
use crate::publish::{AllPublished, Shelf};
use crate::tails::Tails;

mod answer;
mod body;
mod discovery;
mod events;
mod follow;
mod logs;
mod namespaces;
mod nodes;
mod openapi;
mod pages;
mod patch;
mod query;
mod resources;
mod selector;
mod table;
mod validation;
mod write;

/// Followers of changes or logs at one time: each holds a connection and a little memory.
const FOLLOWERS_MAX: usize = 64;

/// Who signs what is created and changed, until access control names users.
const USER: &str = "admin";

/// What the API speaks for.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) catalog: Catalog,
    pub(crate) fleet: FleetHandle,
    pub(crate) published: watch::Receiver<Arc<AllPublished>>,
    pub(crate) shelf: Shelf,
    pub(crate) tails: Tails,
}

/// What handlers need.
#[derive(Clone)]
pub(crate) struct Api {
    catalog: Catalog,
    fleet: FleetHandle,
    published: watch::Receiver<Arc<AllPublished>>,
    shelf: Shelf,
    tails: Tails,
    followers: Arc<Semaphore>,
    /// Ends every stream.
    stop: CancellationToken,
}

impl Api {
    pub(crate) fn new(sources: Sources, stop: CancellationToken) -> Self {
        let Sources { catalog, fleet, published, shelf, tails } = sources;
        Self {
            catalog,
            fleet,
            published,
            shelf,
            tails,
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            stop,
        }
    }

    /// Everything the API listener serves, `registry` among it.
    pub(crate) fn router(self, registry: Router) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(|| async { "ok" }))
            .merge(discovery::router())
            .merge(openapi::router())
            .merge(resources::router())
            .merge(namespaces::router())
            .merge(nodes::router())
            .merge(events::router())
            .merge(logs::router())
            .fallback(not_found)
            .method_not_allowed_fallback(answer::method_not_allowed)
            .with_state(self)
            .merge(registry)
    }
}

/// As Kubernetes answers where nothing is: in plain text.
async fn not_found() -> Response {
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::NOT_FOUND, plain, "404 page not found\n").into_response()
}
