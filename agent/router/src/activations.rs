//! How long the stages take between a request that finds no instance and the head of its answer, by the tier in which the
//! revision rested. Whoever carries a stage out counts it here.
//!
//! ```text
//! request ─ hold ──────────────────────────────────────────────▶ released ─ forward ─▶ head of its answer
//!             └▶ cold:   create ─▶ start ─▶ exec ─▶ probe ─▶ ready ─┘
//!             └▶ primed:           start ─▶ exec ─▶ probe ─▶ ready ─┘
//!             └▶ frozen:    thaw ──────────────────────────▶ ready ─┘
//!             └▶ suspended: thaw ─▶ restore ───────────────▶ ready ─┘
//! ```
//!
//! A request that wakes a frozen instance by itself is not held: it is released at once, and the thaw is part of `forward`.
//! What `hold` has beyond the stages below it is deciding, routing and being woken. Must not know how a stage is carried out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tombolo_agent_core::annotations::IdleTier;
use tombolo_agent_core::supervision::InstanceId;

/// The tiers that a request wakes a revision from, each with its word in metrics.
const TIERS: [(IdleTier, &str); 4] = [
    (IdleTier::Cold, "cold"),
    (IdleTier::Primed, "primed"),
    (IdleTier::Frozen, "frozen"),
    (IdleTier::Suspended, "suspended"),
];

/// A stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A request that came when no instance was ready, until it was released to one.
    Hold,
    /// Writing the bundle and having the supervisor create the container.
    Create,
    /// Having the supervisor start the program of a created container.
    Start,
    /// The program, from its start until the attempt began that its readiness probe passed with.
    Exec,
    /// That attempt.
    Probe,
    /// Having the supervisor let a frozen container go on.
    Thaw,
    /// Having device plugins give a suspended container back what it had on its devices, the thaw included.
    Restore,
    /// A released request, until the head of its answer.
    Forward,
}

/// The times of all stages.
#[derive(Debug, Default)]
pub struct Activations {
    totals: [[Total; Stage::ALL.len()]; TIERS.len()],
    /// Instances that are or were being brought to traffic.
    begun: Mutex<BTreeMap<InstanceId, Begun>>,
}

/// How often, and how long in all.
#[derive(Debug, Default)]
struct Total {
    count: AtomicU64,
    sum_ns: AtomicU64,
}

#[derive(Debug)]
struct Begun {
    /// What it is brought from.
    tier: IdleTier,
    /// When its program was started, until it has answered.
    started: Option<Instant>,
}

/// What is shown of one stage of one tier.
pub(crate) struct Shown {
    pub(crate) tier: &'static str,
    pub(crate) stage: &'static str,
    pub(crate) count: u64,
    pub(crate) sum: Duration,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Hold,
        Self::Create,
        Self::Start,
        Self::Exec,
        Self::Probe,
        Self::Thaw,
        Self::Restore,
        Self::Forward,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Probe => "probe",
            Self::Thaw => "thaw",
            Self::Restore => "restore",
            Self::Forward => "forward",
        }
    }
}

impl Activations {
    /// The instance is brought to traffic from this tier.
    pub fn begin(&self, instance: &InstanceId, tier: IdleTier) {
        self.lock().insert(instance.clone(), Begun { tier, started: None });
    }

    /// A stage of the instance has ended. Nothing if it was never [begun](Self::begin).
    pub fn ended(&self, instance: &InstanceId, stage: Stage, took: Duration) {
        if let Some(tier) = self.tier(instance) {
            self.add(tier, stage, took);
        }
    }

    /// The instance's program was started.
    pub fn started(&self, instance: &InstanceId, at: Instant) {
        if let Some(begun) = self.lock().get_mut(instance) {
            begun.started = Some(at);
        }
    }

    /// The instance has passed its readiness probe, with an attempt that `began` then. Counts once for each start.
    pub fn passed(&self, instance: &InstanceId, began: Instant, took: Duration) {
        let started =
            self.lock().get_mut(instance).and_then(|begun| Some((begun.tier, begun.started.take()?)));
        if let Some((tier, started)) = started {
            self.add(tier, Stage::Exec, began.saturating_duration_since(started));
            self.add(tier, Stage::Probe, took);
        }
    }

    /// The instance is gone.
    pub fn forget(&self, instance: &InstanceId) {
        self.lock().remove(instance);
    }

    /// What the instance was last brought from.
    pub(crate) fn tier(&self, instance: &InstanceId) -> Option<IdleTier> {
        self.lock().get(instance).map(|begun| begun.tier)
    }

    pub(crate) fn add(&self, tier: IdleTier, stage: Stage, took: Duration) {
        if let Some(index) = TIERS.iter().position(|(known, _)| *known == tier) {
            let total = &self.totals[index][stage as usize];
            total.sum_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
            total.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every stage that was there.
    pub(crate) fn shown(&self) -> impl Iterator<Item = Shown> {
        TIERS.iter().zip(&self.totals).flat_map(|((_, tier), totals)| {
            let shown = move |(stage, total): (&Stage, &Total)| Shown {
                tier,
                stage: stage.word(),
                count: total.count.load(Ordering::Relaxed),
                sum: Duration::from_nanos(total.sum_ns.load(Ordering::Relaxed)),
            };
            Stage::ALL.iter().zip(totals).map(shown).filter(|shown| shown.count > 0)
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Begun>> {
        self.begun.lock().expect("no panic under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(activations: &Activations) -> Vec<(&'static str, &'static str, u64, u64)> {
        let shown = activations.shown();
        shown.map(|shown| (shown.tier, shown.stage, shown.count, shown.sum.as_micros() as u64)).collect()
    }

    #[test]
    fn stages_count_for_the_tier_the_instance_was_last_brought_from() {
        let activations = Activations::default();
        let (one, other) = (InstanceId("i1".into()), InstanceId("i2".into()));
        let us = Duration::from_micros;
        let at = |after| Instant::now() + us(after);
        activations.ended(&one, Stage::Start, us(1));
        assert_eq!(counted(&activations), [], "it was never begun");

        activations.begin(&one, IdleTier::Primed);
        activations.ended(&one, Stage::Start, us(300));
        let started = at(0);
        activations.started(&one, started);
        activations.passed(&one, started + us(700), us(50));
        activations.passed(&one, at(900_000), us(50));
        activations.begin(&other, IdleTier::Primed);
        activations.ended(&other, Stage::Start, us(500));
        activations.begin(&one, IdleTier::Frozen);
        activations.ended(&one, Stage::Thaw, us(80));
        activations.passed(&one, at(0), us(50));
        let seen = [
            ("primed", "start", 2, 800),
            ("primed", "exec", 1, 700),
            ("primed", "probe", 1, 50),
            ("frozen", "thaw", 1, 80),
        ];
        assert_eq!(counted(&activations), seen);

        activations.forget(&one);
        activations.ended(&one, Stage::Thaw, us(80));
        assert_eq!(counted(&activations), seen);
    }

    #[test]
    fn a_stage_stands_where_its_number_says() {
        assert!(Stage::ALL.iter().enumerate().all(|(index, stage)| *stage as usize == index));
    }
}
