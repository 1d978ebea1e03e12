//! A client's connection as bytes, secured or not.
//!
//! One type for both, so that what speaks HTTP exists once in the program. It must not know what is spoken, but for the version.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// Longest handshake. A client on a bad link needs a second or two; it holds a place among the connections meanwhile.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// What is known of a connection beside its bytes.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Bytes of HTTP/1 have come since this was last forgotten.
    heard: AtomicBool,
    /// To be sent before the end.
    last_words: Mutex<Option<Vec<u8>>>,
}

impl Pulse {
    pub(crate) fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    pub(crate) fn forget(&self) {
        self.heard.store(false, Ordering::Relaxed);
    }

    /// Have this sent when the connection is closed. Best effort: it fits into the socket's buffer or is lost.
    pub(crate) fn set_last_words(&self, words: Vec<u8>) {
        *self.last_words.lock().expect("no panic under this lock") = Some(words);
    }
}

pub(crate) struct Stream {
    kind: Kind,
    pulse: Arc<Pulse>,
    /// Whether it begins as HTTP/2 does; `None` until it begins.
    multiplexed: Option<bool>,
}

enum Kind {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// `tls`: what to secure it with.
    pub(crate) async fn open(
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        pulse: Arc<Pulse>,
    ) -> io::Result<Self> {
        let Some(config) = tls else {
            return Ok(Self { kind: Kind::Plain(stream), pulse, multiplexed: None });
        };
        let handshake = TlsAcceptor::from(config).accept(stream);
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no TLS within {HANDSHAKE_MAX:?}"));
        let stream = tokio::time::timeout(HANDSHAKE_MAX, handshake).await.map_err(late)??;
        Ok(Self { kind: Kind::Secure(Box::new(stream)), pulse, multiplexed: None })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let words = self.pulse.last_words.lock().expect("no panic under this lock").take();
        if let (Kind::Plain(stream), Some(words)) = (&self.kind, words) {
            drop(stream.try_write(&words));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { kind, pulse, multiplexed } = self.get_mut();
        let before = buf.filled().len();
        let read = match kind {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let bytes @ [_, ..] = &buf.filled()[before..] {
            // HTTP/2 has frames of its own at any time, and ends of its own.
            if !*multiplexed.get_or_insert_with(|| bytes.starts_with(b"PRI")) {
                pulse.heard.store(true, Ordering::Relaxed);
            }
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Kind::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let words = self.pulse.last_words.lock().expect("no panic under this lock").take();
        if let Some(words) = words {
            drop(self.as_mut().poll_write(cx, &words));
        }
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
