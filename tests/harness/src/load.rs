//! Constant load: a few clients that ask again and again, and note every answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// One request of the load.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub start: Instant,
    pub end: Instant,
    /// Status and body, or what went wrong.
    pub answer: Result<(u16, String), String>,
}

impl Outcome {
    pub fn is_good(&self) -> bool {
        matches!(self.answer, Ok((200, _)))
    }
}

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Outcome>>>,
}

impl Load {
    /// `clients` clients, each asking `http://host{path}` of the router every `pause`, on connections that are used again.
    pub fn start(router: SocketAddr, host: &str, path: &str, clients: usize, pause: Duration) -> Self {
        let url = format!("http://{router}{path}");
        Self::of(|| client().get(&url).header("Host", host), clients, pause)
    }

    /// The same, on a new connection for each request: it has nothing to do with an agent that is gone.
    pub fn start_anew(router: SocketAddr, host: &str, path: &str, clients: usize, pause: Duration) -> Self {
        let client = || builder().pool_max_idle_per_host(0).build().expect("a client can be made");
        let url = format!("http://{router}{path}");
        Self::of(|| client().get(&url).header("Host", host), clients, pause)
    }

    /// `clients` clients, each with a request of its own, without a body, that it makes every `pause`.
    pub fn of(request: impl Fn() -> reqwest::RequestBuilder, clients: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |_| {
            let (stop, request) = (Arc::clone(&stop), request());
            tokio::spawn(async move {
                let mut outcomes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let again = request.try_clone().expect("a request without a body can be made again");
                    outcomes.push(outcome(again).await);
                    tokio::time::sleep(pause).await;
                }
                outcomes
            })
        };
        let workers = (0..clients).map(worker).collect();
        Self { stop, workers }
    }

    /// Makes no further requests; those under way go on.
    pub fn no_more(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops and gives every request that was made.
    pub async fn stop(self) -> Vec<Outcome> {
        self.no_more();
        let mut all = Vec::new();
        for worker in self.workers {
            all.extend(worker.await.expect("a client does not panic"));
        }
        all
    }
}

/// A client that speaks no TLS, and so needs no CA certificates on the machine.
pub(crate) fn client() -> reqwest::Client {
    builder().build().expect("a client without TLS can be made")
}

fn builder() -> reqwest::ClientBuilder {
    let limit = crate::within(Duration::from_secs(30));
    tombolo_oci::client::without_tls(reqwest::Client::builder()).no_proxy().timeout(limit)
}

pub(crate) async fn ask(http: &reqwest::Client, url: &str, host: &str) -> Outcome {
    outcome(http.get(url).header("Host", host)).await
}

pub(crate) async fn outcome(request: reqwest::RequestBuilder) -> Outcome {
    let start = Instant::now();
    let answer = async {
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok::<_, reqwest::Error>((status, answer.text().await?))
    };
    let answer = answer.await.map_err(|error| format!("{error:?}"));
    Outcome { start, end: Instant::now(), answer }
}
