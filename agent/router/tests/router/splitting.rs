//! Shares of real requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Empty};
use tombolo_agent_core::routes::{HostRoutes, RouteTable, Split};

use crate::ground::{Ground, HOST, backend, body_text, key};
use crate::http2;

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 10;
const SHARES: [(u8, &str); 3] = [(5, "i1"), (25, "i2"), (70, "i3")];

async fn split() -> Option<Ground> {
    let ground = Ground::new()?;
    let split = |(percent, name): (u8, &str)| Split { percent, revision: key(name) };
    let routes = HostRoutes { splits: SHARES.map(split).to_vec(), ..HostRoutes::default() };
    let revisions = SHARES.map(|(_, name)| (key(name), Arc::new(backend(&[name]))));
    for (_, name) in SHARES {
        ground.serve_name(name);
    }
    let hosts = BTreeMap::from([(HOST.into(), Arc::new(routes))]);
    ground.put(RouteTable { hosts, revisions: BTreeMap::from(revisions) }).await;
    Some(ground)
}

/// Whether answers came as often as the shares say, and no connection clung to one of them.
fn judge(answers: &[Vec<String>]) {
    let all: Vec<_> = answers.iter().flatten().collect();
    assert_eq!(all.len(), REQUESTS);
    let deviation = |(percent, name): &(u8, &str)| {
        let expected = REQUESTS as f64 * f64::from(*percent) / 100.0;
        (all.iter().filter(|answer| answer.as_str() == *name).count() as f64 - expected).powi(2) / expected
    };
    // At two degrees of freedom chance exceeds this once in 160,000 runs.
    let chi_squared: f64 = SHARES.iter().map(deviation).sum();
    assert!(chi_squared < 24.0, "{chi_squared}");
    for of_connection in answers {
        let changes = of_connection.windows(2).filter(|pair| pair[0] != pair[1]).count();
        // 44 in 100 are expected to differ from the one before.
        assert!(changes * 10 > of_connection.len() * 3, "{changes} changes in {}", of_connection.len());
    }
}

#[tokio::test]
async fn a_split_holds_to_its_percentages_on_kept_connections() {
    let Some(ground) = split().await else { return };
    let connection = async || {
        let mut client = ground.client().await;
        let mut answers = Vec::new();
        for _ in 0..REQUESTS / CONNECTIONS {
            answers.push(body_text(&client.get("/").await).to_owned());
        }
        answers
    };
    judge(&join_all((0..CONNECTIONS).map(|_| connection())).await);
}

#[tokio::test]
async fn a_split_holds_to_its_percentages_over_http2_streams() {
    let Some(ground) = split().await else { return };
    let connection = async || {
        let client = http2::client(&ground).await;
        let mut answers = Vec::new();
        for _ in 0..REQUESTS / CONNECTIONS / 50 {
            let stream = async || {
                let request = Request::get(format!("http://{HOST}/")).body(Empty::<Bytes>::new()).unwrap();
                let answer = client.clone().send_request(request).await.unwrap();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                String::from_utf8(body.to_vec()).unwrap()
            };
            answers.extend(join_all((0..50).map(|_| stream())).await);
        }
        answers
    };
    judge(&join_all((0..CONNECTIONS).map(|_| connection())).await);
}
