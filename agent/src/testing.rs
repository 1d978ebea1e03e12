//! What tests of several edges begin with.

use tombolo_api::report::{InstanceReport, Report, RevisionPhase, RevisionReport, Tier};

/// The report of a node with one revision, `default/s-00001`, that has these instances.
pub(crate) fn report_of(instances: &[(&str, Tier)]) -> Report {
    let instance =
        |(id, tier): &(&str, Tier)| InstanceReport { id: (*id).into(), tier: *tier, pid: 1, restarts: 0 };
    let instances: Vec<_> = instances.iter().map(instance).collect();
    let revision = RevisionReport {
        namespace: "default".into(),
        name: "s-00001".into(),
        uid: String::new(),
        phase: RevisionPhase::Ready,
        reason: String::new(),
        message: String::new(),
        desired: u32::try_from(instances.len()).expect("a few"),
        timed_out: false,
        instances,
    };
    Report { revisions: vec![revision], ..Report::default() }
}
