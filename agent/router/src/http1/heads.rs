//! Heads of requests and answers (RFC 9112, 2 to 6): read from bytes and written to them.
//!
//! Pure. What a head says of its own message is found here: where the body ends and whether the connection goes on. It
//! must not know sockets, nor what a proxy does to headers.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use smallvec::SmallVec;

use super::framing::Framing;
use super::{FIELDS_MAX, HEAD_MAX, Malformed};

/// Fields that a proxy adds to a head.
const FIELDS_ADDED: usize = 6;

/// An answer without its body.
pub(crate) struct AnswerHead {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// Whether the connection may be used again.
    pub(crate) keep: bool,
}

/// Take an answer's head out of received bytes. `None`: it needs more. `method`: of the request.
pub(crate) fn take_answer(
    received: &mut BytesMut,
    method: &Method,
) -> Result<Option<AnswerHead>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut head, received, &mut fields)
        .map_err(refusal)?;
    let httparse::Status::Complete(length) = parsed else { return partial(received) };
    let version = version(head.version)?;
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Field)?;
    let places = places(received, head.headers);
    let headers = headers(&received.split_to(length).freeze(), &places)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    let (framing, delimited) = answer_framing(&mut response, method)?;
    let keep = delimited && goes_on(version, response.headers());
    Ok(Some(AnswerHead { response, framing, keep }))
}

/// Where an answer's body ends (RFC 9112, 6.3), and whether the next answer can be told from it.
fn answer_framing(response: &mut Response<()>, method: &Method) -> Result<(Framing, bool), Malformed> {
    let (status, version) = (response.status(), response.version());
    let headers = response.headers_mut();
    let bodyless = method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let has_encoding = headers.contains_key(TRANSFER_ENCODING);
    if has_encoding && version == Version::HTTP_10 {
        return Err(Malformed::Encoding);
    }
    let length = length(headers)?;
    if bodyless {
        return Ok((Framing::Empty, true));
    }
    if has_encoding {
        // Two ways to tell the end: one of the two was meant for somebody else.
        let clear = headers.remove(CONTENT_LENGTH).is_none();
        return Ok(if is_chunked(headers) { (Framing::Chunked, clear) } else { (Framing::UntilClose, false) });
    }
    Ok(match length {
        Some(0) => (Framing::Empty, true),
        Some(bytes) => (Framing::Length(bytes), true),
        None => (Framing::UntilClose, false),
    })
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
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether chunks are the outermost encoding.
fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let last = last.and_then(|value| value.as_bytes().rsplit(|byte| *byte == b',').next());
    last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// Whether the connection may be used for another message (RFC 9112, 9.3).
fn goes_on(version: Version, headers: &HeaderMap) -> bool {
    let says = |what: &[u8]| {
        let mut tokens = headers
            .get_all(CONNECTION)
            .into_iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(what))
    };
    if version == Version::HTTP_11 { !says(b"close") } else { says(b"keep-alive") && !says(b"close") }
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

/// Where a field's name and value stand in a head.
type Place = (Range<u32>, Range<u32>);

fn places(head: &[u8], fields: &[httparse::Header<'_>]) -> SmallVec<[Place; 24]> {
    let place = |part: &[u8]| {
        // Both are parts of the head, whose size is bounded.
        let start = (part.as_ptr() as usize - head.as_ptr() as usize) as u32;
        start..start + part.len() as u32
    };
    fields.iter().map(|field| (place(field.name.as_bytes()), place(field.value))).collect()
}

/// The fields of a head, whose values stay where they are.
fn headers(head: &Bytes, places: &[Place]) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::with_capacity(places.len() + FIELDS_ADDED);
    let range = |range: &Range<u32>| range.start as usize..range.end as usize;
    for (name, value) in places {
        let name = HeaderName::from_bytes(&head[range(name)]).map_err(|_| Malformed::Field)?;
        let value =
            HeaderValue::from_maybe_shared(head.slice(range(value))).map_err(|_| Malformed::Field)?;
        headers.append(name, value);
    }
    Ok(headers)
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

fn partial<T>(received: &BytesMut) -> Result<Option<T>, Malformed> {
    if received.len() < HEAD_MAX { Ok(None) } else { Err(Malformed::LargeHead) }
}
