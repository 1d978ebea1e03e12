//! A service's log, as its instances on all connected nodes write it: one text line per line, streamed.
//!
//! Takes: chunks of nodes' lines. Gives: `NODE/INSTANCE TIME STREAM TAG TEXT`. A client that follows also gets the lines
//! of revisions that come later.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tombolo_api::NodeId;
use tombolo_api::meta::Status;
use tombolo_api::serving::keys;
use tombolo_api::tail::TailChunk;
use tombolo_hub_core::{Key, Kind};

use super::answer::Answer;
use super::{Api, follow, write};
use crate::catalog::State as CatalogState;
use crate::fleet::FleetHandle;
use crate::tails::Tails;

/// Chunks that wait for one client; nodes' lines beyond are not asked for meanwhile.
const CHUNKS_MAX: usize = 16;

/// Lines of the past for which a client may ask, per instance.
const LINES_MAX: u32 = 10_000;

/// Lines of the past of a revision that comes while a client follows: all it can have.
const LINES_OF_NEW: u32 = LINES_MAX;

pub(super) fn router() -> Router<Api> {
    Router::new().route("/apis/tombolo.dev/v1/namespaces/{namespace}/services/{name}/log", get(log))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    follow: bool,
    tail_lines: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { follow: false, tail_lines: 100 }
    }
}

async fn log(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    options: Result<Query<Options>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(options) = options.map_err(|error| Status::bad_request(error.body_text()))?;
    let service = Key::new(namespace, name);
    let state = api.catalog.watch();
    if state.borrow().snapshot.get(Kind::Service, &service).is_none() {
        return Err(write::not_found(Kind::Service, &service.name).into());
    }
    let place = follow::place(&api)?;
    let (lines, received) = mpsc::channel(CHUNKS_MAX);
    let (stop, source) =
        (api.stop.clone(), Source { tails: api.tails.clone(), fleet: api.fleet.clone(), state });
    tokio::spawn(async move {
        let client_left = lines.clone();
        tokio::select! {
            () = source.send(service, options, lines) => {}
            () = client_left.closed() => {}
            () = stop.cancelled() => {}
        }
        drop(place);
    });
    let stream = futures_util::stream::unfold(received, |mut received: mpsc::Receiver<Bytes>| async {
        received.recv().await.map(|bytes| (bytes, received))
    });
    Ok(follow::streamed("text/plain; charset=utf-8", stream))
}

/// Where lines come from.
struct Source {
    tails: Tails,
    fleet: FleetHandle,
    state: watch::Receiver<Arc<CatalogState>>,
}

impl Source {
    /// Sends the lines of the service's revisions; of later ones too, if they are to be followed.
    async fn send(mut self, service: Key, options: Options, lines: mpsc::Sender<Bytes>) {
        let mut known = BTreeSet::new();
        let mut past = options.tail_lines.min(LINES_MAX);
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let now = self.state.borrow_and_update().clone();
            if now.snapshot.get(Kind::Service, &service).is_none() {
                break;
            }
            let new: Vec<String> =
                revisions_of(&now, &service).into_iter().filter(|name| known.insert(name.clone())).collect();
            if !new.is_empty() {
                let chunks = self.tails.follow(&service.namespace, new, past, options.follow, self.online());
                tasks.spawn(pass_on(chunks, lines.clone()));
            }
            past = LINES_OF_NEW;
            if !options.follow || self.state.changed().await.is_err() {
                break;
            }
        }
        // Dropping the set would cut off what is still under way.
        while tasks.join_next().await.is_some() {}
    }

    fn online(&self) -> Vec<NodeId> {
        let fleet = self.fleet.watch().borrow().clone();
        fleet.values().filter(|node| node.is_online()).map(|node| node.id.clone()).collect()
    }
}

fn revisions_of(state: &CatalogState, service: &Key) -> Vec<String> {
    let revisions = state.snapshot.revisions.values().map(|revision| &revision.metadata);
    let of_service = revisions.filter(|metadata| {
        metadata.namespace == service.namespace && metadata.label(keys::SERVICE) == Some(&service.name)
    });
    of_service.map(|metadata| metadata.name.clone()).collect()
}

async fn pass_on(mut chunks: mpsc::Receiver<(NodeId, TailChunk)>, lines: mpsc::Sender<Bytes>) {
    while let Some((node, chunk)) = chunks.recv().await {
        let text = labelled(&node, &chunk);
        if !text.is_empty() && lines.send(text.into()).await.is_err() {
            return;
        }
    }
}

/// The chunk's lines, each with where it comes from.
fn labelled(node: &NodeId, chunk: &TailChunk) -> String {
    chunk.text.lines().map(|line| format!("{node}/{} {line}\n", chunk.instance)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_where_it_comes_from() {
        let chunk = TailChunk {
            instance: "a-00001-x".into(),
            revision: "a-00001".into(),
            text: "t1 stdout F one\nt2 stderr P two\n".into(),
            end: false,
        };
        assert_eq!(
            labelled(&"press-7".parse().unwrap(), &chunk),
            "press-7/a-00001-x t1 stdout F one\npress-7/a-00001-x t2 stderr P two\n"
        );
    }
}
