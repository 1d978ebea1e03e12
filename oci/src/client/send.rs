//! Requests and the heads of their answers: deadlines, tokens, redirects, registries that are busy, refusals in words.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Request, RequestBuilder, Response, StatusCode, redirect};
use serde::Deserialize;

use super::{Client, TransferError, innermost};

/// Bytes of a refusal that are read: what registries say in JSON, a page of HTML cut off.
const REFUSAL_MAX: usize = 8 * 1024;

/// Characters of a refusal that are told.
const SAID_MAX: usize = 300;

/// Times that one request waits for a registry which asks to come back later, and the longest such wait: beyond it, whoever
/// asked is told, and has plans of his own.
const WAITS_MAX: u32 = 3;
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Redirects that are followed: registries send to their storage, which may send on once.
const REDIRECTS_MAX: usize = 5;

impl Client {
    /// Sends a request, and gives its answer if that is a success: with a token where the registry wants one, and later where
    /// it says so.
    pub(super) async fn send(&self, request: RequestBuilder, what: &str) -> Result<Response, TransferError> {
        let mut request = self.built(request)?;
        let (mut convinced, mut waits) = (false, 0);
        loop {
            let again = request.try_clone();
            let answer = match tokio::time::timeout(self.deadlines.answer, self.http.execute(request)).await {
                Ok(answer) => answer.map_err(|error| self.failed(&error))?,
                Err(_) => return Err(TransferError::Timeout { address: self.base.clone() }),
            };
            let Some(mut again) = again else { return self.success(Ok(answer), what).await };
            match wait_told(&answer) {
                Some(wait) if waits < WAITS_MAX => {
                    waits += 1;
                    tokio::time::sleep(wait).await;
                }
                _ if !convinced && self.convince(&answer, &mut again).await? => convinced = true,
                _ => return self.success(Ok(answer), what).await,
            }
            request = again;
        }
    }

    /// Sends a request with content, of which `sent` counts what is under way.
    pub(super) async fn send_content(
        &self,
        request: RequestBuilder,
        sent: &AtomicU64,
        what: &str,
    ) -> Result<Response, TransferError> {
        let request = self.built(request)?;
        // What is streamed cannot be sent again; the request that began the upload brought the token for it.
        let again = request.try_clone();
        let answer = self.transmit(request, sent).await?;
        if let Some(mut again) = again
            && self.convince(&answer, &mut again).await?
        {
            let answer = self.transmit(again, sent).await?;
            return self.success(Ok(answer), what).await;
        }
        self.success(Ok(answer), what).await
    }

    async fn transmit(&self, request: Request, sent: &AtomicU64) -> Result<Response, TransferError> {
        let mut sending = std::pin::pin!(self.http.execute(request));
        let mut before = 0;
        loop {
            match tokio::time::timeout(self.deadlines.stored, &mut sending).await {
                Ok(answer) => return answer.map_err(|error| self.failed(&error)),
                Err(_) => match sent.load(Ordering::Relaxed) {
                    now if now == before => {
                        return Err(TransferError::Timeout { address: self.base.clone() });
                    }
                    now => before = now,
                },
            }
        }
    }

    fn built(&self, request: RequestBuilder) -> Result<Request, TransferError> {
        let request = request.build().map_err(|error| TransferError::Client(innermost(&error)))?;
        Ok(self.with_token(request))
    }

    pub(super) async fn success(
        &self,
        answer: reqwest::Result<Response>,
        what: &str,
    ) -> Result<Response, TransferError> {
        let answer = answer.map_err(|error| self.failed(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let what = what.to_owned();
        Err(match status {
            StatusCode::NOT_FOUND => TransferError::NotFound { what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => TransferError::Unauthorized { what },
            _ => TransferError::Refused { what, status: status.as_u16(), said: self.excerpt(answer).await },
        })
    }

    /// What a refusal says, for a person.
    async fn excerpt(&self, mut answer: Response) -> String {
        let mut content = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = self.next_piece(&mut answer).await {
                content.extend_from_slice(&piece);
                if content.len() >= REFUSAL_MAX {
                    break;
                }
            }
        };
        // What came until then is told.
        let _ = tokio::time::timeout(self.deadlines.answer, read).await;
        said(&content)
    }

    pub(super) fn failed(&self, error: &reqwest::Error) -> TransferError {
        unreached(self.base.clone(), error)
    }
}

/// Why there is no answer from `address`.
pub(super) fn unreached(address: String, error: &reqwest::Error) -> TransferError {
    if error.is_timeout() && !error.is_connect() {
        return TransferError::Timeout { address };
    }
    let cause = innermost(error);
    if is_untrusted(error) {
        TransferError::Untrusted { address, cause }
    } else {
        TransferError::Unreachable { address, cause }
    }
}

/// Whether it is the certificate of whoever answers.
fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error does not name what it holds as its source, but what that has.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &dyn Error).or_else(|| error.source());
    }
    false
}

/// Follows a redirect, but not out of encryption, and not for ever.
pub(super) fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        attempt.error("the registry redirects to a place without encryption")
    } else if attempt.previous().len() > REDIRECTS_MAX {
        attempt.error("the registry redirects too often")
    } else {
        attempt.follow()
    }
}

/// How long a registry that is busy asks to wait, where that is not too long.
fn wait_told(answer: &Response) -> Option<Duration> {
    let busy = matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let told = answer.headers().get(RETRY_AFTER).filter(|_| busy)?.to_str().ok()?;
    told.trim().parse().ok().map(Duration::from_secs).filter(|wait| *wait <= WAIT_MAX)
}

/// The messages of the specification's error document, or else the first line of a text.
fn said(content: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        errors: Vec<Reason>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Reason {
        code: String,
        message: String,
    }
    let text = match serde_json::from_slice::<Refusal>(content) {
        Ok(refusal) => {
            let word = |reason: Reason| if reason.message.is_empty() { reason.code } else { reason.message };
            refusal.errors.into_iter().map(word).collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(content).lines().next().unwrap_or_default().to_owned(),
    };
    text.trim().chars().filter(|c| !c.is_control()).take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_a_line() {
        for (content, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"quota exceeded"},{"code":"UNSUPPORTED"}]}"#,
                "quota exceeded; UNSUPPORTED",
            ),
            ("no space\nleft\n", "no space"),
            ("a\u{1b}[31mb", "a[31mb"),
            ("", ""),
        ] {
            assert_eq!(said(content.as_bytes()), expected);
        }
        assert_eq!(said("x".repeat(10_000).as_bytes()).len(), SAID_MAX);
    }
}
