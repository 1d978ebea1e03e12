//! For tests: a machine that wants to be a node. It has a key, speaks HTTPS and MQTT, and remembers what it heard.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rumqttc::{
    AsyncClient, Broker, BrokerSessionResumePolicy, ConnectionError, Event, LastWill, MqttOptions, Packet,
    PublishOptions, QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tombolo_api::frame::PACKET_MAX;

use crate::pki::{HUB_NAME, Pki};

/// How long anything may take in a test that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How long a test waits for what must not happen.
pub(crate) const NEVER: Duration = Duration::from_millis(300);

/// The sessions' keep-alive: short, so that a test can outlast it.
const KEEP_ALIVE_S: u16 = 1;

/// An opened PKI in a directory that lives as long.
pub(crate) fn pki(dir: &Path) -> Arc<Pki> {
    Arc::new(Pki::open(dir).unwrap())
}

/// A key and what it asks to be signed.
pub(crate) struct Machine {
    key: KeyPair,
    pub(crate) csr: String,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap().pem().unwrap();
        Self { key, csr }
    }

    /// TLS with this machine's key and the given certificate, trusting `ca_pem`.
    pub(crate) fn tls(&self, certificate_pem: &str, ca_pem: &str) -> Arc<ClientConfig> {
        let chain = vec![CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes()).unwrap();
        Arc::new(trusting(ca_pem).with_client_auth_cert(chain, key).unwrap())
    }

    /// Signed as `node` by `pki`, without the hub's knowing.
    pub(crate) fn signed(&self, pki: &Pki, node: &str) -> Arc<ClientConfig> {
        let certificate = pki.sign(&node.parse().unwrap(), &self.csr).unwrap();
        self.tls(&certificate.pem, pki.ca_pem())
    }
}

/// TLS without a certificate of one's own.
pub(crate) fn anonymous(ca_pem: &str) -> Arc<ClientConfig> {
    Arc::new(trusting(ca_pem).with_no_client_auth())
}

fn trusting(ca_pem: &str) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
}

/// An MQTT session.
pub(crate) struct Session {
    pub(crate) client: AsyncClient,
    heard: mpsc::UnboundedReceiver<Result<Packet, ConnectionError>>,
    hold: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Session {
    /// Connects; fails with why the broker did not want it. A will with properties belongs to a session that is taken up
    /// again.
    pub(crate) async fn open(
        address: SocketAddr,
        tls: Arc<ClientConfig>,
        id: &str,
        will: Option<LastWill>,
    ) -> Result<Self, ConnectionError> {
        let mut options = MqttOptions::new(id, Broker::tcp(HUB_NAME, 1));
        options.set_socket_connector(move |_, network| async move {
            rumqttc::default_socket_connect(address.to_string(), network).await
        });
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        options.set_max_packet_size(Some(PACKET_MAX as u32));
        options.set_outgoing_inflight_upper_limit(64);
        options.set_keep_alive(KEEP_ALIVE_S);
        if let Some(will) = will {
            if will.properties.is_some() {
                options.set_clean_start(false);
                options.set_session_expiry_interval(Some(60));
                options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
            }
            options.set_last_will(will);
        }
        let (client, mut events) = AsyncClient::builder(options).capacity(64).build();
        loop {
            if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
                break;
            }
        }
        let (sender, heard) = mpsc::unbounded_channel();
        let hold = Arc::new(AtomicBool::new(false));
        let held = hold.clone();
        let task = tokio::spawn(async move {
            loop {
                if held.load(Ordering::Relaxed) {
                    return std::future::pending().await;
                }
                let polled = events.poll().await;
                let over = polled.is_err();
                let packet = match polled {
                    Ok(Event::Incoming(packet)) => Ok(packet),
                    Ok(_) => continue,
                    Err(error) => Err(error),
                };
                if sender.send(packet).is_err() || over {
                    return;
                }
            }
        });
        Ok(Self { client, heard, hold, task })
    }

    pub(crate) async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        let notice = self.client.subscribe_tracked(filter, QoS::AtLeastOnce).await.unwrap();
        timeout(SOON, notice.wait_async()).await.unwrap().unwrap().return_codes[0]
    }

    /// Publishes; fails with the broker's reason.
    pub(crate) async fn publish(&self, topic: &str, payload: &[u8], retain: bool) -> Result<(), String> {
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
        let notice = self.client.publish_tracked(topic, payload.to_vec(), options).await.unwrap();
        let result = timeout(SOON, notice.wait_completion_async()).await.unwrap();
        result.map_err(|error| error.to_string())
    }

    /// The next message: topic, payload, whether it was retained.
    pub(crate) async fn next(&mut self) -> (String, Vec<u8>, bool) {
        loop {
            let heard = timeout(SOON, self.heard.recv()).await.expect("no message came").unwrap().unwrap();
            if let Packet::Publish(publish) = heard {
                let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
                return (topic, publish.payload.to_vec(), publish.retain);
            }
        }
    }

    /// Whether no message comes.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        let message = async {
            loop {
                if let Some(Ok(Packet::Publish(publish))) = self.heard.recv().await {
                    return publish;
                }
            }
        };
        timeout(NEVER, message).await.is_err()
    }

    /// Why the session ended: the broker's goodbye if it said one.
    pub(crate) async fn end(&mut self) -> String {
        let mut reason = String::new();
        while let Some(heard) = timeout(SOON, self.heard.recv()).await.expect("the session goes on") {
            match heard {
                Ok(Packet::Disconnect(disconnect)) => reason = format!("{:?}", disconnect.reason_code),
                Ok(_) => {}
                Err(error) if reason.is_empty() => reason = format!("{error:?}"),
                Err(_) => {}
            }
        }
        reason
    }

    /// Says goodbye.
    pub(crate) async fn leave(self) {
        self.client.disconnect().await.unwrap();
        timeout(SOON, self.task).await.unwrap().unwrap();
    }

    /// Says nothing any more, with its connection open.
    pub(crate) fn freeze(self) {
        self.hold.store(true, Ordering::Relaxed);
        std::mem::forget(self);
    }

    /// Vanishes without a word.
    pub(crate) async fn vanish(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// One HTTPS request to the node listener: status and body.
pub(crate) async fn https(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    request: http::request::Builder,
    body: impl Into<bytes::Bytes>,
) -> (u16, Vec<u8>) {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(HUB_NAME).unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = request.header("host", HUB_NAME).body(Full::new(body.into())).unwrap();
    let response = timeout(SOON, sender.send_request(request)).await.unwrap().unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
    drop(sender);
    let _ = connection.await;
    (status, body)
}
