//! Heads of requests and answers (RFC 9112, 2 to 6): read from bytes and written to them.
//!
//! Pure. What a head says of its own message is found here: where the body ends and whether the connection goes on. It
//! must not know sockets, nor what a proxy does to headers.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use smallvec::SmallVec;

use super::framing::Framing;
use super::{FIELDS_MAX, HEAD_MAX, Malformed, date};

/// Fields that a proxy adds to a head.
const FIELDS_ADDED: usize = 6;

/// A request without its body.
pub(crate) struct RequestHead {
    pub(crate) request: Request<()>,
    pub(crate) framing: Framing,
    /// Whether the client may send another request after it.
    pub(crate) keep: bool,
    /// The client waits to be told that its body is wanted.
    pub(crate) expects_continue: bool,
    /// The client understands trailers.
    pub(crate) takes_trailers: bool,
}

/// An answer without its body.
pub(crate) struct AnswerHead {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// Whether the connection may be used again.
    pub(crate) keep: bool,
}

/// Take a request's head out of received bytes. `None`: it needs more.
pub(crate) fn take_request(received: &mut BytesMut) -> Result<Option<RequestHead>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut head, received, &mut fields)
        .map_err(refusal)?;
    let Some(length) = complete(parsed, received)? else { return Ok(None) };
    let version = version(head.version)?;
    let method = Method::from_bytes(head.method.unwrap_or_default().as_bytes());
    let method = method.map_err(|_| Malformed::Head(httparse::Error::Token))?;
    let target = place(received, head.path.unwrap_or_default().as_bytes());
    let places = places(received, head.headers);
    let head = received.split_to(length).freeze();
    let target = Uri::from_maybe_shared(head.slice(range(&target))).map_err(|_| Malformed::Target)?;
    let (headers, found) = headers(&head, &places)?;
    let framing = request_framing(version, &headers, &found)?;
    let keep = if found.connection { goes_on(version, &headers) } else { version == Version::HTTP_11 };
    let says = |name, what| headers.get_all(name).iter().any(|value| names(value, what));
    let expects_continue = found.expect && version == Version::HTTP_11 && says(EXPECT, b"100-continue");
    let takes_trailers = found.te && says(TE, b"trailers");
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Some(RequestHead { request, framing, keep, expects_continue, takes_trailers }))
}

/// Where a request's body ends. Two ways to tell it are refused: somebody before might have believed the other one.
fn request_framing(version: Version, headers: &HeaderMap, found: &Found) -> Result<Framing, Malformed> {
    if found.encoding {
        let clear = version == Version::HTTP_11 && !found.length && is_chunked(headers);
        return if clear { Ok(Framing::Chunked) } else { Err(Malformed::Encoding) };
    }
    let length = if found.length { length(headers)? } else { None };
    Ok(length.filter(|bytes| *bytes > 0).map_or(Framing::Empty, Framing::Length))
}

/// Take an answer's head out of received bytes. `None`: it needs more. `method`: of the request.
pub(crate) fn take_answer(received: &mut BytesMut, method: &Method) -> Result<Option<AnswerHead>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut head, received, &mut fields)
        .map_err(refusal)?;
    let Some(length) = complete(parsed, received)? else { return Ok(None) };
    let version = version(head.version)?;
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Field)?;
    let places = places(received, head.headers);
    let (headers, found) = headers(&received.split_to(length).freeze(), &places)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    let (framing, delimited) = answer_framing(&mut response, &found, method)?;
    let goes_on =
        if found.connection { goes_on(version, response.headers()) } else { version == Version::HTTP_11 };
    Ok(Some(AnswerHead { response, framing, keep: delimited && goes_on }))
}

/// Where an answer's body ends (RFC 9112, 6.3), and whether the next answer can be told from it.
fn answer_framing(
    response: &mut Response<()>,
    found: &Found,
    method: &Method,
) -> Result<(Framing, bool), Malformed> {
    let (status, version) = (response.status(), response.version());
    let headers = response.headers_mut();
    if found.encoding && (version == Version::HTTP_10 || !is_chunked(headers)) {
        return Err(Malformed::Encoding);
    }
    let length = if found.length { length(headers)? } else { None };
    if method == Method::HEAD || is_bodyless(status) {
        return Ok((Framing::Empty, true));
    }
    if found.encoding {
        // Two ways to tell the end: one of the two was meant for somebody else.
        let clear = headers.remove(CONTENT_LENGTH).is_none();
        return Ok((Framing::Chunked, clear));
    }
    Ok(match length {
        Some(0) => (Framing::Empty, true),
        Some(bytes) => (Framing::Length(bytes), true),
        None => (Framing::UntilClose, false),
    })
}

/// Answers that never have a body.
pub(crate) fn is_bodyless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The one length that all Content-Length fields say.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for text in value.as_bytes().split(|byte| *byte == b',') {
            let said = digits(text.trim_ascii()).ok_or(Malformed::Length)?;
            if length.replace(said).is_some_and(|before| before != said) {
                return Err(Malformed::Length);
            }
        }
    }
    Ok(length)
}

fn digits(text: &[u8]) -> Option<u64> {
    let (first, rest) = text.split_first()?;
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    rest.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

/// Whether chunks are all there is of encodings.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = encodings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    chunked && encodings.next().is_none()
}

/// Whether the connection may be used for another message (RFC 9112, 9.3).
fn goes_on(version: Version, headers: &HeaderMap) -> bool {
    let says = |what| headers.get_all(CONNECTION).iter().any(|value| names(value, what));
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

/// Whether a list has this element.
fn names(value: &HeaderValue, what: &[u8]) -> bool {
    let mut elements = value.as_bytes().split(|byte| *byte == b',');
    elements.any(|element| element.trim_ascii().eq_ignore_ascii_case(what))
}

/// Write a request's head. `framing`: of its body. Its headers must not name a transfer encoding.
pub(crate) fn put_request<B>(request: &Request<B>, framing: Framing, out: &mut Vec<u8>) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    out.reserve(128 + target.len());
    for part in [request.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    put_fields(request.headers(), framing, out);
    out.extend_from_slice(b"\r\n");
}

/// What an answer's head says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// It goes on, as the client takes for granted.
    Keep,
    /// It goes on, which a client of HTTP/1.0 must be told.
    KeepSaid,
    Close,
    /// Its headers say it already.
    Switched,
}

/// Write an answer's head. `framing`: of its body; `None` if it has none, whatever its length says.
pub(crate) fn put_answer(
    status: StatusCode,
    headers: &HeaderMap,
    framing: Option<Framing>,
    onward: Onward,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    match framing {
        None => headers.iter().for_each(|(name, value)| put_field(name.as_str(), value.as_bytes(), out)),
        Some(Framing::Empty) if !headers.contains_key(CONTENT_LENGTH) => {
            put_fields(headers, Framing::Empty, out);
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Some(framing) => put_fields(headers, framing, out),
    }
    match onward {
        Onward::Keep | Onward::Switched => {}
        Onward::KeepSaid => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Onward::Close => out.extend_from_slice(b"connection: close\r\n"),
    }
    if !headers.contains_key(DATE) {
        out.extend_from_slice(b"date: ");
        date::put(out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Write fields, and what the body's framing needs.
fn put_fields(headers: &HeaderMap, framing: Framing, out: &mut Vec<u8>) {
    let mut said = false;
    for (name, value) in headers {
        if name == CONTENT_LENGTH {
            // Never more than one, and never another than what is sent.
            let holds = match framing {
                Framing::Length(bytes) => digits(value.as_bytes()) == Some(bytes),
                Framing::Empty => value == "0",
                Framing::Chunked | Framing::UntilClose => false,
            };
            if said || !holds {
                continue;
            }
            said = true;
        }
        put_field(name.as_str(), value.as_bytes(), out);
    }
    match framing {
        Framing::Length(bytes) if !said => {
            out.extend_from_slice(b"content-length: ");
            put_decimal(bytes, out);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
}

pub(super) fn put_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn put_decimal(number: u64, out: &mut Vec<u8>) {
    let mut text = itoa::Buffer::new();
    out.extend_from_slice(text.format(number).as_bytes());
}

pub(super) fn put_hex(number: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let count = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..count).rev().map(|place| DIGITS[(number >> (place * 4)) & 15]));
}

/// Where a part stands in a head, whose size is bounded.
type Place = Range<u32>;

fn place(head: &[u8], part: &[u8]) -> Place {
    let start = (part.as_ptr() as usize - head.as_ptr() as usize) as u32;
    start..start + part.len() as u32
}

fn range(place: &Place) -> Range<usize> {
    place.start as usize..place.end as usize
}

/// Where the names and values of fields stand.
#[inline(always)]
fn places(head: &[u8], fields: &[httparse::Header<'_>]) -> SmallVec<[(Place, Place); 24]> {
    fields.iter().map(|field| (place(head, field.name.as_bytes()), place(head, field.value))).collect()
}

/// Fields that say something of the message itself; most are not there, and looking for each would cost more.
#[derive(Default)]
struct Found {
    connection: bool,
    encoding: bool,
    expect: bool,
    length: bool,
    te: bool,
}

/// The fields of a head, whose values stay where they are.
fn headers(head: &Bytes, places: &[(Place, Place)]) -> Result<(HeaderMap, Found), Malformed> {
    let (mut headers, mut found) = (HeaderMap::with_capacity(places.len() + FIELDS_ADDED), Found::default());
    for (name, value) in places {
        let name = HeaderName::from_bytes(&head[range(name)]).map_err(|_| Malformed::Field)?;
        found.connection |= name == CONNECTION;
        found.encoding |= name == TRANSFER_ENCODING;
        found.expect |= name == EXPECT;
        found.length |= name == CONTENT_LENGTH;
        found.te |= name == TE;
        let value = head.slice(range(value));
        headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Field)?);
    }
    Ok((headers, found))
}

/// Fields of trailers. `None` if one is not valid.
pub(super) fn fields(fields: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let field = |field: &httparse::Header<'_>| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    };
    let mut map = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter().map(field).collect::<Option<Vec<_>>>()? {
        map.append(name, value);
    }
    Some(map)
}

fn version(minor: Option<u8>) -> Result<Version, Malformed> {
    match minor {
        Some(0) => Ok(Version::HTTP_10),
        Some(1) => Ok(Version::HTTP_11),
        _ => Err(Malformed::Version),
    }
}

fn refusal(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::ManyFields,
        httparse::Error::Version => Malformed::Version,
        error => Malformed::Head(error),
    }
}

/// The length of a head, if it is complete.
fn complete(parsed: httparse::Status<usize>, received: &BytesMut) -> Result<Option<usize>, Malformed> {
    match parsed {
        httparse::Status::Complete(length) if length <= HEAD_MAX => Ok(Some(length)),
        httparse::Status::Partial if received.len() < HEAD_MAX => Ok(None),
        _ => Err(Malformed::LargeHead),
    }
}

#[cfg(test)]
mod tests;
