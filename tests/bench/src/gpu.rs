//! A neural network through the router and in a container, beside the same program alone: what that adds to an answer, how long one
//! takes that was suspended, and whether more of them than a GPU holds take turns on it. `examples/gpu-inference` computes on the
//! CPU where there is no GPU, and then only the first is measured.
//!
//! Needs what `tests/gpu/pack` puts into one directory, where this program then lies, and nothing else of the machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tombolo_harness::{Function, Node, Process, Site, skip, until};

use crate::client::{Connection, Request};
use crate::report::Row;
use crate::sample::Sample;

mod driver;
mod ground;

use driver::Mover;
use ground::{Gpu, Ground};

/// Bars: what may be added to an answer, in parts of the bare program's and in milliseconds, whichever is larger; a resumption in
/// multiples of the driver's.
const ADDED_SHARE: f64 = 0.05;
const ADDED_MS: f64 = 0.1;
const RESUME_RATIO: f64 = 1.3;

/// Answers of each in a round: one takes a fraction of a millisecond.
const ANSWERS: u32 = 20;

/// Functions that take turns on a GPU which has room for one less.
const TURNS: u64 = 6;

/// Rounds of what takes seconds.
const SLOW_ROUNDS_MAX: u32 = 10;

/// What each of those holds at most, MiB: six of them do not fit into a GPU of 80 GB.
const HOLD_MIB_MAX: u64 = 16 * 1024;

/// What the driver takes for a process beside that, MiB.
const CONTEXT_MIB: u64 = 1024;

/// How long a large model may take to be read back.
const PATIENCE_S: u64 = 120;

/// Where the bare program listens.
const PORT: u16 = 9200;

/// What is given to measure with.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GpuOptions {
    /// For `gpu`: the directory that tests/gpu/pack has made; by default the one above this program's
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
    /// For `gpu`: configuration of the NVIDIA plugin, for fakes of the driver; by default GPU 0 is shared by memory
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
    /// For `gpu`: what each of the functions that take turns holds at most, MiB
    #[arg(long, value_name = "MIB", default_value_t = HOLD_MIB_MAX, value_parser = clap::value_parser!(u64).range(1..))]
    hold_mib: u64,
}

/// What the pack has for this.
struct Pack {
    image: PathBuf,
    program: PathBuf,
    digit: Vec<u8>,
}

impl Pack {
    fn find(given: Option<&Path>) -> Result<Self, String> {
        let own = std::env::current_exe().ok();
        let above = own.as_deref().and_then(Path::parent).and_then(Path::parent);
        let pack = given.or(above).ok_or("this program has no path")?;
        let (image, program) = (pack.join("images/gpu-inference"), pack.join("bin/gpu-inference"));
        let digit = std::fs::read(pack.join("digit"));
        match digit {
            Ok(digit) if image.is_dir() && program.is_file() => Ok(Self { image, program, digit }),
            _ => Err(format!(
                "{} is not what tests/gpu/pack makes: --pack names such a directory",
                pack.display()
            )),
        }
    }
}

pub(crate) async fn measure(rounds: u32, options: &GpuOptions) -> Option<Vec<Row>> {
    let pack = match Pack::find(options.pack.as_deref()) {
        Ok(pack) => pack,
        Err(why) => {
            skip(&format!("gpu: {why}"));
            return None;
        }
    };
    let mut site = Site::start().await?;
    let ground = Ground::prepare(&mut site, &pack, options.plugin_config.as_deref()).await;
    let mut rows = latency(&site, &ground, rounds).await;
    match movable(&ground).await {
        Err(why) => skip(&format!("gpu: resumption and turns: {why}")),
        Ok((gpu, driver)) => {
            let rounds = rounds.min(SLOW_ROUNDS_MAX);
            let declared_units = gpu.units / (TURNS - 1);
            let declared_mib = declared_units * gpu.unit_mib;
            let room = declared_mib.saturating_sub(CONTEXT_MIB).max(declared_mib / 2);
            let model = Model { units: declared_units, hold_mib: room.min(options.hold_mib) };
            rows.extend(resumption(&site, &ground, &model, driver, rounds).await);
            rows.extend(turns(&site, &ground, &model, rounds).await);
        }
    }
    Some(rows)
}

/// The GPU, and who moves what is on it; or why there is none.
async fn movable<'g>(ground: &'g Ground<'_>) -> Result<(&'g Gpu, Mover), String> {
    let gpu = ground.gpu.as_ref().map_err(Clone::clone)?;
    Ok((gpu, Mover::connect(&ground.node.plugin_directory()).await?))
}

/// What a function declares and holds.
struct Model {
    units: u64,
    hold_mib: u64,
}

impl Model {
    fn function(&self, ground: &Ground<'_>, name: &str) -> Function {
        ground
            .function(name)
            .env("HOLD_MIB", &self.hold_mib.to_string())
            .limit(ground::MEMORY, &self.units.to_string())
            .annotation("tombolo.dev/idle-tier", "suspended")
    }
}

/// The same question to the bare program and through the router, in turns.
async fn latency(site: &Site, ground: &Ground<'_>, rounds: u32) -> Vec<Row> {
    let name = "latency";
    let function = ground.function(name).annotation("tombolo.dev/idle-tier", "running");
    let function = if ground.gpu.is_ok() { function.limit(ground::MEMORY, "1") } else { function };
    site.hub.deploy(&function).await;
    let bare = ground.start_bare(0);
    let mut through = connection(&ground.node, name).await;
    let mut alone = bare_connection(&ground.node).await;
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    for _ in 0..rounds * ANSWERS {
        ours.add(asked(&mut through, &ground.question(name)));
        theirs.add(asked(&mut alone, &ground.question("bare")));
    }
    drop(bare);
    site.hub.api.delete_service(name).await.expect("it can be deleted");
    let (ours, theirs) = (ours.quantile_ms(0.5), theirs.quantile_ms(0.5));
    let bar = (theirs * ADDED_SHARE).max(ADDED_MS);
    let (answer, added) = match ground.gpu {
        Ok(_) => ("cuda-answer-p50", "cuda-answer-added-p50"),
        Err(_) => ("cpu-answer-p50", "cpu-answer-added-p50"),
    };
    vec![
        Row::plain("gpu", answer, ours, "ms").beside("bare", theirs),
        Row::bounded("gpu", added, ours - theirs, "ms", bar),
    ]
}

/// A suspended function's answer beside what the driver takes to give the same program back what it had.
async fn resumption(
    site: &Site,
    ground: &Ground<'_>,
    model: &Model,
    mut driver: Mover,
    rounds: u32,
) -> Vec<Row> {
    let name = "sleeper";
    site.hub.deploy(&model.function(ground, name)).await;
    let bare = ground.start_bare(model.hold_mib);
    drop(bare_connection(&ground.node).await);
    let (mut ours, mut theirs) = (Sample::default(), Sample::default());
    for _ in 0..rounds {
        driver.suspend(bare.pid()).await;
        theirs.add(driver.resume(bare.pid()).await);
        suspended(&ground.node, name).await;
        let mut connection = Connection::open(ground.node.router()).expect("the router listens");
        ours.add(asked(&mut connection, &ground.question(name)));
    }
    drop(bare);
    right(&ground.node, name).await;
    site.hub.api.delete_service(name).await.expect("it can be deleted");
    let (ours, theirs) = (ours.quantile_ms(0.5), theirs.quantile_ms(0.5));
    vec![
        Row::plain("gpu", "resume-p50", ours, "ms").beside("driver", theirs).ratio_at_most(RESUME_RATIO),
        Row::plain("gpu", "resumed-memory", model.hold_mib as f64, "MiB"),
    ]
}

/// More functions than fit are asked one after the other.
async fn turns(site: &Site, ground: &Ground<'_>, model: &Model, rounds: u32) -> Vec<Row> {
    let names: Vec<String> = (0..TURNS).map(|number| format!("turn-{number}")).collect();
    for name in &names {
        site.hub.deploy(&model.function(ground, name)).await;
    }
    let (mut sample, mut errors) = (Sample::default(), 0);
    for _ in 0..rounds {
        for name in &names {
            let mut connection = Connection::open(ground.node.router()).expect("the router listens");
            match connection.ask(&ground.question(name)) {
                Ok((200, took)) => sample.add(took),
                other => {
                    eprintln!("{name} answered {other:?}");
                    errors += 1;
                }
            }
        }
    }
    for name in &names {
        right(&ground.node, name).await;
    }
    vec![
        Row::bounded("gpu", "turns-errors", f64::from(errors), "", 0.0),
        Row::plain("gpu", "turns-p50", sample.quantile_ms(0.5), "ms"),
        Row::plain("gpu", "turns-max", sample.quantile_ms(1.0), "ms"),
    ]
}

/// A connection to a function that answers.
async fn connection(node: &Node, name: &str) -> Connection {
    until(&format!("an answer of {name}"), PATIENCE_S, || node.answer(name, "/healthz")).await;
    Connection::open(node.router()).expect("the router listens")
}

async fn bare_connection(node: &Node) -> Connection {
    until("the bare program to listen", PATIENCE_S, async || Connection::open((node.address(), PORT).into()))
        .await
}

fn asked(connection: &mut Connection, question: &Request<'_>) -> Duration {
    let (status, took) = connection.ask(question).expect("an answer");
    assert_eq!(status, 200, "{}", question.host);
    took
}

async fn suspended(node: &Node, name: &str) {
    until(&format!("{name} to be suspended"), PATIENCE_S, || async {
        let tiers = node.tiers(name).await?;
        if tiers.get("suspended") == Some(&1) { Ok(()) } else { Err(format!("{tiers:?}")) }
    })
    .await;
}

/// Whether what a function holds is what it wrote.
async fn right(node: &Node, name: &str) {
    let held = until(&format!("what {name} holds"), PATIENCE_S, || node.answer(name, "/memory")).await;
    assert!(held.contains("\"wrong_words\":0"), "{name}: {held}");
}

impl Ground<'_> {
    fn question<'q>(&'q self, host: &'q str) -> Request<'q> {
        Request { host, path: "/classify", body: &self.pack.digit }
    }

    /// The program alone, in the node's own network.
    fn start_bare(&self, hold_mib: u64) -> Process {
        let mut command = std::process::Command::new(&self.pack.program);
        command.env("PORT", PORT.to_string()).env("DEVICE", self.device());
        command.env("HOLD_MIB", hold_mib.to_string());
        self.node.start_beside("bare", command).expect("the program starts")
    }
}
