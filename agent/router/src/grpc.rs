//! What the router has to know of gRPC: whether a call is one, its deadline, how to say that it failed, and whether it did.

use http::StatusCode;
use http::header::{CONTENT_TYPE as CONTENT_TYPE_HEADER, HeaderMap, HeaderName, HeaderValue};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

pub(crate) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

pub(crate) const CANCELLED: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const UNIMPLEMENTED: u8 = 12;
pub(crate) const INTERNAL: u8 = 13;
pub(crate) const UNAVAILABLE: u8 = 14;
pub(crate) const DATA_LOSS: u8 = 15;

/// Longest message of a failure; it is a header.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether these are the headers of a call.
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE_HEADER).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc")).is_some_and(|rest| {
        // Not gRPC-Web, which is HTTP/1 with the outcome in its body.
        matches!(rest, [] | [b'+' | b';' | b' ', ..])
    })
}

/// The call's own deadline, milliseconds, at least one. `None` without, or with one that makes no sense.
pub(crate) fn timeout_ms(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let ms = match unit {
        "H" => count * 3_600_000,
        "M" => count * 60_000,
        "S" => count * 1000,
        "m" => count,
        "u" => count.div_ceil(1000),
        "n" => count.div_ceil(1_000_000),
        _ => return None,
    };
    Some(ms.max(1))
}

/// The headers or trailers that end a call.
pub(crate) fn outcome(status: u8, message: HeaderValue) -> HeaderMap {
    HeaderMap::from_iter([(STATUS, HeaderValue::from(u16::from(status))), (MESSAGE, message)])
}

/// The outcome in headers or trailers, if they tell it. What is none of gRPC's numbers is unknown, as to its clients.
pub(crate) fn told_outcome(headers: &HeaderMap) -> Option<u8> {
    let told = headers.get(STATUS)?.to_str().ok();
    Some(told.and_then(|told| told.parse().ok()).unwrap_or(UNKNOWN))
}

/// The HTTP status as which a call's outcome is counted: whether the server is to blame.
pub(crate) fn counted_as(outcome: u8) -> StatusCode {
    match outcome {
        UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE | DATA_LOSS => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    }
}

/// A text as it may stand in a header: what is not printable ASCII, and the percent sign, in percent encoding.
pub(crate) fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.trim_end().bytes().take(MESSAGE_BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).expect("printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::try_from(value).unwrap())])
    }

    #[test]
    fn calls_are_told_by_their_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_call(&headers(CONTENT_TYPE_HEADER, kind)), expected, "{kind}");
        }
    }

    #[test]
    fn deadlines_have_units() {
        for (text, expected) in [
            ("2H", Some(7_200_000)),
            ("3M", Some(180_000)),
            ("5S", Some(5000)),
            ("250m", Some(250)),
            ("1500u", Some(2)),
            ("1n", Some(1)),
            ("0m", Some(1)),
            ("99999999H", Some(359_999_996_400_000)),
            ("", None),
            ("m", None),
            ("5", None),
            ("-5m", None),
            ("123456789m", None),
            ("5s", None),
        ] {
            assert_eq!(timeout_ms(&headers(TIMEOUT, text)), expected, "{text}");
        }
    }

    #[test]
    fn outcomes_count_as_the_server_s_fault_or_not() {
        let counted = |told: &str| {
            let outcome = told_outcome(&headers(STATUS, told))?;
            Some(counted_as(outcome).as_u16())
        };
        let faults = ["2", "4", "13", "14", "15", "", "x", "-1", "256"];
        let others = ["0", "1", "3", "5", "6", "7", "8", "9", "10", "11", "12", "16"];
        assert_eq!(faults.map(counted), [Some(500); 9]);
        assert_eq!(others.map(counted), [Some(200); 12]);
        assert_eq!(told_outcome(&HeaderMap::new()), None);
    }

    #[test]
    fn messages_are_encoded() {
        assert_eq!(message("50 % of\n\u{fc}"), "50 %25 of%0A%C3%BC");
        assert!(message(&"\n".repeat(5000)).is_empty());
        assert_eq!(message(&"x".repeat(5000)).len(), MESSAGE_BYTES_MAX);
    }
}
