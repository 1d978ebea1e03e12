//! A whole device plugin: every file in a directory is a lamp, and a container gets it as a mount.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::program::{self, Flags};
use tombolo_device_sdk::{
    Device, DeviceId, Edits, EditsError, Health, Mount, Resource, Scan, ScanError, fixed,
};

/// Offers lamps.
#[derive(Parser)]
struct Args {
    /// Where the lamps are.
    lamps: PathBuf,
    #[command(flatten)]
    flags: Flags,
}

struct Lamps(PathBuf);

impl Scan for Lamps {
    fn scan(&mut self) -> Result<Vec<Device>, ScanError> {
        let read = |source| ScanError::Read { path: self.0.clone(), source };
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            let id = name.to_string_lossy().parse().map_err(|error| ScanError::Hardware(Box::new(error)))?;
            devices.push(Device { id, health: Health::Healthy, numa: None });
        }
        Ok(devices)
    }

    fn edits(&self, devices: &[DeviceId]) -> Result<Edits, EditsError> {
        let mount = |id: &DeviceId| Mount {
            host: self.0.join(id.as_str()),
            container: PathBuf::from("/lamps").join(id.as_str()),
            read_only: false,
        };
        Ok(Edits { mounts: devices.iter().map(mount).collect(), ..Edits::default() })
    }
}

fn main() -> ExitCode {
    let Args { lamps, flags } = Args::parse();
    program::start_logs(&flags);
    let resource = Resource {
        name: "example.com/lamp".parse().expect("a good name"),
        scan: Box::new(Lamps(lamps.clone())),
        watched: vec![lamps],
        interval: Duration::from_secs(60),
    };
    match program::run(&flags, fixed(vec![resource]), Metrics::default(), std::future::pending()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
