//! The accelerator service of one resource's socket: bounds and turns around the plugin's [`super::Accelerator`]. It must not
//! know what a suspension is.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tombolo_device_api::accelerator::v1::accelerator_server;
use tombolo_device_api::accelerator::v1::{
    DescribeRequest, Description, InspectRequest, ProcessUsage, ResumeRequest, ResumeResponse,
    SuspendRequest, SuspendResponse, UsageRequest, UsageResponse,
};
use tonic::{Request, Response, Status};

use super::inspect::{Inspections, Inspector};
use super::{Accelerator, Held, MoveError, Pid, SharedAccelerator, UsageError};
use crate::name::ResourceName;

/// How long a move may take, its turn included: the memory of the largest accelerators over a slow bus.
const MOVE_MAX: Duration = Duration::from_secs(120);

/// How long a look may take. Drivers need seconds when hardware answers badly.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The shortest time between two messages of one stream.
pub(super) const TELL: Duration = Duration::from_secs(1);

/// How long what was measured serves other streams: one agent follows one for each resource.
const FRESH: Duration = Duration::from_millis(500);

/// Processes that one call may name: what a container has, many times over.
const PIDS_MAX: usize = 4096;

/// What processes held at one moment.
pub(super) struct Measured {
    at: Instant,
    usage: UsageResponse,
}

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) resource: ResourceName,
    pub(crate) accelerator: SharedAccelerator,
    /// Ends the streams.
    pub(crate) cancel: CancellationToken,
}

type Usages = Pin<Box<dyn Stream<Item = Result<UsageResponse, Status>> + Send>>;

/// One call of `Usage`.
struct Follower {
    accelerator: SharedAccelerator,
    sent: Option<UsageResponse>,
    cancel: CancellationToken,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<UsageResponse, Status>, Self)> {
        let cancel = self.cancel.clone();
        let news = async {
            loop {
                if self.sent.is_some() {
                    sleep(TELL).await;
                }
                // Who asks anew may have just begun to hold something, or know of somebody who has.
                let age_max = if self.sent.is_some() { FRESH } else { Duration::ZERO };
                let usage = self.accelerator.measure(age_max).await?;
                if self.sent.as_ref() != Some(&usage) {
                    self.sent = Some(usage.clone());
                    return Ok(usage);
                }
            }
        };
        let news = tokio::select! {
            news = news => news,
            () = cancel.cancelled() => return None,
        };
        Some((news, self))
    }
}

impl SharedAccelerator {
    /// Does `work` on a thread of its own. Work that has not ended after `at_most` goes on, and keeps its place in `places`.
    async fn call<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        at_most: Duration,
        work: impl Future<Output = Box<dyn FnOnce(&dyn Accelerator) -> T + Send>>,
    ) -> Result<T, Status> {
        let call = async {
            let work = work.await;
            let place = Arc::clone(places).acquire_owned().await;
            let shared = Arc::clone(&self.0);
            let done = tokio::task::spawn_blocking(move || {
                let _place = place;
                work(&*shared.accelerator)
            });
            done.await.map_err(|_| Status::internal("the plugin panicked; this is a defect of it"))
        };
        let late = |_| {
            let seconds = at_most.as_secs();
            Status::deadline_exceeded(format!("the driver has not answered within {seconds} s"))
        };
        timeout(at_most, call).await.map_err(late)?
    }

    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Accelerator) -> T + Send + 'static,
    ) -> Result<T, Status> {
        self.call(&self.0.looks, LOOK_MAX, async { Box::new(look) as Box<_> }).await
    }

    /// The processes stay in hand until the move has ended, also if nobody waits for it any more.
    async fn move_state<T: Send + 'static>(
        &self,
        pids: &[u32],
        how: impl FnOnce(&dyn Accelerator, &BTreeSet<Pid>) -> Result<T, MoveError> + Send + 'static,
    ) -> Result<T, Status> {
        let processes = processes(pids)?;
        let work = async {
            let turn = self.0.turns.take(processes).await;
            Box::new(move |accelerator: &dyn Accelerator| how(accelerator, turn.processes())) as Box<_>
        };
        let moved: Result<T, MoveError> = self.call(&self.0.moves, MOVE_MAX, work).await?;
        moved.map_err(|error| match error {
            MoveError::Cannot(why) => Status::unimplemented(why),
            MoveError::OutOfMemory(_) => Status::resource_exhausted(error.to_string()),
            MoveError::Refused(_) => Status::failed_precondition(error.to_string()),
        })
    }

    /// What processes hold, not older than that.
    async fn measure(&self, age_max: Duration) -> Result<UsageResponse, Status> {
        let mut measured = self.0.measured.lock().await;
        if let Some(Measured { at, usage }) = &*measured
            && at.elapsed() < age_max
        {
            return Ok(usage.clone());
        }
        let held = self.look(|accelerator| accelerator.usage()).await??;
        let usage = UsageResponse { processes: held.into_iter().map(message).collect() };
        *measured = Some(Measured { at: Instant::now(), usage: usage.clone() });
        Ok(usage)
    }
}

impl Service {
    fn tell(&self, what: &str, status: &Status) {
        tracing::warn!(resource = %self.resource, code = ?status.code(), error = status.message(), "cannot {what}");
    }
}

#[tonic::async_trait]
impl accelerator_server::Accelerator for Service {
    type UsageStream = Usages;
    type InspectStream = Inspections;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        let abilities = self.accelerator.look(|accelerator| accelerator.describe()).await?;
        Ok(Response::new(Description {
            can_suspend: abilities.suspend.is_ok(),
            cannot_suspend_because: abilities.suspend.err().unwrap_or_default(),
            tells_memory: abilities.tells_memory,
        }))
    }

    async fn suspend(&self, request: Request<SuspendRequest>) -> Result<Response<SuspendResponse>, Status> {
        let pids = request.into_inner().pids;
        let moved = self.accelerator.move_state(&pids, |accelerator, pids| accelerator.suspend(pids)).await;
        let moved = moved.inspect_err(|status| self.tell("suspend", status))?;
        let moved_pids = moved.moved.into_iter().map(Pid::number).collect();
        Ok(Response::new(SuspendResponse { moved_pids, freed_bytes: moved.freed_bytes }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let pids = request.into_inner().pids;
        let resumed = self.accelerator.move_state(&pids, |accelerator, pids| accelerator.resume(pids)).await;
        let resumed = resumed.inspect_err(|status| self.tell("resume", status))?;
        Ok(Response::new(ResumeResponse { resumed_pids: resumed.into_iter().map(Pid::number).collect() }))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<Usages>, Status> {
        let (accelerator, cancel) = (self.accelerator.clone(), self.cancel.clone());
        let follower = Follower { accelerator, sent: None, cancel };
        Ok(Response::new(Box::pin(stream::unfold(follower, Follower::next))))
    }

    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<Inspections>, Status> {
        let inspector = Inspector::new(self.accelerator.clone(), self.cancel.clone());
        Ok(Response::new(Box::pin(stream::unfold(inspector, Inspector::next))))
    }
}

fn processes(pids: &[u32]) -> Result<BTreeSet<Pid>, Status> {
    if pids.len() > PIDS_MAX {
        let count = pids.len();
        return Err(Status::invalid_argument(format!("{count} processes are named; at most {PIDS_MAX}")));
    }
    if pids.contains(&std::process::id()) {
        return Err(Status::invalid_argument("a plugin cannot move itself: its own process is named"));
    }
    let pids = pids.iter().map(|pid| Pid::try_from(*pid));
    pids.collect::<Result<_, _>>().map_err(|error| Status::invalid_argument(error.to_string()))
}

impl From<UsageError> for Status {
    fn from(error: UsageError) -> Self {
        match error {
            UsageError::Never(why) => Self::unimplemented(why),
            UsageError::NotNow(_) => Self::unavailable(error.to_string()),
        }
    }
}

fn message(held: Held) -> ProcessUsage {
    let Held { process, device, bytes } = held;
    ProcessUsage { pid: process.number(), device_id: device.to_string(), bytes }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tonic::Code;

    use super::super::{Abilities, Suspended};
    use super::*;

    /// Has nothing to move.
    struct Idle;

    impl Accelerator for Idle {
        fn describe(&self) -> Abilities {
            Abilities { suspend: Ok(()), tells_memory: false }
        }

        fn suspend(&self, _: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
            Ok(Suspended::default())
        }

        fn resume(&self, _: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
            Ok(BTreeSet::new())
        }

        fn usage(&self) -> Result<Vec<Held>, UsageError> {
            Err(UsageError::Never("it never tells".to_owned()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_too_long_is_told_and_gets_through_later() {
        let shared = SharedAccelerator::new(Idle);
        let seven = BTreeSet::from([Pid::try_from(7).unwrap()]);
        let turn = shared.0.turns.take(seven).await;
        let late = shared.move_state(&[7, 8], |accelerator, pids| accelerator.resume(pids)).await;
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
        // What it waited for in vain is nobody's now.
        let other = shared.move_state(&[8], |accelerator, pids| accelerator.suspend(pids)).await;
        assert_eq!(other.unwrap(), Suspended::default());
        drop(turn);
        let again = shared.move_state(&[7, 8], |accelerator, pids| accelerator.resume(pids)).await;
        assert_eq!(again.unwrap(), BTreeSet::new());
    }

    /// Another process each time it is looked.
    struct Growing(AtomicU32);

    impl Accelerator for Growing {
        fn describe(&self) -> Abilities {
            Idle.describe()
        }

        fn suspend(&self, processes: &BTreeSet<Pid>) -> Result<Suspended, MoveError> {
            Idle.suspend(processes)
        }

        fn resume(&self, processes: &BTreeSet<Pid>) -> Result<BTreeSet<Pid>, MoveError> {
            Idle.resume(processes)
        }

        fn usage(&self) -> Result<Vec<Held>, UsageError> {
            let process = Pid::try_from(self.0.fetch_add(1, Ordering::Relaxed) + 1).unwrap();
            Ok(vec![Held { process, device: "a".parse().unwrap(), bytes: None }])
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_to_follow_hears_what_is_held_now() {
        let accelerator = SharedAccelerator::new(Growing(AtomicU32::new(0)));
        for number in 1..4 {
            let (accelerator, cancel) = (accelerator.clone(), CancellationToken::new());
            let (told, _) = Follower { accelerator, sent: None, cancel }.next().await.unwrap();
            assert_eq!(told.unwrap().processes[0].pid, number);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_hang_leave_moves_their_threads() {
        let shared = SharedAccelerator::new(Idle);
        let all = u32::try_from(shared.0.looks.available_permits()).unwrap();
        let hanging = Arc::clone(&shared.0.looks).acquire_many_owned(all).await.unwrap();
        assert_eq!(shared.measure(Duration::ZERO).await.unwrap_err().code(), Code::DeadlineExceeded);
        assert!(shared.move_state(&[7], |accelerator, pids| accelerator.suspend(pids)).await.is_ok());
        drop(hanging);
        let never = shared.measure(Duration::ZERO).await.unwrap_err();
        assert_eq!((never.code(), never.message()), (Code::Unimplemented, "it never tells"));
    }
}
