//! HTTP/1.1 as bytes (RFC 9112): heads and bodies read and written, and the two kinds of connections that speak it.
//!
//! [`heads`] and [`framing`] are pure. [`inbox`] and [`outbox`] are what has come from a socket and what is to go to one.
//! It must not know routes, revisions or retries.
//!
//! ```text
//! socket ─▶ inbox ─▶ heads, framing ─▶ request or answer ─▶ heads, framing ─▶ outbox ─▶ socket
//! ```

mod date;
mod downstream;
mod framing;
mod heads;
mod inbox;
mod outbox;
mod upstream;

pub(crate) use downstream::{Arriving, Broken, Downstream, Outcome};
pub(crate) use inbox::Inbox;
pub(crate) use upstream::Upstream;

/// Largest head of a request or an answer, bytes. nginx allows 32 KiB.
pub(crate) const HEAD_MAX: usize = 64 * 1024;

/// Header fields of a head, and of trailers, at most: what browsers, proxies and a framework add together is below 50.
const FIELDS_MAX: usize = 100;

/// What was received is not HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the head cannot be read: {0}")]
    Head(httparse::Error),
    #[error("the head is larger than {HEAD_MAX} bytes")]
    LargeHead,
    #[error("the head has more than {FIELDS_MAX} fields")]
    ManyFields,
    #[error("a field of the head is not valid")]
    Field,
    #[error("the request's target is not valid")]
    Target,
    #[error("the version is not 1.0 or 1.1")]
    Version,
    #[error("Content-Length is not one number")]
    Length,
    #[error("Transfer-Encoding is not chunked, or stands where it may not")]
    Encoding,
    #[error("a chunk's size cannot be read")]
    Chunk,
    #[error("the trailers cannot be read")]
    Trailers,
}
