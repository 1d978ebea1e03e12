//! `tombolo-bench NAME`: measures the running system and prints each figure beside its bar, and its peer where there is one.
//!
//! Every benchmark is a module that gives rows; nothing here decides whether a build is good: bars are printed, not enforced,
//! because the machines that run this differ.

mod build;
mod burst;
mod client;
mod cold_start;
mod delta;
mod density;
mod deploy;
mod devices;
mod footprint;
mod gpu;
mod memory;
mod peer;
mod pull;
mod report;
mod router;
mod sample;
mod stages;
mod start;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::gpu::GpuOptions;
use crate::report::Row;

/// Measure Tombolo, as root, with the release programs that stand beside this one.
#[derive(Debug, Parser)]
#[command(name = "tombolo-bench", version, arg_required_else_help = true)]
struct Arguments {
    #[arg(value_enum, required = true)]
    names: Vec<Bench>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Repetitions of what is timed
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    #[command(flatten)]
    gpu: GpuOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// From a changed line of a function in Python to its new digest in the registry, beside buildah
    Build,
    /// Five hundred requests at once for a service that sleeps
    Burst,
    /// From a request to its answer with no instance running, beside the bare program, runc and youki
    ColdStart,
    /// One changed line in an image of 100 MB, beside the whole image
    Delta,
    /// Memory of 200 services at zero, and their first answers
    Density,
    /// From a Service at the hub to its first answer on a connected node that has the image
    Deploy,
    /// What sixty-four devices cost an agent, and what giving one to an instance adds to its start
    Devices,
    /// Memory of the processes with one function running, and sizes of the programs
    Footprint,
    /// A neural network through the router beside the same program alone; resumption and turns on a GPU, if there is one
    Gpu,
    /// An image of twelve layers onto a node, beside skopeo and podman, and over a bad link
    Pull,
    /// One warm revision through the router, beside nginx, driven by wrk
    Router,
    /// From the start of an agent that knows 100 services to its routes being in force
    Start,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let mut missed = false;
    for name in &arguments.names {
        let rows = runtime.block_on(measure(*name, &arguments));
        let Some(rows) = rows else { return ExitCode::FAILURE };
        missed |= rows.iter().any(|row| row.ok == Some(false));
        report::print(&rows, arguments.json);
    }
    if missed {
        eprintln!("not every bar was reached on this machine");
    }
    ExitCode::SUCCESS
}

async fn measure(name: Bench, arguments: &Arguments) -> Option<Vec<Row>> {
    let rounds = arguments.rounds;
    match name {
        Bench::Build => build::measure(rounds).await,
        Bench::Burst => burst::measure(rounds).await,
        Bench::ColdStart => cold_start::measure(rounds).await,
        Bench::Delta => delta::measure(rounds).await,
        Bench::Density => density::measure().await,
        Bench::Deploy => deploy::measure(rounds).await,
        Bench::Devices => devices::measure(rounds).await,
        Bench::Footprint => footprint::measure().await,
        Bench::Gpu => gpu::measure(rounds, &arguments.gpu).await,
        Bench::Pull => pull::measure(rounds).await,
        Bench::Router => router::measure().await,
        Bench::Start => start::measure(rounds).await,
    }
}
