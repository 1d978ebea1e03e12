//! One resource at the kubelet: its socket in the plugins' directory and its registration, for as long as the resource
//! exists. It takes ticks of the directory and gives nothing; what the kubelet asks is [`crate::service`]'s.
//!
//! ```text
//!  wait for the first list ──▶ bind ──▶ serve ──▶ register ──▶ rest
//!                               ▲                    ▲          │ kubelet's socket is another one,
//!                               │                    └──────────┤ or nobody follows the list
//!                               └───────────────────────────────┘ own socket is gone (a kubelet that starts
//!                                                                  deletes every socket)
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_device_api::accelerator::v1::accelerator_server::AcceleratorServer;
use tombolo_device_api::v1beta1::{
    RegisterRequest, device_plugin_server::DevicePluginServer, registration_client::RegistrationClient,
};
use tombolo_device_api::{KUBELET_SOCKET, VERSION, connect};
use tonic::Code;
use tonic::transport::Server;

use crate::accelerator::{self, SharedAccelerator};
use crate::scanner::Listing;
use crate::service::{Followers, OPTIONS, Service};
use crate::socket::{Bound, FileId};

/// How long the kubelet's socket is tried.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long the kubelet may take to answer a registration. It connects to the plugin's socket before it does.
const REGISTER_MAX: Duration = Duration::from_secs(20);

/// How long after a first failure of any kind it is tried again; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest such wait. A change in the directory ends it.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long the directory is not looked at while it does not change: for file systems that tell no changes.
const LOOK: Duration = Duration::from_secs(5);

/// How long a kubelet that accepted the resource may not follow its list. It has forgotten the resource then.
const UNFOLLOWED_MAX: Duration = Duration::from_secs(30);

/// How long calls that are under way may take to end.
const GRACE: Duration = Duration::from_secs(3);

pub(crate) struct Session {
    directory: PathBuf,
    service: Service,
    accelerator: Option<SharedAccelerator>,
    /// Something in the directory changed.
    ticks: watch::Receiver<u64>,
    cancel: CancellationToken,
    retry: Duration,
    /// The kubelet's socket when it was last looked at.
    kubelet: Option<FileId>,
    /// The last thing that was logged as being in the way, so that it is logged once.
    told: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error("there is no kubelet at {}; waiting for it", .0.display())]
    NoKubelet(PathBuf),
    #[error("nobody answers at {}; waiting for the kubelet", .0.display())]
    NoAnswer(PathBuf),
    #[error(
        "the kubelet refuses the resource: {message} (this plugin speaks version {VERSION}; a kubelet that asks for another \
         one needs another plugin, and a resource that another plugin has is freed by stopping that one)"
    )]
    Refused { code: Code, message: String },
    #[error("the kubelet did not answer the registration within {} s", REGISTER_MAX.as_secs())]
    Slow,
}

/// What the kubelet accepted.
struct Registered {
    /// Its socket then.
    kubelet: FileId,
    at: Instant,
}

impl Session {
    pub(crate) fn new(
        directory: &Path,
        service: Service,
        accelerator: Option<SharedAccelerator>,
        ticks: watch::Receiver<u64>,
        cancel: CancellationToken,
    ) -> Self {
        let directory = directory.to_owned();
        Self { directory, service, accelerator, ticks, cancel, retry: RETRY_FIRST, kubelet: None, told: None }
    }

    pub(crate) async fn run(mut self) {
        let known =
            async { self.service.listing.wait_for(|listing| *listing != Listing::Unknown).await.is_ok() };
        let cancel = self.cancel.clone();
        let known = tokio::select! {
            known = known => known,
            () = cancel.cancelled() => false,
        };
        while known && !self.cancel.is_cancelled() {
            self.ticks.mark_unchanged();
            match Bound::bind(&self.directory.join(self.service.resource.socket())).await {
                Ok((bound, incoming)) => {
                    let stop = self.cancel.child_token();
                    let service = Service { cancel: stop.clone(), ..self.service.clone() };
                    let accelerator = self.accelerator.clone().map(|accelerator| {
                        let (resource, cancel) = (service.resource.clone(), stop.clone());
                        AcceleratorServer::new(accelerator::Service { resource, accelerator, cancel })
                    });
                    let server = Server::builder()
                        .add_service(DevicePluginServer::new(service))
                        .add_optional_service(accelerator)
                        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
                    let server = tokio::spawn(server);
                    self.stay(&bound, &server).await;
                    stop.cancel();
                    self.service.counters.registered(false);
                    if timeout(GRACE, server).await.is_err() {
                        tracing::warn!(resource = %self.service.resource, "a call did not end");
                    }
                }
                Err(error) => {
                    self.tell(&error.to_string());
                    self.wait_longer().await;
                }
            }
        }
    }

    /// Registers whenever it must; returns when the socket is lost or the resource ends.
    async fn stay(&mut self, bound: &Bound, server: &JoinHandle<Result<(), tonic::transport::Error>>) {
        let mut registered: Option<Registered> = None;
        while !self.cancel.is_cancelled() {
            self.ticks.mark_unchanged();
            if server.is_finished() || !bound.is_there() {
                tracing::info!(resource = %self.service.resource, "the socket is gone; serving at a new one");
                return;
            }
            if registered.as_ref().is_some_and(|it| self.holds(it)) {
                self.wait(LOOK).await;
                continue;
            }
            let kubelet = FileId::of(&self.directory.join(KUBELET_SOCKET));
            if kubelet != self.kubelet {
                // One that has just come may not listen yet.
                (self.kubelet, self.retry) = (kubelet, RETRY_FIRST);
            }
            registered = None;
            self.service.counters.registered(false);
            let cancel = self.cancel.clone();
            let attempt = tokio::select! {
                attempt = self.register() => attempt,
                () = cancel.cancelled() => return,
            };
            match attempt {
                Ok(kubelet) => {
                    registered = Some(Registered { kubelet, at: Instant::now() });
                    self.service.counters.registered(true);
                    (self.retry, self.told) = (RETRY_FIRST, None);
                    tracing::info!(resource = %self.service.resource, "registered at the kubelet");
                }
                Err(error) => {
                    self.tell(&error.to_string());
                    self.wait_longer().await;
                }
            }
        }
    }

    /// Whether the kubelet that accepted the resource still has it.
    fn holds(&self, registered: &Registered) -> bool {
        let Followers { count, since } = *self.service.followers.borrow();
        let followed = count > 0 || since.max(registered.at).elapsed() < UNFOLLOWED_MAX;
        followed && FileId::of(&self.directory.join(KUBELET_SOCKET)) == Some(registered.kubelet)
    }

    async fn register(&self) -> Result<FileId, RegisterError> {
        let socket = self.directory.join(KUBELET_SOCKET);
        let Some(kubelet) = FileId::of(&socket) else { return Err(RegisterError::NoKubelet(socket)) };
        let channel =
            connect(&socket, CONNECT_MAX).await.map_err(|_| RegisterError::NoAnswer(socket.clone()))?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: self.service.resource.socket(),
            resource_name: self.service.resource.to_string(),
            options: Some(OPTIONS),
        };
        let mut client = RegistrationClient::new(channel);
        let answer =
            timeout(REGISTER_MAX, client.register(request)).await.map_err(|_| RegisterError::Slow)?;
        match answer {
            Ok(_) => Ok(kubelet),
            Err(status) if status.code() == Code::Unavailable => Err(RegisterError::NoAnswer(socket)),
            Err(status) => {
                Err(RegisterError::Refused { code: status.code(), message: status.message().to_owned() })
            }
        }
    }

    fn tell(&mut self, obstacle: &str) {
        if self.told.as_deref() != Some(obstacle) {
            tracing::warn!(resource = %self.service.resource, "{obstacle}");
            self.told = Some(obstacle.to_owned());
        }
    }

    async fn wait_longer(&mut self) {
        self.wait(self.retry).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    /// Waits for a change in the directory, `at_most` so long.
    async fn wait(&mut self, at_most: Duration) {
        tokio::select! {
            changed = self.ticks.changed() => {
                if changed.is_err() {
                    sleep(at_most).await;
                }
            }
            () = sleep(at_most) => {}
            () = self.cancel.cancelled() => {}
        }
    }
}
