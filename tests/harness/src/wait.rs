//! Waiting for something to become true, with a bound and a message that says what was seen last.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// How much slower than real hardware this machine is, from `TOMBOLO_TEST_SLOWDOWN`: an emulator sets it.
pub(crate) fn slowdown() -> u32 {
    std::env::var("TOMBOLO_TEST_SLOWDOWN").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// `bound` as it counts on this machine.
pub fn within(bound: Duration) -> Duration {
    bound * slowdown()
}

/// Looks until `look` gives `Ok`; panics with its last `Err` when `seconds` (longer on slow machines) have passed.
pub async fn until<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + within(Duration::from_secs(seconds));
    loop {
        match look().await {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("waited {seconds} s in vain for {what}; last seen: {last:?}")
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
