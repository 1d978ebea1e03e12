//! The autoscaler's task: takes a sample of every revision that has instances or requests once a second, lets
//! `tombolo_agent_core::autoscale` decide, and says how many instances each should have.
//!
//! Takes: the accepted desired state, the route table, the report (what runs), the router's counts, a poke when a request is
//! held, the router's word that a request changes the next decision. Gives: targets, and decisions for those who look. Must not
//! know how instances are made; bounds by the node's memory are the planner's.
//!
//! A revision at rest has no scaler and costs nothing; while all are at rest this task sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tombolo_agent_core::actual::{Moment, Target, Targets};
use tombolo_agent_core::autoscale::parameters::{Defaults, Parameters};
use tombolo_agent_core::autoscale::scaler::{Decision, Observed, Sample, Scaler};
use tombolo_agent_core::autoscale::{SAMPLE_MS, TICK_MS};
use tombolo_agent_core::limits;
use tombolo_agent_core::routes::RouteTable;
use tombolo_api::report::{Report, RevisionPhase, Tier};
use tombolo_api::{Digest, RevisionKey};
use tombolo_router::{Meter, RevisionMeter};

use crate::accepted::Accepted;
use crate::clock::Clock;

/// What the task works with.
pub(crate) struct Autoscale {
    pub(crate) accepted: watch::Receiver<Option<Arc<Accepted>>>,
    pub(crate) table: watch::Receiver<Arc<RouteTable>>,
    pub(crate) report: watch::Receiver<Report>,
    pub(crate) meter: Arc<Meter>,
    /// A request is held.
    pub(crate) poke: Arc<Notify>,
    pub(crate) targets: watch::Sender<Arc<Targets>>,
    /// Of revisions that are not at rest, to be shown.
    pub(crate) decisions: watch::Sender<BTreeMap<RevisionKey, Decision>>,
    pub(crate) clock: Clock,
    pub(crate) defaults: Defaults,
}

/// The least that a sample spans, milliseconds. Two ticks may be close to each other, the first one after a rest to anything:
/// one request in a microsecond is a million a second.
const SPAN_MIN_MS: u64 = SAMPLE_MS / 2;

/// One revision that is not at rest.
struct Scaled {
    object: Digest,
    scaler: Scaler,
    /// Between decisions: Knative's, or the stable window if that is shorter.
    tick_ms: u64,
    decide_at: Moment,
    decided_at: Moment,
    /// Counts at the last sample, or when it woke, and when that was.
    last: Option<RevisionMeter>,
    sampled_at: Moment,
}

/// One revision that is at rest again.
struct Rested {
    since: Moment,
    /// Which object was given up, and when.
    gave_up: Option<(Digest, Moment)>,
}

/// What runs of a revision.
#[derive(Clone, Copy, Default)]
struct Running {
    ready: u32,
    started: u32,
    ready_once: bool,
}

impl Autoscale {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let (mut scaled, mut rested) = (BTreeMap::new(), BTreeMap::new());
        let mut samples = ticks(Duration::from_millis(SAMPLE_MS));
        loop {
            let awake = !scaled.is_empty();
            tokio::select! {
                changed = self.accepted.changed() => {
                    if changed.is_err() { return }
                    self.follow(&mut scaled, &mut rested);
                }
                changed = self.report.changed() => {
                    if changed.is_err() { return }
                    self.follow(&mut scaled, &mut rested);
                }
                _ = samples.tick(), if awake => {
                    self.sample(&mut scaled);
                    self.follow(&mut scaled, &mut rested);
                }
                () = self.meter.crowded() => self.look(&mut scaled),
                () = self.poke.notified() => {
                    self.follow(&mut scaled, &mut rested);
                    self.look(&mut scaled);
                }
            }
            self.listen(&mut scaled);
            self.publish(&scaled, &rested);
        }
    }

    /// Brings the scalers in line with what is desired and what runs. Of those that are at rest it says since when: a request that
    /// woke a frozen instance may be over before anyone looks.
    fn follow(
        &mut self,
        scaled: &mut BTreeMap<RevisionKey, Scaled>,
        rested: &mut BTreeMap<RevisionKey, Rested>,
    ) {
        let now = self.clock.now();
        let Some(accepted) = self.accepted.borrow_and_update().clone() else { return scaled.clear() };
        let running = running(&self.report.borrow_and_update());
        let held = self.meter.traffic(|instant| self.clock.moment(instant)).revisions;
        for (key, (digest, object)) in &accepted.desired.revisions {
            let runs = running.get(key).copied().unwrap_or_default();
            let waits = held.get(key).is_some_and(|demand| demand.held > 0);
            let parameters = || {
                let concurrency = limits::container_concurrency(object);
                Parameters::of(&object.annotations, concurrency, &self.defaults)
            };
            match scaled.get_mut(key) {
                // What was given up is another one.
                Some(one) if one.object != *digest && one.scaler.decision().activity.is_timed_out() => {
                    let last = self.meter.revision(key);
                    *one = Scaled::new(*digest, parameters(), runs, last, now);
                }
                Some(one) if one.object != *digest => {
                    let parameters = parameters();
                    one.object = *digest;
                    one.scaler.reconfigure(parameters, now);
                }
                Some(_) => {}
                None if runs.started > 0 || waits || self.was_called_since(key, rested) => {
                    rested.remove(key);
                    let last = self.meter.revision(key);
                    scaled.insert(key.clone(), Scaled::new(*digest, parameters(), runs, last, now));
                }
                None => {}
            }
        }
        scaled.retain(|key, one| {
            let runs = running.get(key).copied().unwrap_or_default();
            let waits = held.get(key).is_some_and(|demand| demand.held > 0);
            let at_rest = one.scaler.is_at_rest() && runs.started == 0 && !waits;
            let stays = accepted.desired.revisions.contains_key(key) && !at_rest;
            if !stays {
                self.meter.set_calm(key, None);
                let gave_up = one.scaler.decision().activity.is_timed_out();
                let gave_up = gave_up.then_some((one.object, one.decided_at));
                rested.insert(key.clone(), Rested { since: now, gave_up });
            }
            stays
        });
        rested.retain(|key, rest| {
            let Some((digest, _)) = accepted.desired.revisions.get(key) else { return false };
            rest.gave_up = rest.gave_up.filter(|(object, _)| object == digest);
            true
        });
    }

    fn was_called_since(&self, key: &RevisionKey, rested: &BTreeMap<RevisionKey, Rested>) -> bool {
        let Some(Rested { since, .. }) = rested.get(key) else { return false };
        let last = self.meter.revision(key).and_then(|meter| meter.last_activity);
        last.is_some_and(|instant| self.clock.moment(instant) > *since)
    }

    /// A second has passed.
    fn sample(&self, scaled: &mut BTreeMap<RevisionKey, Scaled>) {
        let now = self.clock.now();
        let running = running(&self.report.borrow());
        let table = self.table.borrow().clone();
        let reachable = table.routed();
        for (key, one) in scaled {
            let meter = self.meter.revision(key);
            let came = meter.as_ref().and_then(|meter| meter.last_activity);
            let came = came.map(|instant| self.clock.moment(instant));
            let held = meter.as_ref().is_some_and(|meter| meter.held > 0);
            if let Some(sample) = one.sample(meter, now) {
                one.scaler.record(now, sample);
            }
            if now >= one.decide_at {
                one.wake(held, came, now);
                let ready = running.get(key).map_or(0, |running| running.ready);
                let reachable = reachable.contains(key);
                one.decide(Observed { ready, reachable }, now);
            }
        }
    }

    /// Requests that wait, and those of revisions that react fast, count at once.
    fn look(&self, scaled: &mut BTreeMap<RevisionKey, Scaled>) {
        let running = running(&self.report.borrow());
        for (key, one) in scaled {
            let Some(meter) = self.meter.revision(key) else { continue };
            let ready = running.get(key).map_or(0, |running| running.ready);
            self.look_at(key, one, &meter, ready);
        }
    }

    fn look_at(&self, key: &RevisionKey, one: &mut Scaled, meter: &RevisionMeter, ready: u32) {
        let now = self.clock.now();
        let demand = requests(meter);
        if let Some(Decision { want, .. }) =
            one.scaler.decide_now(now, demand, Observed { ready, reachable: true })
        {
            tracing::debug!(%key, demand, want, "requests ask for more instances");
            one.decided_at = now;
        }
        let came = meter.last_activity.map(|instant| self.clock.moment(instant));
        one.wake(meter.held > 0, came, now);
    }

    /// Has the router tell of the next request that changes a decision: what is decided at requests is bounded by what there is
    /// to decide.
    fn listen(&self, scaled: &mut BTreeMap<RevisionKey, Scaled>) {
        let running = running(&self.report.borrow());
        for (key, one) in scaled {
            let ready = running.get(key).map_or(0, |running| running.ready);
            let calm = one.scaler.calm_up_to(Observed { ready, reachable: true });
            self.meter.set_calm(key, calm);
            let Some(calm) = calm else { continue };
            // Requests that came between the decision and now were not told of.
            if let Some(meter) = self.meter.revision(key).filter(|meter| requests(meter) > calm) {
                self.look_at(key, one, &meter, ready);
                self.meter.set_calm(key, one.scaler.calm_up_to(Observed { ready, reachable: true }));
            }
        }
    }

    fn publish(&self, scaled: &BTreeMap<RevisionKey, Scaled>, rested: &BTreeMap<RevisionKey, Rested>) {
        let decisions = scaled.iter().map(|(key, one)| (key.clone(), one.scaler.decision()));
        self.decisions.send_replace(decisions.collect());
        let target = |one: &Scaled| {
            let Decision { want, activity, .. } = one.scaler.decision();
            Target { want, at: one.decided_at, timed_out: activity.is_timed_out() }
        };
        let given_up = rested.iter().filter_map(|(key, rest)| {
            let (_, at) = rest.gave_up?;
            Some((key.clone(), Target { want: 0, at, timed_out: true }))
        });
        let targets: Targets =
            scaled.iter().map(|(key, one)| (key.clone(), target(one))).chain(given_up).collect();
        self.targets.send_if_modified(|current| {
            let changed = **current != targets;
            if changed {
                *current = Arc::new(targets);
            }
            changed
        });
    }
}

impl Scaled {
    fn new(
        object: Digest,
        parameters: Parameters,
        runs: Running,
        last: Option<RevisionMeter>,
        now: Moment,
    ) -> Self {
        let tick_ms = parameters.stable_window_ms.min(TICK_MS);
        Self {
            object,
            tick_ms,
            // What is on its way to serve counts: an agent that was started again stops nothing.
            scaler: Scaler::new(parameters, runs.started, runs.ready_once, now),
            decide_at: now.after(tick_ms),
            // Of the requests that are here nothing is known yet.
            decided_at: Moment::default(),
            last,
            sampled_at: now,
        }
    }

    /// `None`: it is too soon, and the next sample covers this time as well.
    fn sample(&mut self, meter: Option<RevisionMeter>, now: Moment) -> Option<Sample> {
        if now.since(self.sampled_at) < SPAN_MIN_MS {
            return None;
        }
        let span = meter.as_ref().zip(self.last.as_ref()).map(|(meter, last)| meter.since(last));
        (self.last, self.sampled_at) = (meter, now);
        Some(span.map_or_else(Sample::default, |span| Sample {
            average_concurrency: span.concurrency,
            requests_per_second: span.rate(),
        }))
    }

    /// A request that came after it was decided to go to zero wakes it, though it may be over by now.
    fn wake(&mut self, held: bool, last_request: Option<Moment>, now: Moment) {
        let came = held || last_request.is_some_and(|last| last > self.decided_at);
        if came && self.scaler.decision().want == 0 {
            self.scaler.poke(now);
            self.decided_at = now;
        }
    }

    fn decide(&mut self, observed: Observed, now: Moment) {
        self.scaler.decide(now, observed);
        self.decided_at = now;
        // Samples come a little late; the next decision must not slip to the one after.
        self.decide_at = now.after(self.tick_ms - SAMPLE_MS / 2);
    }
}

/// Requests of a revision that are here, waiting ones included.
fn requests(meter: &RevisionMeter) -> u32 {
    u32::try_from(meter.held + meter.in_flight).unwrap_or(u32::MAX)
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn running(report: &Report) -> BTreeMap<RevisionKey, Running> {
    let mut all = BTreeMap::new();
    for revision in &report.revisions {
        let tiers = || revision.instances.iter().map(|instance| instance.tier);
        let ready = tiers().filter(|tier| *tier == Tier::Running).count() as u32;
        let starting = tiers().filter(|tier| *tier == Tier::Starting).count() as u32;
        if ready + starting > 0 || revision.phase == RevisionPhase::Ready {
            let ready_once = revision.phase == RevisionPhase::Ready;
            let key = RevisionKey::new(&revision.namespace, &revision.name);
            all.insert(key, Running { ready, started: ready + starting, ready_once });
        }
    }
    all
}

#[cfg(test)]
mod tests;
