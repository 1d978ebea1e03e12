//! Plays the kubelet for tests of device plugins: on real sockets, with the kubelet's own manners. Every wait has a bound
//! far beyond what any machine needs, and fails the test at its end. It must not know any plugin.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tombolo_device_api::v1beta1::device_plugin_client::DevicePluginClient;
use tombolo_device_api::v1beta1::registration_server::{Registration, RegistrationServer};
use tombolo_device_api::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Empty, ListAndWatchResponse, PreferredAllocationRequest,
    RegisterRequest,
};
use tombolo_device_api::{KUBELET_SOCKET, VERSION, connect, incoming};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// The bound of every wait.
pub const SOON: Duration = Duration::from_secs(60);

/// Registrations that may wait for a test to look at them.
const REGISTRATIONS_MAX: usize = 256;

/// A kubelet that runs. Dropped, it is one that was killed: its socket stays.
pub struct FakeKubelet {
    directory: PathBuf,
    registrations: mpsc::Receiver<RegisterRequest>,
    /// Those that came while another one was waited for.
    set_aside: Vec<RegisterRequest>,
    server: JoinHandle<()>,
    refuses: Arc<Mutex<Option<String>>>,
}

struct Desk {
    accepted: mpsc::Sender<RegisterRequest>,
    refuses: Arc<Mutex<Option<String>>>,
}

#[tonic::async_trait]
impl Registration for Desk {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if let Some(why) = self.refuses.lock().expect("no panic").clone() {
            return Err(Status::unknown(why));
        }
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported",
                request.version
            )));
        }
        self.accepted.send(request).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Empty {}))
    }
}

impl FakeKubelet {
    /// Starts as the kubelet does: it deletes every socket in the directory first.
    pub async fn start(directory: &Path) -> Self {
        for entry in fs::read_dir(directory).expect("the directory is there") {
            let path = entry.expect("the directory can be read").path();
            if path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket()) {
                fs::remove_file(path).expect("sockets can be deleted");
            }
        }
        let listener = UnixListener::bind(directory.join(KUBELET_SOCKET)).expect("the socket can be made");
        let (accepted, registrations) = mpsc::channel(REGISTRATIONS_MAX);
        let refuses = Arc::new(Mutex::new(None));
        let desk = RegistrationServer::new(Desk { accepted, refuses: Arc::clone(&refuses) });
        let server = tokio::spawn(async move {
            let serving = Server::builder().add_service(desk).serve_with_incoming(incoming(listener));
            serving.await.expect("the kubelet serves");
        });
        Self { directory: directory.to_owned(), registrations, set_aside: Vec::new(), server, refuses }
    }

    /// From now on every registration is refused with these words, or none if there are none.
    pub fn refuse(&self, why: Option<&str>) {
        *self.refuses.lock().expect("no panic") = why.map(str::to_owned);
    }

    /// The next registration of `resource` that was accepted.
    pub async fn registered(&mut self, resource: &str) -> RegisterRequest {
        if let Some(at) = self.set_aside.iter().position(|it| it.resource_name == resource) {
            return self.set_aside.remove(at);
        }
        let wanted = async {
            loop {
                let request = self.registrations.recv().await.expect("the kubelet runs");
                if request.resource_name == resource {
                    return request;
                }
                self.set_aside.push(request);
            }
        };
        timeout(SOON, wanted).await.unwrap_or_else(|_| panic!("{resource} is registered"))
    }

    /// Waits for the registration of `resource` and follows its list.
    pub async fn plugin(&mut self, resource: &str) -> Plugin {
        let request = self.registered(resource).await;
        Plugin::connect(&self.directory.join(request.endpoint)).await
    }

    /// Whether a registration of `resource` came that nobody asked for yet.
    pub fn registered_again(&mut self, resource: &str) -> bool {
        while let Ok(request) = self.registrations.try_recv() {
            self.set_aside.push(request);
        }
        self.set_aside.iter().any(|it| it.resource_name == resource)
    }

    /// Dies without a word.
    pub async fn kill(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A plugin as the kubelet sees it.
pub struct Plugin {
    pub client: DevicePluginClient<Channel>,
    lists: Streaming<ListAndWatchResponse>,
}

impl Plugin {
    pub async fn connect(socket: &Path) -> Self {
        let channel = connect(socket, SOON).await.expect("the plugin serves before it registers");
        let mut client = DevicePluginClient::new(channel);
        let lists = client.list_and_watch(Empty {}).await.expect("the list can be followed").into_inner();
        Self { client, lists }
    }

    /// The next list: health by id. `None` once the plugin has ended it.
    pub async fn next_list(&mut self) -> Option<BTreeMap<String, String>> {
        let list = timeout(SOON, self.lists.message()).await.expect("the list comes").ok()??;
        Some(list.devices.into_iter().map(|device| (device.id, device.health)).collect())
    }

    /// Lists until one is `wanted`: those that came between are lists of a moment.
    pub async fn list(&mut self, wanted: &[(&str, &str)]) {
        let wanted: BTreeMap<_, _> =
            wanted.iter().map(|(id, health)| ((*id).to_owned(), (*health).to_owned())).collect();
        let mut seen = Vec::new();
        loop {
            match timeout(SOON, self.next_list()).await {
                Ok(Some(list)) if list == wanted => return,
                Ok(Some(list)) => seen.push(list),
                ended => panic!("the list becomes {wanted:?}; it was {seen:?}, then {ended:?}"),
            }
        }
    }

    /// Whether no list comes for `quiet`.
    pub async fn is_quiet(&mut self, quiet: Duration) -> bool {
        timeout(quiet, self.lists.message()).await.is_err()
    }

    pub async fn allocate(&self, ids: &[&str]) -> Result<ContainerAllocateResponse, Status> {
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids }] };
        let answer = self.client.clone().allocate(request).await?.into_inner();
        let [container] = answer.container_responses.try_into().expect("one answer for one container");
        Ok(container)
    }

    pub async fn prefer(&self, available: &[&str], must: &[&str], size: i32) -> Result<Vec<String>, Status> {
        let own = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let asked = ContainerPreferredAllocationRequest {
            available_device_i_ds: own(available),
            must_include_device_i_ds: own(must),
            allocation_size: size,
        };
        let request = PreferredAllocationRequest { container_requests: vec![asked] };
        let answer = self.client.clone().get_preferred_allocation(request).await?.into_inner();
        let [container] = answer.container_responses.try_into().expect("one answer for one container");
        Ok(container.device_i_ds)
    }
}
