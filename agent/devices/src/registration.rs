//! The desk where plugins register, answered in the kubelet's words. Who has a resource, the [roll](crate::roll) knows.

use std::path::{Component, Path, PathBuf};

use tokio::sync::{mpsc, oneshot};
use tombolo_agent_core::devices::ResourceName;
use tombolo_api::serving::admission::is_extended;
use tombolo_device_api::VERSION;
use tombolo_device_api::v1beta1::registration_server::{Registration, RegistrationServer};
use tombolo_device_api::v1beta1::{Empty, RegisterRequest};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::plugin::Plugin;
use crate::roll::Heard;
use crate::socket::Socket;

pub(crate) struct Desk {
    directory: PathBuf,
    heard: mpsc::Sender<Heard>,
}

impl Desk {
    pub(crate) fn new(directory: PathBuf, heard: mpsc::Sender<Heard>) -> Self {
        Self { directory, heard }
    }

    pub(crate) async fn serve(self, socket: Socket) {
        let (connections, _file) = socket.connections();
        let serving = Server::builder().add_service(RegistrationServer::new(self));
        if let Err(error) = serving.serve_with_incoming(connections).await {
            tracing::error!(%error, "device plugins can register no more until the agent is restarted");
        }
    }
}

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let registered = self.admit(&request).await;
        if let Err(refusal) = &registered {
            let why = refusal.message();
            tracing::warn!(
                resource = request.resource_name,
                endpoint = request.endpoint,
                why,
                "a device plugin is refused"
            );
        }
        registered.map(|()| Response::new(Empty {}))
    }
}

impl Desk {
    async fn admit(&self, request: &RegisterRequest) -> Result<(), Status> {
        if request.version != VERSION {
            // As the kubelet says it.
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            )));
        }
        let name = &request.resource_name;
        if !is_extended(name) {
            return Err(Status::unknown(format!("the ResourceName {name:?} is invalid")));
        }
        let socket = socket_in(&self.directory, &request.endpoint).ok_or_else(|| {
            Status::unknown(format!("the endpoint {:?} is no name of a socket", request.endpoint))
        })?;
        let plugin =
            Plugin::connect(ResourceName(name.clone()), socket, request.options.unwrap_or_default()).await?;
        let (answer, answered) = oneshot::channel();
        let stopped = || Status::unavailable("the agent stops");
        self.heard.send(Heard::Registered { plugin, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

/// A plugin's socket: a file of the directory, and of nowhere else.
fn socket_in(directory: &Path, endpoint: &str) -> Option<PathBuf> {
    let mut parts = Path::new(endpoint).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Some(directory.join(name)),
        _ => None,
    }
}
