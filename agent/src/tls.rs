//! TLS towards the hub. Whatever address the hub has, its certificate is checked for the name `hub.tombolo`, so that it can
//! move; and a node whose clock stands still after a reboot believes the hub's last signed time instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tombolo_api::Digest;

use crate::identity::Identity;

/// The name every hub's certificates are made for.
pub(crate) const HUB_NAME: &str = "hub.tombolo";

/// How far the clocks of hub and node may be apart, seconds.
const CLOCK_SLACK_S: u64 = 3600;

/// A time, seconds since 1970 (UTC), that is known to have passed. Raised with every accepted manifest.
#[derive(Clone, Debug, Default)]
pub(crate) struct TimeFloor(Arc<AtomicU64>);

impl TimeFloor {
    pub(crate) fn raise(&self, seconds: u64) {
        self.0.fetch_max(seconds, Ordering::Relaxed);
    }

    /// Whether a clock that shows `now_s` is certainly wrong.
    pub(crate) fn is_after(&self, now_s: u64) -> bool {
        self.0.load(Ordering::Relaxed) > now_s.saturating_add(CLOCK_SLACK_S)
    }

    fn at_least(&self, now: UnixTime) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(self.0.load(Ordering::Relaxed))))
    }
}

/// Why there can be no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("the certificate or key of this node cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the hub's CA certificate cannot be used: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// Whom to believe to be the hub.
#[derive(Clone, Debug)]
enum Trust {
    /// This CA.
    Ca(CertificateDer<'static>),
    /// The CA in the chain that has this digest: before the node has the CA itself.
    Pin(Digest),
}

/// Checks the hub's certificate.
#[derive(Debug)]
struct HubVerifier {
    trust: Trust,
    floor: TimeFloor,
    provider: Arc<CryptoProvider>,
}

/// For a node that has a token only: the hub is who shows a CA of the digest in it.
pub(crate) fn pinned(ca: Digest) -> Result<ClientConfig, TlsError> {
    Ok(builder(Trust::Pin(ca), TimeFloor::default())?.with_no_client_auth())
}

/// For an enrolled node that shows who it is by other means than its certificate, which may have expired.
pub(crate) fn anonymous(identity: &Identity, floor: TimeFloor) -> Result<ClientConfig, TlsError> {
    Ok(builder(ca(identity)?, floor)?.with_no_client_auth())
}

/// For an enrolled node: both sides show certificates.
pub(crate) fn mutual(identity: &Identity, floor: TimeFloor) -> Result<ClientConfig, TlsError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(identity.enrolment.certificate_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    Ok(builder(ca(identity)?, floor)?.with_client_auth_cert(chain?, key)?)
}

fn ca(identity: &Identity) -> Result<Trust, TlsError> {
    Ok(Trust::Ca(CertificateDer::from_pem_slice(identity.enrolment.ca_pem.as_bytes())?))
}

fn builder(
    trust: Trust,
    floor: TimeFloor,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = HubVerifier { trust, floor, provider: provider.clone() };
    // A CA that cannot be used is noticed here and not at every connection.
    if let Trust::Ca(ca) = &verifier.trust {
        verifier.against(ca)?;
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

impl HubVerifier {
    fn against(&self, ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build()?)
    }
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = match &self.trust {
            Trust::Ca(ca) => ca,
            Trust::Pin(pin) => intermediates
                .iter()
                .find(|certificate| Digest::of(certificate) == *pin)
                .ok_or_else(unknown)?,
        };
        let name = ServerName::try_from(HUB_NAME).expect("a DNS name");
        let verifier = self.against(ca).map_err(|_| unknown())?;
        verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, self.floor.at_least(now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(ca: &CertifiedIssuer<'static, KeyPair>, name: &str, from: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(from + 1, 1, 1);
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    fn verifies(
        trust: Trust,
        floor: u64,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: u64,
    ) -> bool {
        let time_floor = TimeFloor::default();
        time_floor.raise(floor);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = HubVerifier { trust, floor: time_floor, provider };
        let address = ServerName::try_from("192.0.2.7").unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        verifier.verify_server_cert(leaf, chain, &address, &[], now).is_ok()
    }

    #[test]
    fn only_the_hub_of_the_token_or_of_the_ca_is_believed() {
        const IN_2026: u64 = 1_780_000_000;
        let (mine, other) = (ca("mine"), ca("other"));
        let (mine_der, other_der) = (mine.der().clone(), other.der().clone());
        let hub = leaf(&mine, HUB_NAME, 2026);
        let pin = || Trust::Pin(Digest::of(&mine_der));
        let known = || Trust::Ca(mine_der.clone());
        let chain = [mine_der.clone()];
        assert!(verifies(pin(), 0, &hub, &chain, IN_2026));
        assert!(verifies(known(), 0, &hub, &[], IN_2026));
        assert!(!verifies(pin(), 0, &hub, &[], IN_2026), "the CA was not shown");
        assert!(
            !verifies(Trust::Pin(Digest::of(&other_der)), 0, &hub, &chain, IN_2026),
            "another CA was pinned"
        );
        let foreign = leaf(&other, HUB_NAME, 2026);
        assert!(
            !verifies(pin(), 0, &foreign, &[mine_der.clone(), other_der.clone()], IN_2026),
            "signed by another CA"
        );
        assert!(!verifies(known(), 0, &leaf(&mine, "press-7", 2026), &[], IN_2026), "a node is not the hub");
        assert!(!verifies(known(), 0, &hub, &[], 0), "not valid yet");
        assert!(verifies(known(), IN_2026, &hub, &[], 0), "a clock at 1970 is raised to what is known");
    }
}
