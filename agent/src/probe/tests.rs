//! Tests of the watch as a whole, on a clock that jumps, and what the tests of the parts share.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tombolo_api::serving::ExecAction;

use super::exec::{Exit, Running};
use super::*;

/// Reaches this process's own ports; counts the sockets made.
pub(super) fn here() -> (Reach, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let make: MakeSocket = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let made = socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(io::Error::from);
        Box::pin(async { made })
    });
    (Reach { socket: make, exec: None }, made)
}

pub(super) async fn unused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Serves HTTP/1 and, with prior knowledge, HTTP/2.
pub(super) async fn serve(app: axum::Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

/// An instance whose probes are commands with given results: `+` passes, `-` fails, `z` takes all its time, `?` cannot be run, `_`
/// is never heard of again; the last goes on for ever.
struct Script {
    results: BTreeMap<&'static str, &'static str>,
    begun: Instant,
    /// `probe@ms` for each attempt but passes of the same probe in a row.
    attempts: Mutex<Vec<(String, u64)>>,
}

impl Script {
    fn run(self: Arc<Self>, command: &str, timeout: Duration) -> Running {
        let results = self.results[command];
        let mut attempts = self.attempts.lock().unwrap();
        let number = attempts.iter().filter(|(name, _)| name == command).count();
        attempts.push((command.to_owned(), self.ms()));
        let result = results.chars().nth(number).or(results.chars().last()).unwrap();
        Box::pin(async move {
            match result {
                '+' => Ok(Exit { status: 0, output: String::new() }),
                '-' => Ok(Exit { status: 1, output: String::new() }),
                '?' => Err(Miss::Unknown("the supervisor went away".to_owned())),
                'z' => {
                    tokio::time::sleep(timeout).await;
                    Err(Miss::Failed(format!("did not end within {timeout:?}")))
                }
                _ => std::future::pending().await,
            }
        })
    }

    fn ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    fn times(&self, command: &str) -> Vec<u64> {
        let attempts = self.attempts.lock().unwrap();
        attempts.iter().filter(|(name, _)| name == command).map(|(_, at)| *at).collect()
    }
}

struct Watched {
    script: Arc<Script>,
    guard: Guard,
    events: mpsc::Receiver<ProbeEvent>,
}

impl Watched {
    /// Probes an instance that answers as said, with the probes that have results.
    fn new(results: &[(&'static str, &'static str)], with: impl Fn(&str, &mut Probe)) -> Self {
        let results: BTreeMap<_, _> = results.iter().copied().collect();
        let script = Arc::new(Script { results, begun: Instant::now(), attempts: Mutex::default() });
        let runner = script.clone();
        let exec: Exec = Arc::new(move |command, timeout| runner.clone().run(&command[0], timeout));
        let reach = Reach { exec: Some(exec), ..here().0 };
        let probe = |name: &str| {
            script.results.contains_key(name).then(|| {
                let exec = Some(ExecAction { command: vec![name.to_owned()] });
                let mut probe = Probe { exec, period_seconds: 10, ..Probe::default() };
                with(name, &mut probe);
                probe
            })
        };
        let container = Container {
            startup_probe: probe("startup"),
            readiness_probe: probe("readiness"),
            liveness_probe: probe("liveness"),
            ..Container::default()
        };
        let probes = Probes::of(Some(&container), 8080, &reach).unwrap();
        let (sender, events) = mpsc::channel::<ProbeEvent>(16);
        let guard = watch(InstanceId("a".into()), probes, reach, sender);
        Self { script, guard, events }
    }

    /// The next event in a word and when it came.
    async fn event(&mut self) -> (String, u64) {
        let event = self.events.recv().await.unwrap();
        let word = match event.finding {
            Finding::Ready(passed) => {
                assert_eq!(passed.began + passed.took, Instant::now().into_std(), "told at once");
                "Ready".to_owned()
            }
            Finding::NotReady { message } => format!("NotReady {message}"),
            Finding::Failed { reason, message } => format!("{reason} {message}"),
        };
        (word, self.script.ms())
    }

    async fn quiet_for(&mut self, seconds: u64) {
        let event = tokio::time::timeout(Duration::from_secs(seconds), self.event()).await;
        assert!(event.is_err(), "{event:?}");
    }
}

fn at(word: &str, ms: u64) -> (String, u64) {
    (word.to_owned(), ms)
}

#[tokio::test(start_paused = true)]
async fn readiness_is_seen_between_the_periods_and_nothing_is_told_twice() {
    let mut watched = Watched::new(&[("readiness", "---+")], |_, _| {});
    assert_eq!(watched.event().await, at("Ready", 150));
    watched.quiet_for(60).await;
    let times = watched.script.times("readiness");
    assert_eq!(times[..6], [0, 50, 100, 150, 10_150, 20_150]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_its_threshold_is_not_ready_until_it_passes_again() {
    let mut watched = Watched::new(&[("readiness", "+--+---+")], |_, _| {});
    assert_eq!(watched.event().await, at("Ready", 0));
    let message = "NotReady the readiness probe failed: command readiness: exited with 1";
    assert_eq!(watched.event().await, at(message, 60_000), "two failures at 10 and 20 s are not enough");
    assert_eq!(watched.event().await, at("Ready", 70_000));
    watched.quiet_for(60).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_period_readiness_goes_on_every_ten_seconds_and_comes_back_at_once() {
    let mut watched = Watched::new(&[("readiness", "-+---+")], |_, probe| probe.period_seconds = 0);
    assert_eq!(watched.event().await, at("Ready", 50));
    assert!(watched.event().await.0.starts_with("NotReady"));
    assert_eq!(watched.event().await, at("Ready", 30_100));
    assert_eq!(watched.script.times("readiness"), [0, 50, 10_050, 20_050, 30_050, 30_100]);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_never_gets_ready_says_why_once() {
    let mut watched = Watched::new(&[("readiness", "-")], |_, probe| probe.initial_delay_seconds = 5);
    let message = "NotReady the readiness probe failed: command readiness: exited with 1";
    assert_eq!(watched.event().await, at(message, 35_000), "delay + 3 periods");
    watched.quiet_for(600).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_probed_before_startup_has_passed() {
    let results = [("startup", "--+"), ("readiness", "+"), ("liveness", "+")];
    let mut watched = Watched::new(&results, |name, probe| {
        probe.initial_delay_seconds = if name == "startup" { 20 } else { 5 };
    });
    assert_eq!(watched.event().await, at("Ready", 20_100));
    watched.quiet_for(15).await;
    let first = |name| watched.script.times(name)[0];
    assert_eq!((first("startup"), first("readiness"), first("liveness")), (20_000, 20_100, 20_100));
    assert_eq!(watched.script.times("startup").len(), 3, "startup is over");
}

#[tokio::test(start_paused = true)]
async fn startup_has_its_whole_time_and_not_more() {
    let mut watched = Watched::new(&[("startup", "-"), ("readiness", "+")], |_, probe| {
        probe.failure_threshold = 30;
    });
    let (word, ms) = watched.event().await;
    assert_eq!(word, "StartupProbeFailed the startup probe failed: command startup: exited with 1");
    assert_eq!(ms, 300_000, "failureThreshold × period");
    assert_eq!(watched.events.recv().await, None, "the watch is over");
    assert!(watched.script.times("readiness").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_is_given_up_after_failures_in_a_row() {
    let results = [("readiness", "+"), ("liveness", "+--+--z")];
    let mut watched = Watched::new(&results, |_, probe| probe.timeout_seconds = 2);
    assert_eq!(watched.event().await, at("Ready", 0));
    let failed = "LivenessProbeFailed the liveness probe failed: command liveness: did not end within 2s";
    assert_eq!(watched.event().await, at(failed, 72_000));
    assert_eq!(watched.events.recv().await, None, "the watch is over");
    assert_eq!(watched.script.times("liveness")[..3], [10_000, 20_000, 30_000]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_could_not_be_made_restarts_nothing_and_is_made_again() {
    let results = [("readiness", "+?+"), ("liveness", "--?_?????+--?-")];
    let mut watched = Watched::new(&results, |_, probe| probe.timeout_seconds = 2);
    assert_eq!(watched.event().await, at("Ready", 0));
    let failed = "LivenessProbeFailed the liveness probe failed: command liveness: exited with 1";
    // Failures at 10 and 20 s; from 30 s on nothing is known: tried again every second, but for one that is given up after 7 s.
    // It passes at 44 s, fails at 54 and 64 s, and once more a second after the attempt of 74 s.
    assert_eq!(watched.event().await, at(failed, 75_000));
    assert_eq!(watched.script.times("liveness")[2..6], [30_000, 31_000, 39_000, 40_000]);
    assert_eq!(watched.script.times("readiness")[..3], [0, 10_000, 11_000]);
}

#[tokio::test(start_paused = true)]
async fn startup_and_readiness_go_on_where_a_probe_could_not_be_made() {
    let results = [("startup", "??+"), ("readiness", "???+")];
    let mut watched = Watched::new(&results, |_, probe| probe.failure_threshold = 1);
    assert_eq!(watched.event().await, at("Ready", 250));
}

#[tokio::test(start_paused = true)]
async fn slow_readiness_does_not_delay_liveness() {
    let results = [("readiness", "z"), ("liveness", "-")];
    let mut watched = Watched::new(&results, |name, probe| {
        probe.timeout_seconds = if name == "readiness" { 600 } else { 1 };
    });
    let (word, ms) = watched.event().await;
    assert!(word.starts_with("LivenessProbeFailed"), "{word}");
    assert_eq!(ms, 30_000);
}

#[tokio::test(start_paused = true)]
async fn a_paused_instance_is_not_probed_and_nothing_is_held_against_it() {
    let results = [("readiness", "+"), ("liveness", "--z+")];
    let mut watched = Watched::new(&results, |_, probe| probe.timeout_seconds = 5);
    assert_eq!(watched.event().await, at("Ready", 0));
    // In the middle of the attempt that would be the last one.
    watched.quiet_for(32).await;
    watched.guard.pause();
    watched.quiet_for(1000).await;
    assert_eq!(watched.script.times("liveness"), [10_000, 20_000, 30_000]);
    watched.guard.resume();
    watched.quiet_for(100).await;
    assert_eq!(watched.script.times("liveness")[3], 1_042_000, "a period after it was resumed");
    assert!(watched.script.times("readiness").iter().all(|at| *at < 32_000 || *at >= 1_042_000));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_ends_everything() {
    let Watched { script, guard, mut events } = Watched::new(&[("readiness", "-")], |_, _| {});
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(guard);
    assert_eq!(events.recv().await, None);
    let made = script.times("readiness").len();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(script.times("readiness").len(), made);
}

#[tokio::test]
async fn a_port_that_opens_is_seen_with_one_socket_for_all_attempts() {
    let (reach, made) = here();
    let port = unused_port().await;
    let probes = Probes::of(None, port, &reach).unwrap();
    let (sender, mut events) = mpsc::channel::<ProbeEvent>(1);
    let _guard = watch(InstanceId("a".into()), probes, reach, sender);
    assert!(tokio::time::timeout(Duration::from_millis(100), events.recv()).await.is_err());
    let _listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let opened = std::time::Instant::now();
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
    let Finding::Ready(passed) = event.finding else { panic!("{event:?}") };
    assert!(passed.began + passed.took >= opened, "only the attempt that passed is told of");
    assert_eq!(made.load(Ordering::SeqCst), 1);
}
