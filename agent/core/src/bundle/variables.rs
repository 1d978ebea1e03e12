//! A container's environment variables, and references to them (`$(NAME)`) in values, `command` and `args`: Kubernetes' rules.
//! Knows nothing of the image, whose variables no reference reaches.

use std::collections::BTreeMap;

use tombolo_api::desired::RevisionObject;
use tombolo_api::serving::Container;

/// By name.
pub(super) type Variables = BTreeMap<String, String>;

/// The container's own variables, then those of Knative's runtime contract, as if they stood at the end of its list. A value
/// may refer to the variables before it.
pub(super) fn of_container(object: &RevisionObject, container: &Container) -> Variables {
    let mut known = Variables::new();
    for variable in &container.env {
        let value = expand(&variable.value, &known);
        known.insert(variable.name.clone(), value);
    }
    known.insert("PORT".into(), object.spec.port().to_string());
    known.insert("K_REVISION".into(), object.name.clone());
    known.insert("K_CONFIGURATION".into(), object.configuration.clone());
    known.insert("K_SERVICE".into(), object.service.clone());
    known
}

/// `text` with every `$(NAME)` replaced by the variable's value. `$$` is a `$` that begins no reference; a reference to what
/// is not known stays as it is.
pub(super) fn expand(text: &str, known: &Variables) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            escaped
        } else if let Some((name, behind)) = reference {
            match known.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.extend(["$(", name, ")"]),
            }
            behind
        } else {
            expanded.push('$');
            after
        };
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Variables {
        [("A", "a"), ("B", "b"), ("NESTED", "$(A)"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        for (text, expanded) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("$(A)-$(B)", "a-b"),
            ("x$(A)y", "xay"),
            ("$(EMPTY)!", "!"),
            ("$(NESTED)", "$(A)"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$()", "$()"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("f000-$$A", "f000-$A"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("$(A$(B)", "$(A$(B)"),
            ("$(A))", "a)"),
            ("$?_ü_$ü", "$?_ü_$ü"),
            ("ends in $", "ends in $"),
            ("ends in $$", "ends in $"),
        ] {
            assert_eq!(expand(text, &known()), expanded, "{text:?}");
        }
    }
}
