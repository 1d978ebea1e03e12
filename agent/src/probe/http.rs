//! HTTP probes: one GET on a fresh connection, passed by 2xx and 3xx. Redirects are not followed. It must not know how the
//! connection was made.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tombolo_api::serving::{HttpGetAction, HttpHeader};

use super::h2;

/// Longest status line read.
const STATUS_LINE_MAX: usize = 1024;

/// Programs tell probes from requests by this, as they do on Kubernetes.
pub(super) const USER_AGENT: &str = "kube-probe/tombolo";

/// One request, ready to be sent.
pub(super) struct Request {
    path: String,
    /// In the protocol's own form.
    bytes: Vec<u8>,
    http2: bool,
}

impl Request {
    /// `http2`: the port speaks HTTP/2 only.
    pub(super) fn new(get: &HttpGetAction, port: u16, http2: bool) -> Self {
        let path = clean(&get.path);
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let given = |name: &str| {
            get.http_headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(value)
        };
        let host = given("host").unwrap_or_else(|| format!("localhost:{port}"));
        let mut headers = Vec::new();
        if given("user-agent").is_none() {
            headers.push(("User-Agent".to_owned(), USER_AGENT.to_owned()));
        }
        let rest = get.http_headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("host"));
        headers.extend(rest.map(|header| (clean(&header.name), value(header))));
        headers.push(("K-Network-Probe".to_owned(), "queue".to_owned()));
        let bytes = if http2 {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            h2::request("GET", &path, &host, &headers, None)
        } else {
            let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            text.push_str("Connection: close\r\n\r\n");
            text.into_bytes()
        };
        Self { path, bytes, http2 }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

/// Sends the request and judges the answer's status.
pub(super) async fn ask(stream: TcpStream, request: &Request) -> Result<(), String> {
    let status = if request.http2 {
        h2::exchange(stream, &request.bytes, 0).await?.status
    } else {
        first_line(stream, &request.bytes).await?
    };
    match status {
        200..=399 => Ok(()),
        status => Err(format!("answered {status}")),
    }
}

async fn first_line(mut stream: TcpStream, request: &[u8]) -> Result<u16, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    let mut answer = Vec::with_capacity(256);
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_MAX {
        if stream.read_buf(&mut answer).await.map_err(|error| error.to_string())? == 0 {
            break;
        }
    }
    status(&answer).ok_or_else(|| "did not answer in HTTP/1".to_owned())
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\n').next()?).ok()?;
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next().filter(|status| status.len() == 3)?.parse().ok()
}

fn value(header: &HttpHeader) -> String {
    clean(&header.value)
}

/// Line ends would begin another header; nobody may smuggle one in.
fn clean(text: &str) -> String {
    text.replace(['\r', '\n'], "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::{HeaderMap, StatusCode, Uri};
    use tokio::net::TcpListener;

    use super::*;
    use crate::probe::tests::serve;

    fn get(path: &str) -> HttpGetAction {
        HttpGetAction { path: path.into(), ..HttpGetAction::default() }
    }

    async fn asked(port: u16, get: &HttpGetAction, http2: bool) -> Result<(), String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = Request::new(get, port, http2);
        tokio::time::timeout(Duration::from_secs(10), ask(stream, &request)).await.unwrap()
    }

    #[tokio::test]
    async fn any_status_from_200_to_399_passes_over_both_versions() {
        let answer =
            |uri: Uri| async move { StatusCode::from_u16(uri.path()[1..].parse().unwrap()).unwrap() };
        let port = serve(axum::Router::new().fallback(answer)).await;
        for http2 in [false, true] {
            for status in [200, 204, 206, 226, 302, 304, 308, 399] {
                assert_eq!(asked(port, &get(&format!("/{status}")), http2).await, Ok(()), "{http2} {status}");
            }
            for status in [400, 404, 418, 429, 500, 503, 599] {
                let failed = asked(port, &get(&format!("/{status}")), http2).await;
                assert_eq!(failed, Err(format!("answered {status}")), "{http2}");
            }
        }
    }

    #[tokio::test]
    async fn the_request_carries_the_probes_headers_and_says_what_it_is() {
        let answer = |uri: Uri, headers: HeaderMap| async move {
            let is = |name: &str, value: &str| headers.get(name).is_some_and(|found| found == value);
            let host = is("host", "shop.example") || uri.host() == Some("shop.example");
            let ours = is("x-long", &"v".repeat(200)) && is("k-network-probe", "queue");
            let all = host && ours && is("user-agent", USER_AGENT) && uri.path() == "/healthz";
            if all { StatusCode::OK } else { StatusCode::BAD_REQUEST }
        };
        let port = serve(axum::Router::new().fallback(answer)).await;
        let header = |name: &str, value: String| HttpHeader { name: name.into(), value };
        let headers = vec![header("Host", "shop.example".into()), header("X-Long", "v".repeat(200))];
        let get = HttpGetAction { http_headers: headers, ..get("healthz") };
        for http2 in [false, true] {
            assert_eq!(asked(port, &get, http2).await, Ok(()), "{http2}");
        }
    }

    #[tokio::test]
    async fn what_is_not_http_fails_in_words() {
        for (said, http2, expected) in [
            ("garbage\n", false, "did not answer in HTTP/1"),
            ("", false, "did not answer in HTTP/1"),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", true, "did not answer in HTTP/2"),
            ("", true, "closed the connection before it answered"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(said.as_bytes()).await;
            });
            assert_eq!(asked(port, &get("/"), http2).await, Err(expected.to_owned()));
        }
    }

    #[test]
    fn line_ends_cannot_add_headers() {
        let headers = vec![HttpHeader { name: "A\r\nB".into(), value: "1\r\nC: 2".into() }];
        let get = HttpGetAction { http_headers: headers, ..get("/a\r\nb") };
        let request = String::from_utf8(Request::new(&get, 80, false).bytes).unwrap();
        assert!(
            request.starts_with("GET /ab HTTP/1.1\r\n") && request.contains("\r\nAB: 1C: 2\r\n"),
            "{request}"
        );
    }
}
