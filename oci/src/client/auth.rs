//! How a registry is convinced: a password that is sent at once, or a token that the registry's token service gives for it.
//!
//! ```text
//! request ─▶ 401, Bearer realm, service, scope ─▶ token service (user and password, where there are any) ─▶ token ─▶ request
//! ```
//!
//! A token is kept for what it was given for until it expires. Passwords and tokens go to the registry, passwords to the
//! service it names, and neither to where a redirect leads. Must not know what is asked for.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;

use super::send::unreached;
use super::{Client, TransferError};

/// A token lasts this long where its service does not say, as the protocol has it.
const LASTS: Duration = Duration::from_secs(60);

/// Before its end a token counts as expired: the request it goes with has to arrive.
const MARGIN: Duration = Duration::from_secs(5);

/// Longest answer of a token service. Tokens that name many rights have some kilobytes.
const ANSWER_MAX: u64 = 256 * 1024;

/// Tokens that are kept: one for reading and one for writing of some repositories.
const TOKENS_MAX: usize = 256;

/// What a token is good for: a repository, and whether it is written to.
type Aim = (String, bool);

/// The tokens of one registry.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    given: Mutex<BTreeMap<Aim, Token>>,
    /// Realm and service of the last challenge: content that is streamed needs its token before it goes.
    service: Mutex<Option<(String, Option<String>)>>,
}

struct Token {
    value: HeaderValue,
    until: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What a registry wants to see a token for, and where it is to be had.
#[derive(Debug, Default, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

/// A token service's answer.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    /// What OAuth 2 calls it.
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

impl Tokens {
    fn find(&self, aim: &Aim) -> Option<HeaderValue> {
        let tokens = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.get(aim).filter(|token| token.until > Instant::now())?;
        Some(token.value.clone())
    }

    fn keep(&self, aim: Aim, token: Token) {
        let mut tokens = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, token| token.until > now);
        if tokens.len() < TOKENS_MAX {
            tokens.insert(aim, token);
        }
    }
}

impl Client {
    /// Gives a request the token it needs, if there is one.
    pub(super) fn with_token(&self, mut request: Request) -> Request {
        if self.is_here(request.url())
            && let Some(token) = self.tokens.find(&aim(&request))
        {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        request
    }

    /// Gives `request` what `answer` asks for; whether it is worth another try.
    pub(super) async fn convince(
        &self,
        answer: &Response,
        request: &mut Request,
    ) -> Result<bool, TransferError> {
        // Where a redirect led nobody is to be convinced.
        if answer.status() != StatusCode::UNAUTHORIZED || !self.is_here(answer.url()) {
            return Ok(false);
        }
        let Some(challenge) = Challenge::find(answer.headers()) else { return Ok(false) };
        let aim = aim(request);
        let service = Some((challenge.realm.clone(), challenge.service.clone()));
        *self.tokens.service.lock().unwrap_or_else(PoisonError::into_inner) = service;
        let token = self.ask_for_token(challenge, &aim).await?;
        request.headers_mut().insert(AUTHORIZATION, token.value.clone());
        self.tokens.keep(aim, token);
        Ok(true)
    }

    /// Gives a request that cannot be sent twice the token it is going to need.
    pub(super) async fn prepared(&self, request: Request) -> Result<Request, TransferError> {
        let aim = aim(&request);
        let service = self.tokens.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((realm, service)) = service
            && request.try_clone().is_none()
            && self.is_here(request.url())
            && self.tokens.find(&aim).is_none()
        {
            let token = self.ask_for_token(Challenge { realm, service, scope: None }, &aim).await?;
            self.tokens.keep(aim, token);
        }
        Ok(self.with_token(request))
    }

    async fn ask_for_token(&self, challenge: Challenge, aim: &Aim) -> Result<Token, TransferError> {
        let what = format!("a token for {}", aim.0);
        let broken = |cause: String| TransferError::Broken { what: what.clone(), cause };
        let mut url = Url::parse(&challenge.realm)
            .map_err(|_| broken(format!("its token service {:?} is no URL", challenge.realm)))?;
        if self.base.starts_with("https:") && url.scheme() != "https" {
            return Err(broken(format!("its token service {url} would take passwords without encryption")));
        }
        let scope = challenge
            .scope
            .unwrap_or_else(|| format!("repository:{}:{}", aim.0, if aim.1 { "pull,push" } else { "pull" }));
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(challenge.service.iter().map(|service| ("service", service)));
            query.extend_pairs(scope.split_whitespace().map(|scope| ("scope", scope)));
        }
        let address = url.origin().ascii_serialization();
        let request = self.authorised(self.http.get(url));
        let answer = match tokio::time::timeout(self.deadlines.answer, request.send()).await {
            Err(_) => return Err(TransferError::Timeout { address }),
            Ok(Err(error)) => return Err(unreached(address, &error)),
            Ok(Ok(answer)) => answer,
        };
        // The service not knowing the user is the registry's refusal.
        let answer = self.success(Ok(answer), &what).await.map_err(|error| match error {
            TransferError::NotFound { what } => TransferError::Unauthorized { what },
            error => error,
        })?;
        let content = self.body(answer, ANSWER_MAX, &what).await?;
        let answer: Answer = serde_json::from_slice(&content)
            .map_err(|error| broken(format!("its token service does not answer with a token: {error}")))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .ok()
            .filter(|_| !token.is_empty())
            .ok_or_else(|| broken("its token service answers without a token".into()))?;
        value.set_sensitive(true);
        let lasts = if answer.expires_in == 0 { LASTS } else { Duration::from_secs(answer.expires_in) };
        // A clock far off is the service's affair: only the span counts.
        let until = Instant::now() + lasts.min(Duration::from_secs(86_400)).saturating_sub(MARGIN);
        Ok(Token { value, until })
    }

    /// Whether a place belongs to this registry: the password is nobody else's.
    pub(super) fn is_here(&self, url: &Url) -> bool {
        Url::parse(&self.base).is_ok_and(|base| base.origin() == url.origin())
    }
}

impl Challenge {
    /// The Bearer challenge among those of an answer.
    fn find(headers: &HeaderMap) -> Option<Self> {
        headers.get_all(WWW_AUTHENTICATE).iter().find_map(|value| Self::parse(value.to_str().ok()?))
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut challenge = Self::default();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                // Commas may stand inside quotes.
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = value.to_owned(),
                "service" => challenge.service = Some(value.to_owned()),
                "scope" => challenge.scope = Some(value.to_owned()).filter(|scope| !scope.is_empty()),
                _ => {}
            }
            rest = after;
        }
        (!challenge.realm.is_empty()).then_some(challenge)
    }
}

/// What a request needs a token for.
fn aim(request: &Request) -> Aim {
    let path = request.url().path().trim_start_matches("/v2/");
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = ends.iter().filter_map(|end| path.rfind(end)).max().unwrap_or(0);
    (path[..end].to_owned(), !matches!(*request.method(), Method::GET | Method::HEAD))
}

#[cfg(test)]
mod tests;
