//! gRPC probes: the standard health check, `grpc.health.v1.Health/Check`, passed by `SERVING`. It must not know how the
//! connection was made.

use tokio::net::TcpStream;

use super::{h2, http};

const PATH: &str = "/grpc.health.v1.Health/Check";

/// Longest answer read. A health message has two bytes.
const ANSWER_MAX: usize = 1024;

/// Before each message of a gRPC stream: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Asks how `service` is; empty is the server as a whole.
pub(super) async fn ask(stream: TcpStream, service: &str) -> Result<(), String> {
    let headers =
        [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", http::USER_AGENT)];
    let body = message(service);
    let request = h2::request("POST", PATH, "localhost", &headers, Some(&body));
    let answer = h2::exchange(stream, &request, PREFIX + 2).await?;
    if answer.status != 200 {
        return Err(format!("answered HTTP {}, not gRPC", answer.status));
    }
    match serving_status(&answer.body) {
        Some(1) => Ok(()),
        Some(2) => Err("answered NOT_SERVING".to_owned()),
        Some(3) => Err("answered SERVICE_UNKNOWN".to_owned()),
        Some(other) => Err(format!("answered status {other}")),
        None => Err(
            "answered without a health status: the program must serve grpc.health.v1.Health and know the \
                 service"
                .to_owned(),
        ),
    }
}

/// `HealthCheckRequest { string service = 1; }` as a message of a gRPC stream.
fn message(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 128 {
            message.push((length % 128) as u8 | 0x80);
            length /= 128;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// `status` of `HealthCheckResponse { ServingStatus status = 1; }`. Absent is 0, `UNKNOWN`.
fn serving_status(body: &[u8]) -> Option<u8> {
    let (prefix, rest) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    if prefix[0] != 0 || length > ANSWER_MAX {
        return None;
    }
    match rest.get(..length)? {
        [] => Some(0),
        [0x08, status] if *status < 0x80 => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::{HeaderMap, StatusCode, Uri};
    use axum::response::{IntoResponse as _, Response};

    use super::*;
    use crate::probe::tests::serve;

    async fn asked(port: u16, service: &str) -> Result<(), String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), ask(stream, service)).await.unwrap()
    }

    /// A health service that knows a few services by name.
    async fn health(uri: Uri, headers: HeaderMap, body: Body) -> Response {
        assert_eq!((uri.path(), &headers["content-type"]), (PATH, &"application/grpc".parse().unwrap()));
        let body = to_bytes(body, ANSWER_MAX).await.unwrap();
        let service = body.strip_prefix(&[0, 0, 0, 0]).unwrap();
        let service = String::from_utf8(service.get(3..).unwrap_or_default().to_vec()).unwrap();
        let answer: &[u8] = match service.as_str() {
            "" => &[0, 0, 0, 0, 2, 8, 1],
            "asleep" => &[0, 0, 0, 0, 2, 8, 2],
            "unknown" => &[0, 0, 0, 0, 0],
            "cut" => &[0, 0, 0, 0, 2, 8],
            "proxy" => return StatusCode::BAD_GATEWAY.into_response(),
            // As gRPC tells an error: in the headers, with no message.
            _ => return [("grpc-status", "5"), ("content-type", "application/grpc")].into_response(),
        };
        ([("content-type", "application/grpc")], answer.to_vec()).into_response()
    }

    #[tokio::test]
    async fn serving_passes_and_everything_else_fails_in_words() {
        let port = serve(axum::Router::new().fallback(health)).await;
        assert_eq!(asked(port, "").await, Ok(()));
        for (service, expected) in [
            ("asleep", "answered NOT_SERVING"),
            ("unknown", "answered status 0"),
            ("cut", "answered without a health status"),
            ("proxy", "answered HTTP 502, not gRPC"),
            ("missing", "answered without a health status"),
        ] {
            let failed = asked(port, service).await.unwrap_err();
            assert!(failed.starts_with(expected), "{service}: {failed}");
        }
    }

    #[test]
    fn a_request_names_its_service() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"s".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
    }
}
