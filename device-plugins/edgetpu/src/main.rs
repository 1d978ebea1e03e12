//! `tombolo-device-plugin-edgetpu`: flags around the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tombolo_device_edgetpu::{coral, tpu};
use tombolo_device_sdk::fixed;
use tombolo_device_sdk::machine::Roots;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::program::{self, Flags};

/// Offers Google's accelerators to the kubelet: Coral as google.com/edgetpu, cloud TPUs as google.com/tpu.
#[derive(Parser)]
#[command(name = "tombolo-device-plugin-edgetpu", version)]
struct Args {
    /// Where the machine's /dev is.
    #[arg(long, value_name = "DIR", default_value = "/dev")]
    dev: PathBuf,
    /// Where the machine's /sys is.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    sys: PathBuf,
    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    let args = Args::parse();
    program::start_logs(&args.flags);
    let roots = Roots { dev: args.dev, sys: args.sys, ..Roots::default() };
    let metrics = Metrics::default();
    metrics.add(coral::metrics(roots.clone()));
    let resources = [Some(coral::resource(roots.clone())), tpu::resource(roots)];
    let resources = fixed(resources.into_iter().flatten().collect());
    match program::run(&args.flags, resources, metrics, std::future::pending()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombolo-device-plugin-edgetpu: {error}");
            ExitCode::FAILURE
        }
    }
}
