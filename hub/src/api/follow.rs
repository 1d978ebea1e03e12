//! Following changes: `?watch=true`, one JSON object a line for as long as the client likes.
//!
//! A client that reads too slowly is told that it missed something, and lists again: nothing is queued for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::header;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_api::meta::{ListMeta, Status};
use tombolo_api::serving::API_VERSION;
use tombolo_hub_core::{Kind, Object};

use super::answer::{Answer, Refused};
use super::query::Query;
use super::selector::Selector;
use super::{Api, table};
use crate::catalog::{Catalog, Event, State};

/// Marks the end of what was there before.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One client that follows.
struct Follower {
    catalog: Catalog,
    state: watch::Receiver<Arc<State>>,
    view: View,
    /// Told up to here.
    version: u64,
    lines: VecDeque<Bytes>,
    ended: bool,
    deadline: Instant,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// Which changes are shown, and how.
struct View {
    kind: Kind,
    selector: Selector,
    as_table: bool,
}

/// Takes a place among the followers, for as long as it is held.
pub(super) fn place(api: &Api) -> Result<OwnedSemaphorePermit, Refused> {
    let full =
        || Status::failure(429, "TooManyRequests", "too many clients follow at once: try again later").into();
    Arc::clone(&api.followers).try_acquire_owned().map_err(|_| full())
}

/// A stream of lines as a response.
pub(super) fn streamed(
    content_type: &'static str,
    lines: impl futures_util::Stream<Item = Bytes> + Send + 'static,
) -> Response {
    use futures_util::StreamExt as _;
    let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Answers with the changes of a kind from what the client has seen.
pub(super) fn changes(api: &Api, kind: Kind, selector: Selector, query: &Query, as_table: bool) -> Answer {
    let place = place(api)?;
    let mut state = api.catalog.watch();
    let now = state.borrow_and_update().clone();
    let view = View { kind, selector, as_table };
    let mut lines = VecDeque::new();
    let version = match query.resource_version {
        Some(version) if !query.send_initial_events => {
            // Told at once rather than in the stream.
            api.catalog.check(version)?;
            version
        }
        _ => {
            lines.extend(now.snapshot.list(kind).iter().filter_map(|object| view.line("ADDED", object)));
            if query.send_initial_events {
                lines.push_back(bookmark(kind, now.version));
            }
            now.version
        }
    };
    let follower = Follower {
        catalog: api.catalog.clone(),
        state,
        view,
        version,
        lines,
        ended: false,
        deadline: Instant::now() + query.timeout,
        stop: api.stop.clone(),
        _place: place,
    };
    Ok(streamed("application/json", futures_util::stream::unfold(follower, Follower::next)))
}

impl Follower {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some((line, self));
            }
            if self.ended {
                return None;
            }
            self.state.mark_unchanged();
            self.take_changes();
            if !self.lines.is_empty() || self.ended {
                continue;
            }
            tokio::select! {
                changed = self.state.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
            }
        }
    }

    fn take_changes(&mut self) {
        match self.catalog.since(self.version) {
            Ok(events) => {
                for event in events {
                    self.version = event.version;
                    self.lines.extend(self.view.event(&event));
                }
            }
            Err(expired) => {
                let status = Status::failure(410, "Expired", expired.to_string());
                self.lines.push_back(line(&json!({"type": "ERROR", "object": status})));
                self.ended = true;
            }
        }
    }
}

impl View {
    /// A change as this client sees it: an object that no longer matches is gone to it.
    fn event(&self, event: &Event) -> Option<Bytes> {
        let seen = |object: &Option<Object>| object.clone().filter(|object| self.shows(object));
        match (seen(&event.before), seen(&event.after)) {
            (None, None) => None,
            (None, Some(after)) => self.line("ADDED", &after),
            (Some(_), Some(after)) => self.line("MODIFIED", &after),
            (Some(mut before), None) => {
                before.metadata_mut().resource_version = event.version.to_string();
                self.line("DELETED", &before)
            }
        }
    }

    fn shows(&self, object: &Object) -> bool {
        object.kind() == self.kind && self.selector.matches(object.metadata())
    }

    fn line(&self, what: &str, object: &Object) -> Option<Bytes> {
        if !self.shows(object) {
            return None;
        }
        let shown = if self.as_table {
            let version = object.metadata().resource_version.clone();
            let metadata = ListMeta { resource_version: version, ..ListMeta::default() };
            table::of(self.kind, std::slice::from_ref(object), &metadata)
        } else {
            object.to_json()
        };
        Some(line(&json!({"type": what, "object": shown})))
    }
}

fn bookmark(kind: Kind, version: u64) -> Bytes {
    let metadata =
        json!({"resourceVersion": version.to_string(), "annotations": {INITIAL_EVENTS_END: "true"}});
    line(
        &json!({"type": "BOOKMARK", "object": {"apiVersion": API_VERSION, "kind": kind.name(), "metadata": metadata}}),
    )
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}
