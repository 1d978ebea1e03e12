//! What becomes of one request: forwarded to an instance that is ready or can be woken, held until there is one, or refused
//! with a reason.
//!
//! Pure: it must not know sockets, queues, clocks or where randomness comes from; the router hands in what it counts.

use crate::routes::{Backend, Unavailable};

/// Requests held for one revision, as in Knative's activator.
pub const HELD_PER_REVISION_MAX: usize = 10_000;

/// The queue of a revision with a `containerConcurrency` is ten times as long as its ready instances are wide, as in Knative's
/// queue proxy, and at least this long: a burst comes before the autoscaler has answered it, and is not refused.
pub const QUEUE_DEPTH_MIN: usize = 1_000;

/// Waiting requests for each place at an instance.
const QUEUE_DEPTH: usize = 10;

/// Requests held on a node, whatever the number of revisions: one that is full leaves room for others.
pub const HELD_PER_NODE_MAX: usize = 20_000;

/// Bytes of the requests held for one revision, heads and what was read of bodies: a thousand with large heads.
pub const HELD_BYTES_PER_REVISION_MAX: usize = 32 << 20;

/// Bytes of the requests held on a node: what the router may take of a small node's memory for them.
pub const HELD_BYTES_PER_NODE_MAX: usize = 64 << 20;

/// What the router knows of a revision when no instance has a place for a request.
pub struct Line<'a> {
    pub backend: &'a Backend,
    /// Most requests at a time, see [`admitted_max`].
    pub admitted_max: usize,
    /// Requests at the revision's instances, leaving ones included.
    pub running: usize,
    /// Requests held for the revision besides this one.
    pub held: Held,
    /// Requests held on the node besides this one.
    pub held_on_node: Held,
    /// What this request would add to the bytes held.
    pub bytes: usize,
}

/// What is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub requests: usize,
    pub bytes: usize,
}

/// Why a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// No instance is ready: ask for one.
    NoneReady,
    /// Every ready instance takes as many requests as it may.
    AllBusy,
}

/// Why a request is not even held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    RevisionQueueFull,
    RevisionBytesFull,
    NodeQueueFull,
    NodeBytesFull,
    Unavailable(Unavailable),
}

/// Which of [`Backend::takers`] gets a request: the less loaded of two random ones; when neither can take it, the
/// least loaded of all that can. `load`: requests at an instance, `None` when this request must not go there. `random`: uniform
/// bits.
///
/// Knative does so without a limit only. With one it takes the first free instance or goes round: the one gathers load, the other
/// does not see it, while here it is known exactly and a free place is always found.
pub fn choose(backend: &Backend, load: impl Fn(usize) -> Option<u32>, random: u64) -> Option<usize> {
    let count = backend.takers().len();
    if count == 0 {
        return None;
    }
    let first = scale(random & u64::from(u32::MAX), count);
    let second = if count == 1 {
        first
    } else {
        let other = scale(random >> 32, count - 1);
        other + usize::from(other >= first)
    };
    let limit = backend.container_concurrency;
    least_loaded([first, second], &load, limit).or_else(|| least_loaded(0..count, &load, limit))
}

/// Whether a request may wait that no instance has a place for: first comes a known reason why there will be none, then the limits.
pub fn hold(line: &Line<'_>) -> Result<Hold, Refusal> {
    if let Some(unavailable) = in_vain(line.backend) {
        return Err(Refusal::Unavailable(unavailable.clone()));
    }
    let Line { backend, held, held_on_node, .. } = line;
    let is_full = held.requests >= HELD_PER_REVISION_MAX
        || held.requests.saturating_add(line.running) >= line.admitted_max;
    let full = [
        (is_full, Refusal::RevisionQueueFull),
        (held.bytes + line.bytes > HELD_BYTES_PER_REVISION_MAX, Refusal::RevisionBytesFull),
        (held_on_node.requests >= HELD_PER_NODE_MAX, Refusal::NodeQueueFull),
        (held_on_node.bytes + line.bytes > HELD_BYTES_PER_NODE_MAX, Refusal::NodeBytesFull),
    ];
    match full.into_iter().find(|(full, _)| *full) {
        Some((_, refusal)) => Err(refusal),
        None if backend.ready.is_empty() => Ok(Hold::NoneReady),
        None => Ok(Hold::AllBusy),
    }
}

/// Why waiting for an instance is in vain, if it is.
pub fn in_vain(backend: &Backend) -> Option<&Unavailable> {
    backend.unavailable.as_ref().filter(|_| backend.takers().is_empty())
}

/// How many requests of a revision may run and wait together: as many as its instances take at a time and its queue is deep,
/// whatever they take at this moment, as in Knative's breaker. A queue in front of nothing yet holds those too that will run at
/// once. Without a `containerConcurrency` those that run do not count, and only [`HELD_PER_REVISION_MAX`] bounds the queue.
///
/// Knative has a breaker at each instance and one in front of them; here is one queue, first come first served, of the same
/// length, so that no request waits behind a slow one while another instance is free.
pub fn admitted_max(backend: &Backend) -> usize {
    if backend.container_concurrency == 0 {
        return usize::MAX;
    }
    let places = backend.ready.len().max(1).saturating_mul(backend.container_concurrency as usize);
    let depth = places.saturating_mul(QUEUE_DEPTH).clamp(QUEUE_DEPTH_MIN, HELD_PER_REVISION_MAX);
    depth.saturating_add(places)
}

/// Pick one of `percents` for a roll in `0..100`. `None` when they sum to less than the roll.
pub fn pick(percents: impl IntoIterator<Item = u8>, roll: u8) -> Option<usize> {
    let mut below = 0u32;
    percents.into_iter().position(|percent| {
        below += u32::from(percent);
        u32::from(roll) < below
    })
}

/// Map 32 random bits onto `0..count`.
fn scale(bits: u64, count: usize) -> usize {
    ((bits * count as u64) >> 32) as usize
}

fn least_loaded(
    candidates: impl IntoIterator<Item = usize>,
    load: impl Fn(usize) -> Option<u32>,
    limit: u32,
) -> Option<usize> {
    candidates
        .into_iter()
        .filter_map(|index| load(index).map(|load| (load, index)))
        .filter(|(load, _)| limit == 0 || *load < limit)
        .min_by_key(|(load, _)| *load)
        .map(|(_, index)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::Endpoint;
    use crate::supervision::InstanceId;

    fn backend(ready: usize, concurrency: u32, unavailable: bool) -> Backend {
        Backend {
            ready: (0..ready)
                .map(|i| Endpoint { instance: InstanceId(format!("i{i}")), port: 8080 })
                .collect(),
            standby: Vec::new(),
            unavailable: unavailable
                .then(|| Unavailable { reason: "ImageMissing".into(), message: "no image".into() }),
            awaits: None,
            h2c: false,
            container_concurrency: concurrency,
            timeout_ms: 0,
            response_start_timeout_ms: 0,
            idle_timeout_ms: 0,
        }
    }

    #[test]
    fn frozen_instances_are_chosen_while_none_is_ready() {
        let Backend { ready, .. } = backend(2, 0, false);
        let frozen = Backend { standby: ready.clone(), ..backend(0, 2, true) };
        for random in randoms().take(50) {
            assert_eq!(choose(&frozen, |i| Some([1, 0][i]), random), Some(1));
            assert_eq!(choose(&frozen, |_| Some(2), random), None);
        }
        assert_eq!(in_vain(&frozen), None);
        assert!(in_vain(&backend(0, 2, true)).is_some());
    }

    /// A small generator, so that a failure repeats.
    fn randoms() -> impl Iterator<Item = u64> {
        let mut state = 42u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
    }

    #[test]
    fn who_finds_no_place_is_held_within_limits() {
        let held = |requests, bytes| Held { requests, bytes };
        let none = [Held::default(); 2];
        let many = |requests| [held(requests, 0); 2];
        let unavailable = Refusal::Unavailable(backend(0, 0, true).unavailable.expect("made so"));
        let (max, min) = (HELD_PER_REVISION_MAX, QUEUE_DEPTH_MIN);
        let bytes_max = HELD_BYTES_PER_REVISION_MAX;
        type Row = (&'static str, Backend, usize, [Held; 2], Result<Hold, Refusal>);
        let full = || Err(Refusal::RevisionQueueFull);
        let rows: Vec<Row> = vec![
            ("none ready", backend(0, 0, false), 0, none, Ok(Hold::NoneReady)),
            ("busy", backend(2, 3, false), 6, none, Ok(Hold::AllBusy)),
            ("busy, unavailable", backend(1, 1, true), 1, none, Ok(Hold::AllBusy)),
            ("leaving", backend(1, 0, false), 900, none, Ok(Hold::AllBusy)),
            ("in vain", backend(0, 0, true), 0, many(max), Err(unavailable)),
            ("full", backend(0, 0, false), 0, many(max), full()),
            ("room", backend(0, 0, false), 20_000, many(min), Ok(Hold::NoneReady)),
            ("ten for each place, and those that run", backend(0, 1, false), 0, many(min + 1), full()),
            ("one place left", backend(0, 1, false), 0, many(min), Ok(Hold::NoneReady)),
            ("one runs", backend(1, 1, false), 1, many(min), full()),
            ("one runs, and one place is left", backend(1, 1, false), 1, many(min - 1), Ok(Hold::AllBusy)),
            ("two run where they leave", backend(0, 1, false), 2, many(min - 1), full()),
            ("many places", backend(2, 90, false), 180, many(1799), Ok(Hold::AllBusy)),
            ("many places, full", backend(2, 90, false), 180, many(1800), full()),
            ("wide, but held no longer", backend(0, 1000, false), 0, many(max), full()),
            (
                "heavy",
                backend(0, 0, false),
                0,
                [held(1, bytes_max - 999); 2],
                Err(Refusal::RevisionBytesFull),
            ),
            ("heavy, but fits", backend(0, 0, false), 0, [held(1, bytes_max - 1000); 2], Ok(Hold::NoneReady)),
            (
                "node full",
                backend(0, 0, false),
                0,
                [held(0, 0), held(HELD_PER_NODE_MAX, 0)],
                Err(Refusal::NodeQueueFull),
            ),
            (
                "node heavy",
                backend(0, 0, false),
                0,
                [held(0, 0), held(1, HELD_BYTES_PER_NODE_MAX - 999)],
                Err(Refusal::NodeBytesFull),
            ),
        ];
        for (name, backend, running, [held, held_on_node], expected) in rows {
            let admitted_max = admitted_max(&backend);
            let line = Line { backend: &backend, admitted_max, running, held, held_on_node, bytes: 1000 };
            assert_eq!(hold(&line), expected, "{name}");
        }
    }

    #[test]
    fn queues_are_as_long_as_instances_are_wide() {
        for (ready, concurrency, expected) in [
            (0, 0, usize::MAX),
            (9, 0, usize::MAX),
            (0, 1, QUEUE_DEPTH_MIN + 1),
            (1, 100, 1100),
            (0, 101, 1111),
            (3, 101, 3333),
            (9, 1000, HELD_PER_REVISION_MAX + 9000),
        ] {
            assert_eq!(admitted_max(&backend(ready, concurrency, false)), expected, "{ready} {concurrency}");
        }
    }

    #[test]
    fn a_free_place_is_found_wherever_it_is_and_no_other() {
        let mut bits = randoms();
        let mut next = move |below: u64| bits.next().expect("endless") % below;
        for _ in 0..20_000 {
            let count = next(6) as usize;
            let backend = backend(count, next(4) as u32, next(2) == 0);
            let loads: Vec<_> = (0..count).map(|_| (next(4) != 0).then(|| next(5) as u32)).collect();
            let limit = backend.container_concurrency;
            let open = |i: usize| loads[i].is_some_and(|load| limit == 0 || load < limit);
            match choose(&backend, |i| loads[i], next(u64::MAX)) {
                Some(index) => assert!(open(index)),
                None => assert!(!(0..count).any(open)),
            }
        }
    }

    #[test]
    fn the_busier_of_two_is_never_taken_and_idle_ones_share() {
        let two = backend(2, 0, false);
        assert!(randoms().take(1000).all(|random| choose(&two, |i| Some([5, 4][i]), random) == Some(1)));
        let four = backend(4, 0, false);
        let mut counts = [0u32; 4];
        for random in randoms().take(8000) {
            counts[choose(&four, |_| Some(0), random).expect("all are free")] += 1;
        }
        assert!(counts.iter().all(|c| (1800..2200).contains(c)), "{counts:?}");
    }

    #[test]
    fn every_roll_falls_into_its_share() {
        let percents = [0u8, 30, 0, 69, 1];
        let mut counts = [0u8; 5];
        (0..100).for_each(|roll| counts[pick(percents, roll).expect("sums to 100")] += 1);
        assert_eq!(counts, percents);
        assert_eq!(pick([10], 10), None);
        assert_eq!(pick([], 0), None);
        assert_eq!(pick([200, 200], 99), Some(0));
    }
}
