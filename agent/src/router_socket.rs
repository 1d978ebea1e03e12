//! The socket that requests come in on, which the supervisor keeps while there is no agent. Accepts nothing.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use tombolo_router::Router;

use crate::supervisor::Supervisor;

/// What the supervisor knows the router's listening socket as.
pub(crate) const ROUTER_SOCKET: &str = "router";

/// The socket that requests come in on: the one that a former agent left with the supervisor, where it is as configured,
/// with whoever has waited since; else a new one.
pub(crate) async fn take(supervisor: &Supervisor, listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let left = supervisor.take_socket(ROUTER_SOCKET).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "no listening socket from a former agent");
        None
    });
    if let Some(listener) = left.map(TcpListener::from) {
        let is_configured =
            |address: SocketAddr| address == listen || listen.port() == 0 && address.ip() == listen.ip();
        if listener.local_addr().is_ok_and(is_configured) {
            return Ok(listener);
        }
        drop(listener);
        // It may stand in the way of the new one.
        supervisor
            .release_socket(ROUTER_SOCKET)
            .await
            .context("router.listen: leaving the former address")?;
    }
    Router::listen(listen).with_context(|| format!("router.listen: cannot listen on {listen}"))
}
