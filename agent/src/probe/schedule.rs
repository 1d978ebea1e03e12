//! When one probe is due, and what its attempts add up to: Kubernetes' thresholds, kept as a pure state machine. Time is an
//! argument, counted from the start of the instance. It must not know what is checked, nor how one waits.
//!
//! An *eager* schedule waits for a first pass and looks again at short intervals, so that readiness costs no waiting. Only one
//! attempt a period counts as a failure, the last one: the time a program has is `initialDelay + failureThreshold × period`,
//! however often it is looked at. A *regular* schedule makes one attempt a period, and each counts.

use std::time::Duration;

/// Kubernetes' default, and how often an instance is looked at again whose readiness probe gives no period.
const PERIOD: Duration = Duration::from_secs(10);

/// Kubernetes' defaults.
const TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;

/// Before an attempt of a regular schedule that could not be made is made after all; sooner if the period is shorter.
const AGAIN: Duration = Duration::from_secs(1);

/// A probe's numbers, the defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// From the start of the instance.
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    /// Of one attempt.
    pub(super) timeout: Duration,
    /// Passes in a row that make a pass.
    pub(super) successes: u32,
    /// Counted failures in a row that make a failure.
    pub(super) failures: u32,
    pub(super) pace: Pace,
    /// No period was given: every pass of an eager schedule may follow the last one at once, and it is eager again after a failure.
    pub(super) aggressive: bool,
}

/// How an eager schedule looks: after a share of the time it has looked already, between two bounds. So a program that is quick
/// is seen at once, a slow one a few percent late, and the number of looks grows with the logarithm of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) shortest: Duration,
    pub(super) longest: Duration,
    /// One part in so many of the time passed.
    pub(super) part: u32,
}

/// What the attempts so far add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
}

#[derive(Clone, Debug)]
pub(super) struct Schedule {
    timing: Timing,
    /// Eager, looking since then.
    eager: Option<Duration>,
    next: Duration,
    /// A failure of an attempt begun before this does not count.
    counts_at: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    /// From the fields of a probe, where 0 stands for the default.
    pub(super) fn new(initial_delay_s: i32, period_s: i32, timeout_s: i32, pace: Pace) -> Self {
        let or = |seconds: i32, default: Duration| match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => default,
        };
        Self {
            initial_delay: or(initial_delay_s, Duration::ZERO),
            period: or(period_s, PERIOD),
            timeout: or(timeout_s, TIMEOUT),
            successes: 1,
            failures: FAILURES,
            pace,
            aggressive: period_s <= 0,
        }
    }

    pub(super) fn thresholds(self, successes: i32, failures: i32) -> Self {
        let or = |count: i32, default: u32| {
            u32::try_from(count).ok().filter(|count| *count > 0).unwrap_or(default)
        };
        Self { successes: or(successes, 1), failures: or(failures, FAILURES), ..self }
    }
}

impl Pace {
    fn after(self, looked: Duration) -> Duration {
        (looked / self.part).clamp(self.shortest, self.longest)
    }
}

impl Schedule {
    /// Looks for a first pass, from the end of the initial delay on.
    pub(super) fn eager(timing: Timing, now: Duration) -> Self {
        let next = now.max(timing.initial_delay);
        let counts_at = next + timing.period;
        Self { timing, eager: Some(next), next, counts_at, successes: 0, failures: 0 }
    }

    /// Watches what is taken to be well. Without an initial delay the first attempt is made after one period: at the start there
    /// is nothing to see yet.
    pub(super) fn regular(timing: Timing, now: Duration) -> Self {
        let delay = if timing.initial_delay.is_zero() { timing.period } else { timing.initial_delay };
        let next = now.max(delay);
        Self { timing, eager: None, next, counts_at: next, successes: 0, failures: 0 }
    }

    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Takes the result of an attempt begun at `began` and ended `now`.
    pub(super) fn record(&mut self, began: Duration, now: Duration, passed: bool) -> Option<Verdict> {
        if passed { self.passed(began, now) } else { self.failed(began, now) }
    }

    /// An attempt could not be made: it counts as none, and is made again soon.
    pub(super) fn put_off(&mut self, now: Duration) {
        let pause = match self.eager {
            Some(since) => self.pause(since, now),
            None => AGAIN.min(self.timing.period),
        };
        self.next = now + pause;
    }

    /// From now on one attempt a period, the first one a period after the last pass.
    pub(super) fn settle(&mut self) {
        self.eager = None;
        self.next = self.next.max(self.counts_at);
    }

    /// The instance did not run until `now`: nothing is held against it, and a regular attempt leaves it a period to itself.
    pub(super) fn resume(&mut self, now: Duration) {
        self.counts_at = self.counts_at.max(now + self.timing.period);
        self.next = if self.eager.is_some() { self.next.max(now) } else { self.counts_at };
    }

    fn passed(&mut self, began: Duration, now: Duration) -> Option<Verdict> {
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        self.counts_at = now.max(began + self.timing.period);
        let enough = self.successes >= self.timing.successes;
        self.next = match self.eager {
            Some(since) if self.timing.aggressive && !enough => now + self.pause(since, now),
            _ => self.counts_at,
        };
        enough.then_some(Verdict::Passed)
    }

    fn failed(&mut self, began: Duration, now: Duration) -> Option<Verdict> {
        self.successes = 0;
        let counts = began >= self.counts_at;
        if counts {
            self.failures = self.failures.saturating_add(1);
            self.counts_at = now.max(began + self.timing.period);
        }
        let verdict = (counts && self.failures >= self.timing.failures).then_some(Verdict::Failed);
        if verdict.is_some() && self.timing.aggressive && self.eager.is_none() {
            self.eager = Some(now);
        }
        self.next = match self.eager {
            Some(since) => (now + self.pause(since, now)).min(self.counts_at).max(now),
            None => self.counts_at,
        };
        verdict
    }

    fn pause(&self, since: Duration, now: Duration) -> Duration {
        self.timing.pace.after(now.saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { shortest: ms(100), longest: ms(4000), part: 4 };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn timing(delay_s: i32, period_s: i32, successes: i32, failures: i32) -> Timing {
        Timing::new(delay_s, period_s, 0, PACE).thresholds(successes, failures)
    }

    /// Attempts of no length with these results: when each was made, and what it led to.
    fn play(schedule: &mut Schedule, results: &str) -> Vec<(u64, Option<Verdict>)> {
        results
            .chars()
            .map(|result| {
                let at = schedule.next();
                (u64::try_from(at.as_millis()).unwrap(), schedule.record(at, at, result == '+'))
            })
            .collect()
    }

    fn verdicts(schedule: &mut Schedule, results: &str) -> String {
        let verdict = |(_, verdict)| match verdict {
            Some(Verdict::Passed) => 'P',
            Some(Verdict::Failed) => 'F',
            None => '.',
        };
        play(schedule, results).into_iter().map(verdict).collect()
    }

    #[test]
    fn defaults_are_kubernetes() {
        let plain = Timing::new(0, 0, 0, PACE);
        let numbers = (plain.initial_delay, plain.period, plain.timeout, plain.successes, plain.failures);
        assert_eq!(numbers, (ms(0), ms(10_000), ms(1000), 1, 3));
        assert!(plain.aggressive);
        let given = Timing::new(1, 2, 3, PACE).thresholds(4, 5);
        let numbers = (given.initial_delay, given.period, given.timeout, given.successes, given.failures);
        assert_eq!(numbers, (ms(1000), ms(2000), ms(3000), 4, 5));
        assert!(!given.aggressive);
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        // successThreshold, failureThreshold, results, what each led to.
        let table = [
            (1, 1, "+-+-", "PFPF"),
            (1, 3, "--+---+", "..P..FP"),
            (1, 3, "-----", "..FFF"),
            (2, 1, "+-++", ".F.P"),
            (3, 2, "++-+++--", ".....P.F"),
        ];
        for (successes, failures, results, expected) in table {
            let mut schedule = Schedule::regular(timing(0, 10, successes, failures), ms(0));
            assert_eq!(verdicts(&mut schedule, results), expected, "{successes} {failures} {results}");
        }
    }

    #[test]
    fn an_attempt_that_could_not_be_made_counts_as_none_and_is_made_again_soon() {
        let mut schedule = Schedule::regular(timing(0, 10, 1, 2), ms(0));
        assert_eq!(verdicts(&mut schedule, "-"), ".");
        for at in [20_000, 21_000, 22_000] {
            assert_eq!(schedule.next(), ms(at));
            schedule.put_off(ms(at));
        }
        assert_eq!(
            play(&mut schedule, "-+"),
            [(23_000, Some(Verdict::Failed)), (33_000, Some(Verdict::Passed))]
        );
        let mut eager = Schedule::eager(timing(0, 10, 1, 1), ms(0));
        eager.put_off(ms(0));
        assert_eq!(play(&mut eager, "+"), [(100, Some(Verdict::Passed))]);
    }

    #[test]
    fn a_regular_schedule_makes_one_attempt_a_period() {
        let at = |schedule: &mut Schedule| play(schedule, "+-+").into_iter().map(|(at, _)| at).collect();
        let table: [(i32, u64, Vec<u64>); 4] = [
            (0, 0, vec![10_000, 20_000, 30_000]),
            (3, 0, vec![3000, 13_000, 23_000]),
            (30, 0, vec![30_000, 40_000, 50_000]),
            (3, 7000, vec![7000, 17_000, 27_000]),
        ];
        for (delay_s, now, expected) in table {
            let times: Vec<u64> = at(&mut Schedule::regular(timing(delay_s, 10, 1, 3), ms(now)));
            assert_eq!(times, expected, "delay {delay_s}, begun at {now}");
        }
    }

    #[test]
    fn an_attempt_longer_than_the_period_is_followed_at_once() {
        let mut schedule = Schedule::regular(timing(0, 1, 1, 3), ms(0));
        assert_eq!(schedule.record(ms(1000), ms(4000), false), None);
        assert_eq!(schedule.next(), ms(4000));
    }

    #[test]
    fn eager_looks_grow_apart_with_the_time_and_only_the_last_of_a_period_counts() {
        let mut schedule = Schedule::eager(timing(5, 1, 1, 2), ms(0));
        let played = play(&mut schedule, "-------------");
        let times: Vec<u64> = played.iter().map(|(at, _)| *at).collect();
        assert_eq!(
            times,
            [5000, 5100, 5200, 5300, 5400, 5500, 5625, 5781, 5976, 6000, 6250, 6562, 6953],
            "the look at 6000 ends the first period"
        );
        assert!(played.iter().all(|(_, verdict)| verdict.is_none()));
        assert_eq!(play(&mut schedule, "-"), [(7000, Some(Verdict::Failed))], "delay + 2 periods");
    }

    #[test]
    fn eager_looks_are_bounded() {
        let mut schedule = Schedule::eager(timing(0, 600, 1, 3), ms(0));
        let times: Vec<u64> = play(&mut schedule, &"-".repeat(60)).iter().map(|(at, _)| *at).collect();
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!((gaps[0], *gaps.last().unwrap()), (100, 4000));
        assert!(gaps.is_sorted(), "{gaps:?}");
    }

    #[test]
    fn passes_in_a_row_follow_at_once_without_a_period_and_a_period_apart_with_one() {
        let mut aggressive = Schedule::eager(timing(0, 0, 3, 3), ms(0));
        assert_eq!(
            play(&mut aggressive, "+++"),
            [(0, None), (100, None), (200, Some(Verdict::Passed))],
            "no period"
        );
        let mut given = Schedule::eager(timing(0, 5, 2, 3), ms(0));
        assert_eq!(play(&mut given, "-++"), [(0, None), (100, None), (5100, Some(Verdict::Passed))]);
    }

    #[test]
    fn what_has_settled_is_looked_at_once_a_period() {
        let mut schedule = Schedule::eager(timing(0, 0, 1, 3), ms(0));
        assert_eq!(play(&mut schedule, "-+"), [(0, None), (100, Some(Verdict::Passed))]);
        schedule.settle();
        let played = play(&mut schedule, "+--");
        assert_eq!(played.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [10_100, 20_100, 30_100]);
        assert_eq!(play(&mut schedule, "-"), [(40_100, Some(Verdict::Failed))]);
        assert_eq!(
            play(&mut schedule, "-+"),
            [(40_200, None), (40_300, Some(Verdict::Passed))],
            "eager again"
        );
    }

    #[test]
    fn with_a_period_recovery_is_seen_at_the_next_one() {
        let mut schedule = Schedule::eager(timing(0, 5, 2, 1), ms(0));
        schedule.settle();
        let played = play(&mut schedule, "-++");
        assert_eq!(played, [(5000, Some(Verdict::Failed)), (10_000, None), (15_000, Some(Verdict::Passed))]);
    }

    #[test]
    fn time_in_which_the_instance_did_not_run_is_not_held_against_it() {
        let mut regular = Schedule::regular(timing(0, 10, 1, 2), ms(0));
        play(&mut regular, "-");
        regular.resume(ms(500_000));
        assert_eq!(play(&mut regular, "+"), [(510_000, Some(Verdict::Passed))]);
        let mut eager = Schedule::eager(timing(0, 10, 1, 1), ms(0));
        play(&mut eager, "-");
        eager.resume(ms(500_000));
        assert_eq!(play(&mut eager, "-"), [(500_000, None)], "seen at once, counted after a period");
    }
}
