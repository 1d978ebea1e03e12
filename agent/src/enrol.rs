//! How a node gets its identity and keeps it fresh: enrolment with a join token, renewal before the certificate ends, and
//! asking again where the hub is when it cannot be reached where it was.
//!
//! Takes: wishes for a renewal. Gives: `watch<Option<Identity>>`. Tried again for ever with back-off; serving never waits
//! for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tombolo_agent_core::backoff::RECONNECT;
use tombolo_api::{Digest, NodeId};

use crate::config::HubConfig;
use crate::identity::{Enrolment, Identity, IdentityDir, IdentityError};
use crate::tls::{self, TimeFloor, TlsError};

/// Longest wait for the hub's answer: it signs a certificate, which takes milliseconds.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// How often the certificate's end is looked at. Lives are days and longer.
const CHECK: Duration = Duration::from_secs(3600);

/// Between two renewals, however often one is wished for: a thousand nodes that lost their hub must not crowd it.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// For how long a fresh certificate is not judged by the node's clock. It lasts a year: a clock by which it is at its end is wrong,
/// and so would be the next one's end.
const FRESH: Duration = Duration::from_secs(86_400);

/// Largest answer read, bytes.
const ANSWER_MAX: u64 = 256 * 1024;

/// What the task works with.
pub(crate) struct Enrol {
    pub(crate) me: NodeId,
    pub(crate) hub: HubConfig,
    pub(crate) dir: IdentityDir,
    pub(crate) floor: TimeFloor,
    pub(crate) identity: watch::Sender<Option<Arc<Identity>>>,
    /// Somebody cannot reach the hub with the present identity.
    pub(crate) renew: Arc<Notify>,
    /// What keeps the node from its identity, for a person; empty when nothing does.
    pub(crate) trouble: watch::Sender<String>,
}

/// Why there is no new identity.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("there is no join token: set hub.token or hub.token_file; `tombolo-hub token` prints one")]
    NoToken,
    #[error("cannot read the join token from {path}: {source}")]
    TokenFile { path: String, source: std::io::Error },
    #[error("the join token is malformed: it should look like tombolo1.<64 digits>.<secret>")]
    MalformedToken,
    #[error("cannot reach the hub at {url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("the hub refused ({status}): {message}")]
    Refused { status: u16, message: String },
    #[error("the hub's answer cannot be read: {0}")]
    Answer(String),
    #[error("cannot make a request for a certificate: {0}")]
    Request(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnrolRequest<'a> {
    token: &'a str,
    node: &'a NodeId,
    csr_pem: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RenewRequest {
    csr_pem: String,
}

/// How the hub says no.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Enrol {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        let mut failures = 0;
        if self.identity.borrow().is_none() {
            if self.hub.url.is_empty() {
                self.trouble.send_replace("no hub is configured: set hub.url".into());
                return std::future::pending().await;
            }
            while let Err(error) = self.enrol().await {
                self.failed("cannot enrol", &error);
                failures += 1;
                tokio::time::sleep(jittered(failures)).await;
            }
            self.trouble.send_replace(String::new());
        }
        let mut renewed = None;
        loop {
            self.wait(renewed).await;
            failures = 0;
            while let Err(error) = self.refresh().await {
                self.failed("cannot renew the certificate", &error);
                failures += 1;
                tokio::time::sleep(jittered(failures).max(RENEWAL_PAUSE / 4)).await;
            }
            self.trouble.send_replace(String::new());
            renewed = Some(Instant::now());
            tokio::time::sleep(RENEWAL_PAUSE).await;
        }
    }

    /// Returns when the identity should be renewed, which it was at that moment.
    async fn wait(&self, renewed: Option<Instant>) {
        loop {
            let identity = self.identity.borrow().clone();
            let is_fresh = renewed.is_some_and(|at| at.elapsed() < FRESH);
            if identity.is_some_and(|identity| {
                (!is_fresh && identity.wants_renewal(now_s()))
                    || self.has_moved(&identity)
                    || self.is_of_another_hub(&identity)
            }) {
                return;
            }
            tokio::select! {
                () = self.renew.notified() => return,
                () = tokio::time::sleep(CHECK) => {}
            }
        }
    }

    /// The configuration names another hub address than the one that enrolled this node.
    fn has_moved(&self, identity: &Identity) -> bool {
        !self.hub.url.is_empty()
            && self.hub.url.trim_end_matches('/') != identity.enrolment.hub_url.trim_end_matches('/')
    }

    /// The join token is one of another hub than this node is enrolled at.
    fn is_of_another_hub(&self, identity: &Identity) -> bool {
        let ca = CertificateDer::from_pem_slice(identity.enrolment.ca_pem.as_bytes());
        let pin = self.token().and_then(|token| pin(&token));
        matches!((ca, pin), (Ok(ca), Ok(pin)) if Digest::of(&ca) != pin)
    }

    /// Renews; enrols anew at another hub, or at one that does not know this node any more.
    async fn refresh(&self) -> Result<(), EnrolError> {
        let identity = self.identity.borrow().clone();
        if identity.is_some_and(|identity| self.is_of_another_hub(&identity)) {
            return self.enrol().await;
        }
        match self.renew().await {
            Err(EnrolError::Refused { status: 401, .. }) if self.token().is_ok() => self.enrol().await,
            result => result,
        }
    }

    fn failed(&self, what: &str, error: &EnrolError) {
        let message = format!("{what}: {error}");
        if *self.trouble.borrow() != message {
            tracing::warn!("{message}");
        }
        self.trouble.send_replace(message);
    }

    async fn enrol(&self) -> Result<(), EnrolError> {
        let token = self.token()?;
        let config = tls::pinned(pin(&token)?)?;
        let csr_pem = self.signing_request()?;
        let body = EnrolRequest { token: &token, node: &self.me, csr_pem };
        let request = client(config)?.post(endpoint(&self.hub.url, "enrol")).json(&body);
        self.adopt(send(request, &self.hub.url).await?)?;
        tracing::info!(node = %self.me, hub = self.hub.url, "enrolled");
        Ok(())
    }

    async fn renew(&self) -> Result<(), EnrolError> {
        let Some(identity) = self.identity.borrow().clone() else { return Ok(()) };
        let url = if self.hub.url.is_empty() { &identity.enrolment.hub_url } else { &self.hub.url };
        let config = tls::anonymous(&identity, self.floor.clone())?;
        let request = client(config)?
            .post(endpoint(url, "renew"))
            .basic_auth(&self.me, Some(&identity.enrolment.pull_token))
            .json(&RenewRequest { csr_pem: self.signing_request()? });
        let enrolment = send(request, url).await?;
        self.adopt(enrolment)?;
        tracing::info!("renewed the certificate");
        Ok(())
    }

    fn adopt(&self, mut enrolment: Enrolment) -> Result<(), EnrolError> {
        // As configured: a hub behind another address than it knows has not moved.
        if !self.hub.url.is_empty() {
            enrolment.hub_url.clone_from(&self.hub.url);
        }
        if enrolment.node != self.me {
            return Err(EnrolError::Answer(format!(
                "it is for node {}, this is {}",
                enrolment.node, self.me
            )));
        }
        self.dir.save(&enrolment)?;
        let identity = self.dir.load(&self.me)?.map(Arc::new);
        self.identity.send_replace(identity);
        Ok(())
    }

    fn signing_request(&self) -> Result<String, EnrolError> {
        let key = rcgen::KeyPair::from_pem(&self.dir.key()?)?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, self.me.as_str());
        Ok(params.serialize_request(&key)?.pem()?)
    }

    fn token(&self) -> Result<String, EnrolError> {
        if !self.hub.token.is_empty() {
            return Ok(self.hub.token.trim().to_owned());
        }
        if self.hub.token_file.as_os_str().is_empty() {
            return Err(EnrolError::NoToken);
        }
        let path = self.hub.token_file.display().to_string();
        let text = std::fs::read_to_string(&self.hub.token_file);
        text.map(|text| text.trim().to_owned()).map_err(|source| EnrolError::TokenFile { path, source })
    }
}

/// The digest of the CA in a token.
fn pin(token: &str) -> Result<Digest, EnrolError> {
    let mut parts = token.split('.');
    let (Some("tombolo1"), Some(digest), Some(secret), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(EnrolError::MalformedToken);
    };
    if secret.is_empty() {
        return Err(EnrolError::MalformedToken);
    }
    format!("sha256:{digest}").parse().map_err(|_| EnrolError::MalformedToken)
}

fn endpoint(hub_url: &str, name: &str) -> String {
    format!("{}/tombolo/v1/{name}", hub_url.trim_end_matches('/'))
}

/// Made for each attempt: attempts are rare, and an idle client is memory.
fn client(config: rustls::ClientConfig) -> Result<reqwest::Client, EnrolError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .timeout(REQUEST_DEADLINE)
        .no_proxy()
        .build()
        .map_err(|error| EnrolError::Unreachable { url: String::new(), reason: causes(&error) })
}

async fn send(request: reqwest::RequestBuilder, url: &str) -> Result<Enrolment, EnrolError> {
    let unreachable =
        |error: reqwest::Error| EnrolError::Unreachable { url: url.to_owned(), reason: causes(&error) };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if response.content_length().is_some_and(|length| length > ANSWER_MAX) {
        return Err(EnrolError::Answer("it is too large".into()));
    }
    let body = response.bytes().await.map_err(unreachable)?;
    if !status.is_success() {
        let said = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.message);
        let message = said.unwrap_or_else(|_| String::from_utf8_lossy(&body).chars().take(200).collect());
        return Err(EnrolError::Refused { status: status.as_u16(), message });
    }
    serde_json::from_slice(&body).map_err(|error| EnrolError::Answer(error.to_string()))
}

/// An error with what caused it, the innermost last.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn jittered(failures: u32) -> Duration {
    Duration::from_millis(RECONNECT.jittered_ms(failures, random()))
}

/// Randomness for delays; without any from the kernel, the clock's lowest bits spread nodes as well.
pub(crate) fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(since.subsec_nanos())
    })
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn tokens_name_the_ca() {
        let digest = Digest::of(b"ca");
        assert_eq!(pin(&format!("tombolo1.{}.secret", digest.hex())).unwrap(), digest);
        for bad in ["", "tombolo1", "tombolo1.00.secret", "tombolo2.x.y"] {
            assert!(pin(bad).is_err(), "{bad}");
        }
        assert!(pin(&format!("tombolo1.{}.", digest.hex())).is_err());
        assert!(pin(&format!("tombolo1.{}.a.b", digest.hex())).is_err());
    }

    fn enrol_in(state: &Path) -> Enrol {
        Enrol {
            me: "press-7".parse().unwrap(),
            hub: HubConfig { token_file: state.join("token"), ..HubConfig::default() },
            dir: IdentityDir::open(state).unwrap(),
            floor: TimeFloor::default(),
            identity: watch::Sender::new(None),
            renew: Arc::default(),
            trouble: watch::Sender::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_far_ahead_renews_once_a_day() {
        let state = tempfile::tempdir().unwrap();
        let enrol = enrol_in(state.path());
        // It has ended, as every certificate has by the clock of such a node.
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        let certificate_pem = params.self_signed(&key).unwrap().pem();
        let enrolment = Enrolment {
            node: enrol.me.clone(),
            hub_url: "https://127.0.0.1:7443".into(),
            ca_pem: certificate_pem.clone(),
            certificate_pem,
            manifest_key: "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=".into(),
            mqtt_url: "mqtts://127.0.0.1:7883".into(),
            registry: "127.0.0.1:7443".into(),
            pull_token: "secret".into(),
        };
        enrol.dir.save(&enrolment).unwrap();
        enrol.identity.send_replace(enrol.dir.load(&enrol.me).unwrap().map(Arc::new));
        enrol.wait(None).await;
        let renewed = Instant::now();
        enrol.wait(Some(renewed)).await;
        assert!(renewed.elapsed() >= FRESH, "{:?}", renewed.elapsed());
        // The hub may have moved, or does not know this node any more: that is asked for.
        let renewed = Instant::now();
        enrol.renew.notify_one();
        enrol.wait(Some(renewed)).await;
        assert!(renewed.elapsed() < FRESH, "{:?}", renewed.elapsed());
    }

    #[test]
    fn the_signing_request_names_the_node() {
        let state = tempfile::tempdir().unwrap();
        let enrol = enrol_in(state.path());
        let pem = enrol.signing_request().unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{pem}");
        assert!(matches!(enrol.token(), Err(EnrolError::TokenFile { .. })));
        std::fs::write(state.path().join("token"), "tombolo1.x.y\n").unwrap();
        assert_eq!(enrol.token().unwrap(), "tombolo1.x.y");
    }
}
