//! What every test stands on: a running router, its tables, instances and clients.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::ServerConfig;
use tombolo_agent_core::routes::{Backend, Endpoint, HostRoutes, RouteTable, Split};
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::RevisionKey;
use tombolo_router::{Dialer, Meter, Refused, Router, Wake};

use crate::netns;

/// Every instance listens here, each in its own namespace.
const PORT: u16 = 8080;

/// The host all tests ask for unless they say otherwise.
pub(crate) const HOST: &str = "a.default.localhost";

pub(crate) struct Ground {
    pub(crate) address: SocketAddr,
    pub(crate) meter: Arc<Meter>,
    pub(crate) demand: mpsc::Receiver<RevisionKey>,
    tables: watch::Sender<Arc<RouteTable>>,
    dialer: Dialer,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
}

/// Tests need root for network namespaces; without they say that they did not run.
macro_rules! ground {
    () => {
        match crate::ground::Ground::new() {
            Some(ground) => ground,
            None => return,
        }
    };
}
pub(crate) use ground;

impl Ground {
    pub(crate) fn new() -> Option<Self> {
        Self::with(Meter::new(), Ok)
    }

    /// One whose tunnels leave soon after their instance was told to.
    pub(crate) fn with_tunnel_grace(grace: Duration) -> Option<Self> {
        Self::with(Meter::with_tunnel_grace(grace), Ok)
    }

    /// One that also listens with a certificate, and where. Its sockets take little at a time.
    pub(crate) fn secure(configs: watch::Receiver<Arc<ServerConfig>>) -> Option<(Self, SocketAddr)> {
        let mut secure = None;
        let ground = Self::with(Meter::new(), |router| {
            let listener = Router::listen("127.0.0.1:0".parse().unwrap())?;
            nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::SndBuf, &4096)?;
            secure = Some(listener.local_addr()?);
            router.with_tls(listener, configs)
        })?;
        Some((ground, secure.unwrap()))
    }

    /// One that wakes frozen instances.
    pub(crate) fn waking(wake: Arc<dyn Wake>) -> Option<Self> {
        Self::with(Meter::new(), |router| Ok(router.with_wake(wake)))
    }

    fn with(meter: Meter, finish: impl FnOnce(Router) -> std::io::Result<Router>) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network namespaces can be made by root only");
            return None;
        }
        let (tables, followed) = watch::channel(Arc::default());
        let (wanted, demand) = mpsc::channel(64);
        let dialer = Dialer::start().unwrap();
        let meter = Arc::new(meter);
        let listen = "127.0.0.1:0".parse().unwrap();
        let router = Router::bind(listen, followed, wanted, dialer.clone(), Arc::clone(&meter)).unwrap();
        let address = router.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let running = Some(tokio::spawn(finish(router).unwrap().run(stopped)));
        Some(Self { address, meter, demand, tables, dialer, stop: Some(stop), running })
    }

    /// Put a table in force and wait until it is.
    pub(crate) async fn put(&self, table: RouteTable) -> Arc<RouteTable> {
        let table = Arc::new(table);
        self.tables.send_replace(Arc::clone(&table));
        until("the table is in force", || self.meter.is_in_force(&table)).await;
        table
    }

    /// Tell the router to stop; gives the task that ends when it has.
    pub(crate) fn stop(&mut self) -> JoinHandle<()> {
        drop(self.stop.take());
        self.running.take().unwrap()
    }

    /// A listener in an instance's new network namespace.
    pub(crate) fn listen(&self, instance: &str) -> TcpListener {
        self.listen_keeping(None, instance)
    }

    /// The same; its sockets, and those that the router has for it, keep so many bytes.
    pub(crate) fn listen_keeping(&self, kept: impl Into<Option<u32>>, instance: &str) -> TcpListener {
        let (netns, listener) = netns::listen(PORT, kept.into()).unwrap();
        self.dialer.add(id(instance), netns);
        TcpListener::from_std(listener).unwrap()
    }

    /// An instance that answers by `answer`, over HTTP/1 and HTTP/2.
    pub(crate) fn serve<F, B, A>(&self, instance: &str, answer: A) -> JoinHandle<()>
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let listener = self.listen(instance);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async { Ok::<_, Infallible>(answer.await) }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                });
            }
        })
    }

    /// An instance that answers with its name.
    pub(crate) fn serve_name(&self, instance: &'static str) -> JoinHandle<()> {
        self.serve(instance, move |_| async move { text(instance) })
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Send bytes, and give what comes until the connection ends.
    pub(crate) async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Bytes> {
        self.client().await.get(path).await
    }

    pub(crate) async fn client(&self) -> Client {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Client { sender }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.meter.revision(&key("a")).map_or(0, |revision| revision.in_flight)
    }

    pub(crate) fn refused(&self, why: Refused) -> u64 {
        self.meter.revision(&key("a")).map_or(0, |revision| revision.refused[why as usize])
    }

    pub(crate) fn held(&self) -> usize {
        self.meter.revision(&key("a")).map_or(0, |revision| revision.held)
    }
}

/// One connection to the router.
pub(crate) struct Client {
    sender: SendRequest<http_body_util::combinators::BoxBody<Bytes, Infallible>>,
}

impl Client {
    pub(crate) async fn get(&mut self, path: &str) -> Response<Bytes> {
        self.try_get(path).await.unwrap()
    }

    pub(crate) async fn try_get(&mut self, path: &str) -> hyper::Result<Response<Bytes>> {
        let request = Request::get(path).header("host", HOST).body(Empty::new()).unwrap();
        self.send(request).await
    }

    pub(crate) async fn send<B>(&mut self, request: Request<B>) -> hyper::Result<Response<Bytes>>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static,
    {
        whole(self.start(request).await?).await
    }

    pub(crate) async fn start<B>(&mut self, request: Request<B>) -> hyper::Result<Response<Incoming>>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static,
    {
        self.sender.ready().await?;
        self.sender.send_request(request.map(|body| body.boxed())).await
    }
}

/// Read an answer to its end.
pub(crate) async fn whole(response: Response<Incoming>) -> hyper::Result<Response<Bytes>> {
    let (parts, body) = response.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}

pub(crate) fn text(text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(text.into()))
}

/// Answers when there is a permit.
pub(crate) fn gated(
    gate: &Arc<Semaphore>,
) -> impl Fn(Request<Incoming>) -> BoxFuture<'static, Response<Full<Bytes>>> + Clone + Send + 'static {
    let gate = Arc::clone(gate);
    move |_| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            text("done")
        })
    }
}

pub(crate) fn body_text(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

pub(crate) fn reason(response: &Response<Bytes>) -> &str {
    response.headers().get("x-tombolo-reason").map_or("", |reason: &HeaderValue| reason.to_str().unwrap())
}

pub(crate) fn id(instance: &str) -> InstanceId {
    InstanceId(instance.to_owned())
}

pub(crate) fn key(revision: &str) -> RevisionKey {
    RevisionKey::new("default", revision)
}

/// A revision with these ready instances and far limits.
pub(crate) fn backend(ready: &[&str]) -> Backend {
    Backend {
        ready: ready.iter().map(|instance| Endpoint { instance: id(instance), port: PORT }).collect(),
        standby: Vec::new(),
        unavailable: None,
        awaits: None,
        h2c: false,
        container_concurrency: 0,
        timeout_ms: 60_000,
        response_start_timeout_ms: 60_000,
        idle_timeout_ms: 0,
    }
}

/// A revision with these frozen instances.
pub(crate) fn frozen(standby: &[&str]) -> Backend {
    Backend { standby: backend(standby).ready, ..backend(&[]) }
}

/// The table in which all requests for [`HOST`] go to revision `a`.
pub(crate) fn table(backend: Backend) -> RouteTable {
    let splits = vec![Split { percent: 100, revision: key("a") }];
    let routes = HostRoutes { splits, ..HostRoutes::default() };
    RouteTable {
        hosts: BTreeMap::from([(HOST.into(), Arc::new(routes))]),
        revisions: BTreeMap::from([(key("a"), Arc::new(backend))]),
    }
}

/// Wait until something is so; a second is plenty, but the machine may be busy.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The result of what must come to an end.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(Duration::from_secs(20), future).await;
    ended.unwrap_or_else(|_| panic!("not in 20 s: {what}"))
}
