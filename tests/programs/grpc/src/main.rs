//! The gRPC function that tests deploy: HTTP/2 with prior knowledge, and the outcome of each call in its trailers.
//!
//! `/test.Echo/Say` gives every message back as it comes, which is a unary call or a stream as the caller likes.
//! `/grpc.health.v1.Health/Check` answers `SERVING`, with `HEALTH=ill` `NOT_SERVING`. Every other method is `UNIMPLEMENTED`.
//! It ends on SIGTERM.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use futures_util::stream;
use futures_util::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Status codes of gRPC.
const OK: &str = "0";
const UNIMPLEMENTED: &str = "12";

/// `HealthCheckResponse` with `SERVING` and with `NOT_SERVING`, each behind the five bytes that precede a message.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];
const NOT_SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 2];

type Frames = stream::BoxStream<'static, Result<Frame<Bytes>, hyper::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut terminate = signal(SignalKind::terminate()).expect("a handler can be had");
    tokio::select! {
        () = serve() => {}
        _ = terminate.recv() => {}
    }
}

async fn serve() {
    let port: u16 = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).expect("PORT is set");
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.expect("the port is free");
    println!("listening");
    loop {
        // Out of descriptors, and what is served now has to end first.
        let Ok((connection, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request)) });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // Whoever asked may have gone.
            let _ = builder.serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

fn answer(request: Request<Incoming>) -> Response<StreamBody<Frames>> {
    let path = request.uri().path().to_owned();
    let frames = match path.as_str() {
        "/test.Echo/Say" => echo(request.into_body()).boxed(),
        "/grpc.health.v1.Health/Check" => {
            let is_ill = std::env::var("HEALTH").is_ok_and(|health| health == "ill");
            let message = Bytes::from_static(if is_ill { &NOT_SERVING } else { &SERVING });
            stream::iter([Ok(Frame::data(message)), Ok(Frame::trailers(outcome(OK)))]).boxed()
        }
        _ => stream::iter([Ok(Frame::trailers(outcome(UNIMPLEMENTED)))]).boxed(),
    };
    let mut answer = Response::new(StreamBody::new(frames));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    answer
}

/// What comes goes back, and when no more comes the call went well.
fn echo(asked: Incoming) -> impl Stream<Item = Result<Frame<Bytes>, hyper::Error>> {
    stream::unfold(Some(asked), |asked| async {
        let mut asked = asked?;
        loop {
            match asked.frame().await {
                Some(Ok(frame)) if frame.is_data() => return Some((Ok(frame), Some(asked))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((Ok(Frame::trailers(outcome(OK))), None)),
            }
        }
    })
}

fn outcome(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))])
}
