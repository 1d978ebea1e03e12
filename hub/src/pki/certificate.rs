//! What stands in the fleet's certificates. Knows the files only through [`Dir`].
//!
//! The hub's own certificates begin in 1970, as clocks do that have lost their battery: their nodes must still find the hub,
//! which then tells them the time. A node's certificate begins an hour ago, for clocks that are a little late.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use tombolo_api::{Digest, NodeId};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::Dir;
use super::{HUB_NAME, PkiError, parse_own};

/// How long the authority lasts: longer than the machines.
const AUTHORITY_LIFE: Duration = Duration::days(50 * 365);

/// How long the hub's own certificates last, and how much of it must be left at a start: no hub runs for five years.
const OWN_LIFE: Duration = Duration::days(10 * 365);
const OWN_LEFT_MIN: Duration = Duration::days(5 * 365);

/// How long a node's certificate lasts. It renews in the last third.
const NODE_LIFE: Duration = Duration::days(365);

/// How late a node's clock may be.
const BACKDATED: Duration = Duration::hours(1);

/// Longest certificate request, bytes: an RSA-4096 one with a chatty subject is half of it.
const CSR_MAX: usize = 8 * 1024;

/// A certificate of the hub itself, with its key.
pub(super) struct Own {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// A node's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeCertificate {
    pub(crate) pem: String,
    /// Digest of the public key (its SubjectPublicKeyInfo).
    pub(crate) key: Digest,
}

/// Who a verified certificate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Common name.
    pub(crate) name: String,
    /// Digest of the public key (its SubjectPublicKeyInfo).
    pub(crate) key: Digest,
}

/// Why a certificate request was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrError {
    #[error("the certificate request is larger than {CSR_MAX} bytes")]
    TooLarge,
    #[error("the certificate request cannot be read or its signature is wrong: {0}")]
    Malformed(rcgen::Error),
    #[error("the certificate cannot be signed: {0}")]
    Sign(rcgen::Error),
}

impl Peer {
    /// Reads a certificate that TLS has verified.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        Some(Self { name, key: Digest::of(parsed.public_key().raw) })
    }
}

/// A new authority for `key`.
pub(super) fn authority(key: &KeyPair) -> Result<rcgen::Certificate, rcgen::Error> {
    let mut params = params("Tombolo hub authority", AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.self_signed(key)
}

pub(super) fn server_params() -> CertificateParams {
    let mut params = params(HUB_NAME, OWN_LIFE);
    params.subject_alt_names =
        vec![rcgen::SanType::DnsName(HUB_NAME.try_into().expect("the hub's name is ASCII"))];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

pub(super) fn client_params() -> CertificateParams {
    let mut params = params(HUB_NAME, OWN_LIFE);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// The certificate kept as `{name}.crt`, made anew if absent, unreadable, from another authority, or ending soon.
pub(super) fn own(
    dir: &Dir,
    name: &str,
    params: CertificateParams,
    issuer: &Issuer<'static, KeyPair>,
    ca_pem: &str,
) -> Result<Own, PkiError> {
    let (key_file, chain_file) = (format!("{name}.key"), format!("{name}.crt"));
    if let (Some(key), Some(chain)) = (dir.text(&key_file)?, dir.text(&chain_file)?)
        && chain.ends_with(ca_pem)
        && let Ok(own) = parse_own(&chain, &key)
        && own.chain.first().is_some_and(lasts)
    {
        return Ok(own);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let chain = format!("{}{ca_pem}", params.signed_by(&key, issuer)?.pem());
    let key = key.serialize_pem();
    // Emptied first: a stop in between must not leave a chain beside a key that does not fit it.
    dir.write(&chain_file, b"", 0o644)?;
    dir.write(&key_file, key.as_bytes(), 0o600)?;
    dir.write(&chain_file, chain.as_bytes(), 0o644)?;
    parse_own(&chain, &key).map_err(|reason| PkiError::Malformed { path: dir.path(&chain_file), reason })
}

/// Signs a node's request.
pub(super) fn sign(
    issuer: &Issuer<'static, KeyPair>,
    node: &NodeId,
    csr_pem: &str,
) -> Result<NodeCertificate, CsrError> {
    if csr_pem.len() > CSR_MAX {
        return Err(CsrError::TooLarge);
    }
    let mut request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CsrError::Malformed)?;
    let mut params = params(node.as_str(), NODE_LIFE);
    params.not_before = OffsetDateTime::now_utc() - BACKDATED;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    request.params = params;
    let certificate = request.signed_by(issuer).map_err(CsrError::Sign)?;
    let peer = Peer::of(certificate.der()).ok_or(CsrError::Sign(rcgen::Error::CouldNotParseCertificate))?;
    Ok(NodeCertificate { pem: certificate.pem(), key: peer.key })
}

fn params(common_name: &str, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::now_utc() + life;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn lasts(certificate: &CertificateDer<'static>) -> bool {
    let until = (OffsetDateTime::now_utc() + OWN_LEFT_MIN).unix_timestamp();
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, certificate)| certificate.validity().not_after.timestamp() > until)
}
