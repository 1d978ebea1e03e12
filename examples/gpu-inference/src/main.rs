//! The function: reads what it is told from the environment, starts the device, serves on `$PORT` until SIGTERM.
//! `--self-check` compares the device's answers with the CPU's instead, prints what came out, and ends.

use std::process::ExitCode;

use gpu_inference::device::{Device, Options, Wish};
use gpu_inference::server;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Most memory that can be asked to be held, MiB: more than any GPU has.
const HOLD_MIB_MAX: usize = 1 << 20;

struct Config {
    port: u16,
    device: Options,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gpu-inference: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let checks = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--self-check") => true,
        Some(other) => return Err(format!("{other}: the only argument is --self-check")),
    };
    let config =
        Config::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    if checks { runtime.block_on(self_check(config.device)) } else { runtime.block_on(serve(config)) }
}

async fn serve(config: Config) -> Result<ExitCode, String> {
    // First of all: the first process of a container has to have a handler, or the signal is ignored.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| format!("no signals: {error}"))?;
    let device = started(config.device)?;
    let listener = TcpListener::bind(("0.0.0.0", config.port)).await;
    let listener = listener.map_err(|error| format!("cannot listen on port {}: {error}", config.port))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    println!("{} listens on port {port}", device.name);
    let ended = async {
        terminate.recv().await;
    };
    server::serve(listener, device, ended).await;
    Ok(ExitCode::SUCCESS)
}

async fn self_check(options: Options) -> Result<ExitCode, String> {
    let result = started(options)?.check().await.map_err(|error| error.to_string())?;
    println!("{result}");
    Ok(if result.is_within_tolerance { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn started(options: Options) -> Result<Device, String> {
    let device = Device::start(options).map_err(|error| error.to_string())?;
    if let Some(why) = &device.why_cpu {
        println!("computing on the CPU: {why}");
    }
    Ok(device)
}

impl Config {
    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |name: &str, fallback: usize, most: usize| {
            let Some(text) = variable(name) else { return Ok(fallback) };
            let number = text.parse().ok().filter(|number| *number <= most);
            number.ok_or_else(|| format!("{name}={text}: a number from 0 to {most}"))
        };
        let port = number("PORT", 8080, usize::from(u16::MAX))?;
        let wish = match variable("DEVICE").as_deref() {
            None | Some("auto") => Wish::Any,
            Some("cuda") => Wish::Cuda,
            Some("cpu") => Wish::Cpu,
            Some(other) => return Err(format!("DEVICE={other}: auto, cuda or cpu")),
        };
        let device = Options {
            wish,
            library: variable("CUDA_LIBRARY").map(Into::into),
            hold_mib: number("HOLD_MIB", 0, HOLD_MIB_MAX)?,
        };
        Ok(Self { port: u16::try_from(port).expect("it is bounded above"), device })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_what_is_wanted() {
        let config = read(&[]).unwrap();
        assert_eq!((config.port, config.device.wish, config.device.hold_mib), (8080, Wish::Any, 0));
        let config =
            read(&[("PORT", "9"), ("DEVICE", "cuda"), ("HOLD_MIB", "512"), ("CUDA_LIBRARY", "/l")]).unwrap();
        assert_eq!((config.port, config.device.wish, config.device.hold_mib), (9, Wish::Cuda, 512));
        assert_eq!(config.device.library, Some("/l".into()));
    }

    #[test]
    fn a_mistake_in_the_environment_is_named() {
        for (name, value) in [("PORT", "65536"), ("PORT", "x"), ("DEVICE", "gpu"), ("HOLD_MIB", "-1")] {
            let error = read(&[(name, value)]).err().unwrap();
            assert!(error.contains(&format!("{name}={value}")), "{error}");
        }
    }
}
