//! HTTPS at a node's router, with a certificate from files.

use std::time::Duration;

use reqwest::{Client, Version};
use tombolo_harness::{Certificate, Function, Load, Node, NodeOptions, Site, until, within};

const HOST: &str = "subject.default.localhost";

/// A client that asks on a new connection each time, of a server that shows one of these certificates (PEM).
fn client(node: &Node, trusted: &[&str], only_http1: bool) -> Client {
    let certificate = |pem: &&str| reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate");
    let builder = Client::builder().tls_certs_only(trusted.iter().map(certificate));
    let builder = builder.resolve(HOST, (node.address(), 8443).into()).no_proxy().pool_max_idle_per_host(0);
    let builder = if only_http1 { builder.http1_only() } else { builder };
    builder.timeout(within(Duration::from_secs(30))).build().expect("a client can be made")
}

#[tokio::test]
async fn https_is_served_by_both_versions_and_a_renewed_certificate_without_a_restart() {
    let Some(mut site) = Site::start().await else { return };
    let dir = site.dir().to_owned();
    let renew = || {
        let certificate = Certificate::make(&dir, HOST).expect("the site's directory can be written");
        let pem = std::fs::read_to_string(&certificate.file).expect("it was written just now");
        (certificate, pem)
    };
    let (Certificate { file, key, .. }, first) = renew();
    let (file, key) = (file.display(), key.display());
    let tls = format!("[router.tls]\nlisten = \"0.0.0.0:8443\"\ncertificate = \"{file}\"\nkey = \"{key}\"\n");
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600).config(&tls)).await;
    site.hub.deploy(&Function::subject("subject")).await;
    until("the first answer", 20, || node.answer("subject", "/")).await;

    let url = format!("https://{HOST}:8443/head");
    for (only_http1, version) in [(true, Version::HTTP_11), (false, Version::HTTP_2)] {
        let answer = client(&node, &[&first], only_http1).get(&url).send().await.expect("an answer");
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
        let head = answer.text().await.expect("the whole answer").to_lowercase();
        assert!(head.contains("\r\nx-forwarded-proto: https\r\n"), "{head}");
    }

    let (_, second) = renew();
    let loads = [true, false].map(|only_http1| {
        let client = client(&node, &[&first, &second], only_http1);
        Load::of(|| client.get(&url), 2, Duration::from_millis(5))
    });
    let knows_second = client(&node, &[&second], false);
    until("the second certificate", 90, || async { knows_second.get(&url).send().await.map(drop) }).await;
    let refused = client(&node, &[&first], false).get(&url).send().await;
    assert!(refused.is_err(), "the first certificate is shown still");
    for load in loads {
        let outcomes = load.stop().await;
        let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), outcomes.len(), failed[0]);
    }
}
