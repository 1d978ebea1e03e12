//! From any state: planning converges, is deterministic, removes before it adds, and names every deadline.

use proptest::prelude::*;

use super::*;

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Priming),
        Just(Phase::Primed),
        Just(Phase::Launching),
        Just(Phase::Probing),
        Just(Phase::Ready),
        Just(Phase::Draining),
        Just(Phase::Freezing),
        Just(Phase::Frozen),
        Just(Phase::Suspended),
        Just(Phase::Thawing),
        Just(Phase::Stopping { killed: false }),
        Just(Phase::Stopping { killed: true }),
        Just(ended()),
        Just(Phase::Deleting),
    ]
}

/// Annotations of an idle tier.
fn any_tier() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("cold"), Just("primed"), Just("running"), Just("frozen"), Just("suspended")]
}

/// What is under way succeeds.
fn finish(actual: &mut Actual) {
    actual.instances.retain(|_, instance| instance.phase != Phase::Deleting);
    for instance in actual.instances.values_mut() {
        instance.phase = match &instance.phase {
            Phase::Launching | Phase::Thawing => Phase::Ready,
            Phase::Priming => Phase::Primed,
            Phase::Freezing => Phase::Frozen,
            phase => phase.clone(),
        };
    }
}

proptest! {
    /// From any state: planning converges, is deterministic, removes before it adds, makes nothing wait at a request's
    /// expense, and a settled node has just what is wanted.
    #[test]
    fn converges_from_anything(
        phases in proptest::collection::vec((0..4usize, any_phase(), 0..70_000u64), 0..12),
        desired_count in 0..4usize,
        tiers in proptest::collection::vec(any_tier(), 4),
        held in 0..3u32,
        want in proptest::option::of(0..4u32),
    ) {
        let names = ["a-00001", "b-00001", "c-00001", "d-00001"];
        let objects: Vec<_> =
            names.iter().zip(&tiers).map(|(name, tier)| object(name, &[(keys::IDLE_TIER, tier)])).collect();
        let (desired, mut actual) = given_routed(&objects[..desired_count]);
        for (number, (revision, phase, age)) in phases.into_iter().enumerate() {
            let mut made = instance(names[revision], objects[revision].0, phase);
            made.since = Moment(NOW.0 - age);
            actual.instances.insert(InstanceId(format!("x{number}")), made);
        }
        let traffic = with_demand(names[0], 0, held, NOW);
        let asked = want.map_or_else(Targets::new, |want| asking(&desired, want, NOW));
        let once = targeted(&desired, &actual, &traffic, &asked, NOW);
        prop_assert_eq!(&once, &targeted(&desired, &actual, &traffic, &asked, NOW));
        let first_add = once.actions.iter().position(|action| !action.is_removal());
        let adds = &once.actions[first_add.unwrap_or(once.actions.len())..];
        prop_assert!(adds.iter().all(|action| !action.is_removal()), "a removal after an addition: {:?}", once.actions);
        let primes = once.actions.iter().filter(|action| matches!(action, Action::Prime { .. })).count();
        prop_assert!(primes <= usize::from(held == 0), "{:?}", once.actions);

        finish(&mut actual);
        let later = NOW.after(TERMINATION_GRACE_MS);
        let idle = later.after(REFILL_QUIET_MS + STARTING_MAX_MS);
        settle(&desired, &mut actual, &traffic, &asked, NOW);
        settle(&desired, &mut actual, &traffic, &asked, later);
        for known in actual.revisions.values_mut() {
            known.ready_once = true;
        }
        let nothing = asking(&desired, 0, later);
        settle(&desired, &mut actual, &Traffic::default(), &nothing, later);
        settle(&desired, &mut actual, &Traffic::default(), &nothing, idle);
        for instance in actual.instances.values() {
            prop_assert!(desired.revisions.contains_key(&instance.revision));
        }
        for (number, name) in names.iter().enumerate().take(desired_count) {
            let mut has: Vec<_> = actual.instances.values().filter(|instance| instance.revision == key(name)).collect();
            has.retain(|instance| instance.phase != Phase::Probing);
            let phases: Vec<_> = has.iter().map(|instance| &instance.phase).collect();
            let fits = match tiers[number] {
                "cold" => phases.is_empty(),
                "running" => phases.len() <= 1 && phases.iter().all(|phase| **phase == Phase::Ready),
                "frozen" | "suspended" => {
                    matches!(phases.as_slice(), [Phase::Primed | Phase::Frozen | Phase::Suspended])
                }
                _ => phases == [&Phase::Primed],
            };
            prop_assert!(fits, "{} {}: {phases:?}", name, tiers[number]);
        }
    }

    /// Every deadline that changes the answer is in `wake`: nothing happens before it that planning now would not show.
    #[test]
    fn nothing_changes_before_the_wake(
        phases in proptest::collection::vec((any_phase(), 0..1_300_000u64, any::<bool>(), 0..2u32), 0..3),
        tier in any_tier(),
        ready_once: bool,
        crashes in (0..3u32, 0..2_000_000u64),
        (last_start, prime_retry) in (0..12_000u64, 0..60_000u64),
        min in 0..3u32,
        requests in 0..2u32,
        want in proptest::option::of(0..3u32),
        step in 1..1_300_000u64,
    ) {
        let min = min.to_string();
        let annotations = [("autoscaling.knative.dev/min-scale", min.as_str()), (keys::IDLE_TIER, tier)];
        let made_object = object("a-00001", &annotations);
        let digest = made_object.0;
        let (desired, mut actual) = given_routed(&[made_object]);
        let mut traffic = with_demand("a-00001", 0, requests, Moment(NOW.0 - 30_000));
        for (number, (phase, age, outdated, load)) in phases.into_iter().enumerate() {
            let of = if outdated { Digest::of(b"outdated") } else { digest };
            let mut made = instance("a-00001", of, phase);
            made.since = Moment(NOW.0 - age);
            let id = InstanceId(format!("x{number}"));
            traffic.instances.insert(id.clone(), load);
            actual.instances.insert(id, made);
        }
        actual.last_start = Moment(NOW.0 - last_start);
        let known = actual.revisions.get_mut(&key("a-00001")).unwrap();
        known.ready_once = ready_once;
        known.crashes = crashed(crashes.0, Moment(NOW.0 - 1_000_000 + crashes.1));
        known.prime_retry_at = Moment(NOW.0 - 30_000 + prime_retry);
        // As the reconciler does before it plans.
        let forgotten = |instance: &InstanceActual| {
            crashes_forgotten_at(&actual.revisions[&key("a-00001")], instance).is_some_and(|at| NOW >= at)
        };
        if actual.instances.values().any(forgotten) {
            actual.revisions.get_mut(&key("a-00001")).unwrap().crashes.recent = 0;
        }
        let asked = want.map_or_else(Targets::new, |want| asking(&desired, want, NOW));
        let now = targeted(&desired, &actual, &traffic, &asked, NOW);
        let until = now.wake.map_or(u64::MAX, |(at, _)| at.0);
        prop_assert!(until > NOW.0, "a wake that is over: {:?}", now.wake);
        let probe_at = Moment((NOW.0 + step).min(until - 1));
        if now.actions.is_empty() {
            let then = targeted(&desired, &actual, &traffic, &asked, probe_at);
            prop_assert_eq!(then.actions, vec![]);
        }
    }
}
