//! gRPC calls as a client makes them: HTTP/2 with prior knowledge on a connection for each call, text for messages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::within;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Longest wait for the other end.
const LIMIT: Duration = Duration::from_secs(30);

/// A call whose answer has begun.
pub struct GrpcCall {
    /// `None`: everything is said.
    asked: Option<mpsc::Sender<Frame<Bytes>>>,
    answer: Incoming,
    buffer: Vec<u8>,
    /// Headers and trailers, whichever says how the call went.
    outcome: HeaderMap,
}

impl GrpcCall {
    /// Calls `method` (`/package.Service/Method`) of the function that answers under `host`.
    pub(crate) async fn open(router: SocketAddr, host: &str, method: &str) -> Result<Self> {
        let stream = TcpStream::connect(router).await.context("connecting")?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.context("the handshake")?;
        // Its end is seen by the call.
        tokio::spawn(connection);
        let (asked, messages) = mpsc::channel(1);
        let messages: BoxStream<'static, Result<Frame<Bytes>, Infallible>> =
            stream::unfold(messages, async |mut messages: mpsc::Receiver<_>| {
                Some((Ok(messages.recv().await?), messages))
            })
            .boxed();
        let request = Request::post(format!("http://{host}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(messages))?;
        let answer = tokio::time::timeout(within(LIMIT), sender.send_request(request)).await??;
        if answer.status() != 200 {
            bail!("HTTP status {}", answer.status());
        }
        let (head, answer) = answer.into_parts();
        Ok(Self { asked: Some(asked), answer, buffer: Vec::new(), outcome: head.headers })
    }

    pub async fn say(&mut self, text: &str) -> Result<()> {
        let length = u32::try_from(text.len())?.to_be_bytes();
        let message = [&[0], length.as_slice(), text.as_bytes()].concat();
        let asked = self.asked.as_ref().context("everything is said")?;
        asked.send(Frame::data(message.into())).await.context("the call is over")
    }

    /// No more messages.
    pub fn finish(&mut self) {
        self.asked = None;
    }

    /// The next message; `None` at the end of the call.
    pub async fn hear(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(length) = self.buffer.get(1..PREFIX) {
                let end = PREFIX + u32::from_be_bytes(length.try_into()?) as usize;
                if self.buffer.len() >= end {
                    let message: Vec<u8> = self.buffer.drain(..end).skip(PREFIX).collect();
                    return Ok(Some(String::from_utf8(message)?));
                }
            }
            let Some(frame) = tokio::time::timeout(within(LIMIT), self.answer.frame()).await? else {
                return Ok(None);
            };
            match frame?.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => self.outcome.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
    }

    /// `grpc-status` once the call is over.
    pub fn status(&self) -> Option<&str> {
        self.outcome.get("grpc-status")?.to_str().ok()
    }
}
