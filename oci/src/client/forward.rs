//! Requests of other clients, passed on to this registry as they are, with this client's password or token: a registry that
//! stands for another one.
//!
//! Content streams through. Must not know what a request means.

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RANGE,
};
use reqwest::{Body, Method, Request, Response, StatusCode, Url};

use super::{Client, TransferError, innermost};

/// What of a request is passed on.
const ASKED: [HeaderName; 5] = [ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE];

/// The content of a request that is passed on.
#[derive(Debug)]
pub enum Content {
    /// Small enough to be sent again.
    Whole(Bytes),
    Streamed(Body),
}

impl Content {
    pub fn streamed<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        Self::Streamed(Body::wrap_stream(pieces))
    }
}

/// A registry's answer, whatever it is.
#[derive(Debug)]
pub struct Forwarded {
    pub status: StatusCode,
    /// With the place of an upload or of content by its path, where it is at this registry.
    pub headers: HeaderMap,
    answer: Response,
}

impl Forwarded {
    /// The content, as it comes.
    pub fn content(self) -> impl Stream<Item = Result<Bytes, reqwest::Error>> + Send + 'static {
        self.answer.bytes_stream()
    }
}

impl Client {
    /// Passes a request on: `path` is what comes after `/v2/`, with its query.
    pub async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        content: Content,
    ) -> Result<Forwarded, TransferError> {
        let mut request = self.request(method, path);
        for name in ASKED {
            if let Some(value) = headers.get(&name) {
                request = request.header(name, value);
            }
        }
        let request = match content {
            Content::Whole(content) if content.is_empty() => request,
            Content::Whole(content) => request.body(content),
            Content::Streamed(content) => request.body(content),
        };
        let request = request.build().map_err(|error| TransferError::Client(innermost(&error)))?;
        let request = self.prepared(request).await?;
        let again = request.try_clone();
        let mut answer = self.passed_on(request).await?;
        if let Some(mut again) = again
            && self.convince(&answer, &mut again).await?
        {
            answer = self.passed_on(again).await?;
        }
        let mut headers = answer.headers().clone();
        if let Some(place) = headers.get(LOCATION).and_then(|value| value.to_str().ok())
            && let Ok(place) = answer.url().join(place)
            && self.is_here(&place)
            && let Ok(place) = at_path(&place).parse()
        {
            headers.insert(LOCATION, place);
        }
        Ok(Forwarded { status: answer.status(), headers, answer })
    }

    async fn passed_on(&self, request: Request) -> Result<Response, TransferError> {
        // As long as its content comes it may take: whoever sends it has deadlines of his own.
        self.http.execute(request).await.map_err(|error| self.failed(&error))
    }
}

fn at_path(place: &Url) -> String {
    let query = place.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", place.path())
}
