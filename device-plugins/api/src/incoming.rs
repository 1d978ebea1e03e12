//! Connections that reach a Unix socket, as a server of this API takes them: callers that name the socket's path as the
//! authority are let in.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf as _;
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::authority::Renamer;

/// How long nothing is accepted after a failure, which is mostly a want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What is read at once.
const READ_BYTES: usize = 4096;

/// What [`tonic::transport::Server::serve_with_incoming`] takes.
pub type Incoming = Pin<Box<dyn Stream<Item = io::Result<Connection>> + Send>>;

/// All connections that reach `listener`.
pub fn incoming(listener: UnixListener) -> Incoming {
    let accept = |listener: UnixListener| async {
        let accepted = listener.accept().await.map(|(stream, _)| Connection::new(stream));
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        Some((accepted, listener))
    };
    stream::unfold(listener, accept).boxed()
}

/// A caller's connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    renamer: Renamer,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, renamer: Renamer::new() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, renamer } = &mut *self;
        let mut ended = false;
        loop {
            let ready = renamer.ready();
            if !ready.is_empty() || ended || to.remaining() == 0 {
                let part = ready.len().min(to.remaining());
                to.put_slice(&ready[..part]);
                ready.advance(part);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
            ended = read.filled().is_empty();
            if ended {
                renamer.end();
            } else {
                renamer.push(read.filled());
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}
