//! What capacity promises, by example and for random claims.

use proptest::prelude::*;

use super::*;

const MI: u64 = 1 << 20;

fn claim(mebibytes: u64, running: u32, wanted: u32) -> Claim {
    Claim { need: Need::Limit(mebibytes * MI), running, stopping: 0, wanted, later: 0 }
}

fn allowed(budget: u64, claims: &[Claim]) -> Vec<u32> {
    capacity(budget * MI, claims).into_iter().map(|grant| grant.allowed).collect()
}

#[test]
fn memory_is_shared_first_instances_first() {
    for (budget, claims, expected) in [
        (1000, vec![claim(100, 0, 3), claim(200, 0, 2)], vec![3, 2]),
        // One each, then one more of the first.
        (300, vec![claim(100, 0, 5), claim(100, 0, 5)], vec![2, 1]),
        // A fifth must not take the other's first.
        (600, vec![claim(100, 4, 5), claim(200, 0, 1)], vec![4, 1]),
        // What runs stays, even where it is too much.
        (100, vec![claim(100, 3, 3), claim(10, 0, 1)], vec![3, 0]),
        // What is not wanted any more still has its memory.
        (300, vec![claim(100, 3, 1), claim(100, 0, 1)], vec![1, 0]),
        // Growth waits for a first instance that could fit, not for one that never can.
        (500, vec![claim(400, 0, 1), claim(100, 2, 4)], vec![0, 2]),
        (500, vec![claim(600, 0, 1), claim(100, 2, 4)], vec![0, 4]),
        // Another's first instance does not wait.
        (500, vec![claim(400, 0, 1), claim(100, 2, 4), claim(50, 0, 2)], vec![0, 2, 1]),
        (0, vec![claim(0, 0, u32::MAX)], vec![0]),
    ] {
        assert_eq!(allowed(budget, &claims), expected, "{budget} Mi for {claims:?}");
    }
}

#[test]
fn instances_that_are_stopping_hold_their_memory() {
    let leaving = Claim { stopping: 2, ..claim(100, 0, 2) };
    assert_eq!(allowed(300, &[leaving]), [1]);
}

#[test]
fn a_cut_says_what_is_missing() {
    let grants = capacity(250 * MI, &[claim(100, 0, 4), claim(10, 0, 1)]);
    assert_eq!(
        grants[0].cut.as_deref(),
        Some(
            "InsufficientMemory: 2 of 4 wanted instances; one needs 100Mi, and 40Mi of this node's 250Mi for instances are \
             free: lower its memory limit or the min-scale of others, or use more nodes"
        )
    );
    assert_eq!(grants[1].cut, None);
}

#[test]
fn an_instance_is_reckoned_with_its_limit_or_what_was_seen() {
    let both = |need: Need| (need.first_bytes() / MI, need.bytes() / MI);
    assert_eq!(both(Need::Limit(256 * MI)), (256, 256));
    assert_eq!(both(Need::Seen { first: 9 * MI, most: 300 * MI }), (9, 300));
    assert_eq!(both(Need::Assumed), (32, 32));
    for least in [Need::Limit(1), Need::Seen { first: 1, most: 2 }, Need::Seen { first: 0, most: 0 }] {
        assert_eq!(both(least), (1, 1), "{least:?}");
    }
}

#[test]
fn a_first_instance_starts_where_it_can_begin_and_further_ones_where_they_can_grow() {
    let seen = |running, wanted| Claim {
        need: Need::Seen { first: 50 * MI, most: 200 * MI },
        ..claim(0, running, wanted)
    };
    assert_eq!(allowed(1000, &[seen(0, 9)]), [5]);
    assert_eq!(allowed(100, &[seen(0, 2)]), [1], "it once took more than there is");
    assert_eq!(allowed(40, &[seen(0, 1)]), [0]);
    // What it may come to have is not given to others.
    assert_eq!(allowed(300, &[seen(0, 1), claim(100, 1, 2)]), [1, 1]);
    assert_eq!(allowed(300, &[seen(1, 1), claim(100, 0, 2)]), [1, 1]);
    let cut = |need| capacity(100 * MI, &[Claim { need, ..claim(0, 1, 3) }])[0].cut.clone().unwrap();
    let seen = cut(Need::Seen { first: 50 * MI, most: 200 * MI });
    assert!(seen.contains("one was seen to need 200Mi") && seen.contains("give it a memory limit"), "{seen}");
    assert!(
        capacity(MI, &[Claim { need: Need::Assumed, ..claim(0, 0, 1) }])[0]
            .cut
            .as_ref()
            .is_some_and(|cut| cut.contains("one is reckoned with 32Mi"))
    );
}

fn claims(mebibytes: impl Strategy<Value = u64>) -> impl Strategy<Value = Vec<Claim>> {
    let one = (mebibytes, 0_u32..6, 0_u32..3, 0_u32..9).prop_map(|(mebibytes, running, stopping, wanted)| {
        Claim { stopping, ..claim(mebibytes, running, wanted) }
    });
    prop::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn grants_keep_what_runs_and_fit(budget in 0_u64..4_000, claims in claims(1_u64..600)) {
        let grants = capacity(budget * MI, &claims);
        prop_assert_eq!(grants.len(), claims.len());
        let (mut before, mut after) = (0, 0);
        let mut grown = false;
        for (claim, grant) in claims.iter().zip(&grants) {
            prop_assert!(grant.allowed <= claim.wanted);
            prop_assert!(grant.allowed >= claim.running.min(claim.wanted));
            prop_assert_eq!(grant.cut.is_some(), grant.allowed < claim.wanted);
            prop_assert!(grant.cut.iter().all(|cut| cut.starts_with("InsufficientMemory: ")));
            before += claim.need.bytes() * u64::from(claim.running + claim.stopping);
            after += claim.need.bytes() * u64::from(claim.running.max(grant.allowed) + claim.stopping);
            grown |= grant.allowed > claim.running;
        }
        prop_assert!(after <= before.max(budget * MI));
        prop_assert!(!grown || after <= budget * MI);
    }

    #[test]
    fn no_first_instance_is_cut_for_a_further_one(budget in 0_u64..4_000, claims in claims(1_u64..600)) {
        let grants = capacity(budget * MI, &claims);
        let first_waits = claims.iter().zip(&grants).any(|(claim, grant)| {
            grant.allowed == 0 && claim.wanted > 0 && claim.need.bytes() <= budget * MI
        });
        for (claim, grant) in claims.iter().zip(&grants) {
            let further = grant.allowed > claim.running.min(claim.wanted).max(1);
            prop_assert!(!(first_waits && further), "{claim:?} {grant:?}");
        }
    }

    #[test]
    fn equals_are_treated_equally(budget in 0_u64..4_000, claims in claims(Just(100))) {
        let grants = capacity(budget * MI, &claims);
        for (cut, less) in grants.iter().enumerate().filter(|(_, grant)| grant.cut.is_some()) {
            for (other, more) in grants.iter().enumerate() {
                let grown = more.allowed > claims[other].running.min(claims[other].wanted);
                let ahead = less.allowed + u32::from(other < cut);
                prop_assert!(!grown || more.allowed <= ahead, "{claims:?} {grants:?}");
            }
        }
    }

    #[test]
    fn nothing_that_fits_is_refused(budget in 0_u64..4_000, claims in claims(1_u64..600)) {
        let grants = capacity(budget * MI, &claims);
        let used: u64 = claims.iter().zip(&grants).map(|(claim, grant)| {
            claim.need.bytes() * u64::from(claim.running.max(grant.allowed) + claim.stopping)
        }).sum();
        let free = (budget * MI).saturating_sub(used);
        let first_waits = |(claim, grant): (&Claim, &Grant)| {
            grant.allowed == 0 && claim.wanted > 0 && claim.need.bytes() <= budget * MI
        };
        let a_first_waits = claims.iter().zip(&grants).any(first_waits);
        for (claim, grant) in claims.iter().zip(&grants).filter(|(_, grant)| grant.cut.is_some()) {
            prop_assert!(claim.need.bytes() > free || (a_first_waits && grant.allowed > 0));
        }
    }
}
