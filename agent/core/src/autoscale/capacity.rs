//! What a node's memory allows of what is wanted: with limits it never scales into an out-of-memory kill, without them as far as
//! was seen of such instances, which the plan waits for. Knows bytes, numbers and an order; must not know how the numbers were wanted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// An instance without a limit is reckoned with this much, bytes, until one of its revision was seen: a small program and what the
/// kernel keeps for a container.
pub const ASSUMED_BYTES: u64 = 32 << 20;

/// The least that an instance is reckoned with, bytes, whatever its limit: the kernel's own structures. Bounds the work, too.
pub const INSTANCE_MIN_BYTES: u64 = 1 << 20;

/// What one instance is reckoned with, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its limit: it cannot have more.
    Limit(u64),
    /// What such instances were seen to hold: at first, and at most.
    Seen { first: u64, most: u64 },
    /// Nothing is known.
    Assumed,
}

impl Need {
    /// Of any instance.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Limit(bytes) | Self::Seen { most: bytes, .. } => *bytes,
            Self::Assumed => ASSUMED_BYTES,
        };
        bytes.max(INSTANCE_MIN_BYTES)
    }

    /// Of a first instance that is to start: one that once took much is not kept out for it.
    pub fn first_bytes(&self) -> u64 {
        match self {
            Self::Seen { first, .. } => (*first).clamp(INSTANCE_MIN_BYTES, self.bytes()),
            Self::Limit(_) | Self::Assumed => self.bytes(),
        }
    }
}

/// One revision's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub need: Need,
    /// Started instances that are to stay or may.
    pub running: u32,
    /// Started instances that are being stopped: their memory is not free yet.
    pub stopping: u32,
    pub wanted: u32,
    /// Further ones that are wanted once these are there.
    pub later: u32,
}

/// What one revision gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// At most what was wanted, at least what runs of that.
    pub allowed: u32,
    /// Why it is less than wanted, for the revision's status.
    pub cut: Option<String>,
}

/// How many instances of each claim fit into `budget_bytes`; claims come in order of priority, grants in the same order.
///
/// What runs stays. Beyond that everyone gets a first instance before anyone a second, and so on; within a round the order
/// decides. While a first instance that could ever fit is waiting for memory, nobody gets a further one: otherwise those that
/// grow a little at a time would keep out for ever one that needs much at once.
pub fn capacity(budget_bytes: u64, claims: &[Claim]) -> Vec<Grant> {
    let mut allowed: Vec<u32> = claims.iter().map(|claim| claim.running.min(claim.wanted)).collect();
    let mut free = claims.iter().fold(budget_bytes, |free, claim| {
        let started = u64::from(claim.running) + u64::from(claim.stopping);
        free.saturating_sub(claim.need.bytes().saturating_mul(started))
    });
    // Fewest instances first, then the order of priority.
    let mut waiting: BinaryHeap<_> =
        (0..claims.len()).map(|index| Reverse((allowed[index], index))).collect();
    let mut a_first_waits = false;
    while let Some(Reverse((count, index))) = waiting.pop() {
        let need = claims[index].need;
        let needed = if count == 0 { need.first_bytes() } else { need.bytes() };
        if count >= claims[index].wanted || (count > 0 && a_first_waits) {
            continue;
        }
        if needed <= free {
            free = free.saturating_sub(need.bytes());
            allowed[index] += 1;
            waiting.push(Reverse((allowed[index], index)));
        } else {
            a_first_waits |= count == 0 && needed <= budget_bytes;
        }
    }
    let grant = |(claim, allowed): (&Claim, u32)| Grant {
        allowed,
        cut: (allowed < claim.wanted).then(|| reason(claim, allowed, free, budget_bytes)),
    };
    claims.iter().zip(allowed).map(grant).collect()
}

/// Why not even one instance of `instance_bytes` can ever be where all together have `budget_bytes`; `None`: it can.
pub fn misfit(instance_bytes: u64, budget_bytes: u64) -> Option<String> {
    (instance_bytes > budget_bytes).then(|| {
        format!(
            "one instance needs {}, and this node has {} for all of them: lower its memory limit, or place it on a larger node",
            mebibytes(instance_bytes),
            mebibytes(budget_bytes),
        )
    })
}

fn reason(claim: &Claim, allowed: u32, free_bytes: u64, budget_bytes: u64) -> String {
    let needed = if allowed == 0 { claim.need.first_bytes() } else { claim.need.bytes() };
    let (needs, advice) = match claim.need {
        Need::Limit(_) => ("needs", "lower its memory limit or the min-scale of others"),
        Need::Seen { .. } => ("was seen to need", "give it a memory limit, or lower the min-scale of others"),
        Need::Assumed => ("is reckoned with", "give it a memory limit, or lower the min-scale of others"),
    };
    format!(
        "InsufficientMemory: {allowed} of {} wanted instances; one {needs} {}, and {} of this node's {} for instances are free: \
         {advice}, or use more nodes",
        claim.wanted.saturating_add(claim.later),
        mebibytes(needed),
        mebibytes(free_bytes),
        mebibytes(budget_bytes),
    )
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes >> 20)
}

#[cfg(test)]
mod tests;
