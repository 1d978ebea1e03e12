//! Requests whose headers choose where they go.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use tombolo_agent_core::routes::{HostRoutes, RouteTable, Split};
use tombolo_api::desired::{HeaderMatch, Steer};

use crate::ground::{Ground, HOST, backend, body_text, ground, key, reason, text};

/// A host with everything on `a`, the tag `next` on `b`, the tag `gone` on a revision that is not here, and one rule.
fn tagged() -> RouteTable {
    let splits = |revision: &str| vec![Split { percent: 100, revision: key(revision) }];
    let tags = [("next", "b"), ("gone", "c")].map(|(tag, revision)| (tag.to_owned(), splits(revision)));
    let steer = |header: &str, value, tag: &str| Steer { header: header.into(), value, tag: tag.into() };
    let steering = vec![
        steer("user-agent", HeaderMatch::Regex("iPhone".into()), "next"),
        steer("x-group", HeaderMatch::Exact("lost".into()), "no-such-tag"),
    ];
    let routes = HostRoutes { splits: splits("a"), tags: BTreeMap::from(tags), steering };
    let plain = HostRoutes { splits: splits("a"), ..HostRoutes::default() };
    RouteTable {
        hosts: BTreeMap::from([(HOST.into(), Arc::new(routes)), ("plain.localhost".into(), Arc::new(plain))]),
        revisions: BTreeMap::from([
            (key("a"), Arc::new(backend(&["i1"]))),
            (key("b"), Arc::new(backend(&["i2"]))),
        ]),
    }
}

/// Answers with its name and what it was told of the choice.
fn serve(ground: &Ground, instance: &'static str) {
    ground.serve(instance, move |request: Request<Incoming>| async move {
        let told = request.headers().get_all("knative-serving-default-route").iter();
        let told: Vec<_> = told.map(|value| value.to_str().unwrap().to_owned()).collect();
        text(format!("{instance} {}", told.join(",")))
    });
}

#[tokio::test]
async fn a_header_chooses_a_tag_and_the_program_is_told() {
    let ground = ground!();
    serve(&ground, "i1");
    serve(&ground, "i2");
    ground.put(tagged()).await;
    let mut client = ground.client().await;
    for (host, lines, expected) in [
        (HOST, &[][..], "i1 true"),
        (HOST, &[("knative-serving-tag", "next")], "i2 false"),
        (HOST, &[("knative-serving-tag", "unknown")], "i1 true"),
        (HOST, &[("knative-serving-tag", "")], "i1 true"),
        (HOST, &[("user-agent", "Mozilla/5.0 (iPhone)")], "i2 false"),
        (HOST, &[("user-agent", "curl/8")], "i1 true"),
        (HOST, &[("x-group", "lost")], "i1 true"),
        (HOST, &[("knative-serving-default-route", "false")], "i1 true"),
        ("plain.localhost", &[("knative-serving-tag", "next")], "i1 "),
        ("plain.localhost", &[("knative-serving-default-route", "false")], "i1 "),
    ] {
        let mut request = Request::get("/").header("host", host);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answer = client.send(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(body_text(&answer), expected, "{host} {lines:?}");
    }
    let gone = Request::get("/").header("host", HOST).header("knative-serving-tag", "gone");
    let answer = client.send(gone.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!((answer.status(), reason(&answer)), (StatusCode::SERVICE_UNAVAILABLE, "RevisionMissing"));
}
