//! Checks of names, labels and annotations: Kubernetes' before and Knative's after a change reaches Knative. Knows no
//! spec.

use super::field_error::FieldErrors;
use super::{annotations, syntax};
use crate::meta::{ObjectMeta, StatusCause};
use crate::serving::keys::{CREATOR, LAST_MODIFIER};

/// Most bytes all annotations of an object may have, keys and values: Kubernetes' limit.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// What Kubernetes says of any object's metadata, by field.
pub(super) fn kubernetes(meta: &ObjectMeta) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if !meta.generate_name.is_empty() {
        let complaints = syntax::dns1123_subdomain(&syntax::prefix_of(&meta.generate_name));
        causes
            .extend(complaints.iter().map(|why| invalid("metadata.generateName", &meta.generate_name, why)));
    }
    if meta.name.is_empty() {
        causes.push(StatusCause {
            reason: "FieldValueRequired".into(),
            message: "Required value: name or generateName is required".into(),
            field: "metadata.name".into(),
        });
    } else {
        let complaints = syntax::dns1123_subdomain(&meta.name);
        causes.extend(complaints.iter().map(|why| invalid("metadata.name", &meta.name, why)));
    }
    for (key, value) in &meta.labels {
        causes.extend(syntax::qualified_name(key).iter().map(|why| invalid("metadata.labels", key, why)));
        causes.extend(syntax::label_value(value).iter().map(|why| invalid("metadata.labels", value, why)));
    }
    for key in meta.annotations.keys() {
        let complaints = syntax::qualified_name(&key.to_lowercase());
        causes.extend(complaints.iter().map(|why| invalid("metadata.annotations", key, why)));
    }
    let size: usize = meta.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_MAX_BYTES {
        causes.push(StatusCause {
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {ANNOTATIONS_MAX_BYTES} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    causes
}

fn invalid(field: &str, value: &str, why: &str) -> StatusCause {
    let message = format!("Invalid value: {value:?}: {why}");
    StatusCause { reason: "FieldValueInvalid".into(), message, field: field.into() }
}

/// What Knative says of a Service's, Configuration's or Route's metadata; paths are relative to it.
pub(super) fn knative(meta: &ObjectMeta) -> FieldErrors {
    names(meta).also(annotations::no_autoscaling(&meta.annotations).via("annotations"))
}

fn names(meta: &ObjectMeta) -> FieldErrors {
    let listed = |complaints: Vec<String>| format!("[{}]", complaints.join(" "));
    if !meta.generate_name.is_empty() {
        let complaints = syntax::dns1035_label(&syntax::prefix_of(&meta.generate_name));
        if !complaints.is_empty() {
            let message = format!("not a DNS 1035 label prefix: {}", listed(complaints));
            return FieldErrors::new(message, &["generateName"]);
        }
    }
    let complaints = syntax::dns1035_label(&meta.name);
    if complaints.is_empty() {
        return FieldErrors::none();
    }
    FieldErrors::new(format!("not a DNS 1035 label: {}", listed(complaints)), &["name"])
}

/// The name a user gives the next Revision; paths are relative to the template.
pub(super) fn revision_name(template: &ObjectMeta, parent: &str) -> FieldErrors {
    if !template.generate_name.is_empty() {
        let complaints = syntax::dns1035_label(&syntax::prefix_of(&template.generate_name));
        if !complaints.is_empty() {
            let value = format!("not a DNS 1035 label prefix: [{}]", complaints.join(" "));
            return FieldErrors::invalid(value, "metadata.generateName");
        }
    }
    if template.name.is_empty() {
        return FieldErrors::none();
    }
    let complaints = syntax::dns1035_label(&template.name);
    if !complaints.is_empty() {
        let value = format!("not a DNS 1035 label: [{}]", complaints.join(" "));
        return FieldErrors::invalid(value, "metadata.name");
    }
    let prefix = format!("{parent}-");
    if template.name.starts_with(&prefix) {
        return FieldErrors::none();
    }
    FieldErrors::invalid(format!("{:?} must have prefix {prefix:?}", template.name), "metadata.name")
}

/// Who made an object never changes, and who changed it last only with a change of the spec.
pub(super) fn creator_and_modifier(old: &ObjectMeta, new: &ObjectMeta, same_spec: bool) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let text = |meta: &ObjectMeta, key| meta.annotation(key).unwrap_or_default().to_owned();
    if text(old, CREATOR) != text(new, CREATOR) {
        errors.add(FieldErrors::new("annotation value is immutable", &[CREATOR]));
    }
    if same_spec && text(old, LAST_MODIFIER) != text(new, LAST_MODIFIER) {
        errors.add(FieldErrors::invalid(text(new, LAST_MODIFIER), LAST_MODIFIER));
    }
    errors.via("metadata.annotations")
}
