//! One resource as the kubelet sees it, from the view. Asks no hardware.

use std::sync::Arc;

use tokio::sync::watch;
use tombolo_device_sdk::{
    Device, DeviceId, Edits, EditsError, Health, Scan, ScanError, SharedAccelerator, Wanted,
};

use crate::config::Config;
use crate::grant::grant;
use crate::prefer::prefer;
use crate::share::Part;
use crate::view::View;

pub(crate) struct GpuScan {
    pub resource: String,
    pub view: watch::Receiver<Arc<View>>,
    pub config: Arc<Config>,
    pub processes: SharedAccelerator,
}

impl GpuScan {
    fn health(part: &Part, view: &View) -> Health {
        if let Some(why) = view.faults.get(&part.uuid) {
            return Health::Unhealthy { why: why.clone() };
        }
        if let Some(why) = view.mps_faults.get(&part.gpu).filter(|_| part.kind.needs_mps()) {
            return Health::Unhealthy { why: why.clone() };
        }
        Health::Healthy
    }
}

impl Scan for GpuScan {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let view = Arc::clone(&self.view.borrow());
        let parts = view.offers.get(&self.resource).into_iter().flatten();
        let device = |(id, part): (&String, &Part)| {
            let id: DeviceId = id.parse().map_err(|error| ScanError::Hardware(Box::new(error)))?;
            Ok(Device { id, health: Self::health(part, &view), numa: view.numa.get(&part.gpu).copied() })
        };
        parts.map(device).collect()
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let view = Arc::clone(&self.view.borrow());
        let part = |id: &DeviceId| {
            view.part(&self.resource, id.as_str()).ok_or_else(|| EditsError::Gone(id.clone()))
        };
        let parts: Vec<&Part> = devices.iter().map(part).collect::<Result<_, _>>()?;
        grant(&parts, &view, &self.config).map_err(|error| EditsError::Hardware(Box::new(error)))
    }

    fn prefer(&self, wanted: &Wanted<'_>) -> Vec<DeviceId> {
        prefer(&self.resource, wanted, &self.view.borrow())
    }

    fn accelerator(&self) -> Option<SharedAccelerator> {
        Some(self.processes.clone())
    }
}
