//! How accelerators are, as one call of `Inspect` hears it: what matters soon, what merely moves seldom. It must not know what of
//! an accelerator is measured how.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::Stream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tombolo_device_api::accelerator::v1::{self as wire, InspectResponse};
use tonic::Status;

use super::service::TELL;
use super::{Inspection, MemoryErrors, SharedAccelerator};
use crate::device::{DeviceId, Health};

/// The shortest time between two messages that say nothing but other figures: these move all the time.
const FIGURES: Duration = Duration::from_secs(10);

pub(super) type Inspections = Pin<Box<dyn Stream<Item = Result<InspectResponse, Status>> + Send>>;

/// One call of `Inspect`.
pub(super) struct Inspector {
    accelerator: SharedAccelerator,
    sent: Option<(Instant, InspectResponse)>,
    cancel: CancellationToken,
}

impl Inspector {
    pub(super) fn new(accelerator: SharedAccelerator, cancel: CancellationToken) -> Self {
        Self { accelerator, sent: None, cancel }
    }

    pub(super) async fn next(mut self) -> Option<(Result<InspectResponse, Status>, Self)> {
        let cancel = self.cancel.clone();
        let news = tokio::select! {
            news = self.news() => news,
            () = cancel.cancelled() => return None,
        };
        Some((news, self))
    }

    async fn news(&mut self) -> Result<InspectResponse, Status> {
        loop {
            if self.sent.is_some() {
                sleep(TELL).await;
            }
            let inspections = self.accelerator.look(|accelerator| accelerator.inspect()).await??;
            let now = InspectResponse { accelerators: inspections.into_iter().map(message).collect() };
            let is_due = self.sent.as_ref().is_none_or(|(at, sent)| {
                *sent != now && (at.elapsed() >= FIGURES || without_figures(sent) != without_figures(&now))
            });
            if is_due {
                self.sent = Some((Instant::now(), now.clone()));
                return Ok(now);
            }
        }
    }
}

/// What of it is told soon.
fn without_figures(response: &InspectResponse) -> InspectResponse {
    let kept = |inspection: &wire::Inspection| wire::Inspection {
        memory_used_bytes: None,
        utilisation_percent: None,
        memory_utilisation_percent: None,
        temperature_celsius: None,
        power_milliwatts: None,
        ..inspection.clone()
    };
    InspectResponse { accelerators: response.accelerators.iter().map(kept).collect() }
}

fn message(inspection: Inspection) -> wire::Inspection {
    let errors = |MemoryErrors { corrected, uncorrected }| wire::MemoryErrors { corrected, uncorrected };
    wire::Inspection {
        device_id: inspection.device.to_string(),
        model: inspection.model,
        fault: match inspection.health {
            Health::Healthy => String::new(),
            Health::Unhealthy { why } => why,
        },
        part_ids: inspection.parts.iter().map(DeviceId::to_string).collect(),
        memory_bytes: inspection.memory_bytes,
        memory_used_bytes: inspection.memory_used_bytes,
        utilisation_percent: inspection.utilisation_percent,
        memory_utilisation_percent: inspection.memory_utilisation_percent,
        temperature_celsius: inspection.temperature_celsius,
        power_milliwatts: inspection.power_milliwatts,
        memory_errors: inspection.memory_errors.map(errors),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    use super::super::{Abilities, Accelerator, Held, MoveError, Pid, Suspended, UsageError};
    use super::*;

    /// It is as it is said to be.
    struct Said(Arc<Mutex<Inspection>>);

    impl Accelerator for Said {
        fn describe(&self) -> Abilities {
            Abilities { suspend: Err("it has nothing".to_owned()), tells_memory: false }
        }

        fn suspend(&self, _: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
            Err(MoveError::Cannot("it has nothing".to_owned()))
        }

        fn resume(&self, _: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
            Err(MoveError::Cannot("it has nothing".to_owned()))
        }

        fn usage(&self) -> Result<Vec<Held>, UsageError> {
            Err(UsageError::Never("it never tells".to_owned()))
        }

        fn inspect(&self) -> Result<Vec<Inspection>, UsageError> {
            Ok(vec![self.0.lock().unwrap().clone()])
        }
    }

    fn warm(degrees: i32) -> Inspection {
        Inspection {
            device: "GPU-1".parse().unwrap(),
            model: "A test's".to_owned(),
            health: Health::Healthy,
            parts: Vec::new(),
            memory_bytes: Some(16),
            memory_used_bytes: None,
            utilisation_percent: None,
            memory_utilisation_percent: None,
            temperature_celsius: Some(degrees),
            power_milliwatts: None,
            memory_errors: Some(MemoryErrors::default()),
        }
    }

    /// The next message, and after how many seconds it came.
    async fn next(inspector: Inspector) -> (wire::Inspection, u64, Inspector) {
        let before = Instant::now();
        let (told, inspector) = inspector.next().await.unwrap();
        (told.unwrap().accelerators.remove(0), before.elapsed().as_secs(), inspector)
    }

    #[tokio::test(start_paused = true)]
    async fn figures_wait_and_what_matters_does_not() {
        let said = Arc::new(Mutex::new(warm(40)));
        let accelerator = SharedAccelerator::new(Said(Arc::clone(&said)));
        let inspector = Inspector::new(accelerator, CancellationToken::new());
        let (first, after, inspector) = next(inspector).await;
        assert_eq!((first.temperature_celsius, after), (Some(40), 0));
        *said.lock().unwrap() = warm(41);
        let (second, after, inspector) = next(inspector).await;
        assert_eq!((second.temperature_celsius, after), (Some(41), FIGURES.as_secs()));
        let errors = Some(MemoryErrors { corrected: 0, uncorrected: 1 });
        *said.lock().unwrap() = Inspection { memory_errors: errors, ..warm(42) };
        let (third, after, inspector) = next(inspector).await;
        assert_eq!((third.temperature_celsius, after), (Some(42), TELL.as_secs()));
        let health = Health::Unhealthy { why: "it is hot".to_owned() };
        *said.lock().unwrap() = Inspection { memory_errors: errors, health, ..warm(42) };
        let (fourth, after, inspector) = next(inspector).await;
        assert_eq!((fourth.fault.as_str(), after), ("it is hot", TELL.as_secs()));
        // The same again is told to nobody.
        let more = tokio::time::timeout(Duration::from_secs(3600), inspector.next()).await;
        assert!(more.is_err());
    }
}
