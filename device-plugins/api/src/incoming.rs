//! Connections that reach a Unix socket, as a server of this API takes them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};

/// What [`tonic::transport::Server::serve_with_incoming`] takes.
pub struct Incoming(UnixListener);

impl Incoming {
    pub fn new(listener: UnixListener) -> Self {
        Self(listener)
    }
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(context).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}
