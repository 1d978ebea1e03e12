//! Readiness of a starting instance, Knative's rules: a TCP connection to its port if nothing else is asked for, else an
//! HTTP request; as fast as is sensible when no period is given. Knows connections only by the closure that makes them.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tombolo_api::quantity::IntOrString;
use tombolo_api::serving::{HttpGetAction, Probe};

/// An attempt's time when the probe names none, as Kubernetes' default `timeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Between attempts without a period, by the time since the first: a fast program is seen at once, a slow one costs little.
const PACE: [(Duration, Duration); 3] = [
    (Duration::from_millis(200), Duration::from_millis(2)),
    (Duration::from_secs(2), Duration::from_millis(10)),
    (Duration::from_secs(20), Duration::from_millis(50)),
];
const SLOW_PACE: Duration = Duration::from_millis(250);

/// Longest status line read.
const STATUS_LINE_MAX: usize = 1024;

/// How to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbePlan {
    check: Check,
    port: u16,
    initial_delay: Duration,
    /// `None`: as fast as is sensible.
    period: Option<Duration>,
    timeout: Duration,
    /// Successes in a row that are needed.
    successes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Check {
    Tcp,
    /// The whole request.
    Http(String),
}

impl ProbePlan {
    pub(super) fn of(probe: Option<&Probe>, serving_port: u16) -> Self {
        let probe = probe.cloned().unwrap_or_default();
        let seconds = |seconds: i32| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let port = |port: &IntOrString| match port {
            IntOrString::Int(number) if *number > 0 => u16::try_from(*number).unwrap_or(serving_port),
            _ => serving_port,
        };
        let (check, port) = match (&probe.http_get, &probe.tcp_socket) {
            (Some(get), _) => (Check::Http(request(get, port(&get.port))), port(&get.port)),
            (None, Some(tcp)) => (Check::Tcp, port(&tcp.port)),
            (None, None) => (Check::Tcp, serving_port),
        };
        Self {
            check,
            port,
            initial_delay: seconds(probe.initial_delay_seconds),
            period: (probe.period_seconds > 0).then(|| seconds(probe.period_seconds)),
            timeout: if probe.timeout_seconds > 0 { seconds(probe.timeout_seconds) } else { TIMEOUT },
            successes: u32::try_from(probe.success_threshold).unwrap_or(1).max(1),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// Returns when the probe has passed.
pub(super) async fn until_ready<D, F>(plan: &ProbePlan, dial: D)
where
    D: Fn() -> F,
    F: Future<Output = io::Result<TcpStream>>,
{
    tokio::time::sleep(plan.initial_delay).await;
    let started = Instant::now();
    let mut successes = 0;
    loop {
        let passed =
            matches!(tokio::time::timeout(plan.timeout, attempt(&plan.check, &dial)).await, Ok(Ok(true)));
        successes = if passed { successes + 1 } else { 0 };
        if successes >= plan.successes {
            return;
        }
        tokio::time::sleep(plan.period.unwrap_or_else(|| pace(started.elapsed()))).await;
    }
}

fn pace(elapsed: Duration) -> Duration {
    PACE.iter().find(|(until, _)| elapsed < *until).map_or(SLOW_PACE, |(_, pace)| *pace)
}

async fn attempt<D, F>(check: &Check, dial: &D) -> io::Result<bool>
where
    D: Fn() -> F,
    F: Future<Output = io::Result<TcpStream>>,
{
    let mut stream = dial().await?;
    let Check::Http(request) = check else { return Ok(true) };
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(256);
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_MAX {
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(is_success(&answer))
}

/// 2xx and 3xx.
fn is_success(answer: &[u8]) -> bool {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let http = words.next().is_some_and(|word| word.starts_with(b"HTTP/1."));
    http && words.next().is_some_and(|status| status.len() == 3 && matches!(status[0], b'2' | b'3'))
}

fn request(get: &HttpGetAction, port: u16) -> String {
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    // Line ends would begin another header; nobody may smuggle one in.
    let clean = |text: &str| text.replace(['\r', '\n'], "");
    let mut request = format!("GET {} HTTP/1.1\r\n", clean(&path));
    let named = |name: &str| get.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if !named("host") {
        request.push_str(&format!("Host: localhost:{port}\r\n"));
    }
    if !named("user-agent") {
        request.push_str("User-Agent: kube-probe/tombolo\r\n");
    }
    for header in &get.http_headers {
        request.push_str(&format!("{}: {}\r\n", clean(&header.name), clean(&header.value)));
    }
    request.push_str("K-Network-Probe: queue\r\nConnection: close\r\n\r\n");
    request
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::net::TcpListener;
    use tombolo_api::serving::TcpSocketAction;

    use super::*;

    fn http(path: &str, port: i32) -> Probe {
        let get =
            HttpGetAction { path: path.into(), port: IntOrString::Int(port), ..HttpGetAction::default() };
        Probe { http_get: Some(get), ..Probe::default() }
    }

    /// Answers each connection with the next of `answers`, the last one again and again; tells how many there were.
    async fn program(answers: &'static [&'static str]) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answers[number.min(answers.len() - 1)].as_bytes()).await;
            }
        });
        (port, count)
    }

    async fn passes(plan: &ProbePlan) -> bool {
        let ready = until_ready(plan, || TcpStream::connect(("127.0.0.1", plan.port())));
        tokio::time::timeout(Duration::from_secs(2), ready).await.is_ok()
    }

    #[test]
    fn ports_and_defaults_are_knatives() {
        let plain = ProbePlan::of(None, 8080);
        assert_eq!((plain.check, plain.port, plain.period, plain.successes), (Check::Tcp, 8080, None, 1));
        assert_eq!(ProbePlan::of(Some(&http("/", 0)), 8080).port, 8080);
        assert_eq!(ProbePlan::of(Some(&http("/", 9000)), 8080).port, 9000);
        let named =
            TcpSocketAction { port: IntOrString::String("http1".into()), ..TcpSocketAction::default() };
        let probe = Probe {
            tcp_socket: Some(named),
            period_seconds: 5,
            timeout_seconds: 3,
            success_threshold: 2,
            ..Probe::default()
        };
        let plan = ProbePlan::of(Some(&probe), 8080);
        assert_eq!(
            (plan.port, plan.period, plan.timeout, plan.successes),
            (8080, Some(Duration::from_secs(5)), Duration::from_secs(3), 2)
        );
    }

    #[tokio::test]
    async fn tcp_waits_for_the_port_to_open() {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = reserved.local_addr().unwrap().port();
        drop(reserved);
        let opens = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let _listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
        };
        let plan = ProbePlan::of(None, port);
        tokio::select! {
            passed = passes(&plan) => assert!(passed),
            () = opens => panic!("not seen"),
        }
    }

    #[tokio::test]
    async fn http_passes_with_2xx_and_3xx_only() {
        let (port, count) = program(&[
            "HTTP/1.1 503 no\r\n\r\n",
            "HTTP/1.1 404 no\r\n\r\n",
            "garbage",
            "HTTP/1.1 302 ok\r\n\r\n",
        ])
        .await;
        assert!(passes(&ProbePlan::of(Some(&http("healthz", i32::from(port))), 1)).await);
        assert_eq!(count.load(Ordering::SeqCst), 4);
        let (port, _) = program(&["HTTP/1.1 500 no\r\n\r\n"]).await;
        assert!(!passes(&ProbePlan::of(Some(&http("/", i32::from(port))), 1)).await);
    }

    #[tokio::test]
    async fn successes_must_come_in_a_row() {
        let ok = "HTTP/1.1 200 OK\r\n\r\n";
        let answers: &'static [&'static str] = Box::leak(Box::new([ok, "HTTP/1.1 500 no\r\n\r\n", ok, ok]));
        let (port, count) = program(answers).await;
        let probe = Probe { success_threshold: 2, ..http("/", i32::from(port)) };
        assert!(passes(&ProbePlan::of(Some(&probe), 1)).await);
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }
}
