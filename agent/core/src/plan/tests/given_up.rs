//! A revision that has never been ready and was given up by the autoscaler.

use tombolo_api::report::RevisionPhase;

use super::*;
use crate::status;

const LATER: Moment = Moment(NOW.0 + 1_000);

/// One revision that came to nothing twice, and what the autoscaler says of it, with a route to it or without.
fn failed(annotations: &[(&str, &str)], is_routed: bool) -> (Desired, Actual, Targets) {
    let objects = [object("s-00001", annotations)];
    let (desired, mut actual) = if is_routed { given_routed(&objects) } else { given(&objects) };
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    let (reason, message) = ("ProgressDeadlineExceeded".into(), "it is deaf".into());
    known.crashes = Crashes { total: 2, recent: 2, retry_at: NOW, reason, message };
    let targets = [(key("s-00001"), Target { want: 0, at: NOW, timed_out: true })].into();
    (desired, actual, targets)
}

fn launches(plan: &Plan) -> usize {
    plan.actions.iter().filter(|action| matches!(action, Action::Launch { .. })).count()
}

#[test]
fn what_was_given_up_ends_and_is_let_alone_until_a_request_comes_or_an_hour_has_passed() {
    let (desired, mut actual, targets) = failed(&[], true);
    let digest = desired.revisions[&key("s-00001")].0;
    let silence = Traffic::default();
    let rests = targeted(&desired, &actual, &silence, &targets, LATER);
    let again = NOW.after(TRY_AGAIN_MS);
    assert_eq!((rests.actions.as_slice(), rests.wake), (&[][..], Some((again, WakeReason::TryAgain))));
    assert_eq!(rests.wanted, BTreeMap::new());
    for (traffic, at) in [(with_demand("s-00001", 0, 1, LATER), LATER), (silence.clone(), again)] {
        let tried = targeted(&desired, &actual, &traffic, &targets, at);
        assert_eq!((launches(&tried), tried.wanted[&key("s-00001")]), (1, 1), "at {at:?}");
    }
    let id = InstanceId("i".into());
    actual.instances.insert(id.clone(), instance("s-00001", digest, Phase::Probing));
    let ends = targeted(&desired, &actual, &silence, &targets, LATER);
    assert_eq!(ends.actions, [Action::Terminate { instance: id }]);
}

#[test]
fn only_what_was_tried_is_given_up() {
    let (desired, actual, targets) = failed(&[], true);
    let planned = |change: fn(&mut RevisionActual), targets: &Targets| {
        let mut actual = actual.clone();
        change(actual.revisions.get_mut(&key("s-00001")).unwrap());
        launches(&targeted(&desired, &actual, &Traffic::default(), targets, LATER))
    };
    assert_eq!(planned(|_| {}, &targets), 0);
    // It had no room, or its object has just come.
    assert_eq!(planned(|known| known.crashes = Crashes::default(), &targets), 1);
    assert_eq!(planned(|_| {}, &Targets::new()), 1);
    assert_eq!(planned(|_| {}, &asking(&desired, 0, NOW)), 1);
}

#[test]
fn who_asks_for_instances_whatever_the_traffic_has_them_tried_where_a_route_leads_there() {
    let least = [("autoscaling.knative.dev/min-scale", "2"), (keys::IDLE_TIER, "running")];
    for asked in least {
        for (is_routed, tried) in [(true, 1), (false, 0)] {
            let (desired, actual, targets) = failed(&[asked], is_routed);
            let plan = targeted(&desired, &actual, &Traffic::default(), &targets, LATER);
            assert_eq!(launches(&plan), tried, "{asked:?}, routed: {is_routed}");
        }
    }
}

#[test]
fn the_report_says_what_is_given_up_and_when_it_is_tried_again() {
    let (desired, mut actual, targets) = failed(&[], true);
    let told = |actual: &Actual, traffic: &Traffic, targets: &Targets| {
        let Plan { wanted, cuts, .. } = targeted(&desired, actual, traffic, targets, LATER);
        let mut reports = status::revisions(&desired, actual, &wanted, &cuts, LATER);
        status::note_timed_out(&mut reports, actual, targets, LATER);
        let report = reports.remove(0);
        (report.timed_out, report.phase, report.message)
    };
    let silence = Traffic::default();
    let (timed_out, phase, message) = told(&actual, &silence, &targets);
    assert_eq!((timed_out, phase), (true, RevisionPhase::Failed));
    assert!(message.starts_with("it is deaf; given up for now: it is tried again at the next"), "{message}");
    let tried = (false, RevisionPhase::Failed, "it is deaf".to_owned());
    assert_eq!(told(&actual, &with_demand("s-00001", 0, 1, LATER), &targets), tried);
    assert_eq!(told(&actual, &silence, &Targets::new()), tried);
    // One that was ready before is inactive for that reason, and any request tries it again.
    let known = actual.revisions.get_mut(&key("s-00001")).unwrap();
    (known.ready_once, known.crashes) = (true, Crashes::default());
    assert_eq!(told(&actual, &silence, &targets), (true, RevisionPhase::Ready, String::new()));
}
