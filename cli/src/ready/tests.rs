//! Decisions of the wait, and the wait itself against a hub of a few lines.

use super::*;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

fn service(observed: i64, ready: &str, reason: &str) -> Value {
    json!({
        "metadata": {"name": "a", "namespace": "n", "generation": 2},
        "status": {
            "observedGeneration": observed, "url": "http://a.n.localhost:8080", "latestReadyRevisionName": "a-00002",
            "traffic": [{"revisionName": "a-00002", "percent": 100}],
            "conditions": [
                {"type": "ConfigurationsReady", "status": ready, "reason": reason, "message": "why"},
                {"type": "Ready", "status": ready, "reason": reason, "message": "why"},
                {"type": "RoutesReady", "status": "True"},
            ],
        },
    })
}

fn wanted(timeout: Duration) -> Wanted {
    Wanted::new(&service(0, "Unknown", ""), timeout)
}

#[test]
fn a_status_of_an_older_generation_says_nothing() {
    for (observed, ready, expected) in [
        (2, "True", Standing::Ready),
        (2, "False", Standing::Failed),
        (2, "Unknown", Standing::Underway),
        (1, "True", Standing::Underway),
        (1, "False", Standing::Underway),
    ] {
        assert_eq!(standing(&service(observed, ready, ""), 2), expected, "{observed} {ready}");
    }
    assert_eq!(standing(&json!({}), 1), Standing::Underway);
}

#[test]
fn complaints_name_the_parts() {
    assert_eq!(
        complaints(&service(2, "False", "RevisionFailed")),
        "\n  ConfigurationsReady: RevisionFailed: why"
    );
    assert_eq!(complaints(&json!({})), "\n  the hub has not looked at it yet");
    let summary =
        json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NoNode"}]}});
    assert_eq!(complaints(&summary), "\n  Ready: NoNode");
}

fn node(ready: &str, desired: &str, revision: &str, address: &str) -> Value {
    json!({"status": {
        "conditions": [{"type": "Ready", "status": ready}], "info": {"address": address},
        "desired": {"digest": desired}, "serving": {"digest": "sha256:1"},
        "revisions": [{"namespace": "n", "name": revision}],
    }})
}

#[test]
fn only_nodes_that_are_there_and_up_to_date_are_asked() {
    let nodes = [
        node("True", "sha256:1", "a-00002", "127.0.0.1:1"),
        node("True", "sha256:2", "a-00002", "127.0.0.1:2"),
        node("Unknown", "sha256:1", "a-00002", "127.0.0.1:3"),
        node("True", "sha256:1", "a-00001", "127.0.0.1:4"),
    ];
    assert_eq!(serving(&nodes, &wanted(Duration::ZERO), &service(2, "True", "")), ["127.0.0.1:1"]);
}

#[test]
fn every_address_is_this_machine_only_beside_the_hub() {
    let at = |text: &str| Some(text.parse().unwrap());
    for (address, here, expected) in [
        ("10.0.0.7:80", false, at("10.0.0.7:80")),
        ("0.0.0.0:80", true, at("127.0.0.1:80")),
        ("[::]:80", true, at("127.0.0.1:80")),
        ("0.0.0.0:80", false, None),
        ("", true, None),
    ] {
        assert_eq!(reachable(address, here), expected, "{address}");
    }
}

/// A hub that gives the answer of `respond` to every path, and is also a router that answers 200.
async fn hub(respond: impl Fn(&str) -> Value + Send + Sync + 'static) -> (Hub, SocketAddr) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 8192];
            let length = stream.read(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = respond(text.split(' ').nth(1).unwrap_or_default()).to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            // A client that went away is none of this hub's business.
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    (Hub::new(&format!("http://{address}")).unwrap(), address)
}

#[tokio::test]
async fn a_ready_service_is_asked_through_its_node() {
    let router = std::sync::Arc::new(std::sync::OnceLock::new());
    let told = router.clone();
    let (hub, address) = hub(move |path| match path {
        path if path.ends_with("/nodes") => {
            let address: &SocketAddr = told.get().unwrap();
            json!({"items": [node("True", "sha256:1", "a-00002", &address.to_string())]})
        }
        path if path.ends_with("/services/a") => service(2, "True", ""),
        _ => json!("hello"),
    })
    .await;
    router.set(address).unwrap();
    let found = wait(&hub, Steps::begin(), &wanted(Duration::from_secs(20))).await.unwrap();
    assert_eq!(found, Answering { url: "http://a.n.localhost:8080".into(), router: Some(address) });
}

#[tokio::test]
async fn a_failed_service_is_an_error_soon_and_a_slow_one_at_the_deadline() {
    let (failing, _) = hub(|_| service(2, "False", "ImageMissing")).await;
    let error = wait(&failing, Steps::begin(), &wanted(Duration::from_secs(60))).await.unwrap_err();
    assert!(error.to_string().contains("ConfigurationsReady: ImageMissing: why"), "{error}");
    assert!(!error.is::<TimedOut>());
    let (slow, _) = hub(|_| service(2, "Unknown", "Deploying")).await;
    let error = wait(&slow, Steps::begin(), &wanted(Duration::from_millis(300))).await.unwrap_err();
    assert!(error.is::<TimedOut>() && error.to_string().contains("Deploying"), "{error}");
}
