//! From what is desired and what is: the revisions' part of the node's report.

use std::collections::BTreeMap;

use tombolo_api::RevisionKey;
use tombolo_api::desired::{Desired, RevisionObject, RouteObject};
use tombolo_api::report::{
    InstanceReport, Report, RevisionPhase, RevisionReport, RouteReport, ShareReport, TargetReport, Tier,
};

use crate::actual::{Actual, ImageState, InstanceActual, Moment, Phase, RevisionActual, Takeover, Targets};
use crate::annotations::{IdleTier, Scale};
use crate::devices;
use crate::plan;
use crate::rollout::Rollouts;
use crate::supervision::InstanceId;
use crate::table;

/// One entry per desired revision, and per revision that still has instances here.
/// With what the last [plan](crate::plan::Plan) wanted, and why some revisions get less.
pub fn revisions(
    desired: &Desired,
    actual: &Actual,
    wanted: &BTreeMap<RevisionKey, u32>,
    cuts: &BTreeMap<RevisionKey, String>,
    now: Moment,
) -> Vec<RevisionReport> {
    let index = actual.by_revision();
    let mut reports = Vec::new();
    for (key, (digest, object)) in &desired.revisions {
        let known = actual.revisions.get(key).filter(|revision| revision.object == *digest);
        let (mut phase, mut reason, mut message) =
            known.map_or((RevisionPhase::Preparing, String::new(), String::new()), judge);
        let is_up = index.of(key).iter().any(|(_, instance)| instance.phase.is_up());
        if reason.is_empty()
            && !is_up
            && let Some(obstacle) = devices::obstacle(&devices::asked(object), &actual.devices, now)
        {
            if phase == RevisionPhase::Preparing && !obstacle.passes {
                phase = RevisionPhase::Failed;
            }
            (reason, message) = (obstacle.why.reason, obstacle.why.message);
        }
        if let Some(cut) = cuts.get(key).filter(|_| reason.is_empty()) {
            let (word, text) = cut.split_once(": ").unwrap_or(("InsufficientMemory", cut));
            (reason, message) = (word.into(), text.into());
        }
        if reason.is_empty()
            && let Some(why) = known.and_then(|known| unmoved(known, object, index.of(key)))
        {
            (reason, message) = why;
        }
        if reason.is_empty()
            && let Some(caution) = known.and_then(|known| known.caution.clone())
        {
            (reason, message) = (caution.reason, caution.message);
        }
        if reason.is_empty()
            && let Some(why) = plan::not_kept(desired, actual, key)
        {
            (reason, message) = (why.reason, why.message);
        }
        let restarts = known.map_or(0, |revision| revision.crashes.total);
        reports.push(RevisionReport {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            uid: object.uid.clone(),
            phase,
            reason,
            message,
            instances: instances(index.of(key), restarts),
            desired: wanted.get(key).copied().unwrap_or(0),
            timed_out: false,
        });
    }
    reports
}

/// Says of which of these the autoscaler has given up an activation, where nothing else asks for an instance.
pub fn note_timed_out(reports: &mut [RevisionReport], actual: &Actual, targets: &Targets, now: Moment) {
    for report in reports.iter_mut().filter(|report| report.desired == 0) {
        let key = RevisionKey::new(&report.namespace, &report.name);
        let Some(target) = targets.get(&key).filter(|target| target.timed_out) else { continue };
        let Some(known) = actual.revisions.get(&key) else { continue };
        let given_up = plan::given_up_until(known, target, now).is_some();
        // What was not tried yet waits for something, and is told as that.
        report.timed_out = given_up || known.ready_once;
        if given_up {
            report.message.push_str("; ");
            report.message.push_str(TRIED_AGAIN);
        }
    }
}

/// When a revision that was given up before it was ever ready is tried again, for the end of a message.
const TRIED_AGAIN: &str =
    "given up for now: it is tried again at the next request for it, within an hour otherwise";
const _: () = assert!(plan::TRY_AGAIN_MS == 3_600_000, "the message says so");

/// The routes whose traffic moves from one revision to the next, and those where that was undone.
pub fn routes(desired: &Desired, actual: &Actual, rollouts: &Rollouts) -> Vec<RouteReport> {
    let mut reports = rollouts.report(desired);
    for route in desired.routes.values() {
        for target in route.targets.iter().filter(|target| !target.configuration.is_empty()) {
            let undone = target.candidates.iter().find_map(|name| {
                let known = actual.revisions.get(&RevisionKey::new(&route.namespace, name))?;
                let Takeover::Undone(why) = &known.takeover else { return None };
                Some((name, why))
            });
            if let Some((goal, why)) = undone {
                let served = table::choose(&route.namespace, target, desired, actual);
                let report = TargetReport {
                    configuration: target.configuration.clone(),
                    tag: target.tag.clone(),
                    goal: goal.clone(),
                    shares: vec![ShareReport { revision: served.name.to_string(), percent: 100 }],
                    rolled_back: Some(why.clone()),
                };
                add_target(&mut reports, route, report);
            }
        }
    }
    reports
}

fn add_target(reports: &mut Vec<RouteReport>, route: &RouteObject, target: TargetReport) {
    let (namespace, name) = (route.namespace.clone(), route.name.clone());
    let is_it = |report: &RouteReport| report.namespace == namespace && report.name == name;
    let index = reports.iter().position(is_it).unwrap_or_else(|| {
        reports.push(RouteReport { namespace: namespace.clone(), name: name.clone(), targets: Vec::new() });
        reports.len() - 1
    });
    let targets = &mut reports[index].targets;
    targets.retain(|other| (&other.configuration, &other.tag) != (&target.configuration, &target.tag));
    targets.push(target);
}

/// The reason of an image that waits for the hours in which it may be fetched.
pub const PULL_DEFERRED: &str = "PullDeferred";

/// Longest message of a revision in a report that does not fit whole, bytes.
const SHORT_MESSAGE_MAX: usize = 200;

/// `report` as JSON of at most `most` bytes: what a person needs least goes first, and what was left out is said in the
/// node's limitations.
pub fn encode_within(report: &Report, most: usize) -> Vec<u8> {
    let encode = |report: &Report| serde_json::to_vec(report).expect("a report is plain data");
    let whole = encode(report);
    if whole.len() <= most {
        return whole;
    }
    let mut report = report.clone();
    for revision in &mut report.revisions {
        shorten(&mut revision.message, SHORT_MESSAGE_MAX);
    }
    let mut encoded = encode(&report);
    if encoded.len() > most {
        report
            .info
            .limitations
            .push("this node's report is too large for one message and leaves out details".into());
        for revision in &mut report.revisions {
            revision.message.clear();
            revision.instances.clear();
        }
        report.accelerators.iter_mut().for_each(|accelerator| accelerator.held.clear());
        // Those in trouble stay longest.
        report.revisions.sort_by_key(|revision| revision.phase == RevisionPhase::Ready);
        encoded = encode(&report);
    }
    while encoded.len() > most && !report.revisions.is_empty() {
        let keep = report.revisions.len() * 3 / 4;
        report.revisions.truncate(keep);
        encoded = encode(&report);
    }
    if encoded.len() > most {
        report.accelerators.clear();
        encoded = encode(&report);
    }
    encoded
}

fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

fn judge(revision: &RevisionActual) -> (RevisionPhase, String, String) {
    let text = |reason: &String, message: &String| (reason.clone(), message.clone());
    if let (false, Takeover::Undone(why)) = (revision.ready_once, &revision.takeover) {
        return (RevisionPhase::Failed, why.reason.clone(), why.message.clone());
    }
    let trouble = match &revision.image {
        _ if revision.misfit.is_some() => {
            revision.misfit.as_ref().map(|why| (why.reason.clone(), why.message.clone()))
        }
        ImageState::Failed { reason, message, .. } => Some(text(reason, message)),
        _ if revision.crashes.recent > 0 => Some(text(&revision.crashes.reason, &revision.crashes.message)),
        _ => None,
    };
    match (revision.ready_once, trouble) {
        (true, None) => (RevisionPhase::Ready, String::new(), String::new()),
        (true, Some((reason, message))) => (RevisionPhase::Ready, reason, message),
        (false, None) => (RevisionPhase::Preparing, String::new(), String::new()),
        // It waits, and nothing is wrong.
        (false, Some((reason, message))) if reason == PULL_DEFERRED => {
            (RevisionPhase::Preparing, reason, message)
        }
        (false, Some((reason, message))) => (RevisionPhase::Failed, reason, message),
    }
}

/// Why instances are not suspended as their revision asks for, or do not come back.
fn unmoved(
    known: &RevisionActual,
    object: &RevisionObject,
    instances: &[(&InstanceId, &InstanceActual)],
) -> Option<(String, String)> {
    let delayed = instances.iter().find_map(|(_, instance)| {
        let delay = instance.delayed.as_ref()?;
        match instance.phase {
            Phase::Suspended | Phase::Restoring => Some(("NotRestored".into(), delay.why.clone())),
            Phase::Draining | Phase::Suspending => Some(("NotSuspended".into(), delay.why.clone())),
            _ => None,
        }
    });
    let cannot = || {
        let why = known.cannot_suspend.as_ref()?;
        let message = format!("it ends when it is idle, and begins anew: it cannot be suspended here: {why}");
        (Scale::of(&object.annotations).tier == IdleTier::Suspended).then(|| ("NotSuspended".into(), message))
    };
    delayed.or_else(cannot)
}

fn instances(instances: &[(&InstanceId, &InstanceActual)], restarts: u32) -> Vec<InstanceReport> {
    let report = |(id, instance): &(&InstanceId, &InstanceActual)| {
        let tier = tier(&instance.phase)?;
        Some(InstanceReport { id: id.0.clone(), tier, pid: instance.pid, restarts })
    };
    instances.iter().filter_map(report).collect()
}

/// The tier of an instance in `phase`; `None` while there is none, or none any more.
pub fn tier(phase: &Phase) -> Option<Tier> {
    match phase {
        Phase::Launching | Phase::Probing | Phase::Thawing | Phase::Restoring => Some(Tier::Starting),
        Phase::Ready => Some(Tier::Running),
        Phase::Draining | Phase::Stopping { .. } => Some(Tier::Stopping),
        Phase::Primed => Some(Tier::Primed),
        Phase::Freezing | Phase::Frozen => Some(Tier::Frozen),
        Phase::Suspending | Phase::Suspended => Some(Tier::Suspended),
        Phase::Priming | Phase::Ended { .. } | Phase::Deleting => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(revisions: usize, message: &str) -> Report {
        let revision = |number: usize| RevisionReport {
            namespace: "default".into(),
            name: format!("r-{number:05}"),
            uid: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
            phase: if number == 7 { RevisionPhase::Failed } else { RevisionPhase::Ready },
            reason: "X".into(),
            message: message.into(),
            instances: vec![],
            desired: 0,
            timed_out: false,
        };
        Report { revisions: (0..revisions).map(revision).collect(), ..Report::default() }
    }

    #[test]
    fn a_report_that_fits_is_sent_as_it_is() {
        let report = report(10, "all is said");
        let read: Report = serde_json::from_slice(&encode_within(&report, 10_000)).unwrap();
        assert_eq!(read, report);
    }

    #[test]
    fn long_messages_go_before_revisions_and_trouble_goes_last() {
        let long = "ä".repeat(2_000);
        let read: Report = serde_json::from_slice(&encode_within(&report(100, &long), 60_000)).unwrap();
        assert_eq!(read.revisions.len(), 100);
        let encoded = encode_within(&report(1_000, &long), 20_000);
        assert!(encoded.len() <= 20_000);
        let read: Report = serde_json::from_slice(&encoded).unwrap();
        assert!(read.revisions.iter().any(|revision| revision.phase == RevisionPhase::Failed));
        assert_eq!(read.info.limitations.len(), 1);
    }
}
