//! When and how fast images are fetched, and how far that is: the node's hours and its budget, downloads that wait for others, and
//! what the report says of those under way. Must not know what an image is for.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;
use tombolo_agent_core::hours::{Allowed, Hours};
use tombolo_agent_core::status::PULL_DEFERRED;
use tombolo_api::Digest;
use tombolo_api::report::PullReport;
use tombolo_api::serving::keys;
use tombolo_oci::{Gate, Pace, Progress};

use super::{Trouble, lock};
use crate::config::ImagesConfig;
use crate::enrol::now_s;
use crate::tls::TimeFloor;

/// Images fetched at a time: more would only share the same link.
const PULLS_MAX: usize = 2;

/// How often what is under way is told of, and the least of its bytes that has to come in between, percent: a report is a few
/// kilobytes, on a link that is slow enough already.
const TELL_EVERY: Duration = Duration::from_secs(5);
const TELL_PERCENT: u64 = 1;

/// Longest wait for the allowed hours, which come once a day by any clock that runs: one that does not must not stop the node.
const WAIT_MAX: Duration = Duration::from_secs(25 * 3600);

/// The downloads of one node.
pub(super) struct Pulls {
    pace: Pace,
    hours: Hours,
    floor: TimeFloor,
    limit: Semaphore,
    /// Images that wait for their hours, and since when.
    waiting: Mutex<BTreeMap<Digest, Instant>>,
    under_way: Mutex<BTreeMap<Digest, UnderWay>>,
    told: watch::Sender<Vec<PullReport>>,
    /// Downloads that something waits for.
    urgent: watch::Sender<usize>,
}

struct UnderWay {
    name: String,
    progress: Progress,
    since_s: u64,
}

/// Who waits for a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A revision, in its hours.
    Revision,
    /// A revision, at any hour.
    AtOnce,
    /// Nobody yet.
    Ahead,
}

/// Is counted among those that something waits for.
struct Urgent<'a>(&'a watch::Sender<usize>);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Is shown while it is there.
struct Shown<'a>(&'a Pulls, Digest);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        lock(&self.0.under_way).remove(&self.1);
        self.0.tell();
    }
}

impl Need {
    /// What a revision's annotations ask for.
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Self {
        match annotations.get(keys::PULL).map(String::as_str) {
            Some("now") => Self::AtOnce,
            _ => Self::Revision,
        }
    }
}

impl Pulls {
    pub(super) fn new(config: &ImagesConfig, floor: TimeFloor) -> Self {
        Self {
            pace: Pace::new(NonZeroU64::new(config.max_bytes_per_s)),
            // The configuration was checked when it was read.
            hours: config.hours().unwrap_or_default(),
            floor,
            limit: Semaphore::new(PULLS_MAX),
            waiting: Mutex::default(),
            under_way: Mutex::default(),
            told: watch::Sender::default(),
            urgent: watch::Sender::default(),
        }
    }

    /// What is under way, as the report has it.
    pub(super) fn reports(&self) -> watch::Receiver<Vec<PullReport>> {
        self.told.subscribe()
    }

    /// Waits until no download is under way that something waits for.
    pub(super) async fn idle(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.urgent.subscribe().wait_for(|urgent| *urgent == 0).await;
    }

    /// Does `pull` when its turn comes, in the hours it may be done in.
    pub(super) async fn run<T, F: Future<Output = T>>(
        &self,
        (image, name): (Digest, String),
        need: Need,
        pull: impl FnOnce(Pace, Progress) -> F,
    ) -> Result<T, Trouble> {
        let _urgent = (need != Need::Ahead).then(|| {
            self.urgent.send_modify(|count| *count += 1);
            Urgent(&self.urgent)
        });
        let _turn: Option<SemaphorePermit<'_>> = self.limit.acquire().await.ok();
        let left = self.allowed(&image, need)?;
        let (gate, progress) = (Gate::default(), Progress::default());
        let under_way = UnderWay { name, progress: progress.clone(), since_s: now_s() };
        lock(&self.under_way).insert(image, under_way);
        let _shown = Shown(self, image);
        let mut pull = std::pin::pin!(pull(self.pace.behind(&gate), progress));
        let mut closing = std::pin::pin!(async {
            tokio::select! {
                () = for_long(left) => {}
                () = self.displaced(need) => {}
            }
        });
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                pulled = &mut pull => return Ok(pulled),
                () = &mut closing, if is_open => {
                    gate.close();
                    is_open = false;
                }
                () = tokio::time::sleep(TELL_EVERY) => {
                    self.tell();
                    // The clock may have been set.
                    if is_open && self.allowed(&image, need).is_err() {
                        gate.close();
                        is_open = false;
                    }
                }
            }
        }
    }

    /// For how long `image` may be fetched from now on, `None` for ever; when it may if not now.
    pub(super) fn allowed(&self, image: &Digest, need: Need) -> Result<Option<Duration>, Trouble> {
        let now_s = now_s();
        let mut waiting = lock(&self.waiting);
        // A clock that is behind a time that has passed knows no hours.
        let any_hour = need == Need::AtOnce || self.floor.is_after(now_s);
        let wait_s = match if any_hour { Allowed::Always } else { self.hours.at(now_s) } {
            Allowed::In(wait_s) => wait_s,
            allowed => {
                waiting.remove(image);
                let left = if let Allowed::For(left_s) = allowed { Some(left_s) } else { None };
                return Ok(left.map(|left_s| Duration::from_secs(left_s.max(1))));
            }
        };
        if waiting.entry(*image).or_insert_with(Instant::now).elapsed() >= WAIT_MAX {
            return Ok(None);
        }
        let message = format!(
            "its image comes in the hours that [images] hours of this node allows, from {} on; the annotation {}: now fetches it at once",
            self.hours.clock(now_s.saturating_add(wait_s)),
            keys::PULL
        );
        Err(Trouble::new(PULL_DEFERRED, message))
    }

    /// Ends when something waits for another download than one that nobody waits for.
    async fn displaced(&self, need: Need) {
        if need != Need::Ahead {
            return std::future::pending().await;
        }
        let _ = self.urgent.subscribe().wait_for(|urgent| *urgent > 0).await;
    }

    /// Has the report say how far downloads are, if that is news.
    fn tell(&self) {
        let now: Vec<_> = lock(&self.under_way).values().map(UnderWay::report).collect();
        self.told.send_if_modified(|told| {
            let is_news = is_news(told, &now);
            if is_news {
                *told = now;
            }
            is_news
        });
    }
}

impl UnderWay {
    fn report(&self) -> PullReport {
        let (done_bytes, total_bytes) = self.progress.bytes();
        PullReport { image: self.name.clone(), done_bytes, total_bytes, since_s: self.since_s }
    }
}

fn is_news(told: &[PullReport], now: &[PullReport]) -> bool {
    let is_same = |(told, now): (&PullReport, &PullReport)| {
        let least = now.total_bytes / 100 * TELL_PERCENT;
        (&told.image, told.total_bytes, told.since_s) == (&now.image, now.total_bytes, now.since_s)
            && told.done_bytes.abs_diff(now.done_bytes) <= least
    };
    told.len() != now.len() || !told.iter().zip(now).all(is_same)
}

async fn for_long(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Digest {
        Digest::of(b"image")
    }

    /// Hours that begin in two hours, by the clock of the machine.
    fn closed() -> ImagesConfig {
        let hour = now_s() / 3600 % 24;
        let window = format!("{:02}:00-{:02}:00", (hour + 2) % 24, (hour + 3) % 24);
        ImagesConfig { hours: vec![window], ..ImagesConfig::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn outside_the_hours_an_image_waits_and_says_until_when() {
        let pulls = Pulls::new(&closed(), TimeFloor::default());
        let one = || (image(), "one".to_owned());
        let trouble = pulls.run(one(), Need::Revision, async |_, _| ()).await.unwrap_err();
        assert_eq!(trouble.reason, "PullDeferred");
        assert!(trouble.message.contains(":00 UTC+00:00"), "{}", trouble.message);
        pulls.run(one(), Need::AtOnce, async |_, _| ()).await.unwrap();
        // A clock that stands still ends no wait, but it does not last for ever.
        pulls.allowed(&image(), Need::Revision).unwrap_err();
        tokio::time::sleep(WAIT_MAX).await;
        assert_eq!(pulls.allowed(&image(), Need::Revision), Ok(None));
    }

    #[tokio::test]
    async fn a_clock_that_is_known_to_be_wrong_knows_no_hours() {
        let floor = TimeFloor::default();
        let pulls = Pulls::new(&closed(), floor.clone());
        pulls.allowed(&image(), Need::Revision).unwrap_err();
        floor.raise(now_s() + 86_400);
        assert_eq!(pulls.allowed(&image(), Need::Revision), Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_makes_way() {
        let pulls = Pulls::new(&ImagesConfig::default(), TimeFloor::default());
        let ahead = pulls.run((image(), "ahead".to_owned()), Need::Ahead, async |pace, _| {
            while !pace.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let urgent = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let other = (Digest::of(b"other"), "other".to_owned());
            pulls
                .run(other, Need::Revision, async |_, _| tokio::time::sleep(Duration::from_secs(60)).await)
                .await
        };
        let begun = Instant::now();
        tokio::pin!(urgent);
        tokio::select! {
            ended = ahead => ended.unwrap(),
            _ = &mut urgent => panic!("it did not make way"),
        }
        assert!(begun.elapsed() < Duration::from_secs(62), "{:?}", begun.elapsed());
        urgent.await.unwrap();
        pulls.idle().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_is_told_of_and_forgotten() {
        let pulls = Pulls::new(&ImagesConfig::default(), TimeFloor::default());
        let mut reports = pulls.reports();
        let pull = pulls.run((image(), "hub.tombolo/a".to_owned()), Need::Revision, async |_, _| {
            tokio::time::sleep(TELL_EVERY * 10).await;
        });
        let told = async {
            reports.changed().await.unwrap();
            let told = reports.borrow_and_update().clone();
            assert_eq!(told.len(), 1);
            assert_eq!(told[0].image, "hub.tombolo/a");
            // It moves no further: nothing more is told until it is over.
            reports.changed().await.unwrap();
            assert!(reports.borrow_and_update().is_empty());
        };
        let begun = Instant::now();
        let (pulled, ()) = tokio::join!(pull, told);
        pulled.unwrap();
        assert!(begun.elapsed() >= TELL_EVERY * 10);
    }

    #[test]
    fn a_percent_is_news() {
        let at =
            |done_bytes| vec![PullReport { image: "a".into(), done_bytes, total_bytes: 1000, since_s: 1 }];
        for (told, now, expected) in [
            (at(0), at(10), false),
            (at(0), at(11), true),
            (at(11), at(0), true),
            (vec![], at(0), true),
            (vec![], vec![], false),
        ] {
            assert_eq!(is_news(&told, &now), expected, "{told:?} {now:?}");
        }
    }
}
