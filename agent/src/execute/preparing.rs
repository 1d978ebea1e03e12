//! Preparations of images under way: each is watched, and none is begun again while the former one has not ended.
//!
//! What is stuck in the kernel (a disk that does not answer) cannot be ended, and another attempt would be stuck beside it. So a
//! preparation that stands still is told of and left: the next attempt joins it, and it goes on when the disk does. Links have
//! deadlines of their own. It must not know what a preparation does.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tombolo_api::Digest;

use super::{Trouble, lock};

/// How long nothing may be received, read or unpacked on the whole node while an image is prepared. A slow disk that writes back
/// what it was given is silent for up to a minute.
const STILL_MAX: Duration = Duration::from_secs(120);

/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);

type Outcome = Option<Result<bool, Trouble>>;

/// By revision object.
#[derive(Default)]
pub(super) struct Preparations {
    under_way: Mutex<BTreeMap<Digest, watch::Receiver<Outcome>>>,
}

impl Preparations {
    /// What comes of `work`, or of what is under way for `object` already; a trouble if `beats` stands still for too long.
    pub(super) async fn run(
        &self,
        object: Digest,
        work: impl Future<Output = Result<bool, Trouble>> + Send + 'static,
        beats: impl Fn() -> u64,
    ) -> Result<bool, Trouble> {
        let mut ended = self.join(object, work);
        let outcome = tokio::select! {
            biased;
            outcome = ended.wait_for(Outcome::is_some) => outcome.ok().and_then(|outcome| (*outcome).clone()),
            () = standstill(beats) => {
                let message = format!(
                    "not a byte of it was received or unpacked for {} s: the node's disk may not answer; it goes on when the disk does",
                    STILL_MAX.as_secs()
                );
                return Err(Trouble::new("ImageStalled", message));
            }
        };
        lock(&self.under_way).remove(&object);
        outcome.unwrap_or_else(|| {
            let message = "a fault of the agent, please report it with the agent's log";
            Err(Trouble::new("ImagePreparationFailed", message))
        })
    }

    fn join(
        &self,
        object: Digest,
        work: impl Future<Output = Result<bool, Trouble>> + Send + 'static,
    ) -> watch::Receiver<Outcome> {
        let mut under_way = lock(&self.under_way);
        // One whose task has ended, well or in a panic, is over.
        under_way.retain(|_, ended| ended.has_changed().is_ok());
        let start = || {
            let (sender, ended) = watch::channel(None);
            // A task of its own: it outlives the attempt that began it, and even a panic has an outcome.
            tokio::spawn(async move { sender.send_replace(Some(work.await)) });
            ended
        };
        under_way.entry(object).or_insert_with(start).clone()
    }
}

/// Ends when `beats` has stood still.
async fn standstill(beats: impl Fn() -> u64) {
    let (mut last, mut still) = (beats(), Duration::ZERO);
    while still < STILL_MAX {
        tokio::time::sleep(LOOK).await;
        let now = beats();
        still = if now == last { still + LOOK } else { Duration::ZERO };
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::*;

    fn object() -> Digest {
        Digest::of(b"a")
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_is_told_and_joined_by_the_next_attempt() {
        let preparations = Preparations::default();
        let (begun, go_on) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let work = || {
            let (begun, go_on) = (begun.clone(), go_on.clone());
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                go_on.notified().await;
                Ok(true)
            }
        };
        for _ in 0..3 {
            let since = Instant::now();
            let trouble = preparations.run(object(), work(), || 7).await.unwrap_err();
            assert_eq!((trouble.reason.as_str(), since.elapsed()), ("ImageStalled", STILL_MAX));
            assert!(trouble.message.contains("120 s"), "{}", trouble.message);
        }
        go_on.notify_one();
        assert_eq!(preparations.run(object(), work(), || 7).await, Ok(true));
        assert_eq!(begun.load(Ordering::SeqCst), 1, "one at a time");
        go_on.notify_one();
        assert_eq!(preparations.run(object(), work(), || 7).await, Ok(true));
        assert_eq!(begun.load(Ordering::SeqCst), 2, "what is over is begun anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_at_all_may_take_as_long_as_it_likes() {
        let beats = Arc::<AtomicU64>::default();
        let moved = beats.clone();
        let work = async move {
            for _ in 0..50 {
                tokio::time::sleep(STILL_MAX - LOOK * 2).await;
                moved.fetch_add(1, Ordering::SeqCst);
            }
            Ok(false)
        };
        let preparations = Preparations::default();
        assert_eq!(preparations.run(object(), work, || beats.load(Ordering::SeqCst)).await, Ok(false));
    }

    #[tokio::test]
    async fn a_panic_has_an_outcome_and_is_not_joined() {
        let preparations = Preparations::default();
        let broken = preparations.run(object(), async { panic!("a test's own") }, || 0).await;
        assert_eq!(broken.unwrap_err().reason, "ImagePreparationFailed");
        assert_eq!(preparations.run(object(), async { Ok(true) }, || 0).await, Ok(true));
    }
}
