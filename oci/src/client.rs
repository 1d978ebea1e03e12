//! The OCI distribution client: tags resolved, images pulled and pushed, over links that break.
//!
//! Everything that comes is bounded by what was announced and verified by digest before it counts. Every wait has a
//! deadline. Must not know who a registry belongs to: where it is, and whom to believe, is in the [`Endpoint`].

mod auth;
mod base;
mod delta;
mod error;
mod forward;
mod pace;
mod pull;
mod push;
mod send;
mod signatures;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, redirect};
use tombolo_api::Digest;

use auth::Tokens;
pub use base::BaseImage;
pub use error::TransferError;
pub use forward::{Content, Forwarded};
pub use pace::{Gate, Pace};
pub use push::{PushBlob, PushContent};
pub use stream::BlobStream;

use crate::image::{DOCKER_LIST, DOCKER_MANIFEST, Document, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST};
use crate::reference::{Repository, Target};

/// To an open connection. A registry on a slow link answers within a second or two.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A registry, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub scheme: Scheme,
    /// `host:port`.
    pub address: String,
    pub auth: Option<BasicAuth>,
    /// The name the registry goes by, in requests and certificates, whatever its address. `None`: the address's own.
    pub server_name: Option<String>,
}

/// How a connection is protected.
#[derive(Clone, Debug)]
pub enum Scheme {
    Http,
    Https(Arc<rustls::ClientConfig>),
}

/// How long one thing may take that is waited for.
#[derive(Clone, Copy, Debug)]
struct Deadlines {
    /// From a request to the head of its answer.
    answer: Duration,
    /// The same where content is sent, anew whenever some of it was: what was sent last is still on its way then, and
    /// the registry brings the whole onto its disk before it answers.
    stored: Duration,
    /// Without a byte of a body; the transfer goes on from there in the next attempt.
    idle: Duration,
    /// Before a blob's second attempt; doubled for each further one.
    retry: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(30),
            stored: Duration::from_secs(120),
            idle: Duration::from_secs(20),
            retry: Duration::from_millis(200),
        }
    }
}

/// User and password of a registry.
#[derive(Clone)]
pub struct BasicAuth {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BasicAuth({})", self.user)
    }
}

/// How far a pull is, for whoever shows it: of one at a time. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Bytes of layers that are here and bytes of all of them, compressed.
    pub fn bytes(&self) -> (u64, u64) {
        (self.0.done.load(Ordering::Relaxed), self.0.total.load(Ordering::Relaxed))
    }

    fn start(&self, total: u64) {
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(total, Ordering::Relaxed);
    }

    /// One part went from so many bytes to so many: fewer, where it started again.
    fn moved(&self, from: u64, to: u64) {
        self.0.done.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }
}

/// A client of one registry. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// `https://name:port`.
    base: String,
    auth: Option<BasicAuth>,
    tokens: Arc<Tokens>,
    /// The registry whose images are asked for, where this one is a mirror of others.
    mirrored: Option<String>,
    deadlines: Deadlines,
    pace: Pace,
    /// Whether of layers that resemble others only what is new is fetched.
    deltas: bool,
}

impl Client {
    /// The same client, which fetches every layer whole.
    pub fn without_deltas(self) -> Self {
        Self { deltas: false, ..self }
    }

    /// The same client, whose downloads keep a pace.
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Makes a client; connects to nothing yet.
    pub fn new(endpoint: Endpoint) -> Result<Self, TransferError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_DEADLINE)
            .redirect(redirect::Policy::custom(send::follow))
            .no_proxy()
            .user_agent(concat!("tombolo/", env!("CARGO_PKG_VERSION")));
        let scheme = match &endpoint.scheme {
            Scheme::Http => {
                builder = without_tls(builder);
                "http"
            }
            Scheme::Https(config) => {
                builder = builder.tls_backend_preconfigured((**config).clone());
                "https"
            }
        };
        let authority = match endpoint.server_name {
            None => endpoint.address.clone(),
            Some(name) => {
                let port = endpoint.address.rsplit_once(':').map_or("", |(_, port)| port);
                let authority = format!("{name}:{port}");
                builder =
                    builder.dns_resolver(Arc::new(Elsewhere { name, address: endpoint.address.clone() }));
                authority
            }
        };
        let http = builder.build().map_err(|error| TransferError::Client(innermost(&error)))?;
        let base = format!("{scheme}://{authority}");
        Ok(Self {
            http,
            base,
            auth: endpoint.auth,
            tokens: Arc::default(),
            mirrored: None,
            deadlines: Deadlines::default(),
            pace: Pace::default(),
            deltas: true,
        })
    }

    /// The same registry, asked for the images of another one: `?ns=HOST`, as mirrors are asked.
    #[must_use]
    pub fn for_images_of(self, host: &str) -> Self {
        Self { mirrored: Some(host.to_owned()), ..self }
    }

    /// The digest a tag stands for now; for a digest, that it is there.
    pub async fn resolve(&self, repository: &Repository, target: &Target) -> Result<Digest, TransferError> {
        let (digest, _) = self.manifest(repository, target).await?;
        Ok(digest)
    }

    /// A manifest or index with its digest, verified if it was asked for by digest or the registry names one.
    pub async fn manifest(
        &self,
        repository: &Repository,
        target: &Target,
    ) -> Result<(Digest, Bytes), TransferError> {
        let separator = if target.digest().is_some() { '@' } else { ':' };
        let what = format!("{repository}{separator}{target}");
        let request = self
            .request(Method::GET, &format!("{repository}/manifests/{target}"))
            .headers(accept_manifests());
        let answer = self.send(request, &what).await?;
        let said =
            answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        let content = self.body(answer, MAX_DOCUMENT, &what).await?;
        let digest = Digest::of(&content);
        if let Some(expected) = target.digest().or(said).filter(|expected| *expected != digest) {
            let cause = format!("{expected} was expected, but the content is {digest}");
            return Err(TransferError::Broken { what, cause });
        }
        match Document::parse(&digest, &content) {
            // Not what a portal or a proxy has to say instead.
            Err(error) if target.digest().is_none() => {
                Err(TransferError::Broken { what, cause: error.to_string() })
            }
            _ => Ok((digest, content)),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.authorised(self.http.request(method, format!("{}/v2/{path}", self.base)));
        match &self.mirrored {
            Some(host) => request.query(&[("ns", host)]),
            None => request,
        }
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.auth {
            Some(auth) => request.basic_auth(&auth.user, Some(&auth.password)),
            None => request,
        }
    }

    /// A whole body of at most `limit` bytes.
    async fn body(&self, mut answer: Response, limit: u64, what: &str) -> Result<Bytes, TransferError> {
        let what = || what.to_owned();
        let mut content = Vec::new();
        loop {
            match self.next_piece(&mut answer).await {
                Ok(None) => return Ok(content.into()),
                Ok(Some(piece)) => content.extend_from_slice(&piece),
                Err(cause) => return Err(TransferError::Interrupted { what: what(), cause }),
            }
            if content.len() as u64 > limit {
                let cause = format!("it is longer than the {limit} bytes it may have");
                return Err(TransferError::Broken { what: what(), cause });
            }
        }
    }

    /// The next piece of a body, `None` at its end; in words why there is none.
    async fn next_piece(&self, answer: &mut Response) -> Result<Option<Bytes>, String> {
        match tokio::time::timeout(self.deadlines.idle, answer.chunk()).await {
            Ok(piece) => piece.map_err(|error| innermost(&error)),
            Err(_) => Err(format!("nothing came for {:?}", self.deadlines.idle)),
        }
    }
}

/// For a client that speaks plain HTTP only: reqwest wants a TLS configuration all the same, and without this one it cannot
/// be made on a machine that has no CA certificates.
pub fn without_tls(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusts_nobody = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    builder.tls_backend_preconfigured(trusts_nobody)
}

/// Says that a name is somewhere else than its own address.
struct Elsewhere {
    name: String,
    address: String,
}

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        // A redirect may lead to another host.
        let address =
            if name.as_str() == self.name { self.address.clone() } else { format!("{}:0", name.as_str()) };
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

fn accept_manifests() -> HeaderMap {
    let types = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
    types.into_iter().map(|name| (ACCEPT, HeaderValue::from_static(name))).collect()
}

/// Does disk work where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled before it began: the runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The last cause of an error: what a person needs to know of it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests;
