//! The task that probes one instance through its life: its startup probe first, and once that has passed its readiness and its
//! liveness side by side. It must not know what its findings lead to.
//!
//! Readiness goes on after the first pass: once a period, or every ten seconds where no period is given, as the kubelet does
//! for Knative. An instance that fails its threshold is not ready until it passes again.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pause::Pause;
use super::schedule::{Schedule, Verdict};
use super::{Check, Finding, Miss, Passed, Plan, Probes, Reach};

/// Ends when the instance has failed for good.
pub(super) async fn run<T>(probes: Probes, reach: Reach, paused: watch::Receiver<bool>, tell: T)
where
    T: AsyncFn(Finding),
{
    let begun = Instant::now();
    let Probes { startup, readiness, liveness } = probes;
    let prober = |plan: Plan, schedule| Prober {
        check: plan.check,
        timeout: plan.timing.timeout,
        schedule,
        reach: &reach,
        paused: paused.clone(),
        begun,
        pause: Pause::default(),
        spare: None,
    };
    if let Some(plan) = startup {
        let schedule = Schedule::eager(plan.timing, Duration::ZERO);
        if let Err(message) = prober(plan, schedule).verdict().await {
            let message = format!("the startup probe failed: {message}");
            return tell(Finding::Failed { reason: "StartupProbeFailed", message }).await;
        }
    }
    let schedule = Schedule::eager(readiness.timing, begun.elapsed());
    let readiness = follow_readiness(prober(readiness, schedule), &tell);
    let Some(plan) = liveness else { return readiness.await };
    let schedule = Schedule::regular(plan.timing, begun.elapsed());
    let message = tokio::select! {
        () = readiness => return,
        message = until_dead(prober(plan, schedule)) => message,
    };
    let message = format!("the liveness probe failed: {message}");
    tell(Finding::Failed { reason: "LivenessProbeFailed", message }).await;
}

/// Never ends.
async fn follow_readiness<T: AsyncFn(Finding)>(mut prober: Prober<'_>, tell: &T) {
    // Nothing is told twice; not before the first verdict.
    let mut told = None;
    loop {
        let verdict = prober.verdict().await;
        let ready = verdict.is_ok();
        if ready {
            prober.schedule.settle();
        }
        if told.replace(ready) == Some(ready) {
            continue;
        }
        match verdict {
            Ok(passed) => tell(Finding::Ready(passed)).await,
            Err(message) => {
                let message = format!("the readiness probe failed: {message}");
                tell(Finding::NotReady { message }).await;
            }
        }
    }
}

async fn until_dead(mut prober: Prober<'_>) -> String {
    loop {
        if let Err(message) = prober.verdict().await {
            return message;
        }
    }
}

struct Prober<'a> {
    check: Check,
    timeout: Duration,
    schedule: Schedule,
    reach: &'a Reach,
    paused: watch::Receiver<bool>,
    begun: Instant,
    pause: Pause,
    /// See [`super::connect::open`].
    spare: Option<OwnedFd>,
}

impl Prober<'_> {
    /// Makes attempts until they add up to something; a failure comes with the last one's reason.
    async fn verdict(&mut self) -> Result<Passed, String> {
        loop {
            let Some((began, result)) = self.attempt().await else {
                self.until_resumed().await;
                continue;
            };
            let ended = self.begun.elapsed();
            let (is_pass, why) = match result {
                Ok(()) => (true, String::new()),
                Err(Miss::Failed(why)) => (false, why),
                Err(Miss::Unknown(why)) => {
                    tracing::debug!(why, "a probe could not be made");
                    self.schedule.put_off(ended);
                    continue;
                }
            };
            match self.schedule.record(began, ended, is_pass) {
                Some(Verdict::Passed) => {
                    let (began, took) = ((self.begun + began).into_std(), ended.saturating_sub(began));
                    return Ok(Passed { began, took });
                }
                Some(Verdict::Failed) => return Err(why),
                None => {}
            }
        }
    }

    /// The next attempt when it is due: when it began and what came of it. `None` if the instance is paused before it ends.
    async fn attempt(&mut self) -> Option<(Duration, Result<(), Miss>)> {
        let Self { check, timeout, schedule, reach, paused, begun, pause, spare } = self;
        let attempt = async {
            pause.wait(schedule.next().saturating_sub(begun.elapsed())).await;
            let began = begun.elapsed();
            (began, check.attempt(reach, spare, *timeout).await)
        };
        tokio::select! {
            biased;
            // Without a guard this task is about to end.
            _ = paused.wait_for(|paused| *paused) => None,
            done = attempt => Some(done),
        }
    }

    async fn until_resumed(&mut self) {
        if self.paused.wait_for(|paused| !*paused).await.is_err() {
            std::future::pending::<()>().await;
        }
        self.schedule.resume(self.begun.elapsed());
    }
}
