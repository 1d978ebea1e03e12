//! The plugin's side of the API for one resource: what the kubelet calls. It answers from the watched list and asks the
//! [`crate::Scan`] for edits only. It must not know about sockets and registration.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tombolo_device_api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    ContainerPreferredAllocationResponse, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, device_plugin_server::DevicePlugin,
};
use tonic::{Request, Response, Status};

use crate::Wanted;
use crate::device::{DeviceId, Health};
use crate::metrics::Counters;
use crate::name::ResourceName;
use crate::scanner::{Listed, Listing, SharedScan};

/// How long edits are waited for, a running scan included. The kubelet holds up a whole start meanwhile.
const EDITS_MAX: Duration = Duration::from_secs(10);

/// What this plugin asks of the kubelet.
pub(crate) const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

/// Whether the kubelet follows the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Followers {
    pub(crate) count: usize,
    pub(crate) since: Instant,
}

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) resource: ResourceName,
    pub(crate) scan: SharedScan,
    pub(crate) listing: watch::Receiver<Listing>,
    pub(crate) followers: watch::Sender<Followers>,
    pub(crate) rescan: Arc<Notify>,
    pub(crate) counters: Arc<Counters>,
    /// Ends the streams.
    pub(crate) cancel: CancellationToken,
}

type Lists = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

/// One call of `ListAndWatch`.
struct Follower {
    listing: watch::Receiver<Listing>,
    sent: Option<ListAndWatchResponse>,
    /// Of the devices in the list that was sent.
    lives: BTreeMap<DeviceId, u64>,
    cancel: CancellationToken,
    _counted: Counted,
}

/// A follower counts as long as this lives.
struct Counted(watch::Sender<Followers>);

impl Counted {
    fn begin(followers: watch::Sender<Followers>) -> Self {
        followers.send_modify(|it| *it = Followers { count: it.count + 1, since: Instant::now() });
        Self(followers)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|it| *it = Followers { count: it.count - 1, since: Instant::now() });
    }
}

impl Follower {
    /// The whole list at once, then whenever what the kubelet sees of it changed.
    async fn next(mut self) -> Option<(Result<ListAndWatchResponse, Status>, Self)> {
        loop {
            let list = self.list();
            if self.sent.as_ref() != Some(&list) {
                self.sent = Some(list.clone());
                return Some((Ok(list), self));
            }
            tokio::select! {
                changed = self.listing.changed() => changed.ok()?,
                () = self.cancel.cancelled() => return None,
            }
        }
    }

    /// The list that is due. A device that has come back since it was sent is left out once, so that it is seen to be another
    /// one: what a container has of it is worth nothing any more.
    fn list(&mut self) -> ListAndWatchResponse {
        let listing = self.listing.borrow_and_update();
        let same =
            |listed: &Listed| self.lives.get(&listed.device.id).is_none_or(|life| *life == listed.life);
        let all_same = listing.listed().all(same);
        let due: Vec<&Listed> = listing.listed().filter(|listed| all_same || same(listed)).collect();
        let lives: BTreeMap<_, _> =
            due.iter().map(|listed| (listed.device.id.clone(), listed.life)).collect();
        let devices = due.iter().map(|listed| listed.device.message()).collect();
        drop(listing);
        self.lives = lives;
        ListAndWatchResponse { devices }
    }
}

impl Service {
    async fn edits(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let devices = self.allocatable(ids)?;
        let scan = Arc::clone(&self.scan);
        let work = async move {
            let scan = scan.lock_owned().await;
            tokio::task::spawn_blocking(move || scan.edits(&devices)).await
        };
        let resource = &self.resource;
        let slow =
            |_| Status::deadline_exceeded(format!("{resource}: a scan of the devices hangs; try again"));
        let edits = timeout(EDITS_MAX, work)
            .await
            .map_err(slow)?
            .map_err(|_| Status::internal(format!("{resource}: the plugin panicked")))?
            .map_err(|error| Status::failed_precondition(format!("{resource}: {error}")))?;
        edits.message().map_err(|error| Status::internal(format!("{resource}: {error}")))
    }

    /// The ids, if every one is a healthy device's.
    fn allocatable(&self, ids: &[String]) -> Result<Vec<DeviceId>, Status> {
        let resource = &self.resource;
        if ids.is_empty() {
            return Err(Status::invalid_argument(format!("{resource}: no device is named")));
        }
        let listing = self.listing.borrow();
        let device = |id: &String| {
            let device = listing.device(id).ok_or_else(|| {
                Status::not_found(format!(
                    "{resource}: there is no device {id:?}; it is unplugged or was never there"
                ))
            })?;
            match &device.health {
                Health::Healthy => Ok(device.id.clone()),
                Health::Unhealthy { why } => {
                    Err(Status::failed_precondition(format!("{resource}: device {id:?} is unhealthy: {why}")))
                }
            }
        };
        ids.iter().map(device).collect()
    }

    async fn prefer(
        &self,
        asked: ContainerPreferredAllocationRequest,
    ) -> Result<ContainerPreferredAllocationResponse, Status> {
        let resource = &self.resource;
        let scan = Arc::clone(&self.scan);
        let scan = timeout(EDITS_MAX, scan.lock_owned()).await.map_err(|_| {
            Status::deadline_exceeded(format!("{resource}: a scan of the devices hangs; try again"))
        })?;
        let listing = self.listing.borrow();
        // Devices that went meanwhile are nobody's preference.
        let known = |ids: &[String]| -> BTreeSet<DeviceId> {
            ids.iter().filter_map(|id| listing.device(id)).map(|device| device.id.clone()).collect()
        };
        let available = known(&asked.available_device_i_ds);
        let must_include = known(&asked.must_include_device_i_ds);
        let size = usize::try_from(asked.allocation_size).unwrap_or(0);
        if must_include.len() > size || !must_include.is_subset(&available) || size > available.len() {
            return Err(Status::invalid_argument(format!(
                "{resource}: cannot choose {size} of {} devices with {} among them",
                available.len(),
                must_include.len()
            )));
        }
        let wanted = Wanted {
            available: listing.devices().filter(|device| available.contains(&device.id)).collect(),
            must_include: must_include.iter().collect(),
            size,
        };
        let device_i_ds = scan.prefer(&wanted).iter().map(DeviceId::to_string).collect();
        Ok(ContainerPreferredAllocationResponse { device_i_ds })
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Lists;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Lists>, Status> {
        let follower = Follower {
            listing: self.listing.clone(),
            sent: None,
            lives: BTreeMap::new(),
            cancel: self.cancel.clone(),
            _counted: Counted::begin(self.followers.clone()),
        };
        Ok(Response::new(Box::pin(stream::unfold(follower, Follower::next))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            container_responses.push(self.prefer(container).await?);
        }
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            match self.edits(&container.devices_ids).await {
                Ok(edits) => container_responses.push(edits),
                Err(status) => {
                    // Nobody holds anything of what was granted before it: the kubelet drops the whole answer. What it
                    // believes of the devices may be wrong, so they are looked at again.
                    self.rescan.notify_one();
                    self.counters.allocation_refused();
                    tracing::warn!(resource = %self.resource, devices = ?container.devices_ids, error = status.message(), "cannot allocate");
                    return Err(status);
                }
            }
        }
        self.counters.allocated();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
