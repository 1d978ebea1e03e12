//! Instances that hold more of an accelerator's memory than they declared. Nothing but this keeps them from it where accelerators
//! are shared by declaration alone. It must not know how what they hold is found out.

use std::collections::BTreeMap;
use std::fmt;

use tombolo_api::duration;
use tombolo_api::serving::keys;

use super::Devices;
use super::pool::Piece;
use crate::actual::Moment;
use crate::supervision::InstanceId;

/// The reason in a revision's status and in events.
pub const REASON: &str = "AcceleratorMemoryExceeded";

/// What an instance holds of one accelerator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub bytes: u64,
    /// That hold it.
    pub processes: u32,
}

/// What each instance holds, by the accelerator's id. Of those that are absent nothing is known.
pub type Uses = BTreeMap<InstanceId, BTreeMap<String, Use>>;

/// What becomes of an instance that holds too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// It is killed once its grace is over.
    #[default]
    Stop,
    /// An event says so.
    Warn,
    Off,
}

/// What counts as too much, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub policy: Policy,
    /// How long it may hold too much.
    pub grace_ms: u64,
    /// What the driver itself takes for each process, beside what is declared.
    pub context_bytes: u64,
}

/// More than was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    pub accelerator: String,
    pub held: Use,
    pub declared_bytes: u64,
    context_bytes: u64,
}

/// Since when an instance holds too much, and how much now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overuse {
    pub since: Moment,
    pub excess: Excess,
}

impl Rule {
    /// With what a revision's annotations say; the hub has validated them.
    #[must_use]
    pub fn of(self, annotations: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| annotations.get(key).map(String::as_str);
        let policy = match text(keys::MEMORY_OVERUSE) {
            Some("stop") => Policy::Stop,
            Some("warn") => Policy::Warn,
            Some("off") => Policy::Off,
            _ => self.policy,
        };
        let grace = text(keys::MEMORY_OVERUSE_GRACE).and_then(duration::millis);
        Self { policy, grace_ms: grace.unwrap_or(self.grace_ms), ..self }
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let Self { accelerator, held, declared_bytes, context_bytes } = self;
        write!(
            f,
            "it holds {} MiB of {accelerator} and declared {} MiB (and {} MiB are the driver's, for each of {})",
            mib(held.bytes),
            mib(*declared_bytes),
            mib(*context_bytes),
            if held.processes == 1 {
                "1 process".to_owned()
            } else {
                format!("{} processes", held.processes)
            },
        )
    }
}

/// What an instance holds beyond its pieces of memory, of the accelerator where that is most. `None`: it keeps to what it
/// declared, or declared nothing.
pub(crate) fn excess(devices: &Devices, held: &BTreeMap<String, Use>, context_bytes: u64) -> Option<Excess> {
    let mut declared: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, ids) in devices {
        for piece in ids.iter().filter_map(|id| Piece::of(name, id)) {
            *declared.entry(piece.accelerator).or_default() += piece.bytes;
        }
    }
    let beyond = |(accelerator, declared_bytes): (&str, u64)| {
        let held = *held.get(accelerator)?;
        let allowed = declared_bytes.saturating_add(context_bytes.saturating_mul(held.processes.into()));
        let excess = Excess { accelerator: accelerator.to_owned(), held, declared_bytes, context_bytes };
        (held.bytes > allowed).then(|| (held.bytes - allowed, excess))
    };
    declared.into_iter().filter_map(beyond).max_by_key(|(bytes, _)| *bytes).map(|(_, excess)| excess)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceId, GPU_MEMORY, ResourceName};

    const MIB: u64 = 1 << 20;
    const CONTEXT: u64 = 100 * MIB;

    fn units(counts: &[(&str, u32)]) -> Devices {
        let ids = counts.iter().flat_map(|(gpu, count)| {
            (0..*count).map(move |number| DeviceId(format!("{gpu}/256Mi/{number}")))
        });
        [(ResourceName(GPU_MEMORY.into()), ids.collect())].into()
    }

    fn held(uses: &[(&str, u64, u32)]) -> BTreeMap<String, Use> {
        uses.iter()
            .map(|(gpu, mib, processes)| ((*gpu).to_owned(), Use { bytes: mib * MIB, processes: *processes }))
            .collect()
    }

    #[test]
    fn what_is_declared_and_what_the_driver_takes_may_be_held() {
        let devices = units(&[("GPU-1", 4)]);
        for (uses, is_too_much) in [
            (&[][..], false),
            (&[("GPU-1", 1124, 1)], false),
            (&[("GPU-1", 1125, 1)], true),
            (&[("GPU-1", 1224, 2)], false),
            (&[("GPU-1", 1225, 2)], true),
            // Nothing of that one is declared: who can use it has it in another way.
            (&[("GPU-2", 9999, 1)], false),
        ] {
            assert_eq!(excess(&devices, &held(uses), CONTEXT).is_some(), is_too_much, "{uses:?}");
        }
        assert_eq!(excess(&Devices::new(), &held(&[("GPU-1", 9999, 1)]), CONTEXT), None);
    }

    #[test]
    fn the_worst_is_told_in_mebibytes() {
        let found = excess(
            &units(&[("GPU-1", 1), ("GPU-2", 1)]),
            &held(&[("GPU-1", 400, 1), ("GPU-2", 600, 2)]),
            CONTEXT,
        );
        let text = found.unwrap().to_string();
        let told = "it holds 600 MiB of GPU-2 and declared 256 MiB (and 100 MiB are the driver's, for each of 2 processes)";
        assert_eq!(text, told);
    }

    #[test]
    fn a_function_says_what_becomes_of_it() {
        let rule = Rule { policy: Policy::Stop, grace_ms: 10_000, context_bytes: CONTEXT };
        let with = |pairs: &[(&str, &str)]| {
            let said: BTreeMap<_, _> =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            rule.of(&said)
        };
        assert_eq!(with(&[]), rule);
        for (word, policy) in [("stop", Policy::Stop), ("warn", Policy::Warn), ("off", Policy::Off)] {
            assert_eq!(with(&[("tombolo.dev/gpu-memory-overuse", word)]), Rule { policy, ..rule });
        }
        let patient = with(&[("tombolo.dev/gpu-memory-overuse-grace", "1m30s")]);
        assert_eq!(patient, Rule { grace_ms: 90_000, ..rule });
        let hasty = with(&[("tombolo.dev/gpu-memory-overuse-grace", "0s")]);
        assert_eq!(hasty, Rule { grace_ms: 0, ..rule });
    }
}
