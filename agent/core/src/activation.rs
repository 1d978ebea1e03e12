//! What becomes of one request: forwarded to a ready instance, held until there is one, or refused with a reason.
//!
//! Pure: it must not know sockets, queues, clocks or where randomness comes from; the router hands in what it counts.

use crate::routes::{Backend, Unavailable};

/// Requests held for one revision, as in Knative's activator.
pub const HELD_PER_REVISION_MAX: usize = 10_000;

/// Requests held for a revision with a `containerConcurrency` are ten times what its ready instances take, as in Knative's queue
/// proxy, and at least this many: a burst comes before the autoscaler has answered it, and is not refused.
pub const HELD_PER_REVISION_MIN: usize = 1_000;

/// Waiting requests for each place at an instance.
const QUEUE_DEPTH: usize = 10;

/// Requests held on a node, whatever the number of revisions: one that is full leaves room for others.
pub const HELD_PER_NODE_MAX: usize = 20_000;

/// Bytes of the requests held for one revision, heads and what was read of bodies: a thousand with large heads.
pub const HELD_BYTES_PER_REVISION_MAX: usize = 32 << 20;

/// Bytes of the requests held on a node: what the router may take of a small node's memory for them.
pub const HELD_BYTES_PER_NODE_MAX: usize = 64 << 20;

/// What the router knows when a request for a revision arrives, or when a held one is looked at again.
pub struct View<'a, L> {
    pub backend: &'a Backend,
    /// Requests in flight at `backend.takers()[i]`; `None` when this request must not go there.
    pub load: L,
    /// Requests held for the revision besides this one.
    pub held: Held,
    /// Requests held on the node besides this one.
    pub held_on_node: Held,
    /// What this request would add to the bytes held.
    pub bytes: usize,
    /// Uniform random bits.
    pub random: u64,
}

/// What is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub requests: usize,
    pub bytes: usize,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send it to `backend.ready[i]`.
    Forward(usize),
    /// Let `backend.standby[i]` go on, and send it there.
    Wake(usize),
    Hold(Hold),
    Refuse(Refusal),
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

/// Decide about one request. A ready instance always wins, then one that can be woken, then a known reason why there will be
/// none, then the limits.
pub fn decide<L: Fn(usize) -> Option<u32>>(view: &View<'_, L>) -> Decision {
    if let Some(index) = choose(view) {
        return if view.backend.ready.is_empty() { Decision::Wake(index) } else { Decision::Forward(index) };
    }
    if let (true, Some(unavailable)) = (view.backend.ready.is_empty(), &view.backend.unavailable) {
        return Decision::Refuse(Refusal::Unavailable(unavailable.clone()));
    }
    let full = [
        (view.held.requests >= queue_max(view.backend), Refusal::RevisionQueueFull),
        (view.held.bytes + view.bytes > HELD_BYTES_PER_REVISION_MAX, Refusal::RevisionBytesFull),
        (view.held_on_node.requests >= HELD_PER_NODE_MAX, Refusal::NodeQueueFull),
        (view.held_on_node.bytes + view.bytes > HELD_BYTES_PER_NODE_MAX, Refusal::NodeBytesFull),
    ];
    if let Some((_, refusal)) = full.into_iter().find(|(full, _)| *full) {
        return Decision::Refuse(refusal);
    }
    Decision::Hold(if view.backend.ready.is_empty() { Hold::NoneReady } else { Hold::AllBusy })
}

/// How many requests may wait for a revision's instances.
///
/// Knative has a queue at each instance and one in front of them; here is one queue, first come first served, of the same length,
/// so that no request waits behind a slow one while another instance is free.
pub fn queue_max(backend: &Backend) -> usize {
    if backend.container_concurrency == 0 {
        return HELD_PER_REVISION_MAX;
    }
    let places = backend.ready.len().max(1).saturating_mul(backend.container_concurrency as usize);
    places.saturating_mul(QUEUE_DEPTH).clamp(HELD_PER_REVISION_MIN, HELD_PER_REVISION_MAX)
}

/// Pick one of `percents` for a roll in `0..100`. `None` when they sum to less than the roll.
pub fn pick(percents: impl IntoIterator<Item = u8>, roll: u8) -> Option<usize> {
    let mut below = 0u32;
    percents.into_iter().position(|percent| {
        below += u32::from(percent);
        u32::from(roll) < below
    })
}

/// The less loaded of two random instances; when neither can take the request, the least loaded of all that can.
///
/// Knative does so without a limit only. With one it takes the first free instance or goes round: the one gathers load, the other
/// does not see it, while here it is known exactly and a free place is always found.
fn choose<L: Fn(usize) -> Option<u32>>(view: &View<'_, L>) -> Option<usize> {
    let count = view.backend.takers().len();
    if count == 0 {
        return None;
    }
    let first = scale(view.random & u64::from(u32::MAX), count);
    let second = if count == 1 {
        first
    } else {
        let other = scale(view.random >> 32, count - 1);
        other + usize::from(other >= first)
    };
    best(view, [first, second]).or_else(|| best(view, 0..count))
}

/// Map 32 random bits onto `0..count`.
fn scale(bits: u64, count: usize) -> usize {
    ((bits * count as u64) >> 32) as usize
}

fn best<L: Fn(usize) -> Option<u32>>(
    view: &View<'_, L>,
    candidates: impl IntoIterator<Item = usize>,
) -> Option<usize> {
    let limit = view.backend.container_concurrency;
    candidates
        .into_iter()
        .filter_map(|index| (view.load)(index).map(|load| (load, index)))
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
            h2c: false,
            container_concurrency: concurrency,
            timeout_ms: 0,
            response_start_timeout_ms: 0,
            idle_timeout_ms: 0,
        }
    }

    /// With nothing ready, and instances to be woken.
    fn frozen(count: usize, concurrency: u32) -> Backend {
        let Backend { ready, .. } = backend(count, 0, true);
        Backend { standby: ready, ..backend(0, concurrency, false) }
    }

    fn decided(backend: &Backend, loads: &[Option<u32>], held: [Held; 2], random: u64) -> Decision {
        let [held, held_on_node] = held;
        decide(&View { backend, load: |i: usize| loads[i], held, held_on_node, bytes: 1000, random })
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
    fn table() {
        let held = |requests, bytes| Held { requests, bytes };
        let none = [Held::default(); 2];
        let full = [held(HELD_PER_REVISION_MAX, 0); 2];
        let limit = [held(HELD_PER_REVISION_MIN, 0); 2];
        let below = [held(HELD_PER_REVISION_MIN - 1, 0); 2];
        let bytes_full = [held(1, HELD_BYTES_PER_REVISION_MAX - 999); 2];
        let bytes_fit = [held(1, HELD_BYTES_PER_REVISION_MAX - 1000); 2];
        let node_full = [held(0, 0), held(HELD_PER_NODE_MAX, 0)];
        let node_bytes_full = [held(0, 0), held(1, HELD_BYTES_PER_NODE_MAX - 999)];
        let unavailable = backend(0, 0, true).unavailable.expect("made so");
        type Row = (&'static str, Backend, Vec<Option<u32>>, [Held; 2], Decision);
        let rows: Vec<Row> = vec![
            ("one ready", backend(1, 0, false), vec![Some(900)], none, Decision::Forward(0)),
            ("ready beats unavailable", backend(1, 0, true), vec![Some(0)], full, Decision::Forward(0)),
            ("none ready", backend(0, 0, false), vec![], none, Decision::Hold(Hold::NoneReady)),
            ("frozen", frozen(1, 2), vec![Some(1)], full, Decision::Wake(0)),
            ("the freer of frozen", frozen(2, 2), vec![Some(1), Some(0)], none, Decision::Wake(1)),
            ("frozen and taken", frozen(1, 2), vec![Some(2)], none, Decision::Hold(Hold::NoneReady)),
            ("busy", backend(2, 3, false), vec![Some(3), Some(4)], none, Decision::Hold(Hold::AllBusy)),
            ("busy, unavailable", backend(1, 1, true), vec![Some(1)], none, Decision::Hold(Hold::AllBusy)),
            ("a slot", backend(3, 2, false), vec![Some(2), Some(2), Some(1)], none, Decision::Forward(2)),
            ("leaving", backend(1, 0, false), vec![None], none, Decision::Hold(Hold::AllBusy)),
            (
                "in vain",
                backend(0, 0, true),
                vec![],
                none,
                Decision::Refuse(Refusal::Unavailable(unavailable)),
            ),
            ("full", backend(0, 0, false), vec![], full, Decision::Refuse(Refusal::RevisionQueueFull)),
            ("room", backend(0, 0, false), vec![], limit, Decision::Hold(Hold::NoneReady)),
            (
                "ten for each place",
                backend(0, 1, false),
                vec![],
                limit,
                Decision::Refuse(Refusal::RevisionQueueFull),
            ),
            ("one place left", backend(0, 1, false), vec![], below, Decision::Hold(Hold::NoneReady)),
            ("many places", backend(2, 90, false), vec![Some(90); 2], limit, Decision::Hold(Hold::AllBusy)),
            ("heavy", backend(0, 0, false), vec![], bytes_full, Decision::Refuse(Refusal::RevisionBytesFull)),
            ("heavy, but fits", backend(0, 0, false), vec![], bytes_fit, Decision::Hold(Hold::NoneReady)),
            ("node full", backend(0, 0, false), vec![], node_full, Decision::Refuse(Refusal::NodeQueueFull)),
            (
                "node heavy",
                backend(0, 0, false),
                vec![],
                node_bytes_full,
                Decision::Refuse(Refusal::NodeBytesFull),
            ),
        ];
        for (name, backend, loads, held, expected) in rows {
            for random in randoms().take(50) {
                assert_eq!(decided(&backend, &loads, held, random), expected, "{name}");
            }
        }
    }

    #[test]
    fn queues_are_as_long_as_instances_are_wide() {
        for (ready, concurrency, expected) in [
            (0, 0, HELD_PER_REVISION_MAX),
            (9, 0, HELD_PER_REVISION_MAX),
            (0, 1, HELD_PER_REVISION_MIN),
            (1, 100, 1000),
            (0, 101, 1010),
            (3, 101, 3030),
            (9, 1000, HELD_PER_REVISION_MAX),
            (9, u32::MAX, HELD_PER_REVISION_MAX),
        ] {
            assert_eq!(queue_max(&backend(ready, concurrency, false)), expected, "{ready} {concurrency}");
        }
    }

    #[test]
    fn forwards_only_where_allowed_and_holds_only_when_nobody_can() {
        let mut bits = randoms();
        let mut next = move |below: u64| bits.next().expect("endless") % below;
        for _ in 0..20_000 {
            let count = next(6) as usize;
            let backend = backend(count, next(4) as u32, next(2) == 0);
            let loads: Vec<_> = (0..count).map(|_| (next(4) != 0).then(|| next(5) as u32)).collect();
            let open = |i: usize| {
                loads[i]
                    .is_some_and(|l| backend.container_concurrency == 0 || l < backend.container_concurrency)
            };
            match decided(&backend, &loads, [Held::default(); 2], next(u64::MAX)) {
                Decision::Forward(index) => assert!(open(index)),
                _ => assert!(!(0..count).any(open)),
            }
        }
    }

    #[test]
    fn the_busier_of_two_is_never_taken_and_idle_ones_share() {
        assert!(randoms().take(1000).all(|random| {
            decided(&backend(2, 0, false), &[Some(5), Some(4)], [Held::default(); 2], random)
                == Decision::Forward(1)
        }));
        let mut counts = [0u32; 4];
        for random in randoms().take(8000) {
            match decided(&backend(4, 0, false), &[Some(0); 4], [Held::default(); 2], random) {
                Decision::Forward(index) => counts[index] += 1,
                other => panic!("{other:?}"),
            }
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
