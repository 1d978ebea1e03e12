//! What a client still sends when it is answered before all was read, as with a piece that is refused. Over HTTP/1 that comes
//! before the next request: a little of it is read here, and for more the client is told that the connection ends, which it
//! would find out with its next request otherwise.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderValue, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// Most that is read: what is on its way already.
const READ_MAX: u64 = 256 * 1024;

/// Longest wait for it.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A request's body after it was lent to whoever answers.
pub(super) struct Leftover {
    shared: Arc<Mutex<Shared>>,
    /// The client sends nothing before it is asked to.
    is_waiting: bool,
}

struct Shared {
    body: Body,
    has_ended: bool,
}

/// The same body, as whoever answers has it.
struct Lent(Arc<Mutex<Shared>>);

/// Lends a request's body, if anything may be left of it.
pub(super) fn lend(request: Request) -> (Request, Option<Leftover>) {
    if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
        return (request, None);
    }
    let is_waiting = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let shared = Arc::new(Mutex::new(Shared { body, has_ended: false }));
    let lent = Body::new(Lent(Arc::clone(&shared)));
    (Request::from_parts(parts, lent), Some(Leftover { shared, is_waiting }))
}

impl Leftover {
    /// Leaves the connection fit for the next request, or says in the response that there will be none.
    pub(super) async fn settle(self, response: &mut Response) {
        // Whoever still reads it leaves nothing.
        let Ok(shared) = Arc::try_unwrap(self.shared) else { return };
        let Shared { body, has_ended } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_read = has_ended || !self.is_waiting && read(body).await;
        if !is_read {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Reads what is left; whether that was all.
async fn read(mut body: Body) -> bool {
    if body.size_hint().lower() > READ_MAX {
        return false;
    }
    let all = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.ok()?.data_ref().map_or(0, |data| data.len() as u64);
            if read > READ_MAX {
                return None;
            }
        }
        Some(())
    };
    matches!(tokio::time::timeout(WAIT_MAX, all).await, Ok(Some(())))
}

impl Lent {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut shared = self.shared();
        let polled = Pin::new(&mut shared.body).poll_frame(context);
        shared.has_ended |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.shared().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.shared().body.size_hint()
    }
}
