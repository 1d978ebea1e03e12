//! Waiting to the microsecond where that matters: tokio's timers round up to whole milliseconds, which is longer than a static
//! program takes to start. It must not know what is waited for.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// From here on a millisecond more makes no difference.
const COARSE: Duration = Duration::from_millis(10);

/// A kernel timer, made when it is first needed.
#[derive(Default)]
pub(super) struct Pause {
    timer: Option<Timer>,
}

struct Timer {
    timer: TimerFd,
    /// The same timer. It reads like a pipe; tokio's type for any other descriptor can only be had with `unsafe`.
    ended: pipe::Receiver,
}

impl Pause {
    /// May be dropped half-way and used again.
    pub(super) async fn wait(&mut self, duration: Duration) {
        if duration.is_zero() {
            return;
        }
        // Without a timer (the process has too many files open) a coarse wait does as well.
        if duration >= COARSE || self.wait_finely(duration).await.is_err() {
            tokio::time::sleep(duration).await;
        }
    }

    async fn wait_finely(&mut self, duration: Duration) -> io::Result<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(Timer::new()?),
        };
        // Setting it forgets an earlier end that nobody has read.
        let after = Expiration::OneShot(TimeSpec::from_duration(duration));
        timer.timer.set(after, TimerSetTimeFlags::empty())?;
        // It gives 8 bytes. That there was room for more tells tokio that no others wait.
        timer.ended.read(&mut [0; 16]).await.map(drop)
    }
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let ended = pipe::Receiver::from_owned_fd_unchecked(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, ended })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_wait_is_never_shorter_than_asked_for_even_after_one_that_was_given_up() {
        let mut pause = Pause::default();
        for micros in [200, 1_000, 12_000] {
            let given_up = tokio::time::timeout(Duration::ZERO, pause.wait(Duration::from_millis(5))).await;
            assert!(given_up.is_err());
            let began = Instant::now();
            pause.wait(Duration::from_micros(micros)).await;
            assert!(began.elapsed() >= Duration::from_micros(micros), "{micros} µs");
        }
    }
}
