//! Heads read and written, one row for each rule.

use proptest::prelude::*;

use super::*;

fn request(text: &str) -> Result<Option<RequestHead>, Malformed> {
    take_request(&mut BytesMut::from(text))
}

fn answer(text: &str, method: Method) -> Result<Option<AnswerHead>, Malformed> {
    take_answer(&mut BytesMut::from(text), &method)
}

#[test]
fn a_request_says_where_its_body_ends_and_whether_another_may_follow() {
    for (lines, framing, keep) in [
        ("GET / HTTP/1.1\r\n", Framing::Empty, true),
        ("GET / HTTP/1.0\r\n", Framing::Empty, false),
        ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n", Framing::Empty, true),
        ("GET / HTTP/1.1\r\nconnection: x, Close\r\n", Framing::Empty, false),
        ("GET / HTTP/1.1\r\nconnection: x\r\nconnection: close\r\n", Framing::Empty, false),
        ("POST / HTTP/1.1\r\ncontent-length: 12\r\n", Framing::Length(12), true),
        ("POST / HTTP/1.1\r\ncontent-length: 12, 12\r\ncontent-length: 12\r\n", Framing::Length(12), true),
        ("POST / HTTP/1.1\r\ncontent-length: 0\r\n", Framing::Empty, true),
        ("POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n", Framing::Chunked, true),
    ] {
        let head = request(&format!("{lines}\r\n")).unwrap().unwrap();
        assert_eq!((head.framing, head.keep), (framing, keep), "{lines}");
    }
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused() {
    for (lines, why) in [
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n", Malformed::Encoding),
        ("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n", Malformed::Encoding),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            Malformed::Encoding,
        ),
        ("POST / HTTP/1.1\r\ntransfer-encoding: identity\r\n", Malformed::Encoding),
        ("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n", Malformed::Encoding),
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n", Malformed::Length),
        ("POST / HTTP/1.1\r\ncontent-length: +1\r\n", Malformed::Length),
        ("POST / HTTP/1.1\r\ncontent-length: 0x1\r\n", Malformed::Length),
        ("POST / HTTP/1.1\r\ncontent-length: \r\n", Malformed::Length),
        ("POST / HTTP/1.1\r\ncontent-length: 18446744073709551616\r\n", Malformed::Length),
        ("GET / HTTP/2.0\r\n", Malformed::Version),
        ("GET /a b HTTP/1.1\r\n", Malformed::Version),
        ("GET / HTTP/1.1\r\nx : y\r\n", Malformed::Head(httparse::Error::HeaderName)),
        ("GET / HTTP/1.1\r\n x: y\r\n", Malformed::Head(httparse::Error::HeaderName)),
    ] {
        let refused = request(&format!("{lines}\r\n")).err();
        assert_eq!(refused, Some(why), "{lines}");
    }
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(FIELDS_MAX + 1));
    assert_eq!(request(&many).err(), Some(Malformed::ManyFields));
    let large = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEAD_MAX));
    assert_eq!(request(&large).err(), Some(Malformed::LargeHead));
    assert_eq!(request(&format!("{large}\r\n\r\n")).err(), Some(Malformed::LargeHead));
}

#[test]
fn an_answer_s_end_depends_on_what_was_asked() {
    use Framing::{Chunked, Empty, Length, UntilClose};
    let (get, head) = (Method::GET, Method::HEAD);
    for (lines, method, framing, keep) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", &get, Length(5), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", &head, Empty, true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n", &get, Empty, true),
        ("HTTP/1.1 204 No Content\r\n", &get, Empty, true),
        ("HTTP/1.1 101 Switching Protocols\r\n", &get, Empty, true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n", &get, Chunked, true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n", &get, Chunked, false),
        ("HTTP/1.1 200 OK\r\n", &get, UntilClose, false),
        ("HTTP/1.1 200\r\ncontent-length: 0\r\n", &get, Empty, true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n", &get, Length(5), false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n", &get, Length(5), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n", &get, Length(5), false),
    ] {
        let read = answer(&format!("{lines}\r\n"), method.clone()).unwrap().unwrap();
        assert_eq!((read.framing, read.keep), (framing, keep), "{method} {lines}");
    }
    let both = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    let read = answer(both, Method::GET).unwrap().unwrap();
    assert!(!read.response.headers().contains_key(CONTENT_LENGTH), "one of them is believed and passed on");
    for lines in [
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n",
        "HTTP/1.1 99 Odd\r\n",
    ] {
        assert!(answer(&format!("{lines}\r\n"), Method::GET).is_err(), "{lines}");
    }
}

#[test]
fn a_length_that_does_not_hold_is_not_sent() {
    let mut request = Request::post("/x?y").body(()).unwrap();
    request.headers_mut().append(CONTENT_LENGTH, HeaderValue::from_static("7"));
    request.headers_mut().append(CONTENT_LENGTH, HeaderValue::from_static("7"));
    for (framing, said) in [
        (Framing::Length(7), "content-length: 7\r\n"),
        (Framing::Length(8), "content-length: 8\r\n"),
        (Framing::Chunked, "transfer-encoding: chunked\r\n"),
        (Framing::Empty, ""),
    ] {
        let mut out = Vec::new();
        put_request(&request, framing, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("POST /x?y HTTP/1.1\r\n{said}\r\n"));
    }
}

#[test]
fn an_answer_says_what_its_client_has_to_know() {
    let written = |status, headers: &HeaderMap, framing, onward| {
        let mut out = Vec::new();
        put_answer(status, headers, framing, onward, &mut out);
        String::from_utf8(out).unwrap()
    };
    let mut headers = HeaderMap::new();
    let text = written(StatusCode::OK, &headers, Some(Framing::Empty), Onward::Keep);
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: ") && text.ends_with(" GMT\r\n\r\n")
    );
    headers.insert(DATE, HeaderValue::from_static("now"));
    for (framing, onward, expected) in [
        (None, Onward::Switched, ""),
        (Some(Framing::Length(3)), Onward::Keep, "content-length: 3\r\n"),
        (Some(Framing::Chunked), Onward::Keep, "transfer-encoding: chunked\r\n"),
        (Some(Framing::UntilClose), Onward::Close, "connection: close\r\n"),
        (None, Onward::KeepSaid, "connection: keep-alive\r\n"),
    ] {
        let text = written(StatusCode::OK, &headers, framing, onward);
        assert_eq!(text, format!("HTTP/1.1 200 OK\r\ndate: now\r\n{expected}\r\n"));
    }
    // The length of what a GET would get.
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("1234"));
    assert!(written(StatusCode::OK, &headers, None, Onward::Keep).contains("content-length: 1234\r\n"));
}

#[test]
fn the_date_is_one_of_http() {
    let mut out = Vec::new();
    date::put(&mut out);
    let read = httpdate::parse_http_date(std::str::from_utf8(&out).unwrap()).unwrap();
    assert!(read.elapsed().unwrap() < std::time::Duration::from_secs(60));
}

#[test]
fn chunk_sizes_are_written_in_hexadecimal() {
    for number in [0, 1, 15, 16, 255, 4096, 65_536, usize::MAX] {
        let mut out = Vec::new();
        put_hex(number, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{number:x}"));
    }
}

proptest! {
    /// Whatever comes, it is refused, waited for or understood; and understood the same in every pieces it may come in.
    #[test]
    fn heads_may_come_in_any_pieces(
        target in "/[a-z0-9/?=&%]{0,30}",
        fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,12}", "[ -~]{0,20}"), 0..8),
        cut in 1_usize..40,
    ) {
        let fields: String = fields.iter().map(|(name, value)| format!("x-{name}: {value}\r\n")).collect();
        let text = format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
        let whole = request(&text);
        let mut received = BytesMut::new();
        let mut pieces = None;
        for piece in text.as_bytes().chunks(cut) {
            received.extend_from_slice(piece);
            match take_request(&mut received) {
                Ok(None) => {}
                taken => {
                    pieces = Some(taken);
                    break;
                }
            }
        }
        match (whole, pieces) {
            (Ok(Some(whole)), Some(Ok(Some(pieces)))) => {
                prop_assert_eq!(whole.request.headers(), pieces.request.headers());
                prop_assert_eq!(whole.request.uri(), pieces.request.uri());
                prop_assert!(received.is_empty());
            }
            (Err(whole), Some(Err(pieces))) => prop_assert_eq!(whole, pieces),
            _ => prop_assert!(false, "not the same: {}", text),
        }
    }

    #[test]
    fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(take_request(&mut BytesMut::from(&bytes[..])));
        drop(take_answer(&mut BytesMut::from(&bytes[..]), &Method::GET));
    }
}
