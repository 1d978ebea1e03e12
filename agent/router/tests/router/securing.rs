//! The listener with a certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey as SigningKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::ground::{Ground, HOST, backend, table, text, until, within};

#[derive(Debug)]
struct One(Arc<SigningKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<SigningKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A new certificate for [`HOST`], and the configuration that serves it.
fn certificate() -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let key = ring::default_provider().key_provider.load_private_key(key).unwrap();
    let chain = Arc::new(SigningKey::new(vec![cert.der().clone()], key));
    (cert.der().clone(), tombolo_router::server_config(Arc::new(One(chain))).unwrap())
}

async fn connect(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    secure(TcpStream::connect(address).await.unwrap(), trusted, protocol).await
}

/// One whose client takes little at a time.
async fn connect_narrow(address: SocketAddr, trusted: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    secure(socket.connect(address).await.unwrap(), trusted, "http/1.1").await.unwrap()
}

async fn secure(
    stream: TcpStream,
    trusted: &CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config)).connect(HOST.try_into().unwrap(), stream).await
}

/// Answers with what it was told of the way here.
async fn mirror(request: Request<Incoming>) -> http::Response<http_body_util::Full<Bytes>> {
    let line = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
    text(format!("{} {}", line("x-forwarded-proto"), line("forwarded")))
}

const EXPECTED: &str = "https for=127.0.0.1;host=\"a.default.localhost\";proto=https";

#[tokio::test]
async fn both_protocols_are_served_with_a_certificate() {
    let (trusted, config) = certificate();
    let (_configs, in_force) = watch::channel(config);
    let Some((ground, address)) = Ground::secure(in_force) else { return };
    ground.serve("i1", mirror);
    ground.put(table(backend(&["i1"]))).await;

    let mut stream = connect(address, &trusted, "http/1.1").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(EXPECTED), "{answer}");

    let stream = connect(address, &trusted, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("https://{HOST}/")).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), EXPECTED);

    let plain = ground.get("/").await;
    assert!(plain.body().starts_with(b"http for="), "the other listener is as it was");
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_old_ones_go_on() {
    let (first, config) = certificate();
    let (configs, in_force) = watch::channel(config);
    let Some((ground, address)) = Ground::secure(in_force) else { return };
    ground.serve("i1", mirror);
    ground.put(table(backend(&["i1"]))).await;
    let mut old = connect(address, &first, "http/1.1").await.unwrap();
    let (second, config) = certificate();
    configs.send_replace(config);
    assert!(connect(address, &first, "http/1.1").await.is_err());
    connect(address, &second, "http/1.1").await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    old.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_turned_away_and_nobody_else() {
    let (trusted, config) = certificate();
    let (_configs, in_force) = watch::channel(config);
    let Some((ground, address)) = Ground::secure(in_force) else { return };
    ground.serve("i1", mirror);
    ground.put(table(backend(&["i1"]))).await;
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer).await);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // One that says nothing keeps no other from its answer.
    let _silent = TcpStream::connect(address).await.unwrap();
    connect(address, &trusted, "http/1.1").await.unwrap();
    until("nothing is in flight", || ground.in_flight() == 0).await;
}

/// Larger than what the sockets on the way take.
const LARGE: usize = 2 << 20;

/// An instance that answers with so many bytes and a last word, and may go on for ever after it.
fn serve_large(ground: &Ground, ends: bool) {
    let listener = ground.listen("i1");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    let framing = if ends {
                        format!("content-length: {}", LARGE + 4)
                    } else {
                        "connection: close".into()
                    };
                    let mut answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").into_bytes();
                    answer.resize(answer.len() + LARGE, b'x');
                    answer.extend_from_slice(b"last");
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
}

async fn read_head<S: AsyncReadExt + Unpin>(stream: &mut S) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Read up to the last word.
async fn read_large(stream: &mut TlsStream<TcpStream>) {
    assert!(read_head(stream).await.unwrap().starts_with("HTTP/1.1 200 "));
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    while !seen[seen.len().saturating_sub(16)..].windows(4).any(|word| word == b"last") {
        let count = stream.read(&mut piece).await.unwrap();
        assert!(count > 0, "ended after {} bytes", seen.len());
        seen.extend_from_slice(&piece[..count]);
    }
    assert!(seen.len() > LARGE);
}

#[tokio::test]
async fn slow_clients_get_all_of_a_large_answer() {
    let (trusted, config) = certificate();
    let (_configs, in_force) = watch::channel(config);
    let Some((ground, address)) = Ground::secure(in_force) else { return };
    serve_large(&ground, true);
    ground.put(table(backend(&["i1"]))).await;
    let mut stream = connect_narrow(address, &trusted).await;
    for connection in ["keep-alive", "keep-alive", "close"] {
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: {connection}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        within("the last word", read_large(&mut stream)).await;
    }
}

#[tokio::test]
async fn slow_clients_get_what_there_is_of_a_stream_that_goes_on() {
    let (trusted, config) = certificate();
    let (_configs, in_force) = watch::channel(config);
    let Some((ground, address)) = Ground::secure(in_force) else { return };
    serve_large(&ground, false);
    ground.put(table(backend(&["i1"]))).await;
    let mut stream = connect_narrow(address, &trusted).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\naccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    within("the last word", read_large(&mut stream)).await;
}
