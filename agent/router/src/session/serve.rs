//! Serving a client's connection: which protocol it speaks, its requests until it ends, and what ends it.
//!
//! It must not know instances or what is done with a request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::rustls::ServerConfig;

use super::{Entrance, Session};
use crate::answer::Answer;
use crate::body::{ClientBody, SEND_BUFFER_MAX, WINDOW};
use crate::deadline::Watchdog;
use crate::http1::{Broken, Downstream, HEAD_MAX, Inbox, Outcome};
use crate::reply::Reply;
use crate::stream::{Early, Stream};
use crate::tunnel::Tunnel;

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests at a time on one HTTP/2 connection; more wait at the client. The usual value.
const STREAMS_MAX: u32 = 200;

/// What an HTTP/2 client may send of all bodies together before they are read, bytes: more than one that waits for an instance
/// has, so that it does not keep the others from theirs.
const CONNECTION_WINDOW: u32 = 4 * WINDOW;

/// How long a client may take to read the last answer, and to send what nobody reads, before its connection is closed. It is
/// the only bound of that: most clients look for an answer only once they have sent all of their request.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// Whether a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// No new requests from now on.
    Soon,
    /// Nothing has come for too long.
    Late,
}

/// When a connection has to end.
struct Bounds<'a> {
    session: &'a Session,
    stop: oneshot::Receiver<()>,
    watchdog: Watchdog,
    ending: Ending,
}

impl Session {
    /// Serve the connection until it ends. `stop`: no new requests from now on.
    pub(crate) async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        stop: oneshot::Receiver<()>,
    ) {
        let mut stream = match Stream::open(stream, tls).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a client's connection was not secured");
                return;
            }
        };
        let mut bounds = Bounds { session: &self, stop, watchdog: Watchdog::default(), ending: Ending::No };
        let mut inbox = Inbox::default();
        let speaks_http2 = bounds.within(|ending, cx| match poll_http2(&mut stream, &mut inbox, cx) {
            Poll::Pending if ending == Ending::Late => Poll::Ready(None),
            Poll::Pending if ending == Ending::Soon && inbox.bytes.is_empty() => Poll::Ready(None),
            polled => polled,
        });
        let speaks_http2 = speaks_http2.await;
        match speaks_http2 {
            Some(Some(true)) => serve_http2(&self, &mut bounds, stream, inbox).await,
            Some(Some(false)) => serve_http1(&self, &mut bounds, stream, inbox).await,
            Some(None) | None => {}
        }
    }
}

impl Bounds<'_> {
    /// Drive something until it ends. `None`: it has to end and does not.
    async fn within<T>(&mut self, mut poll: impl FnMut(Ending, &mut Context<'_>) -> Poll<T>) -> Option<T> {
        poll_fn(|cx| {
            if self.ending == Ending::No && Pin::new(&mut self.stop).poll(cx).is_ready() {
                self.ending = Ending::Soon;
            }
            if let Poll::Ready(done) = poll(self.ending, cx) {
                return Poll::Ready(Some(done));
            }
            ready!(self.watchdog.poll_passed(self.session.next_look(), cx));
            // A request that is late notices it when it is polled now. What is late after that does not listen.
            if self.session.open.load(Ordering::Relaxed) == 0 {
                self.ending = Ending::Late;
            }
            if let Poll::Ready(done) = poll(self.ending, cx) {
                return Poll::Ready(Some(done));
            }
            self.watchdog.poll_passed(self.session.next_look(), cx).map(|()| None)
        })
        .await
    }
}

/// Whether the client begins as HTTP/2 does; `None` if it leaves before that is clear.
fn poll_http2(stream: &mut Stream, inbox: &mut Inbox, cx: &mut Context<'_>) -> Poll<Option<bool>> {
    loop {
        let begun = inbox.bytes.len().min(PREFACE.len());
        if inbox.bytes[..begun] != PREFACE[..begun] {
            return Poll::Ready(Some(false));
        }
        if begun == PREFACE.len() {
            return Poll::Ready(Some(true));
        }
        match ready!(inbox.poll_fill(Pin::new(stream), cx)) {
            Ok(0) | Err(_) => return Poll::Ready(None),
            Ok(_) => {}
        }
    }
}

async fn serve_http2(session: &Arc<Session>, bounds: &mut Bounds<'_>, stream: Stream, inbox: Inbox) {
    let entrance = Entrance::new(session);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answering = entrance.enter(request.map(ClientBody::Http2));
        async move { Ok::<_, std::convert::Infallible>(answering.await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEAD_MAX as u32);
    builder.initial_stream_window_size(WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_send_buf_size(SEND_BUFFER_MAX);
    let stream = Early { stream, early: inbox.bytes };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = bounds.within(|ending, cx| {
        if ending != Ending::No {
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Some(Err(error)) = ended.await {
        tracing::debug!(%error, "client connection ended");
    }
}

async fn serve_http1(session: &Arc<Session>, bounds: &mut Bounds<'_>, stream: Stream, inbox: Inbox) {
    let mut connection = Downstream::new(stream, inbox);
    let served = serve_requests(session, bounds, &mut connection).await;
    let words = match served {
        Ok(Last::Switched(tunnel)) => {
            if let Some(client) = connection.into_switched() {
                session.switched.store(true, Ordering::Relaxed);
                tunnel.run(client).await;
            }
            return;
        }
        Ok(Last::Answered) => Vec::new(),
        Ok(Last::Late) if connection.has_heard() => Answer::slow_head().into_bytes(),
        Ok(Last::Late | Last::Left) => return,
        Err(Broken::Malformed(why)) => Answer::malformed_request(why).into_bytes(),
        Err(error) => {
            tracing::debug!(%error, "client connection ended");
            return;
        }
    };
    // Whoever does not read it in time has lost it.
    drop(tokio::time::timeout(LEAVE_MAX, connection.leave(&words)).await);
}

/// Why no more requests are served.
enum Last {
    /// The client wants no more.
    Left,
    /// The last one was answered.
    Answered,
    /// The client was silent for too long.
    Late,
    Switched(Box<Tunnel>),
}

async fn serve_requests(
    session: &Arc<Session>,
    bounds: &mut Bounds<'_>,
    connection: &mut Downstream,
) -> Result<Last, Broken> {
    let entrance = Entrance::new(session);
    loop {
        let head = bounds.within(|ending, cx| match connection.poll_request(cx) {
            Poll::Ready(head) => Poll::Ready(head.map(|head| head.ok_or(Last::Left))),
            Poll::Pending if ending == Ending::Late => Poll::Ready(Ok(Err(Last::Late))),
            Poll::Pending if ending == Ending::Soon && !connection.has_heard() => {
                Poll::Ready(Ok(Err(Last::Left)))
            }
            Poll::Pending => Poll::Pending,
        });
        let head = match head.await {
            Some(head) => match head? {
                Ok(head) => head,
                Err(last) => return Ok(last),
            },
            None => return Ok(Last::Late),
        };
        let asked = head.asked();
        let body = connection.arriving(&head).map_or(ClientBody::Empty, ClientBody::Http1);
        let mut answering = pin!(entrance.enter(head.request.map(|()| body)));
        let answer = bounds.within(|_, cx| match answering.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => connection.poll_left(cx).map(|()| None),
        });
        let Some(Some(answer)) = answer.await else { return Ok(Last::Left) };
        let (parts, reply) = answer.into_parts();
        let (reply, tunnel) = match reply {
            Reply::Switched(tunnel) => (Reply::Whole(None), Some(tunnel)),
            reply => (reply, None),
        };
        let mut sending = connection.begin(parts, reply, &asked, bounds.ending != Ending::No);
        let sent = bounds.within(|_, cx| match connection.poll_send(&mut sending, cx) {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => connection.poll_left(cx).map(|()| Err(Broken::Left)),
        });
        let Some(outcome) = sent.await else { return Ok(Last::Left) };
        match (outcome?, tunnel) {
            (_, Some(tunnel)) => return Ok(Last::Switched(tunnel)),
            (Outcome::Next, None) => {}
            (Outcome::Close, None) => return Ok(Last::Answered),
        }
    }
}
