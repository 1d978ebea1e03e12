//! Who knocks with wrong tokens, and how often. The right token is always let in, whoever shares its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::answer::Refusal;

/// Wrong tokens that one address may show within [`WINDOW`] before it only hears that it should wait.
const WRONG_MAX: u32 = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// Most addresses remembered.
const ADDRESSES_MAX: usize = 1_024;

/// The address a request came from. Put into every request by the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct From(pub(super) IpAddr);

impl<S: Sync> FromRequestParts<S> for From {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parts.extensions.get::<Self>().copied().ok_or_else(|| Refusal::bad("the request has no sender"))
    }
}

#[derive(Debug, Default)]
pub(super) struct Door {
    wrong: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl Door {
    /// Counts a wrong token, and says what to answer: `refusal`, or that there were too many.
    pub(super) fn wrong(&self, From(address): From, refusal: Refusal) -> Refusal {
        let now = Instant::now();
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() >= ADDRESSES_MAX {
            wrong.retain(|_, (since, _)| now.duration_since(*since) < WINDOW);
        }
        if wrong.len() >= ADDRESSES_MAX && !wrong.contains_key(&address) {
            return Refusal::too_many();
        }
        let (since, count) = wrong.entry(address).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        match *count {
            1 => tracing::warn!(%address, "a wrong token was shown at the node listener"),
            count if count > WRONG_MAX => return Refusal::too_many(),
            _ => {}
        }
        refusal
    }
}
