//! Requests for frozen instances.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::watch;
use tombolo_agent_core::routes::Backend;
use tombolo_agent_core::supervision::InstanceId;
use tombolo_router::Wake;

use crate::ground::{Ground, backend, body_text, frozen, id, key, table, text, until};

/// Says that it wakes, if it is to, and remembers whom.
#[derive(Default)]
struct Alarm {
    fails: AtomicBool,
    woken: Mutex<Vec<InstanceId>>,
}

impl Wake for Alarm {
    fn wake(&self, instance: &InstanceId) -> bool {
        self.woken.lock().unwrap().push(instance.clone());
        !self.fails.load(Ordering::SeqCst)
    }
}

impl Alarm {
    fn woken(&self) -> Vec<InstanceId> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

/// Instance `i1`, which answers once the value is true.
fn serve_when_released(ground: &Ground) -> watch::Sender<bool> {
    let (release, released) = watch::channel(false);
    ground.serve("i1", move |_| {
        let mut released = released.clone();
        async move {
            drop(released.wait_for(|free| *free).await);
            text(Bytes::from_static(b"awake"))
        }
    });
    release
}

#[tokio::test]
async fn a_request_wakes_a_frozen_instance_and_goes_there() {
    let alarm = Arc::new(Alarm::default());
    let Some(mut ground) = Ground::waking(alarm.clone()) else { return };
    ground.serve("i1", |_| async { text(Bytes::from_static(b"awake")) });
    ground.put(table(frozen(&["i1"]))).await;
    assert_eq!(body_text(&ground.get("/").await), "awake");
    assert_eq!(alarm.woken(), [id("i1")]);
    assert_eq!(ground.demand.try_recv(), Ok(key("a")), "whoever keeps the books hears of it");
    assert_eq!(ground.demand.try_recv(), Ok(key("a")), "and of the first answer");
    // It is the same instance once it is known to be ready, and needs no waking then.
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(body_text(&ground.get("/").await), "awake");
    assert!(alarm.woken().is_empty());
    assert_eq!(ground.demand.try_recv(), Err(TryRecvError::Empty));
}

#[tokio::test]
async fn a_crowd_wakes_it_once() {
    let alarm = Arc::new(Alarm::default());
    let Some(ground) = Ground::waking(alarm.clone()) else { return };
    let release = serve_when_released(&ground);
    ground.put(table(frozen(&["i1"]))).await;
    let mut asked = Vec::new();
    for present in 1..=5 {
        let mut client = ground.client().await;
        asked.push(tokio::spawn(async move { client.get("/").await.status() }));
        until("it is there", || ground.in_flight() == present).await;
    }
    assert_eq!(alarm.woken(), [id("i1")]);
    release.send_replace(true);
    for status in asked {
        assert_eq!(status.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn frozen_instances_take_no_more_than_others() {
    let alarm = Arc::new(Alarm::default());
    let Some(ground) = Ground::waking(alarm.clone()) else { return };
    let release = serve_when_released(&ground);
    ground.put(table(Backend { container_concurrency: 1, ..frozen(&["i1"]) })).await;
    let asked: Vec<_> = [ground.client().await, ground.client().await].into_iter().collect();
    let asked =
        asked.into_iter().map(|mut client| tokio::spawn(async move { client.get("/").await.status() }));
    let asked: Vec<_> = asked.collect();
    until("one is there and one is held", || ground.in_flight() == 1 && ground.held() == 1).await;
    release.send_replace(true);
    for status in asked {
        assert_eq!(status.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn what_cannot_be_woken_is_waited_for() {
    let alarm = Arc::new(Alarm::default());
    alarm.fails.store(true, Ordering::SeqCst);
    let Some(mut ground) = Ground::waking(alarm.clone()) else { return };
    ground.serve("i1", |_| async { text(Bytes::from_static(b"awake")) });
    ground.put(table(frozen(&["i1"]))).await;
    let mut client = ground.client().await;
    let held = tokio::spawn(async move { client.get("/").await.status() });
    assert_eq!(ground.demand.recv().await, Some(key("a")));
    until("it is held", || ground.held() == 1).await;
    ground.put(table(backend(&["i1"]))).await;
    assert_eq!(held.await.unwrap(), StatusCode::OK);
    assert!(!alarm.woken().is_empty());
}
