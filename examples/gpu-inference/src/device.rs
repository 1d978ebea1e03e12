//! What computes: a GPU where one can be used, the CPU elsewhere. It lives on a thread of its own, because a GPU's context
//! belongs to one; jobs come over a bounded queue and are done one after the other. Must not know HTTP.

use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::cuda;
use crate::cuda::driver::{CudaError, OpenError};
use crate::images::{Image, held_out};
use crate::network::{Scores, Weights, class, pass};

/// Requests that wait for the device; more wait at the door.
const JOBS_MAX: usize = 64;

/// How far a score may be from the CPU's: sums are rounded otherwise there, and powers are approximate.
pub const TOLERANCE: f32 = 1e-4;

/// Digits that are looked at before the first request is taken.
const FIRST_LOOK: usize = 32;

/// Which device is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// A GPU if there is one that works.
    #[default]
    Any,
    Cuda,
    Cpu,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub wish: Wish,
    /// The driver's library, if it is not where it is looked for.
    pub library: Option<OsString>,
    /// Memory to hold, MiB.
    pub hold_mib: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("a GPU is asked for and cannot be used: {0}")]
    NoGpu(#[from] OpenError),
    #[error("the GPU's answers are not the CPU's: {0}")]
    WrongAnswers(CheckResult),
    #[error("{mib} MiB cannot be held: {error}")]
    Hold { mib: usize, error: CudaError },
    #[error("no thread can be started: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the device's thread ended")]
    Ended,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{0}")]
    Cuda(#[from] CudaError),
    #[error("the device's thread ended")]
    Ended,
}

/// Scores of a request's images, in their order.
#[derive(Debug)]
pub struct Classified {
    pub scores: Vec<Scores>,
    pub took: Duration,
}

/// The device's answers for digits that training has not seen, against the CPU's.
#[derive(Clone, Debug, Serialize)]
pub struct CheckResult {
    pub device: String,
    pub images: usize,
    /// How many were read rightly.
    pub right: usize,
    /// The greatest distance of a score from the CPU's.
    pub greatest_difference: f32,
    pub tolerance: f32,
    pub is_within_tolerance: bool,
}

impl std::fmt::Display for CheckResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} of {} digits read rightly, scores at most {:e} from the CPU's ({:e} allowed)",
            self.device, self.right, self.images, self.greatest_difference, self.tolerance
        )
    }
}

/// The state of the memory that is held.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryCheck {
    pub device: String,
    pub held_mib: usize,
    /// 32-bit words that are not what they were filled with.
    pub wrong_words: u64,
    /// The whole GPU's. None: it is the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mib: Option<u64>,
    pub micros: u64,
}

/// A device that runs. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Device {
    /// `cuda:` and the GPU's name, or `cpu`.
    pub name: String,
    /// Why it is the CPU, if a GPU was looked for.
    pub why_cpu: Option<String>,
    jobs: mpsc::Sender<Job>,
    broken: Arc<OnceLock<String>>,
}

type Answer<T> = oneshot::Sender<Result<T, CudaError>>;

enum Job {
    Classify(Vec<Image>, Answer<Classified>),
    Check(Answer<CheckResult>),
    Memory(Answer<MemoryCheck>),
}

impl Device {
    /// Opens the device, holds the memory, compares the first answers with the CPU's. Blocks meanwhile.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let (jobs, taken) = mpsc::channel(JOBS_MAX);
        let broken = Arc::new(OnceLock::new());
        let (started, outcome) = std::sync::mpsc::channel();
        let stays = Arc::clone(&broken);
        thread::Builder::new().name("device".into()).spawn(move || match Engine::start(&options) {
            Ok((engine, why_cpu)) => {
                // Nobody to hear of it: nobody to work for.
                if started.send(Ok((engine.name(), why_cpu))).is_ok() {
                    engine.work(taken, &stays);
                }
            }
            Err(error) => drop(started.send(Err(error))),
        })?;
        let (name, why_cpu) = outcome.recv().map_err(|_| StartError::Ended)??;
        Ok(Self { name, why_cpu, jobs, broken })
    }

    pub async fn classify(&self, images: Vec<Image>) -> Result<Classified, DeviceError> {
        self.ask(|answer| Job::Classify(images, answer)).await
    }

    pub async fn check(&self) -> Result<CheckResult, DeviceError> {
        self.ask(Job::Check).await
    }

    pub async fn memory(&self) -> Result<MemoryCheck, DeviceError> {
        self.ask(Job::Memory).await
    }

    /// The first error of the device, after which it is not to be trusted.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, DeviceError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).await.map_err(|_| DeviceError::Ended)?;
        Ok(answered.await.map_err(|_| DeviceError::Ended)??)
    }
}

/// The device on its thread.
struct Engine {
    weights: Weights,
    gpu: Option<cuda::Network>,
    held_mib: usize,
    /// What is held without a GPU.
    held: Vec<u32>,
}

impl Engine {
    /// Also why it is the CPU.
    fn start(options: &Options) -> Result<(Self, Option<String>), StartError> {
        let weights = Weights::trained();
        let mut engine = Self { weights, gpu: None, held_mib: options.hold_mib, held: Vec::new() };
        let mut why_cpu = None;
        if options.wish != Wish::Cpu {
            match engine.checked_gpu(options) {
                Ok(gpu) => engine.gpu = Some(gpu),
                Err(error) if options.wish == Wish::Cuda => return Err(error),
                Err(error) => why_cpu = Some(error.to_string()),
            }
        }
        let mib = options.hold_mib;
        match &mut engine.gpu {
            Some(gpu) if mib > 0 => gpu.hold(mib).map_err(|error| StartError::Hold { mib, error })?,
            Some(_) => {}
            None => engine.held = (0..(mib << 18) as u64).map(pattern).collect(),
        }
        Ok((engine, why_cpu))
    }

    fn checked_gpu(&self, options: &Options) -> Result<cuda::Network, StartError> {
        let gpu = cuda::Network::open(options.library.as_deref(), &self.weights)?;
        let digits = &held_out()[..FIRST_LOOK];
        let images: Vec<Image> = digits.iter().map(|(image, _)| *image).collect();
        let scores = gpu.classify(&images).map_err(OpenError::Cuda)?;
        let result = self.compared(format!("cuda:{}", gpu.name()), digits, &scores);
        if result.is_within_tolerance { Ok(gpu) } else { Err(StartError::WrongAnswers(result)) }
    }

    fn name(&self) -> String {
        self.gpu.as_ref().map_or_else(|| "cpu".to_owned(), |gpu| format!("cuda:{}", gpu.name()))
    }

    fn work(self, mut jobs: mpsc::Receiver<Job>, broken: &OnceLock<String>) {
        while let Some(job) = jobs.blocking_recv() {
            match job {
                Job::Classify(images, answer) => reply(answer, self.classify(&images), broken),
                Job::Check(answer) => reply(answer, self.check(), broken),
                Job::Memory(answer) => reply(answer, self.memory(), broken),
            }
        }
    }

    fn classify(&self, images: &[Image]) -> Result<Classified, CudaError> {
        let began = Instant::now();
        let scores = match &self.gpu {
            Some(gpu) => gpu.classify(images)?,
            None => images.iter().map(|image| pass(&self.weights, image).scores).collect(),
        };
        Ok(Classified { scores, took: began.elapsed() })
    }

    fn check(&self) -> Result<CheckResult, CudaError> {
        let digits = held_out();
        let images: Vec<Image> = digits.iter().map(|(image, _)| *image).collect();
        Ok(self.compared(self.name(), &digits, &self.classify(&images)?.scores))
    }

    fn compared(&self, device: String, digits: &[(Image, usize)], scores: &[Scores]) -> CheckResult {
        let mut greatest_difference = 0.0_f32;
        let mut right = 0;
        let mut is_within_tolerance = scores.len() == digits.len();
        for ((image, digit), scores) in digits.iter().zip(scores) {
            right += usize::from(class(scores) == *digit);
            for (score, expected) in scores.iter().zip(pass(&self.weights, image).scores) {
                let difference = (score - expected).abs();
                greatest_difference = greatest_difference.max(difference);
                // What is no number is not within it either.
                is_within_tolerance &= difference <= TOLERANCE;
            }
        }
        let images = digits.len();
        CheckResult { device, images, right, greatest_difference, tolerance: TOLERANCE, is_within_tolerance }
    }

    fn memory(&self) -> Result<MemoryCheck, CudaError> {
        let began = Instant::now();
        let (wrong_words, memory) = match &self.gpu {
            Some(gpu) => (gpu.wrong_words()?, Some(gpu.memory()?)),
            None => {
                let wrong = self.held.iter().zip(0..).filter(|(word, at)| **word != pattern(*at));
                (wrong.count() as u64, None)
            }
        };
        Ok(MemoryCheck {
            device: self.name(),
            held_mib: self.held_mib,
            wrong_words,
            free_mib: memory.as_ref().map(|memory| memory.free >> 20),
            total_mib: memory.as_ref().map(|memory| memory.total >> 20),
            micros: began.elapsed().as_micros() as u64,
        })
    }
}

/// What the word at `at` is filled with, as in `kernels.ptx`.
fn pattern(at: u64) -> u32 {
    (at as u32).wrapping_mul(0x9E37_79B1) ^ (at >> 32) as u32
}

fn reply<T>(answer: Answer<T>, result: Result<T, CudaError>, broken: &OnceLock<String>) {
    if let Err(error) = &result
        && broken.set(error.to_string()).is_ok()
    {
        eprintln!("the GPU failed: {error}");
    }
    // Whoever asked may have gone.
    let _ = answer.send(result);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(hold_mib: usize) -> Engine {
        Engine::start(&Options { wish: Wish::Cpu, hold_mib, ..Options::default() }).unwrap().0
    }

    #[test]
    fn answers_beyond_the_tolerance_are_noticed() {
        let engine = cpu(0);
        let digits = held_out();
        let images: Vec<Image> = digits.iter().map(|(image, _)| *image).collect();
        let mut scores = engine.classify(&images).unwrap().scores;
        let compared = |scores: &[Scores]| engine.compared("x".into(), &digits, scores);
        assert!(compared(&scores).is_within_tolerance);
        assert!(!compared(&scores[1..]).is_within_tolerance);
        scores[7][3] += 2.0 * TOLERANCE;
        let result = compared(&scores);
        assert!(!result.is_within_tolerance && result.greatest_difference > TOLERANCE, "{result}");
        scores[7][3] = f32::NAN;
        assert!(!compared(&scores).is_within_tolerance);
    }

    #[test]
    fn a_changed_word_is_found() {
        let mut engine = cpu(1);
        assert_eq!(engine.memory().unwrap().wrong_words, 0);
        engine.held[1000] ^= 1;
        let found = engine.memory().unwrap();
        assert_eq!((found.wrong_words, found.held_mib, found.device.as_str()), (1, 1, "cpu"));
    }

    #[test]
    fn a_gpu_that_is_asked_for_and_not_there_is_an_error_and_otherwise_a_reason() {
        let library = Some("libcuda-of-nowhere.so.1".into());
        let options = Options { library, ..Options::default() };
        let error = Device::start(Options { wish: Wish::Cuda, ..options.clone() }).unwrap_err();
        assert!(matches!(error, StartError::NoGpu(OpenError::Library(_))), "{error}");
        let device = Device::start(options).unwrap();
        assert_eq!(device.name, "cpu");
        assert!(device.why_cpu.unwrap().contains("libcuda-of-nowhere.so.1"));
    }
}
