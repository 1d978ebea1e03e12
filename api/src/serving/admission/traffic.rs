//! Knative's checks of traffic targets as a user may write them, their defaults filled in. Paths are relative to the
//! object that holds `traffic`.

use std::collections::BTreeMap;

use super::field_error::FieldErrors;
use super::syntax;
use crate::serving::TrafficTarget;

/// Longest label of a host.
const LABEL_MAX: usize = 63;

/// `in_service`: the targets' Configuration is the Service's own, so none may be named.
pub(super) fn targets(targets: &[TrafficTarget], in_service: bool) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sum: i64 = 0;
    for (index, each) in targets.iter().enumerate() {
        errors.add(target(each, in_service).via(&format!("[{index}]")));
        sum = sum.saturating_add(each.percent.unwrap_or(0));
        if each.tag.is_empty() {
            continue;
        }
        let complaints = syntax::dns1035_label(&each.tag);
        if !complaints.is_empty() {
            let value = format!("not a DNS 1035 label: [{}]", complaints.join(" "));
            errors.add(FieldErrors::invalid(value, &format!("tag[{index}]")));
        }
        match tags.get(each.tag.as_str()) {
            Some(first) => {
                let paths = [format!("[{index}].tag"), format!("[{first}].tag")];
                let message = format!("Multiple definitions for {:?}", each.tag);
                errors.add(FieldErrors::new(message, &[&paths[0], &paths[1]]));
            }
            None => {
                tags.insert(&each.tag, index);
            }
        }
    }
    if sum != 100 {
        errors.add(FieldErrors::new(format!("Traffic targets sum to {sum}, want 100"), &[""]));
    }
    errors.via("traffic")
}

/// Tags of a Service or Route of this name that fit into no host: `{tag}-{name}` is a label of it.
pub(super) fn hosts(targets: &[TrafficTarget], name: &str) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (index, TrafficTarget { tag, .. }) in targets.iter().enumerate() {
        let length = tag.len() + 1 + name.len();
        if !tag.is_empty() && length > LABEL_MAX {
            let why = format!(
                "the tag's host begins with {tag}-{name}, which is {length} characters long and may be {LABEL_MAX}"
            );
            errors.add(
                FieldErrors::invalid_because(format!("{tag:?}"), "tag", why).via_index("traffic", index),
            );
        }
    }
    errors
}

fn target(target: &TrafficTarget, in_service: bool) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let named = !target.revision_name.is_empty();
    if let Some(latest) = target.latest_revision.filter(|latest| *latest == named) {
        let message =
            format!("may not set revisionName {:?} when latestRevision is {latest}", target.revision_name);
        errors.add(FieldErrors::new(message, &["latestRevision"]));
    }
    errors.add(whose(target, in_service));
    if let Some(percent) = target.percent.filter(|percent| !(0..=100).contains(percent)) {
        errors.add(FieldErrors::out_of_bounds(percent, 0, 100, "percent"));
    }
    if !target.url.is_empty() {
        errors.add(FieldErrors::disallowed("url"));
    }
    errors
}

fn whose(target: &TrafficTarget, in_service: bool) -> FieldErrors {
    let by_configuration = !target.configuration_name.is_empty();
    let by_revision = !target.revision_name.is_empty();
    match (by_revision, by_configuration) {
        (_, true) if in_service => FieldErrors::disallowed("configurationName"),
        (true, true) => FieldErrors::many_of(&["revisionName", "configurationName"]),
        (true, false) => qualified(&target.revision_name, "revisionName"),
        (false, true) => qualified(&target.configuration_name, "configurationName"),
        (false, false) if in_service => FieldErrors::none(),
        (false, false) => FieldErrors::one_of_missing(&["revisionName", "configurationName"]),
    }
}

fn qualified(name: &str, path: &str) -> FieldErrors {
    let complaints = syntax::qualified_name(name);
    if complaints.is_empty() {
        return FieldErrors::none();
    }
    FieldErrors::invalid_key(name, path, &complaints.join(", "))
}
