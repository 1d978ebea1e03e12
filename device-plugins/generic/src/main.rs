//! `tombolo-device-plugin-generic`: flags around the library.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tombolo_device_generic::config::Config;
use tombolo_device_generic::find::find;
use tombolo_device_generic::scan::resource;
use tombolo_device_sdk::metrics::Metrics;
use tombolo_device_sdk::program::{self, Flags};
use tombolo_device_sdk::{Health, fixed};

/// Offers what has a device node to the kubelet: cameras, serial ports, GPUs, accelerators.
#[derive(Parser)]
#[command(name = "tombolo-device-plugin-generic", version)]
struct Args {
    /// The resources, TOML. A directory stands for all *.toml in it.
    #[arg(long, value_name = "FILE", required = true)]
    config: Vec<PathBuf>,
    /// Only say which devices there are now.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tombolo-device-plugin-generic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let config = Config::load(&args.config)?;
    if args.check {
        return check(&config);
    }
    program::start_logs(&args.flags);
    let resources = fixed(config.resources.into_iter().map(resource).collect());
    program::run(&args.flags, resources, Metrics::default(), std::future::pending())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints every device; fails if a node is offered twice, because then two containers may get it.
fn check(config: &Config) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut offered = BTreeMap::new();
    let mut code = ExitCode::SUCCESS;
    for resource in &config.resources {
        let name = &resource.entry.name;
        let devices = find(resource).map_err(|error| format!("{name}: {error}"))?;
        println!("{name}:{}", if devices.is_empty() { " no device here now" } else { "" });
        for device in devices {
            let paths: Vec<_> = device.nodes.iter().map(|node| node.shown.display().to_string()).collect();
            let health = match &device.health {
                Health::Healthy => "healthy".to_owned(),
                Health::Unhealthy { why } => format!("unhealthy: {why}"),
            };
            println!("  {}  {}  {health}", device.id, paths.join(" "));
            for node in device.nodes {
                if let Some((other, id)) = offered.insert(node.host, (name, device.id.clone())) {
                    println!("  it is offered as {id} of {other} too: narrow one of the two matches");
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(code)
}
