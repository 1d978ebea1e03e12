//! What of accelerators' figures is worth telling the hub, and when. They move all the time, and a message of each move would be all
//! that a thin link carries: what a person has to know is told soon, other figures only if they moved far, and seldom. Must not know
//! where they come from.
//!
//! ```text
//! plugins ─▶ what is measured ─┐                      news: soon
//!                              ├─▶ Teller::hear ──▶ ─┤ moved far: once the pace allows   ──▶ told
//! processes ─▶ what is held  ──┘                      moved little: never
//! ```

use std::collections::{BTreeMap, BTreeSet};

use tombolo_api::report::{AcceleratorReport, AcceleratorUse, MemoryErrors, RevisionReport};

use crate::actual::Moment;
use crate::devices::overuse::Uses;
use crate::supervision::InstanceId;

/// Between two times that anything is told, milliseconds: one that fails and recovers in turns is no reason to tell every second.
pub const NEWS_PAUSE_MS: u64 = 5_000;

/// How long an accelerator that no plugin tells of any more stays as it was told, milliseconds: plugins are started again and
/// replaced by others.
pub const MISSING_MS: u64 = 60_000;

/// What moves less than that stays as it was told.
const PERCENT_MOVE: u32 = 10;
const CELSIUS_MOVE: u32 = 5;
const WATTS_MOVE: u32 = 10;
const BYTES_MOVE: u64 = 64 << 20;
/// Of an accelerator's memory. One with much of it moves more.
const BYTES_MOVE_PARTS: u64 = 50;

/// What of an accelerator's memory is told is a multiple of this.
const MIB: u64 = 1 << 20;

/// One accelerator, and what instances hold of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Its `held` is empty.
    pub report: AcceleratorReport,
    /// Bytes.
    pub held: BTreeMap<InstanceId, u64>,
}

/// Accelerators by their id.
pub type Measurements = BTreeMap<String, Measured>;

/// Decides what is told.
#[derive(Debug)]
pub struct Teller {
    /// The shortest time between two times that mere figures are told, milliseconds.
    figures_pause_ms: u64,
    told: Measurements,
    /// None: never yet.
    told_at: Option<Moment>,
    /// Since when those that were told are not heard of.
    missing: BTreeMap<String, Moment>,
}

/// How far what is differs from what was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Little,
    Figures,
    News,
}

use Difference::{Figures, Little, News};

impl Teller {
    pub fn new(figures_pause_ms: u64) -> Self {
        Self { figures_pause_ms, told: Measurements::new(), told_at: None, missing: BTreeMap::new() }
    }

    pub fn told(&self) -> &Measurements {
        &self.told
    }

    /// Takes in what is so now. `true`: what is [told](Self::told) has changed. And when it has to be heard again, if it does not
    /// change before.
    pub fn hear(&mut self, now_so: &Measurements, now: Moment) -> (bool, Option<Moment>) {
        let (seen, missing_until) = self.with_missing(now_so, now);
        let pause_ms = match self.difference(&seen) {
            Little => return (false, missing_until),
            Figures => self.figures_pause_ms.max(NEWS_PAUSE_MS),
            News => NEWS_PAUSE_MS,
        };
        let due_at = self.told_at.map_or(now, |told_at| told_at.after(pause_ms));
        if now < due_at {
            let wake = missing_until.map_or(due_at, |until| until.min(due_at));
            return (false, Some(wake));
        }
        let changed = self.told != seen;
        (self.told, self.told_at) = (seen, Some(now));
        (changed, missing_until)
    }

    /// `now_so`, and those that were told and are not heard of for a moment; and until when that is one, of the first of them.
    fn with_missing(&mut self, now_so: &Measurements, now: Moment) -> (Measurements, Option<Moment>) {
        let mut seen: Measurements = now_so.iter().map(|(id, it)| (id.clone(), rounded(it))).collect();
        self.missing.retain(|id, _| !now_so.contains_key(id));
        let mut first_until = None;
        for (id, told) in self.told.iter().filter(|(id, _)| !now_so.contains_key(*id)) {
            let until = self.missing.entry(id.clone()).or_insert(now).after(MISSING_MS);
            if now < until {
                seen.insert(id.clone(), told.clone());
                first_until = Some(first_until.map_or(until, |first: Moment| first.min(until)));
            }
        }
        self.missing.retain(|id, _| seen.contains_key(id) || self.told.contains_key(id));
        (seen, first_until)
    }

    fn difference(&self, seen: &Measurements) -> Difference {
        if self.told.keys().ne(seen.keys()) {
            return News;
        }
        let pairs = self.told.values().zip(seen.values());
        pairs.map(|(told, seen)| difference(told, seen)).max().unwrap_or(Little)
    }
}

/// What plugins and processes say, put together. What an instance holds of a part of a cut accelerator it holds of that.
pub fn measurements<'a>(
    accelerators: impl IntoIterator<Item = &'a AcceleratorReport>,
    uses: &Uses,
) -> Measurements {
    let mut all = Measurements::new();
    for report in accelerators {
        all.insert(report.id.clone(), Measured { report: report.clone(), held: BTreeMap::new() });
    }
    let mut whole: BTreeMap<String, String> = BTreeMap::new();
    for (id, measured) in &all {
        whole.extend(measured.report.parts.iter().map(|part| (part.clone(), id.clone())));
    }
    for (instance, held) in uses {
        for (id, of_one) in held {
            if let Some(measured) = all.get_mut(whole.get(id).unwrap_or(id)) {
                let bytes = measured.held.entry(instance.clone()).or_default();
                *bytes = bytes.saturating_add(of_one.bytes);
            }
        }
    }
    all
}

/// What was told, as a report has it in which `revisions` have their instances. Of others nothing is left.
pub fn reports(told: &Measurements, revisions: &[RevisionReport]) -> Vec<AcceleratorReport> {
    let mut owners = BTreeMap::new();
    for revision in revisions {
        owners.extend(revision.instances.iter().map(|instance| (instance.id.as_str(), revision)));
    }
    let of = |(instance, bytes): (&InstanceId, &u64)| {
        let owner = owners.get(instance.0.as_str())?;
        Some(AcceleratorUse {
            namespace: owner.namespace.clone(),
            revision: owner.name.clone(),
            instance: instance.0.clone(),
            bytes: *bytes,
        })
    };
    let report = |measured: &Measured| AcceleratorReport {
        held: measured.held.iter().filter_map(of).collect(),
        ..measured.report.clone()
    };
    told.values().map(report).collect()
}

fn rounded(measured: &Measured) -> Measured {
    let whole = |bytes: u64| bytes / MIB * MIB;
    let mut rounded = measured.clone();
    rounded.report.memory_used_bytes = rounded.report.memory_used_bytes.map(whole);
    rounded.held.values_mut().for_each(|bytes| *bytes = whole(*bytes));
    rounded
}

fn difference(told: &Measured, seen: &Measured) -> Difference {
    let (before, now) = (&told.report, &seen.report);
    let is_another = before.model != now.model
        || before.fault != now.fault
        || before.parts != now.parts
        || before.memory_bytes != now.memory_bytes;
    if is_another {
        return News;
    }
    let errors = errors_differ(before.memory_errors, now.memory_errors);
    let far = (now.memory_bytes.unwrap_or(0) / BYTES_MOVE_PARTS).max(BYTES_MOVE);
    let watts = before.power_watts.map_or(WATTS_MOVE, |watts| WATTS_MOVE.max(watts / 10));
    let has_moved = moved(before.memory_used_bytes, now.memory_used_bytes, |a, b| a.abs_diff(b) >= far)
        || moved(before.utilisation_percent, now.utilisation_percent, |a, b| a.abs_diff(b) >= PERCENT_MOVE)
        || moved(before.memory_utilisation_percent, now.memory_utilisation_percent, |a, b| {
            a.abs_diff(b) >= PERCENT_MOVE
        })
        || moved(before.temperature_celsius, now.temperature_celsius, |a, b| a.abs_diff(b) >= CELSIUS_MOVE)
        || moved(before.power_watts, now.power_watts, |a, b| a.abs_diff(b) >= watts)
        || holders_moved(&told.held, &seen.held, far);
    errors.max(if has_moved { Figures } else { Little })
}

/// One that is told now and was not, or the other way round, has moved.
fn moved<T: Copy>(before: Option<T>, now: Option<T>, is_far: impl Fn(T, T) -> bool) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => is_far(before, now),
        (before, now) => before.is_some() != now.is_some(),
    }
}

fn holders_moved(before: &BTreeMap<InstanceId, u64>, now: &BTreeMap<InstanceId, u64>, far: u64) -> bool {
    let all: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    all.into_iter()
        .any(|id| moved(before.get(id).copied(), now.get(id).copied(), |a, b| a.abs_diff(b) >= far))
}

/// Memory that lost something is news, and then whenever it has lost as much again. What could be corrected is a figure, and one
/// that has to grow by a tenth.
fn errors_differ(before: Option<MemoryErrors>, now: Option<MemoryErrors>) -> Difference {
    let (Some(before), Some(now)) = (before, now) else {
        return if before == now { Little } else { Figures };
    };
    let (was, is) = (before.uncorrected, now.uncorrected);
    if is < was || is >= was.saturating_mul(2).max(1) && is > was {
        return News;
    }
    let (few, many) = (before.corrected, now.corrected);
    let is_far = many < few || many > few.saturating_add(few / 10);
    if is > was || is_far { Figures } else { Little }
}

#[cfg(test)]
mod tests;
