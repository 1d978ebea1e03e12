//! The function's HTTP side: what can be asked, and how it is answered. Must not know what computes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::device::{Device, DeviceError};
use crate::images::{self, BadBody};
use crate::network::{Scores, class};

/// Longest body, bytes: as many images as a request may hold, written as JSON with room to spare.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// A connection that sends no whole request head for this long is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long requests in flight may take when the program is told to end.
const END_MAX: Duration = Duration::from_secs(10);

/// How long to wait when no descriptor or memory is left: what is served now has to end first.
const NO_ROOM: Duration = Duration::from_millis(10);

const USAGE: &str = "\
Reads digits of 8x8 pixels.

  POST /classify   one image: 64 bytes, 0 (paper) to 16 (ink), row by row, or a JSON array of 64 numbers;
                   several: one after the other, or an array of arrays; at most 1024
                   answers {class, scores, device, micros}; for several {answers: [{class, scores}], device, micros}
  GET /healthz     whether the device works
  GET /check       the device's answers for 360 unseen digits against the CPU's
  GET /memory      whether the memory that HOLD_MIB has taken still holds what was written
";

#[derive(Serialize)]
struct One {
    class: usize,
    scores: Scores,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Read {
    One(One),
    Many { answers: Vec<One> },
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    read: Read,
    device: &'a str,
    /// On the device, with the copies there and back.
    micros: u64,
}

/// Serves until `ended`, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, device: Device, ended: impl Future<Output = ()>) {
    let device = Arc::new(device);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connections = GracefulShutdown::new();
    let mut ended = std::pin::pin!(ended);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ended => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(NO_ROOM).await;
            continue;
        };
        // Without it answers would only be slower.
        let _ = stream.set_nodelay(true);
        let device = Arc::clone(&device);
        let service = service_fn(move |request| {
            let device = Arc::clone(&device);
            async move { Ok::<_, Infallible>(answer(&device, request).await) }
        });
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        // A broken connection concerns nobody but its other end.
        tokio::spawn(connection);
    }
    let _ = tokio::time::timeout(END_MAX, connections.shutdown()).await;
}

async fn answer(device: &Device, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let allowed = match path {
        "/classify" => &[Method::POST][..],
        "/" | "/healthz" | "/check" | "/memory" => &[Method::GET, Method::HEAD],
        _ => return text(StatusCode::NOT_FOUND, &format!("there is no {path}\n\n{USAGE}")),
    };
    if !allowed.contains(request.method()) {
        let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
        let said = format!("{path} takes {}\n", names.join(" and "));
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, &said);
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(if allowed.len() > 1 { "GET, HEAD" } else { "POST" }));
        return refusal;
    }
    match path {
        "/classify" => classify(device, request.into_body()).await,
        "/healthz" => match device.broken() {
            None => text(StatusCode::OK, &format!("{} works\n", device.name)),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{} failed: {why}\n", device.name)),
        },
        "/check" => match device.check().await {
            Ok(result) => json(good(result.is_within_tolerance), &result),
            Err(error) => failed(&error),
        },
        "/memory" => match device.memory().await {
            Ok(result) => json(good(result.wrong_words == 0), &result),
            Err(error) => failed(&error),
        },
        _ => text(StatusCode::OK, USAGE),
    }
}

async fn classify(device: &Device, body: Incoming) -> Response<Full<Bytes>> {
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let said =
                format!("a body has at most {BODY_BYTES_MAX} bytes: send the images in several requests\n");
            return text(StatusCode::PAYLOAD_TOO_LARGE, &said);
        }
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("the body broke off: {error}\n")),
    };
    let sent = match images::parse(&body) {
        Ok(sent) => sent,
        Err(error @ BadBody::TooMany(_)) => {
            return text(StatusCode::PAYLOAD_TOO_LARGE, &format!("{error}\n"));
        }
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("{error}\n")),
    };
    let classified = match device.classify(sent.images).await {
        Ok(classified) => classified,
        Err(error) => return failed(&error),
    };
    let mut answers: Vec<One> =
        classified.scores.iter().map(|scores| One { class: class(scores), scores: *scores }).collect();
    let read = match (sent.is_batch, answers.pop()) {
        (false, Some(only)) => Read::One(only),
        (_, last) => {
            answers.extend(last);
            Read::Many { answers }
        }
    };
    let micros = classified.took.as_micros() as u64;
    json(StatusCode::OK, &Answer { read, device: &device.name, micros })
}

fn good(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }
}

fn failed(error: &DeviceError) -> Response<Full<Bytes>> {
    text(StatusCode::INTERNAL_SERVER_ERROR, &format!("the device failed: {error}\n"))
}

fn text(status: StatusCode, said: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", said.to_owned().into())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Full<Bytes>> {
    let mut body = serde_json::to_vec(value).expect("numbers and texts can be written");
    body.push(b'\n');
    response(status, "application/json", body.into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
