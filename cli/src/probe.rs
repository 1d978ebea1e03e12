//! One request to a service through a node's router, as a caller would make it.
//!
//! Must not know how the router was found.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Url;

/// A router on the same network accepts in far less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Most of an answer that is read, bytes: enough for any page a person looks at.
const BODY_MAX: usize = 1024 * 1024;

/// The word a router puts into answers of its own, that is, where no function answered.
const REASON_HEADER: &str = "x-tombolo-reason";

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Set if the router answered by itself.
    pub(crate) refused: Option<String>,
    /// At most the first megabyte.
    pub(crate) body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("{0:?} is no URL of a service")]
    Url(String),
    #[error("no connection to the router at {router}: {cause}")]
    Connect { router: SocketAddr, cause: String },
    #[error("the router at {router} gave no whole answer: {cause}")]
    Broken { router: SocketAddr, cause: String },
}

impl Answer {
    /// Its text as one line, for the end of a sentence.
    pub(crate) fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
    }
}

/// Asks for `url` at `router`, wherever the URL's host would lead.
pub(crate) async fn ask(router: SocketAddr, url: &str, timeout: Duration) -> Result<Answer, ProbeError> {
    let broken = |error: &reqwest::Error| ProbeError::Broken { router, cause: crate::hub::innermost(error) };
    let client = tombolo_oci::client::without_tls(reqwest::Client::builder())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| broken(&error))?;
    let host = host_of(url).ok_or_else(|| ProbeError::Url(url.to_owned()))?;
    let sent = client.get(format!("http://{router}/")).header("Host", host).send().await;
    let answer = sent.map_err(|error| match error.is_connect() {
        true => ProbeError::Connect { router, cause: crate::hub::innermost(&error) },
        false => broken(&error),
    })?;
    let reason = answer.headers().get(REASON_HEADER).and_then(|value| value.to_str().ok());
    let (status, refused) = (answer.status().as_u16(), reason.map(str::to_owned));
    let (mut body, mut chunks) = (Vec::new(), answer.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken(&error))?;
        let room = BODY_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == BODY_MAX {
            break;
        }
    }
    Ok(Answer { status, refused, body })
}

/// Host and port as a caller writes them into `Host`.
fn host_of(url: &str) -> Option<String> {
    let url: Url = url.parse().ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// A service's URL, and the router through which it answered from here, if one could be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answering {
    pub(crate) url: String,
    pub(crate) router: Option<SocketAddr>,
}

/// The curl line that makes the same request.
pub(crate) struct Curl<'a>(pub(crate) &'a Answering);

impl fmt::Display for Curl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answering { url, router } = self.0;
        let parsed: Option<Url> = url.parse().ok();
        // curl takes every name below `localhost` to the loopback addresses itself; other names are in some DNS.
        let leads_there = |router: &SocketAddr| {
            let Some(url) = &parsed else { return true };
            !url.host_str().is_some_and(|host| host.ends_with(".localhost"))
                || (router.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)
                    && url.port_or_known_default() == Some(router.port()))
        };
        match (router.filter(|router| !leads_there(router)), host_of(url)) {
            (Some(router), Some(host)) => write!(f, "curl -H 'Host: {host}' http://{router}/"),
            _ => write!(f, "curl {url}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// A router that gives one answer, and the request it got.
    async fn router(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        (address, tokio::spawn(serve))
    }

    #[tokio::test]
    async fn the_url_names_the_host_and_the_router_is_asked() {
        let (address, request) = router("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n").await;
        let answer = ask(address, "http://hello.default.localhost:8080", TIMEOUT).await.unwrap();
        assert_eq!(answer, Answer { status: 200, refused: None, body: b"hi\n".to_vec() });
        let request = request.await.unwrap().to_ascii_lowercase();
        assert!(request.contains("\r\nhost: hello.default.localhost:8080\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_refusal_of_the_router_is_told_apart_from_an_answer() {
        let head =
            "HTTP/1.1 404 Not Found\r\nx-tombolo-reason: UnknownHost\r\nContent-Length: 5\r\n\r\nno\nno";
        let (address, _request) = router(head).await;
        let answer = ask(address, "http://a.b", TIMEOUT).await.unwrap();
        assert_eq!(
            (answer.status, answer.refused.as_deref(), answer.excerpt().as_str()),
            (404, Some("UnknownHost"), "no")
        );
    }

    #[tokio::test]
    async fn nobody_there_is_told_apart_from_a_broken_answer() {
        let (address, _request) = router("nonsense").await;
        assert!(matches!(ask(address, "http://a.b", TIMEOUT).await, Err(ProbeError::Broken { .. })));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = listener.local_addr().unwrap();
        drop(listener);
        assert!(matches!(ask(free, "http://a.b", TIMEOUT).await, Err(ProbeError::Connect { .. })));
    }

    #[test]
    fn curl_is_told_the_router_only_where_the_name_does_not_lead_to_it() {
        for (url, router, line) in [
            ("http://a.b.localhost:8080", Some("127.0.0.1:8080"), "curl http://a.b.localhost:8080"),
            ("http://a.b.localhost", Some("127.0.0.1:80"), "curl http://a.b.localhost"),
            (
                "http://a.b.localhost:8080",
                Some("10.0.0.7:8080"),
                "curl -H 'Host: a.b.localhost:8080' http://10.0.0.7:8080/",
            ),
            (
                "http://a.b.localhost:8080",
                Some("127.0.0.1:9090"),
                "curl -H 'Host: a.b.localhost:8080' http://127.0.0.1:9090/",
            ),
            ("http://a.b.example.com", Some("10.0.0.7:8080"), "curl http://a.b.example.com"),
            ("http://a.b.localhost:8080", None, "curl http://a.b.localhost:8080"),
        ] {
            let answering =
                Answering { url: url.into(), router: router.map(|router| router.parse().unwrap()) };
            assert_eq!(Curl(&answering).to_string(), line);
        }
    }
}
