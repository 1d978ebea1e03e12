//! The node listener: HTTPS for machines that join, renew their certificate or pull images.
//!
//! ```text
//! listener ─▶ TLS ─▶ HTTP ─┬─ POST /tombolo/v1/enrol   join token          ─▶ fleet: admit ─▶ enrolment
//!                          ├─ POST /tombolo/v1/renew   node id, pull token ─▶ new certificate
//!                          └─ /v2/…                    node id, pull token ─▶ registry (mounted, read only)
//! ```
//!
//! No client certificates here: one that has expired must not keep a node from renewing it. Knows no store and no MQTT.

mod answer;
mod door;
mod listener;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tombolo_api::{Digest, NodeId};

use crate::fleet::{AdmitError, Credentials, FleetHandle};
use crate::nodes::answer::Refusal;
use crate::nodes::door::{Door, From};
use crate::pki::{self, Pki};

pub(crate) use listener::Listener;

/// Largest enrolment or renewal request, bytes.
const REQUEST_MAX: usize = 32 * 1024;

/// How nodes reach the hub, as told to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// `https://host:port`: this listener.
    pub(crate) hub_url: String,
    /// `mqtts://host:port`.
    pub(crate) mqtt_url: String,
    /// `host:port` of the registry that `hub.tombolo` stands for.
    pub(crate) registry: String,
}

/// What the handlers share.
struct Shared {
    pki: Arc<Pki>,
    fleet: FleetHandle,
    addresses: Addresses,
    door: Door,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EnrolRequest {
    token: String,
    node: String,
    csr_pem: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RenewRequest {
    csr_pem: String,
}

/// What a node gets, whole: see the agent's `identity.rs`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Enrolment {
    node: NodeId,
    hub_url: String,
    certificate_pem: String,
    ca_pem: String,
    manifest_key: String,
    mqtt_url: String,
    registry: String,
    pull_token: String,
}

/// Everything the listener serves. `registry` is mounted behind the nodes' credentials.
pub(crate) fn router(pki: Arc<Pki>, fleet: FleetHandle, addresses: Addresses, registry: Router) -> Router {
    let shared = Arc::new(Shared { pki, fleet, addresses, door: Door::default() });
    let registry = registry.layer(middleware::from_fn_with_state(shared.clone(), nodes_only));
    Router::new()
        .route("/tombolo/v1/enrol", post(enrol))
        .route("/tombolo/v1/renew", post(renew))
        .layer(DefaultBodyLimit::max(REQUEST_MAX))
        .with_state(shared)
        .merge(registry)
}

async fn enrol(
    State(shared): State<Arc<Shared>>,
    from: From,
    body: axum::body::Bytes,
) -> Result<Json<Enrolment>, Refusal> {
    let request: EnrolRequest = parse(&body)?;
    if !shared.pki.accepts(&request.token) {
        let message =
            "the join token is wrong: print the right one with `tombolo-hub token` on the hub's machine";
        return Err(shared.door.wrong(from, Refusal::forbidden(message)));
    }
    let node: NodeId = request.node.parse().map_err(|error| Refusal::bad(format!("node: {error}")))?;
    let signed =
        shared.pki.sign(&node, &request.csr_pem).map_err(|error| Refusal::bad(format!("csrPem: {error}")))?;
    let pull_token = hex::encode(pki::random::<32>().map_err(|error| Refusal::internal(&error))?);
    let credentials = Credentials { key: signed.key, pull_token: Digest::of(pull_token.as_bytes()) };
    shared.fleet.admit(node.clone(), credentials).await.map_err(|error| match error {
        AdmitError::OtherKey(_) => Refusal::conflict(error.to_string()),
        AdmitError::Store(_) | AdmitError::Stopped => Refusal::internal(&error),
    })?;
    tracing::info!(%node, "a node is enrolled");
    Ok(Json(shared.enrolment(node, signed.pem, pull_token)))
}

/// The pull token stays: an answer that is lost on the way must not lock its node out.
async fn renew(
    State(shared): State<Arc<Shared>>,
    from: From,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Result<Json<Enrolment>, Refusal> {
    let (node, pull_token) = shared.identify(&headers, from)?;
    let request: RenewRequest = parse(&body)?;
    let signed =
        shared.pki.sign(&node, &request.csr_pem).map_err(|error| Refusal::bad(format!("csrPem: {error}")))?;
    let enrolled = shared.fleet.credentials().borrow().get(&node).map(|credentials| credentials.key);
    if enrolled != Some(signed.key) {
        return Err(Refusal::conflict(AdmitError::OtherKey(node).to_string()));
    }
    tracing::info!(%node, "a node's certificate is renewed");
    Ok(Json(shared.enrolment(node, signed.pem, pull_token)))
}

/// Lets enrolled nodes through.
async fn nodes_only(State(shared): State<Arc<Shared>>, from: From, request: Request, next: Next) -> Response {
    match shared.identify(request.headers(), from) {
        Ok(_) => next.run(request).await,
        Err(refusal) => {
            let mut response = refusal.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                let challenge = http::HeaderValue::from_static("Basic realm=\"tombolo\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

impl Shared {
    /// The node that a request's Basic credentials prove, and its pull token.
    fn identify(&self, headers: &HeaderMap, from: From) -> Result<(NodeId, String), Refusal> {
        let (node, token) =
            basic(headers).ok_or_else(|| Refusal::unauthorized("a node's id and pull token are needed"))?;
        let known =
            self.fleet.credentials().borrow().get(&node).map(|credentials| credentials.pull_token.hex());
        // A node that does not exist takes as long as a wrong token.
        let expected = known.unwrap_or_default();
        if !pki::same_secret(&Digest::of(token.as_bytes()).hex(), &expected) {
            return Err(self.door.wrong(from, Refusal::unauthorized("the node's id or pull token is wrong")));
        }
        Ok((node, token))
    }

    fn enrolment(&self, node: NodeId, certificate_pem: String, pull_token: String) -> Enrolment {
        let Addresses { hub_url, mqtt_url, registry } = self.addresses.clone();
        Enrolment {
            node,
            hub_url,
            certificate_pem,
            ca_pem: self.pki.ca_pem().to_owned(),
            manifest_key: self.pki.manifest_key_base64(),
            mqtt_url,
            registry,
            pull_token,
        }
    }
}

fn basic(headers: &HeaderMap) -> Option<(NodeId, String)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?;
    let (node, token) = decoded.split_once(':')?;
    Some((node.parse().ok()?, token.to_owned()))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(error.to_string()))
}

#[cfg(test)]
mod tests;
