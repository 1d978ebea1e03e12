//! One resource as the kubelet sees it, from the view. Asks no hardware.

use std::sync::Arc;

use tokio::sync::watch;
use tombolo_device_sdk::{
    Device, DeviceId, Edits, EditsError, Health, Scan, ScanError, SharedAccelerator, Wanted,
};

use crate::config::Config;
use crate::files;
use crate::grant::grant;
use crate::prefer::prefer;
use crate::share::{Kind, Part};
use crate::view::View;

pub(crate) struct GpuScan {
    pub resource: String,
    pub view: watch::Receiver<Arc<View>>,
    pub config: Arc<Config>,
    pub processes: SharedAccelerator,
}

impl GpuScan {
    fn health(&self, part: &Part, view: &View) -> Health {
        if let Some(why) = view.faults.get(&part.uuid) {
            return Health::Unhealthy { why: why.clone() };
        }
        let needs_mps = matches!(part.kind, Kind::Mps { .. } | Kind::Memory { mps: true, .. });
        let control = self.config.mps.pipe_directory.join("control");
        if needs_mps && !files::under(&self.config.paths.root, &control).exists() {
            let why = format!(
                "the MPS control daemon does not run: {} is missing (nvidia-cuda-mps-control -d starts it)",
                control.display()
            );
            return Health::Unhealthy { why };
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
            Ok(Device { id, health: self.health(part, &view), numa: view.numa.get(&part.gpu).copied() })
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
