//! The task between the router's counts and the targets: who has a scaler and since when, and what a sample spans.

use std::time::Instant as RealInstant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tombolo_agent_core::routes::{Backend, HostRoutes, Split};
use tombolo_api::desired::{Desired, RevisionObject, encode_revision};
use tombolo_api::manifest::Version;
use tombolo_api::report::Serving;
use tombolo_router::{Dialer, RevisionMeter, Router};

use super::*;
use crate::testing::report_of;

const HOST: &str = "s.default.localhost";

fn key() -> RevisionKey {
    RevisionKey::new("default", "s-00001")
}

fn parameters(annotations: &[(&str, &str)]) -> Parameters {
    let annotations =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Parameters::of(&annotations, 0, &Defaults::default())
}

/// A router in front of a revision without instances, and the autoscaler.
struct Ground {
    address: std::net::SocketAddr,
    meter: Arc<Meter>,
    report: watch::Sender<Report>,
    targets: watch::Receiver<Arc<Targets>>,
    _accepted: watch::Sender<Option<Arc<Accepted>>>,
    _tables: watch::Sender<Arc<RouteTable>>,
}

impl Ground {
    fn new() -> Self {
        let object = RevisionObject {
            namespace: "default".into(),
            name: "s-00001".into(),
            uid: "uid".into(),
            service: "s".into(),
            configuration: "s".into(),
            annotations: BTreeMap::new(),
            spec: Default::default(),
            verification: None,
        };
        let digest = encode_revision(&object).entry.digest;
        let desired =
            Desired { revisions: [(key(), (digest, Arc::new(object)))].into(), ..Desired::default() };
        let serving = Serving { version: Version { epoch: 1, generation: 1 }, digest };
        let accepted = watch::Sender::new(Some(Arc::new(Accepted { desired, serving, hub_time_s: 0 })));
        let tables = watch::Sender::new(Arc::new(table()));
        let (demand, mut demands) = mpsc::channel(1);
        let meter = Arc::new(Meter::new());
        let listen = "127.0.0.1:0".parse().unwrap();
        let dialer = Dialer::start().unwrap();
        let router = Router::bind(listen, tables.subscribe(), demand, dialer, Arc::clone(&meter)).unwrap();
        let (address, poke) = (router.address(), Arc::new(Notify::new()));
        tokio::spawn(router.run(std::future::pending::<()>()));
        let poked = Arc::clone(&poke);
        tokio::spawn(async move {
            while demands.recv().await.is_some() {
                poked.notify_one();
            }
        });
        let report = watch::Sender::new(Report::default());
        let targets = watch::Sender::new(Arc::default());
        let target_changes = targets.subscribe();
        let autoscale = Autoscale {
            accepted: accepted.subscribe(),
            table: tables.subscribe(),
            report: report.subscribe(),
            meter: Arc::clone(&meter),
            poke,
            targets,
            decisions: watch::Sender::new(BTreeMap::new()),
            clock: Clock::start(),
            defaults: Defaults { stable_window_ms: 1000, ..Defaults::default() },
        };
        tokio::spawn(autoscale.run());
        Self { address, meter, report, targets: target_changes, _accepted: accepted, _tables: tables }
    }

    /// A request that waits for an instance for as long as it is kept.
    async fn ask(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Until so many instances of the revision are wanted; `None`: it is at rest.
    async fn wants(&mut self, want: Option<u32>) {
        let wanted = |targets: &Arc<Targets>| targets.get(&key()).map(|target| target.want) == want;
        let waited = tokio::time::timeout(Duration::from_secs(60), self.targets.wait_for(wanted)).await;
        assert!(waited.is_ok_and(|targets| targets.is_ok()), "not in 60 s: {want:?}");
    }
}

/// All requests for [`HOST`] go to the revision, which has no instance.
fn table() -> RouteTable {
    let backend = Backend {
        ready: Vec::new(),
        standby: Vec::new(),
        unavailable: None,
        awaits: None,
        h2c: false,
        container_concurrency: 0,
        timeout_ms: 60_000,
        response_start_timeout_ms: 60_000,
        idle_timeout_ms: 0,
    };
    let splits = vec![Split { percent: 100, revision: key() }];
    let host = HostRoutes { splits, ..HostRoutes::default() };
    RouteTable {
        hosts: [(HOST.into(), Arc::new(host))].into(),
        revisions: [(key(), Arc::new(backend))].into(),
    }
}

#[tokio::test]
async fn a_request_wakes_a_revision_and_silence_lets_it_rest() {
    let mut ground = Ground::new();
    assert_eq!(ground.targets.borrow().get(&key()), None);
    for _ in 0..2 {
        let asked = ground.ask().await;
        ground.wants(Some(1)).await;
        assert_eq!(ground.meter.held(), 1);
        ground.report.send_replace(report_of(&[("i1", Tier::Running)]));
        drop(asked);
        ground.wants(Some(0)).await;
        ground.report.send_replace(Report { revisions: Vec::new(), ..report_of(&[]) });
        ground.wants(None).await;
    }
}

#[tokio::test]
async fn what_runs_when_the_agent_starts_is_wanted_until_it_was_silent() {
    let mut ground = Ground::new();
    ground.report.send_replace(report_of(&[("i1", Tier::Running), ("i2", Tier::Starting)]));
    ground.wants(Some(2)).await;
    ground.wants(Some(0)).await;
}

/// What was given up is told of at rest too, where no scaler is left, until its object is another one.
#[tokio::test]
async fn what_was_given_up_is_told_of_until_a_request_or_another_object_comes() {
    let Ground { meter, _accepted: accepted, _tables: tables, .. } = Ground::new();
    let targets = watch::Sender::new(Arc::default());
    let mut autoscale = Autoscale {
        accepted: accepted.subscribe(),
        table: tables.subscribe(),
        report: watch::Sender::new(Report::default()).subscribe(),
        meter,
        poke: Arc::default(),
        targets: targets.clone(),
        decisions: watch::Sender::new(BTreeMap::new()),
        clock: Clock::start(),
        defaults: Defaults::default(),
    };
    let desired = accepted.borrow().as_ref().unwrap().desired.clone();
    let digest = desired.revisions[&key()].0;
    let starting = Running { ready: 0, started: 1, ready_once: false };
    let deadline = parameters(&[("serving.knative.dev/progress-deadline", "1s")]);
    let given_up = || {
        let mut one = Scaled::new(digest, deadline.clone(), starting, None, Moment(0));
        for second in 1..=33 {
            let now = Moment(second * 1000);
            one.scaler.record(now, Sample::default());
            one.decide(Observed { ready: 0, reachable: true }, now);
        }
        one
    };
    let decided_at = given_up().decided_at;
    let (mut scaled, mut rested) = (BTreeMap::from([(key(), given_up())]), BTreeMap::new());
    autoscale.follow(&mut scaled, &mut rested);
    assert!(scaled.is_empty(), "it costs nothing any more");
    autoscale.publish(&scaled, &rested);
    let told = Target { want: 0, at: decided_at, timed_out: true };
    assert_eq!(**targets.borrow(), Targets::from([(key(), told)]));

    let (_, object) = &desired.revisions[&key()];
    let other = Digest::of(b"another object");
    let desired = Desired { revisions: [(key(), (other, Arc::clone(object)))].into(), ..desired.clone() };
    let changed = |accepted: &Accepted| Accepted { desired, ..accepted.clone() };
    accepted.send_modify(|accepted| *accepted = accepted.as_deref().map(changed).map(Arc::new));
    autoscale.follow(&mut scaled, &mut rested);
    autoscale.publish(&scaled, &rested);
    assert_eq!(**targets.borrow(), Targets::new());
    scaled.insert(key(), given_up());
    autoscale.follow(&mut scaled, &mut rested);
    assert!(scaled[&key()].scaler.decision().activity.is_activating());
}

/// Counts of a revision of which `arrived` requests have come, all of them answered.
fn counted(born: RealInstant, at: RealInstant, arrived: u64) -> RevisionMeter {
    RevisionMeter {
        at,
        born,
        in_flight: 0,
        held: 0,
        held_bytes: 0,
        last_activity: Some(at),
        arrived,
        finished: arrived,
        concurrency_us: 0,
        answers: [0; 5],
        abandoned: 0,
        given_up: 0,
        broken: 0,
        latency: Default::default(),
        faults_of_clients: Default::default(),
        cold_starts: Default::default(),
        refused: [0; 6],
    }
}

/// As when a tick that was overdue falls on the moment at which a revision wakes.
#[test]
fn requests_a_second_are_not_told_from_a_moment() {
    let born = RealInstant::now();
    let (woke, now) = (born + Duration::from_secs(9), Moment(9_000));
    let rps = parameters(&[("autoscaling.knative.dev/metric", "rps")]);
    let running = Running { ready: 1, started: 1, ready_once: true };
    let mut one = Scaled::new(Digest::of(b"s"), rps, running, Some(counted(born, woke, 10)), now);
    let soon = counted(born, woke + Duration::from_micros(50), 11);
    assert_eq!(one.sample(Some(soon), now), None);
    let later = counted(born, woke + Duration::from_millis(499), 100);
    assert_eq!(one.sample(Some(later), now.after(499)), None);
    // What came before counts with the first sample that is one.
    let second = counted(born, woke + Duration::from_millis(1_250), 110);
    let sample = one.sample(Some(second), now.after(1_250)).unwrap();
    assert_eq!(sample.requests_per_second, 80.0);
    let third = counted(born, woke + Duration::from_millis(1_500), 110);
    assert_eq!(one.sample(Some(third), now.after(1_500)), None);
}
