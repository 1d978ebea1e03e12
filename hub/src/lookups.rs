//! Questions about images that go to other registries: a few at one time, and again after an answer that does not do, later each
//! time.
//!
//! Takes: which images, how to ask, whether an answer does. Gives: answers, and when the next question is due. Must not know what
//! is asked.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tombolo_oci::ImageReference;

/// Questions at one time.
const RUNNING_MAX: usize = 4;

/// Longest wait for an answer, redirections and tokens included.
const DEADLINE: Duration = Duration::from_secs(30);

/// Pauses after answers that do not do: the first, and the longest. A registry that is down must not be hammered, one that is
/// back must be found soon.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// Longest sleep when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// All questions of one kind, by the image's name: `T` is what is known of an image, `A` an answer.
pub(crate) struct Lookups<T, A> {
    lookups: BTreeMap<String, Lookup<T>>,
    running: JoinSet<(String, A)>,
}

/// One image.
pub(crate) struct Lookup<T> {
    pub(crate) image: ImageReference,
    pub(crate) known: T,
    /// Answers in a row that did not do.
    attempts: u32,
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Waiting { due: Instant },
    Running,
    Done,
}

impl<T, A: Send + 'static> Lookups<T, A> {
    pub(crate) fn new() -> Self {
        Self { lookups: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Forgets the images that are not wanted any more.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.lookups.retain(|name, _| wanted(name));
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.lookups.remove(name);
    }

    /// The image `name`, which is `new` if it was not there.
    pub(crate) fn entry(&mut self, name: &str, new: impl FnOnce() -> Lookup<T>) -> &mut Lookup<T> {
        self.lookups.entry(name.to_owned()).or_insert_with(new)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Lookup<T>> {
        self.lookups.values_mut()
    }

    /// Asks what is due, as much as may run; an `ask` that takes too long is answered by `late`, with the image and the seconds that
    /// were waited. Returns when the next question is due.
    pub(crate) fn start_due<F>(
        &mut self,
        mut ask: impl FnMut(ImageReference) -> F,
        late: fn(&ImageReference, u64) -> A,
    ) -> Instant
    where
        F: Future<Output = A> + Send + 'static,
    {
        let now = Instant::now();
        let mut next = now + IDLE;
        for (name, lookup) in &mut self.lookups {
            let Step::Waiting { due } = lookup.step else { continue };
            if due > now {
                next = next.min(due);
            } else if self.running.len() < RUNNING_MAX {
                lookup.step = Step::Running;
                let (name, image) = (name.clone(), lookup.image.clone());
                let asked = tokio::time::timeout(DEADLINE, ask(image.clone()));
                self.running.spawn(async move {
                    let answer = asked.await.unwrap_or_else(|_| late(&image, DEADLINE.as_secs()));
                    (name, answer)
                });
            }
        }
        // With all places taken, the next one begins when one ends.
        next
    }

    /// The next answer; `None` when nothing was asked.
    pub(crate) async fn answered(&mut self) -> Option<Result<(String, A), JoinError>> {
        self.running.join_next().await
    }

    /// Has `finish` take an answer in. Of a question that failed by a fault of ours nobody knows whose it was: all that were asked
    /// get the answer `failed`.
    pub(crate) fn take(
        &mut self,
        answered: Result<(String, A), JoinError>,
        failed: impl Fn() -> A,
        finish: impl Fn(&mut Lookup<T>, A),
    ) {
        match answered {
            Ok((name, answer)) => {
                if let Some(lookup) = self.lookups.get_mut(&name).filter(|lookup| lookup.is_running()) {
                    finish(lookup, answer);
                }
            }
            Err(error) => {
                tracing::error!(%error, "looking up an image failed");
                let asked = self.lookups.values_mut().filter(|lookup| lookup.is_running());
                asked.for_each(|lookup| finish(lookup, failed()));
            }
        }
    }
}

impl<T> Lookup<T> {
    /// One that is asked about at once.
    pub(crate) fn new(image: ImageReference, known: T) -> Self {
        Self { image, known, attempts: 0, step: Step::Waiting { due: Instant::now() } }
    }

    /// When it is asked about next; `None` for one that is being asked about, or is done.
    #[cfg(test)]
    pub(crate) fn due(&self) -> Option<Instant> {
        if let Step::Waiting { due } = self.step { Some(due) } else { None }
    }

    fn is_running(&self) -> bool {
        matches!(self.step, Step::Running)
    }

    /// The question is answered: it is not asked again.
    pub(crate) fn done(&mut self) {
        self.step = Step::Done;
    }

    /// The answer does not do: it is asked again after a pause, longer each time.
    pub(crate) fn ask_later(&mut self) {
        self.step = Step::Waiting { due: Instant::now() + pause(self.attempts) };
        self.attempts = self.attempts.saturating_add(1);
    }

    /// There is something new: what waits for its next question is asked at once.
    pub(crate) fn ask_sooner(&mut self) {
        if let Step::Waiting { due } = &mut self.step {
            *due = Instant::now();
        }
    }

    /// Another question than before: it is asked at once, unless one runs whose answer may do.
    pub(crate) fn ask_anew(&mut self) {
        if !self.is_running() {
            self.attempts = 0;
            self.step = Step::Waiting { due: Instant::now() };
        }
    }
}

/// The pause after so many answers in a row before this one.
fn pause(attempts: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << attempts.min(16)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageReference {
        "127.0.0.1:9/a:v1".parse().unwrap()
    }

    #[test]
    fn pauses_grow_to_their_limit() {
        assert_eq!(pause(0), PAUSE_MIN);
        assert_eq!(pause(1), PAUSE_MIN * 2);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    /// A table of lookups whose answers are what is known.
    struct Table(Lookups<Vec<&'static str>, &'static str>);

    impl Table {
        fn ask(&mut self, answer: &'static str) -> Instant {
            self.0.start_due(move |_| std::future::ready(answer), |_, _| "late")
        }

        /// Takes the next answer in; "yes" does.
        async fn take(&mut self) {
            let answered = self.0.answered().await.expect("something was asked");
            self.0.take(
                answered,
                || "failed",
                |lookup, answer| {
                    lookup.known.push(answer);
                    if answer == "yes" { lookup.done() } else { lookup.ask_later() }
                },
            );
        }

        fn known(&mut self, name: &str) -> Vec<&'static str> {
            self.0.entry(name, || unreachable!("it is there")).known.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_asks_until_an_answer_does_and_later_each_time() {
        let mut table = Table(Lookups::new());
        table.0.entry("a", || Lookup::new(image(), Vec::new()));
        for (asked, pause) in [2, 4, 8].into_iter().enumerate() {
            table.ask("no");
            table.take().await;
            assert_eq!(table.known("a").len(), asked + 1);
            let due = table.ask("too early");
            assert_eq!(due - Instant::now(), Duration::from_secs(pause));
            tokio::time::sleep_until(due).await;
        }
        table.ask("yes");
        table.take().await;
        assert_eq!(table.ask("after the end") - Instant::now(), IDLE);
        assert_eq!(table.known("a"), ["no", "no", "no", "yes"]);
    }

    #[tokio::test(start_paused = true)]
    async fn something_new_is_asked_about_at_once() {
        let mut table = Table(Lookups::new());
        table.0.entry("a", || Lookup::new(image(), Vec::new()));
        table.ask("no");
        table.take().await;
        table.0.values_mut().for_each(Lookup::ask_sooner);
        table.ask("yes");
        table.take().await;
        table.0.values_mut().for_each(Lookup::ask_sooner);
        assert_eq!(table.ask("after the end") - Instant::now(), IDLE);
        table.0.values_mut().for_each(Lookup::ask_anew);
        table.ask("yes");
        table.take().await;
        assert_eq!(table.known("a"), ["no", "yes", "yes"]);
    }

    #[tokio::test(start_paused = true)]
    async fn few_run_at_one_time_and_none_for_ever() {
        let mut table = Table(Lookups::new());
        for name in ["a", "b", "c", "d", "e", "f"] {
            table.0.entry(name, || Lookup::new(image(), Vec::new()));
        }
        table.0.start_due(|_| std::future::pending(), |_, seconds| if seconds == 30 { "late" } else { "?" });
        assert_eq!(table.0.running.len(), RUNNING_MAX);
        for _ in 0..RUNNING_MAX {
            table.take().await;
        }
        let late = ["a", "b", "c", "d", "e", "f"].into_iter().filter(|name| table.known(name) == ["late"]);
        assert_eq!(late.count(), RUNNING_MAX);
    }

    #[tokio::test]
    async fn an_answer_about_what_is_not_wanted_any_more_is_nothing() {
        let mut table = Table(Lookups::new());
        table.0.entry("a", || Lookup::new(image(), Vec::new()));
        table.ask("no");
        table.0.retain(|_| false);
        table.0.entry("a", || Lookup::new(image(), Vec::new()));
        table.take().await;
        assert_eq!(table.known("a"), Vec::<&str>::new());
    }
}
