//! Enrolment, renewal and pulls over a real listener.

use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tombolo_store::Store;

use super::*;
use crate::fixture::{Machine, anonymous, https, pki as fixture_pki};
use crate::link::Outbox;
use crate::pki::Peer;

struct Bench {
    _dir: tempfile::TempDir,
    pki: Arc<Pki>,
    fleet: FleetHandle,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let pki = fixture_pki(dir.path());
    let (store, _) = Store::open(&dir.path().join("store")).unwrap();
    let (fleet, owner) = crate::fleet::open(&store).unwrap();
    let stop = CancellationToken::new();
    let (inbox, (outbox, requests), (lines, tails)) = (mpsc::channel(1), Outbox::channel(), mpsc::channel(1));
    let run = owner.run(inbox.1, outbox, lines, stop.clone());
    tokio::spawn(async move {
        run.await;
        drop((requests, tails, inbox.0));
    });
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.address();
    let addresses = Addresses {
        hub_url: "https://hub.example:7443".into(),
        mqtt_url: "mqtts://hub.example:7883".into(),
        registry: "hub.example:7443".into(),
    };
    let registry = Router::new().route("/v2/", get(|| async { "registry" }));
    let router = router(pki.clone(), fleet.clone(), addresses, registry);
    tokio::spawn(listener.serve(pki.node_listener().unwrap(), router, stop.clone()));
    Bench { _dir: dir, pki, fleet, address, stop }
}

impl Bench {
    async fn ask(&self, request: http::request::Builder, body: String) -> (u16, Value) {
        let (status, body) = https(self.address, anonymous(self.pki.ca_pem()), request, body).await;
        let value =
            serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8(body).unwrap()));
        (status, value)
    }

    async fn enrol(&self, token: &str, node: &str, csr: &str) -> (u16, Value) {
        let request = http::Request::post("/tombolo/v1/enrol");
        self.ask(request, json!({ "token": token, "node": node, "csrPem": csr }).to_string()).await
    }

    async fn renew(&self, user: &str, token: &str, csr: &str) -> (u16, Value) {
        let request =
            http::Request::post("/tombolo/v1/renew").header("authorization", credentials(user, token));
        self.ask(request, json!({ "csrPem": csr }).to_string()).await
    }
}

fn credentials(user: &str, token: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{token}")))
}

fn peer(enrolment: &Value) -> Peer {
    use rustls::pki_types::pem::PemObject as _;
    let pem = enrolment["certificatePem"].as_str().unwrap();
    Peer::of(&rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_machine_with_the_token_becomes_a_node() {
    let bench = bench().await;
    let machine = Machine::new();
    let (status, enrolment) = bench.enrol(bench.pki.join_token(), "press-7", &machine.csr).await;
    assert_eq!(status, 200, "{enrolment}");
    assert_eq!(peer(&enrolment).name, "press-7");
    let names: Vec<&String> = enrolment.as_object().unwrap().keys().collect();
    let expected =
        ["caPem", "certificatePem", "hubUrl", "manifestKey", "mqttUrl", "node", "pullToken", "registry"];
    assert_eq!(names, expected);
    assert_eq!(enrolment["mqttUrl"], "mqtts://hub.example:7883");
    let known = bench.fleet.credentials().borrow()[&"press-7".parse().unwrap()].clone();
    assert_eq!(known.key, peer(&enrolment).key);
    assert_eq!(known.pull_token, Digest::of(enrolment["pullToken"].as_str().unwrap().as_bytes()));
    bench.stop.cancel();
}

#[tokio::test]
async fn bad_requests_say_why() {
    let bench = bench().await;
    let (machine, token) = (Machine::new(), bench.pki.join_token().to_owned());
    for (token, node, csr, status, reason) in [
        ("tombolo1.x.y", "press-7", machine.csr.as_str(), 403, "Forbidden"),
        (&token, "Press 7", &machine.csr, 400, "BadRequest"),
        (&token, "hub.tombolo", &machine.csr, 400, "BadRequest"),
        (&token, "press-7", "no request", 400, "BadRequest"),
    ] {
        let (found, answer) = bench.enrol(token, node, csr).await;
        assert_eq!((found, answer["reason"].as_str().unwrap()), (status, reason), "{answer}");
        assert!(answer["message"].as_str().unwrap().len() > 10, "{answer}");
    }
    let request = http::Request::post("/tombolo/v1/enrol");
    assert_eq!(bench.ask(request, "{\"token\":".into()).await.0, 400);
    let request = http::Request::post("/tombolo/v1/enrol");
    assert_eq!(bench.ask(request, " ".repeat(REQUEST_MAX + 1)).await.0, 413);
    assert!(bench.fleet.watch().borrow().is_empty());
}

#[tokio::test]
async fn a_name_belongs_to_one_key() {
    let bench = bench().await;
    let (machine, other) = (Machine::new(), Machine::new());
    let token = bench.pki.join_token();
    let (_, first) = bench.enrol(token, "press-7", &machine.csr).await;
    let (status, answer) = bench.enrol(token, "press-7", &other.csr).await;
    assert_eq!((status, &answer["reason"]), (409, &json!("AlreadyExists")));
    let (status, again) = bench.enrol(token, "press-7", &machine.csr).await;
    assert_eq!(status, 200);
    assert_ne!(first["pullToken"], again["pullToken"]);
    // The token before is void.
    assert_eq!(bench.renew("press-7", first["pullToken"].as_str().unwrap(), &machine.csr).await.0, 401);
}

#[tokio::test]
async fn renewal_needs_the_nodes_token_and_key() {
    let bench = bench().await;
    let machine = Machine::new();
    let (_, enrolment) = bench.enrol(bench.pki.join_token(), "press-7", &machine.csr).await;
    let token = enrolment["pullToken"].as_str().unwrap();
    let (status, renewed) = bench.renew("press-7", token, &machine.csr).await;
    assert_eq!((status, &renewed["pullToken"]), (200, &enrolment["pullToken"]));
    assert_eq!(peer(&renewed), peer(&enrolment));
    assert_ne!(renewed["certificatePem"], enrolment["certificatePem"]);
    assert_eq!(bench.renew("press-7", "wrong", &machine.csr).await.0, 401);
    assert_eq!(bench.renew("press-8", token, &machine.csr).await.0, 401);
    assert_eq!(bench.renew("press-7", token, &Machine::new().csr).await.0, 409);
}

#[tokio::test]
async fn images_are_for_nodes_only() {
    let bench = bench().await;
    let machine = Machine::new();
    let (_, enrolment) = bench.enrol(bench.pki.join_token(), "press-7", &machine.csr).await;
    let token = enrolment["pullToken"].as_str().unwrap();
    assert_eq!(bench.ask(http::Request::get("/v2/"), String::new()).await.0, 401);
    let with = |value| http::Request::get("/v2/").header("authorization", value);
    assert_eq!(bench.ask(with(credentials("press-7", "")), String::new()).await.0, 401);
    assert_eq!(bench.ask(with(credentials("press-8", "")), String::new()).await.0, 401);
    let (status, body) = bench.ask(with(credentials("press-7", token)), String::new()).await;
    assert_eq!((status, body), (200, json!("registry")));
    bench.fleet.remove(&"press-7".parse().unwrap()).await.unwrap();
    assert_eq!(bench.ask(with(credentials("press-7", token)), String::new()).await.0, 401);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_the_right_token_is_not() {
    let bench = bench().await;
    let machine = Machine::new();
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(bench.enrol("tombolo1.guess", "press-7", &machine.csr).await.0);
    }
    assert_eq!(statuses[..10], [403; 10]);
    assert_eq!(statuses[10..], [429; 2]);
    assert_eq!(bench.enrol(bench.pki.join_token(), "press-7", &machine.csr).await.0, 200);
}
