//! Certificates of a test's own, and a front that speaks TLS for a server that does not, as a proxy before a hub does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A server's certificate, which is its own authority, and its key: files in PEM.
pub struct Certificate {
    pub file: PathBuf,
    pub key: PathBuf,
    tls: Arc<ServerConfig>,
}

impl Certificate {
    /// Of the server with this name or address; its files are below `dir`.
    pub fn make(dir: &Path, name: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        let (file, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        std::fs::write(&file, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        let private = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], private.into())?;
        Ok(Self { file, key, tls: Arc::new(tls) })
    }
}

/// Takes connections in TLS and passes on what comes, for as long as the test's process lives.
pub struct Front {
    pub address: SocketAddr,
}

impl Front {
    /// Begins, in the calling thread's network namespace.
    pub fn start(listen: SocketAddr, to: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let listener = std::net::TcpListener::bind(listen).context("listening in TLS")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(certificate.tls.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A test's own thread waits for commands.
        std::thread::spawn(move || runtime.block_on(serve(listener, to, acceptor)));
        Ok(Self { address })
    }
}

async fn serve(listener: std::net::TcpListener, to: SocketAddr, acceptor: TlsAcceptor) {
    let listener = TcpListener::from_std(listener).expect("a listener that does not block");
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not believe the certificate goes away; so does a server.
            if let Ok(mut client) = acceptor.accept(client).await
                && let Ok(mut server) = TcpStream::connect(to).await
            {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
