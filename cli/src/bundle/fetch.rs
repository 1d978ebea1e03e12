//! Content by digest from the hub's registry, over links that break: what has come is not asked for again.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::header::{ACCEPT, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tombolo_api::Digest;
use tombolo_oci::image::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

use crate::hub::{Hub, innermost};

/// Longest wait for the next piece of a body.
const IDLE: Duration = Duration::from_secs(60);

/// Attempts in a row that brought nothing.
const ATTEMPTS_MAX: u32 = 5;

/// Before the second attempt; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(200);

/// A small blob or a manifest, verified.
pub(super) async fn document(hub: &Hub, path: &str, digest: &Digest, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut attempts = 0;
    loop {
        let mut content = Vec::new();
        let mut take = |piece: &[u8]| {
            ensure!(
                content.len() as u64 + piece.len() as u64 <= limit,
                "{digest} is longer than {limit} bytes"
            );
            content.extend_from_slice(piece);
            Ok(())
        };
        let broken = attempt(hub, path, &mut 0, None, &mut take).await?;
        attempts += 1;
        match broken {
            None if Digest::of(&content) == *digest => return Ok(content),
            None => bail!("{digest} was expected, but the hub gave something else"),
            Some(broken) if attempts >= ATTEMPTS_MAX => {
                bail!("{path} broke off: {broken}; run the command again")
            }
            Some(_) => tokio::time::sleep(RETRY_FIRST * 2u32.pow(attempts - 1)).await,
        }
    }
}

/// Brings a content of `size` bytes from byte `from` on.
pub(super) async fn rest(
    hub: &Hub,
    path: &str,
    from: u64,
    size: u64,
    take: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut here, mut attempts) = (from, 0);
    while here < size {
        let before = here;
        let Some(broken) = attempt(hub, path, &mut here, Some(size), take).await? else { return Ok(()) };
        attempts = if here > before { 1 } else { attempts + 1 };
        if attempts >= ATTEMPTS_MAX {
            bail!("{path} broke off after {here} of {size} bytes: {broken}; run the command again to go on");
        }
        tokio::time::sleep(RETRY_FIRST * 2u32.pow(attempts - 1)).await;
    }
    Ok(())
}

/// One request. `Some`: it broke off, and why.
async fn attempt(
    hub: &Hub,
    path: &str,
    here: &mut u64,
    size: Option<u64>,
    take: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Option<String>> {
    let mut headers = HeaderMap::new();
    for name in [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, "*/*"] {
        headers.append(ACCEPT, HeaderValue::from_static(name));
    }
    if *here > 0 {
        let range = format!("bytes={here}-");
        headers.insert(RANGE, range.parse().context("a range is plain text")?);
    }
    let mut answer = hub.open(path, headers).await?;
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::NOT_FOUND => bail!("the hub's registry does not have {path}: push the image again"),
        status => bail!("the hub's registry answered {status} for {path}"),
    }
    // A registry that takes no range begins anew: what is here already is passed over.
    let mut skip = if goes_on_at(&answer, *here) { 0 } else { *here };
    loop {
        match tokio::time::timeout(IDLE, answer.chunk()).await {
            Ok(Ok(Some(piece))) => {
                let over = skip.min(piece.len() as u64);
                skip -= over;
                let piece = &piece[usize::try_from(over).unwrap_or(piece.len())..];
                let end = *here + piece.len() as u64;
                ensure!(size.is_none_or(|size| end <= size), "{path} is longer than its manifest says");
                take(piece)?;
                *here = end;
            }
            Ok(Ok(None)) if size.is_none_or(|size| size == *here) => return Ok(None),
            Ok(Ok(None)) => return Ok(Some("it ended too early".into())),
            Ok(Err(error)) => return Ok(Some(innermost(&error))),
            Err(_) => return Ok(Some(format!("nothing came for {} s", IDLE.as_secs()))),
        }
    }
}

/// Whether a body begins at this byte.
fn goes_on_at(answer: &Response, position: u64) -> bool {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return position == 0;
    }
    let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(position)
}
