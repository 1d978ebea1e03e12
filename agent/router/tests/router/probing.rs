//! Questions that a platform asks itself: answered by the router, and by nobody else.

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use tombolo_agent_core::routes::{Backend, Unavailable};

use crate::ground::{HOST, backend, body_text, ground, key, reason, table};

#[tokio::test]
async fn probes_reach_no_instance_wake_none_and_count_nowhere() {
    let mut ground = ground!();
    ground.serve_name("i1");
    let why = Unavailable { reason: "ImageMissing".into(), message: "no such image".into() };
    let in_vain = Backend { unavailable: Some(why), ..backend(&[]) };
    let (ready, cold) = (backend(&["i1"]), backend(&[]));
    for (backend, lines, status, expected) in [
        (&ready, &[("k-network-probe", "queue")][..], 200, "queue"),
        (&cold, &[("k-network-probe", "queue")], 503, "NotReady"),
        (&ready, &[("k-network-probe", "activator")], 200, "activator"),
        (&cold, &[("k-network-probe", "activator")], 200, "activator"),
        (&in_vain, &[("k-network-probe", "activator")], 503, "ImageMissing"),
        (&cold, &[("k-network-probe", "probe"), ("k-network-hash", "abc")], 200, "probe"),
        (&cold, &[("k-network-probe", "probe")], 400, "BadRequest"),
        (&ready, &[("k-network-probe", "who")], 400, "BadRequest"),
        (&ready, &[("user-agent", "kube-probe/1.31")], 200, "activator"),
        (&cold, &[("user-agent", "Knative-Ingress-Probe")], 200, "activator"),
    ] {
        ground.put(table(backend.clone())).await;
        let mut request = Request::get("/").header("host", HOST);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answer = ground.client().await.send(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let said = if status == 200 { body_text(&answer).trim_end() } else { reason(&answer) };
        assert_eq!((answer.status().as_u16(), said), (status, expected), "{lines:?}");
        if lines.len() == 2 {
            assert_eq!(answer.headers()["k-network-hash"], "abc");
        }
    }
    let seen = ground.meter.revision(&key("a")).unwrap();
    assert_eq!((seen.arrived, seen.requests(), seen.last_activity), (0, 0, None));
    assert!(ground.demand.try_recv().is_err(), "nothing was asked for");
}
