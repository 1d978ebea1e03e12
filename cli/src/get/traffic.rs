//! Which revisions get requests, and under which tags: routes know, and a table of revisions shows it, as kn's does.

use serde_json::{Value, json};

use crate::fields::{items, number, text};

/// Where the table finds what [`with_shares`] adds.
pub(super) const PERCENT: &str = "/traffic/percent";
pub(super) const TAGS: &str = "/traffic/tags";

/// The revisions, each with its part of the traffic of all routes of its namespace.
pub(super) fn with_shares(revisions: &[Value], routes: &[Value]) -> Vec<Value> {
    let shared = |revision: &Value| {
        let (namespace, name) = (text(revision, "/metadata/namespace"), text(revision, "/metadata/name"));
        let (mut percent, mut tags) = (0, Vec::new());
        for route in routes.iter().filter(|route| text(route, "/metadata/namespace") == namespace) {
            for target in items(route, "/status/traffic") {
                if text(target, "/revisionName") == name {
                    percent += number(target, "/percent").unwrap_or(0);
                    tags.extend(Some(text(target, "/tag")).filter(|tag| !tag.is_empty()));
                }
            }
        }
        let percent = if percent > 0 { format!("{percent}%") } else { String::new() };
        let mut revision = revision.clone();
        revision["traffic"] = json!({"percent": percent, "tags": tags.join(",")});
        revision
    };
    revisions.iter().map(shared).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_has_its_share_and_its_tags() {
        let revision =
            |namespace: &str, name: &str| json!({"metadata": {"namespace": namespace, "name": name}});
        let routes = [json!({"metadata": {"namespace": "n", "name": "a"}, "status": {"traffic": [
            {"revisionName": "a-1", "percent": 90},
            {"revisionName": "a-2", "percent": 10, "tag": "canary"},
            {"revisionName": "a-2", "percent": 0, "tag": "next"},
        ]}})];
        let revisions =
            [revision("n", "a-1"), revision("n", "a-2"), revision("n", "a-3"), revision("m", "a-1")];
        let shown: Vec<_> = with_shares(&revisions, &routes)
            .iter()
            .map(|revision| (text(revision, PERCENT).to_owned(), text(revision, TAGS).to_owned()))
            .collect();
        let expected = [("90%", ""), ("10%", "canary,next"), ("", ""), ("", "")];
        assert_eq!(shown, expected.map(|(percent, tags)| (percent.to_owned(), tags.to_owned())));
    }
}
