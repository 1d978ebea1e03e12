//! A node on which functions take turns, simulated: requests come as they like, moves and starts take their time. Everybody is
//! served in time, nothing is moved under a request, and no device is two instances'.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::devices::{has, with_devices};
use super::*;
use crate::devices::DeviceId;

const STEP_MS: u64 = 100;
const MOVE_MS: u64 = 300;
const START_MS: u64 = 700;
/// Without a request for this long the autoscaler asks for none.
const IDLE_MS: u64 = 3_000;
const REQUEST_MAX_MS: u64 = 1_500;

#[derive(Default)]
struct Function {
    /// When those that wait came, and how long each will take.
    held: VecDeque<(Moment, u64)>,
    /// When those in its instance end.
    running: Vec<Moment>,
    last: Option<Moment>,
    served: usize,
}

struct World {
    desired: Desired,
    actual: Actual,
    functions: BTreeMap<RevisionKey, Function>,
    now: Moment,
    /// The longest that a request has waited.
    waited_ms: u64,
}

impl World {
    fn new(asks: &[u32], devices: &str) -> Self {
        let named = asks.iter().enumerate().map(|(number, asked)| (format!("f{number}-00001"), asked));
        let objects: Vec<_> = named
            .map(|(name, asked)| with_devices(&name, *asked, &[(keys::IDLE_TIER, "suspended")]))
            .collect();
        let (desired, mut actual) = given_routed(&objects);
        for known in actual.revisions.values_mut() {
            known.ready_once = true;
        }
        has(&mut actual, devices, NOW);
        let functions = desired.revisions.keys().map(|key| (key.clone(), Function::default())).collect();
        Self { desired, actual, functions, now: NOW, waited_ms: 0 }
    }

    fn request(&mut self, number: usize, takes_ms: u64) {
        let function = self.functions.get_mut(&key(&format!("f{number}-00001"))).unwrap();
        function.held.push_back((self.now, takes_ms));
        function.last = Some(self.now);
    }

    fn ready(&self, revision: &RevisionKey) -> Option<&InstanceId> {
        let mut of = self.actual.instances.iter().filter(|(_, known)| known.revision == *revision);
        of.find(|(_, known)| known.phase == Phase::Ready).map(|(id, _)| id)
    }

    /// What is under way comes to its end; instances that are ready get their requests.
    fn pass_time(&mut self) {
        self.now = self.now.after(STEP_MS);
        for known in self.actual.instances.values_mut() {
            let (takes, then) = match known.phase {
                Phase::Suspending => (MOVE_MS, Phase::Suspended),
                Phase::Restoring => (MOVE_MS, Phase::Ready),
                Phase::Launching => (START_MS, Phase::Ready),
                _ => continue,
            };
            if self.now.since(known.since) >= takes {
                (known.phase, known.since) = (then, self.now);
            }
        }
        let ready: Vec<bool> = self.functions.keys().map(|key| self.ready(key).is_some()).collect();
        for (function, ready) in self.functions.values_mut().zip(ready) {
            let before = function.running.len();
            function.running.retain(|end| *end > self.now);
            if function.running.len() < before {
                function.last = Some(self.now);
            }
            while let Some((came, takes_ms)) = function.held.front().copied().filter(|_| ready) {
                self.waited_ms = self.waited_ms.max(self.now.since(came));
                function.held.pop_front();
                function.running.push(self.now.after(takes_ms));
                function.served += 1;
            }
        }
    }

    fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for (key, function) in &self.functions {
            let (in_flight, held) = (function.running.len() as u32, function.held.len() as u32);
            traffic.revisions.insert(key.clone(), Demand { in_flight, held, last_request: function.last });
            let serving = |phase: &Phase| matches!(phase, Phase::Ready | Phase::Draining);
            let at = self
                .actual
                .instances
                .iter()
                .find(|(_, known)| known.revision == *key && serving(&known.phase));
            if let Some((id, _)) = at {
                traffic.instances.insert(id.clone(), in_flight);
            }
        }
        traffic
    }

    /// Plans and acts until there is nothing to do.
    fn act(&mut self) {
        for _ in 0..30 {
            let traffic = self.traffic();
            let want = |function: &Function| {
                let recent = function.last.is_some_and(|last| self.now.since(last) < IDLE_MS);
                Target { want: u32::from(recent), at: self.now, timed_out: false }
            };
            let targets =
                self.functions.iter().map(|(key, function)| (key.clone(), want(function))).collect();
            let plan = targeted(&self.desired, &self.actual, &traffic, &targets, self.now);
            if plan.actions.is_empty() {
                return;
            }
            for action in &plan.actions {
                self.check(action, &traffic);
                let begun = match action {
                    Action::Suspend { instance } => Some((instance, Phase::Suspending)),
                    Action::Restore { instance } => Some((instance, Phase::Restoring)),
                    _ => None,
                };
                match begun {
                    Some((instance, phase)) => set(&mut self.actual, instance, phase, self.now),
                    None => execute(&self.desired, &mut self.actual, std::slice::from_ref(action), self.now),
                }
                if let Action::Launch { instance, .. } = action {
                    set(&mut self.actual, instance, Phase::Launching, self.now);
                }
            }
            self.check_exclusive();
        }
        panic!("did not converge");
    }

    fn check(&self, action: &Action, traffic: &Traffic) {
        let of = |instance: &InstanceId| &self.functions[&self.actual.instances[instance].revision];
        match action {
            Action::Suspend { instance } | Action::Terminate { instance } | Action::Delete { instance } => {
                assert_eq!(
                    traffic.instances.get(instance).copied().unwrap_or(0),
                    0,
                    "{action:?} under a request"
                );
            }
            Action::Drain { instance } if !of(instance).running.is_empty() => {
                let turn = self.now.since(self.actual.instances[instance].since);
                assert!(turn >= TURN_MS, "{action:?} after {turn} ms");
                let waits = |(key, other): (&RevisionKey, &Function)| {
                    !other.held.is_empty() && self.ready(key).is_none()
                };
                assert!(self.functions.iter().any(waits), "{action:?} for nobody");
            }
            Action::Restore { instance } => assert!(!of(instance).held.is_empty(), "{action:?} for nobody"),
            _ => {}
        }
    }

    fn check_exclusive(&self) {
        let mut seen: BTreeSet<&DeviceId> = BTreeSet::new();
        let held = self.actual.instances.values().filter_map(InstanceActual::held_devices);
        for id in held.flat_map(|devices| devices.values().flatten()) {
            assert!(seen.insert(id), "{id} is held twice");
        }
    }
}

proptest! {
    // Each is some minutes of a node's life.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn everybody_has_a_turn_and_nothing_moves_under_a_request(
        asks in proptest::collection::vec(prop_oneof![4 => Just(1_u32), 1 => Just(2_u32)], 2..7),
        devices in prop_oneof![Just("ab"), Just("abc"), Just("abcd")],
        // Of each step: which functions are called, and how long that takes. The first one is called all the time.
        calls in proptest::collection::vec((0..7usize, 0..REQUEST_MAX_MS), 60..400),
        busy: bool,
    ) {
        let mut world = World::new(&asks, devices);
        let turns = asks.len() as u64 + 1;
        let bound = turns * (TURN_MS + REQUEST_MAX_MS + 2 * MOVE_MS + START_MS + 4 * STEP_MS);
        let mut asked = 0;
        let (mut calls, mut quiet) = (calls.into_iter(), 0);
        while quiet * STEP_MS < 2 * bound {
            match calls.next() {
                Some((number, takes_ms)) => {
                    for number in [Some(number).filter(|number| *number < asks.len()), busy.then_some(0)].into_iter().flatten() {
                        world.request(number, takes_ms);
                        asked += 1;
                    }
                }
                None => quiet += 1,
            }
            world.act();
            world.pass_time();
        }
        let served: usize = world.functions.values().map(|function| function.served).sum();
        prop_assert_eq!(served, asked);
        prop_assert!(world.waited_ms <= bound, "{} ms of {bound}", world.waited_ms);
    }
}
