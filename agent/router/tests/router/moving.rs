//! Requests whose revision leaves the table before they reach an instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tombolo_agent_core::routes::{Backend, HostRoutes, RouteTable, Split};
use tombolo_api::desired::{HeaderMatch, Steer};
use tombolo_router::Refused;

use crate::ground::{Ground, HOST, backend, body_text, gated, ground, key, reason, text, until};

/// How often a request may be drawn again, as the router has it.
const REDRAWS_MAX: usize = 16;

fn all_on(revision: &str) -> Vec<Split> {
    vec![Split { percent: 100, revision: key(revision) }]
}

/// The table in which all requests for [`HOST`] go to one revision.
fn to(revision: &str, backend: Backend) -> RouteTable {
    let routes = HostRoutes { splits: all_on(revision), ..HostRoutes::default() };
    RouteTable {
        hosts: BTreeMap::from([(HOST.into(), Arc::new(routes))]),
        revisions: BTreeMap::from([(key(revision), Arc::new(backend))]),
    }
}

fn held(ground: &Ground, revision: &str) -> usize {
    ground.meter.revision(&key(revision)).map_or(0, |revision| revision.held)
}

#[tokio::test]
async fn a_request_held_for_a_cold_start_goes_where_its_host_leads_by_then() {
    let ground = ground!();
    ground.serve_name("i2");
    ground.put(to("a", backend(&[]))).await;
    let mut client = ground.client().await;
    let waiting = tokio::spawn(async move { client.get("/").await });
    until("it is held", || held(&ground, "a") == 1).await;
    // The one that took over has no instance yet either.
    ground.put(to("b", backend(&[]))).await;
    until("it is held for the other", || (held(&ground, "a"), held(&ground, "b")) == (0, 1)).await;
    assert_eq!(ground.meter.held(), 1);
    ground.put(to("b", backend(&["i2"]))).await;
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status(), body_text(&answer)), (StatusCode::OK, "i2"));
    until("nothing is left of it", || {
        let counted =
            |revision| ground.meter.revision(&key(revision)).map(|seen| (seen.in_flight, seen.abandoned));
        counted("b") == Some((0, 0)) && counted("a").is_none_or(|counts| counts == (0, 0))
    })
    .await;
    assert_eq!(ground.meter.held() + ground.meter.held_bytes(), 0);
    assert_eq!(ground.refused(Refused::Unavailable), 0);
}

#[tokio::test]
async fn a_request_in_line_goes_where_its_host_leads_by_then() {
    let ground = ground!();
    let gate = Arc::new(Semaphore::new(0));
    ground.serve("i1", gated(&gate));
    ground.serve_name("i2");
    ground.put(to("a", Backend { container_concurrency: 1, ..backend(&["i1"]) })).await;
    let mut tasks = Vec::new();
    for number in 1..=4 {
        let mut client = ground.client().await;
        tasks.push(tokio::spawn(async move { client.get("/").await }));
        until("one is there, the others in line", || ground.in_flight() + ground.held() == number).await;
    }
    until("three are in line", || (ground.in_flight(), ground.held()) == (1, 3)).await;
    ground.put(to("b", Backend { container_concurrency: 1, ..backend(&["i2"]) })).await;
    for task in tasks.drain(1..) {
        let answer = task.await.unwrap();
        assert_eq!((answer.status(), body_text(&answer)), (StatusCode::OK, "i2"));
    }
    gate.add_permits(1);
    assert_eq!(body_text(&tasks.remove(0).await.unwrap()), "done", "what is at an instance stays there");
}

#[tokio::test]
async fn a_request_whose_body_waits_moves_to_the_other_version_of_http_too() {
    let ground = ground!();
    for instance in ["i1", "i2"] {
        ground.serve(instance, move |request: Request<Incoming>| async move {
            let version = request.version();
            let host = request.headers().get("host").or(request.headers().get("x-forwarded-host")).cloned();
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let (host, body) = (host.unwrap(), String::from_utf8_lossy(&body).into_owned());
            text(format!("{instance} {version:?} {} {path} {body}", host.to_str().unwrap()))
        });
    }
    let h2c = |ready: &[&str]| Backend { h2c: true, ..backend(ready) };
    for (before, after, expected) in
        [(backend(&[]), h2c(&["i2"]), "i2 HTTP/2.0"), (h2c(&[]), backend(&["i1"]), "i1 HTTP/1.1")]
    {
        ground.put(to("a", before)).await;
        let mut client = ground.client().await;
        let request = Request::post("/x?y").header("host", HOST).header("te", "trailers");
        let request = request.body(Full::new(Bytes::from_static(b"body"))).unwrap();
        let waiting = tokio::spawn(async move { client.send(request).await.unwrap() });
        until("it is held", || held(&ground, "a") == 1).await;
        ground.put(to("b", after)).await;
        let answer = waiting.await.unwrap();
        assert_eq!(body_text(&answer), format!("{expected} {HOST} /x body"));
    }
}

#[tokio::test]
async fn what_a_request_s_headers_chose_holds_when_it_is_drawn_again() {
    let ground = ground!();
    for instance in ["i1", "i2"] {
        ground.serve(instance, move |request: Request<Incoming>| async move {
            let told = request.headers().get("knative-serving-default-route");
            text(format!("{instance} {}", told.map_or("", |told| told.to_str().unwrap())))
        });
    }
    let tagged = |shares: &str, tags: &[(&str, &str)], revisions: &[(&str, &[&str])]| {
        let steering = vec![Steer {
            header: "cookie".into(),
            value: HeaderMatch::Prefix("new=".into()),
            tag: "next".into(),
        }];
        let tags = tags.iter().map(|(tag, revision)| ((*tag).to_owned(), all_on(revision))).collect();
        let routes = HostRoutes { splits: all_on(shares), tags, steering };
        let revisions = revisions.iter().map(|(name, ready)| (key(name), Arc::new(backend(ready))));
        RouteTable {
            hosts: BTreeMap::from([(HOST.into(), Arc::new(routes))]),
            revisions: revisions.collect(),
        }
    };
    for (name, value) in [("knative-serving-tag", "next"), ("cookie", "new=1"), ("x-none", "1")] {
        let by_header = name != "x-none";
        let of_tag = [("next", "a2"), ("other", "a1")];
        for (tags, expected) in [
            (&[("next", "b2")][..], if by_header { "i2 false" } else { "i1 true" }),
            (&[("other", "b2")], "i1 true"),
            (&[], "i1 "),
        ] {
            ground.put(tagged("a1", &of_tag, &[("a1", &[]), ("a2", &[])])).await;
            let mut client = ground.client().await;
            let request = Request::get("/").header("host", HOST).header(name, value);
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            let waiting = tokio::spawn(async move { client.send(request).await.unwrap() });
            until("it is held", || ground.meter.held() == 1).await;
            assert_eq!(held(&ground, if by_header { "a2" } else { "a1" }), 1);
            ground.put(tagged("b1", tags, &[("b1", &["i1"]), ("b2", &["i2"])])).await;
            assert_eq!(body_text(&waiting.await.unwrap()), expected, "{name} {tags:?}");
        }
    }
}

#[tokio::test]
async fn a_request_whose_host_is_gone_is_told_so() {
    let ground = ground!();
    let lost = RouteTable { revisions: BTreeMap::new(), ..to("b", backend(&[])) };
    for (table, expected) in [
        (RouteTable::default(), (StatusCode::NOT_FOUND, "UnknownHost")),
        (lost, (StatusCode::SERVICE_UNAVAILABLE, "RevisionMissing")),
    ] {
        ground.put(to("a", backend(&[]))).await;
        let mut client = ground.client().await;
        let waiting = tokio::spawn(async move { client.get("/").await });
        until("it is held", || held(&ground, "a") == 1).await;
        ground.put(table).await;
        let answer = waiting.await.unwrap();
        assert_eq!((answer.status(), reason(&answer)), expected);
    }
}

#[tokio::test]
async fn a_request_is_not_drawn_again_for_ever() {
    let ground = ground!();
    ground.put(to("r0", backend(&[]))).await;
    let mut client = ground.client().await;
    let waiting = tokio::spawn(async move { client.get("/").await });
    for number in 0..=REDRAWS_MAX {
        let revision = format!("r{number}");
        until("it is held", || held(&ground, &revision) == 1).await;
        ground.put(to(&format!("r{}", number + 1), backend(&[]))).await;
    }
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::SERVICE_UNAVAILABLE, "RevisionRemoved"));
}
