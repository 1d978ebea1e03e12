//! Certificates, tokens, and files that stay.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::CertificateParams;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;

fn csr(common_name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["anything.example".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn opening_again_finds_the_same_identity() {
    let state = tempfile::tempdir().unwrap();
    let first = Pki::open(state.path()).unwrap();
    let again = Pki::open(state.path()).unwrap();
    assert_eq!(first.join_token(), again.join_token());
    assert_eq!(first.ca_pem(), again.ca_pem());
    assert_eq!(first.manifest_key().to_bytes(), again.manifest_key().to_bytes());
    assert_eq!(first.server.chain, again.server.chain);
    for name in ["ca.key", "server.key", "client.key", "manifest.key", "join-token"] {
        let mode = std::fs::metadata(state.path().join("pki").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn the_join_token_pins_the_authority() {
    let state = tempfile::tempdir().unwrap();
    let pki = Pki::open(state.path()).unwrap();
    let [form, pin, secret] = pki.join_token().split('.').collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((form, secret.len()), ("tombolo1", 32));
    // The chain that the listener sends holds a certificate of that digest.
    assert!(pki.server.chain.iter().any(|certificate| Digest::of(certificate).hex() == pin));
    assert!(pki.accepts(pki.join_token()));
    for wrong in ["", "tombolo1", &pki.join_token()[1..], &format!("{}0", pki.join_token())] {
        assert!(!pki.accepts(wrong), "{wrong}");
    }
}

#[test]
fn a_request_gets_the_nodes_name_and_nothing_it_asked_for() {
    let state = tempfile::tempdir().unwrap();
    let pki = Pki::open(state.path()).unwrap();
    let (key, csr) = csr("hub.tombolo");
    let node = "press-7".parse().unwrap();
    let signed = pki.sign(&node, &csr).unwrap();
    let certificate = der(&signed.pem);
    let peer = Peer::of(&certificate).unwrap();
    assert_eq!(peer, Peer { name: "press-7".into(), key: signed.key });
    use rcgen::PublicKeyData as _;
    assert_eq!(signed.key, Digest::of(&key.subject_public_key_info()));
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    assert!(!parsed.is_ca());
    assert!(parsed.subject_alternative_name().unwrap().is_none());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 365 * 86_400 + 3_600);
}

#[test]
fn a_spoilt_request_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let pki = Pki::open(state.path()).unwrap();
    let node = "press-7".parse().unwrap();
    let (_, csr) = csr("x");
    let mut body = pem_body(&csr);
    let last = body.len() - 1;
    body[last] ^= 1;
    let forged = pem::encode(&body);
    for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n", &forged] {
        assert!(matches!(pki.sign(&node, bad), Err(CsrError::Malformed(_))), "{bad}");
    }
    assert!(matches!(pki.sign(&node, &"x".repeat(9_000)), Err(CsrError::TooLarge)));
}

#[test]
fn the_servers_certificate_is_for_the_hubs_name_at_any_clock() {
    let state = tempfile::tempdir().unwrap();
    let pki = Pki::open(state.path()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(pki.roots().unwrap(), provider);
    let verifier = verifier.build().unwrap();
    let check = |name: &str, second: u64| {
        let (leaf, rest) = pki.server.chain.split_first().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(second));
        verifier.verify_server_cert(leaf, rest, &name, &[], now).is_ok()
    };
    let now = UnixTime::now().as_secs();
    assert!(check(HUB_NAME, now));
    assert!(check(HUB_NAME, 10 * 365 * 86_400));
    assert!(!check("other.tombolo", now));
    assert!(!check(HUB_NAME, now + 11 * 365 * 86_400));
}

#[test]
fn a_certificate_that_ends_soon_is_replaced() {
    let state = tempfile::tempdir().unwrap();
    let pki = Pki::open(state.path()).unwrap();
    let mut soon = certificate::server_params();
    soon.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(30);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let chain = format!("{}{}", soon.signed_by(&key, &pki.issuer).unwrap().pem(), pki.ca_pem());
    std::fs::write(state.path().join("pki/server.crt"), &chain).unwrap();
    std::fs::write(state.path().join("pki/server.key"), key.serialize_pem()).unwrap();
    let again = Pki::open(state.path()).unwrap();
    assert_ne!(again.server.chain[0], der(&chain));
    assert_eq!(again.ca_pem(), pki.ca_pem());
}

#[test]
fn an_authority_without_its_key_is_not_replaced_silently() {
    let state = tempfile::tempdir().unwrap();
    drop(Pki::open(state.path()).unwrap());
    std::fs::remove_file(state.path().join("pki/ca.key")).unwrap();
    assert!(matches!(Pki::open(state.path()), Err(PkiError::NoKey { .. })));
}

fn pem_body(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(lines).unwrap()
}

mod pem {
    use base64::Engine as _;

    pub(super) fn encode(body: &[u8]) -> String {
        let body = base64::engine::general_purpose::STANDARD.encode(body);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    }
}
