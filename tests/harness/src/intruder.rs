//! Somebody who speaks to nodes in the hub's place: what the broker lets the hub do, with the hub's own certificate.
//!
//! While it is connected the hub is not: a broker serves one client of a name. It stays for one act only.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttc::mqttbytes::QoS;
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, PublishOptions, TlsConfiguration, Transport,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::site::HUB;

/// Attempts of one act: the hub comes back and takes the connection over.
const ATTEMPTS: u32 = 20;

/// The hub's keys in other hands.
pub struct Intruder {
    pki: PathBuf,
}

impl Intruder {
    pub(crate) fn new(pki: PathBuf) -> Self {
        Self { pki }
    }

    /// The ed25519 key that signs manifests.
    pub fn manifest_key(&self) -> [u8; 32] {
        let text =
            std::fs::read_to_string(self.pki.join("manifest.key")).expect("the hub has a manifest key");
        let text = text.trim();
        let digit = |index: usize| {
            u8::from_str_radix(&text[2 * index..2 * index + 2], 16).expect("hexadecimal digits")
        };
        std::array::from_fn(digit)
    }

    /// Publishes a retained message; returns when the broker has it.
    pub async fn publish(&self, topic: &str, payload: Vec<u8>) {
        self.attempt(async |client: AsyncClient, events: &mut EventLoop| {
            client.publish(topic, payload.clone(), PublishOptions::at_least_once().retained()).await?;
            loop {
                if let Event::Incoming(Packet::PubAck(_)) = events.poll().await? {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// The retained message of a topic.
    pub async fn retained(&self, topic: &str) -> Vec<u8> {
        self.attempt(async |client: AsyncClient, events: &mut EventLoop| {
            client.subscribe(topic, QoS::AtLeastOnce).await?;
            loop {
                if let Event::Incoming(Packet::Publish(publish)) = events.poll().await? {
                    return Ok(publish.payload.to_vec());
                }
            }
        })
        .await
    }

    async fn attempt<T>(&self, act: impl AsyncFn(AsyncClient, &mut EventLoop) -> Result<T>) -> T {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let (client, mut events) = self.connect().expect("the hub's keys can be read");
            match tokio::time::timeout(
                crate::within(Duration::from_secs(5)),
                act(client.clone(), &mut events),
            )
            .await
            {
                Ok(Ok(done)) => return done,
                Ok(Err(error)) => last = format!("{error:#}"),
                Err(_) => last = "no answer".into(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{ATTEMPTS} attempts to speak in the hub's place failed: {last}");
    }

    fn connect(&self) -> Result<(AsyncClient, EventLoop)> {
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(self.pki.join("client.crt"))?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(self.pki.join("client.key")).context("client.key")?;
        if chain.is_empty() {
            bail!("client.crt holds no certificate");
        }
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(chain, key)?;
        let mut options = MqttOptions::new("hub.tombolo", (HUB.to_string(), 7883));
        options.set_keep_alive(30).set_clean_start(true);
        options.set_max_packet_size(Some(256 * 1024));
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))));
        Ok(AsyncClient::builder(options).capacity(16).build())
    }
}

/// Believes every server: whom an intruder speaks to is not what is tested.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
