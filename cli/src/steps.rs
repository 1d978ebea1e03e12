//! Telling a person what is being done: one line for each step, with the time since the beginning.
//!
//! On standard error, so that standard output holds nothing but the result.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// A clock that was started, and its lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    start: Instant,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn say(self, text: &str) {
        // A terminal that is gone must not stop what is being done, least of all a clean-up.
        let _ = writeln!(std::io::stderr().lock(), "{}", line(self.start.elapsed(), text));
    }
}

fn line(time: Duration, text: &str) -> String {
    format!("{:>7.2} s  {text}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_aligned() {
        assert_eq!(line(Duration::from_millis(70), "a"), "   0.07 s  a");
        assert_eq!(line(Duration::from_millis(1_234_500), "b"), "1234.50 s  b");
    }
}
