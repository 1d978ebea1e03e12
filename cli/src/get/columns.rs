//! The columns of each kind's table: kubectl's for Knative's kinds, with more where a table may be wide.
//!
//! Must not know where the resources come from.

use serde_json::Value;
use time::OffsetDateTime;

use super::traffic;
use crate::accelerators;
use crate::fields::{self, condition, conditions, items, number, text};
use crate::kinds::Kind;
use crate::output;

/// Longest list of labels in a table that is not wide, characters.
const LABELS_WIDTH_MAX: usize = 40;

/// One column: its title, whether only a wide table has it, and what stands in it.
type Column = (&'static str, Width, fn(&Value, OffsetDateTime) -> String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Always,
    Wide,
}

use Width::{Always, Wide};

const SERVICE: &[Column] = &[
    ("NAME", Always, name),
    ("URL", Always, url),
    ("LATESTCREATED", Always, |o, _| text(o, "/status/latestCreatedRevisionName").into()),
    ("LATESTREADY", Always, |o, _| text(o, "/status/latestReadyRevisionName").into()),
    ("READY", Always, ready),
    ("REASON", Always, reason),
    ("CONDITIONS", Wide, |o, _| summary(o)),
    ("TRAFFIC", Wide, |o, _| split(o)),
    ("IMAGE", Wide, |o, _| text(o, "/spec/template/spec/containers/0/image").into()),
    ("AGE", Wide, age),
];

const CONFIGURATION: &[Column] = &[
    ("NAME", Always, name),
    ("LATESTCREATED", Always, |o, _| text(o, "/status/latestCreatedRevisionName").into()),
    ("LATESTREADY", Always, |o, _| text(o, "/status/latestReadyRevisionName").into()),
    ("READY", Always, ready),
    ("REASON", Always, reason),
    ("IMAGE", Wide, |o, _| text(o, "/spec/template/spec/containers/0/image").into()),
    ("AGE", Wide, age),
];

const REVISION: &[Column] = &[
    ("NAME", Always, name),
    ("CONFIG NAME", Always, |o, _| text(o, "/metadata/labels/serving.knative.dev~1configuration").into()),
    ("GENERATION", Always, |o, _| {
        text(o, "/metadata/labels/serving.knative.dev~1configurationGeneration").into()
    }),
    ("TRAFFIC", Always, |o, _| text(o, traffic::PERCENT).into()),
    ("TAGS", Always, |o, _| text(o, traffic::TAGS).into()),
    ("READY", Always, ready),
    ("REASON", Always, reason),
    ("ACTUAL REPLICAS", Always, |o, _| count(o, "/status/actualReplicas")),
    ("DESIRED REPLICAS", Always, |o, _| count(o, "/status/desiredReplicas")),
    ("CONDITIONS", Wide, |o, _| summary(o)),
    ("IMAGE", Wide, |o, _| revision_image(o).into()),
    ("AGE", Wide, age),
];

const ROUTE: &[Column] = &[
    ("NAME", Always, name),
    ("URL", Always, url),
    ("READY", Always, ready),
    ("REASON", Always, reason),
    ("TRAFFIC", Wide, |o, _| split(o)),
    ("AGE", Wide, age),
];

const NODE: &[Column] = &[
    ("NAME", Always, name),
    ("READY", Always, ready),
    ("LABELS", Always, |o, _| shortened(&own_labels(fields::pairs(o, "/status/info/labels")).join(","))),
    ("VERSION", Always, |o, _| text(o, "/status/info/agentVersion").into()),
    ("AGE", Always, age),
    ("ADDRESS", Always, |o, _| text(o, "/status/info/address").into()),
    ("GENERATION", Always, |o, _| count(o, "/status/serving/generation")),
    ("PULLING", Always, |o, _| fields::pulling(items(o, "/status/pulls"))),
    ("REASON", Wide, reason),
    ("ACCELERATORS", Wide, |o, _| accelerators::summary(o)),
    ("ARCH", Wide, |o, _| text(o, "/status/info/architecture").into()),
    ("OS IMAGE", Wide, |o, _| text(o, "/status/info/osImage").into()),
    ("KERNEL", Wide, |o, _| text(o, "/status/info/kernelVersion").into()),
    ("ALL LABELS", Wide, |o, _| fields::pairs(o, "/status/info/labels").join(",")),
];

const NAMESPACE: &[Column] = &[
    ("NAME", Always, name),
    ("STATUS", Always, |o, _| text(o, "/status/phase").into()),
    ("AGE", Always, age),
    ("LABELS", Wide, |o, _| own_labels(fields::pairs(o, "/metadata/labels")).join(",")),
];

/// The table of `objects`, which are all of one kind.
pub(super) fn table(
    kind: Kind,
    objects: &[Value],
    with_namespace: bool,
    wide: bool,
    now: OffsetDateTime,
) -> String {
    let columns = match kind {
        Kind::Service => SERVICE,
        Kind::Configuration => CONFIGURATION,
        Kind::Revision => REVISION,
        Kind::Route => ROUTE,
        Kind::Node => NODE,
        Kind::Namespace => NAMESPACE,
    };
    let shown: Vec<&Column> = columns.iter().filter(|(_, width, _)| wide || *width == Always).collect();
    let namespace = with_namespace.then_some("NAMESPACE");
    let head: Vec<&str> = namespace.into_iter().chain(shown.iter().map(|(title, _, _)| *title)).collect();
    let row = |object: &Value| {
        let namespace = with_namespace.then(|| text(object, "/metadata/namespace").to_owned());
        namespace.into_iter().chain(shown.iter().map(|(_, _, cell)| cell(object, now))).collect()
    };
    output::table(&head, &objects.iter().map(row).collect::<Vec<_>>())
}

fn name(object: &Value, _: OffsetDateTime) -> String {
    text(object, "/metadata/name").into()
}

fn url(object: &Value, _: OffsetDateTime) -> String {
    text(object, "/status/url").into()
}

fn age(object: &Value, now: OffsetDateTime) -> String {
    fields::age(text(object, "/metadata/creationTimestamp"), now)
}

fn ready(object: &Value, _: OffsetDateTime) -> String {
    condition(object, "Ready").map_or("Unknown", |ready| ready.status).into()
}

fn reason(object: &Value, _: OffsetDateTime) -> String {
    condition(object, "Ready").map_or("", |ready| ready.reason).into()
}

fn count(object: &Value, pointer: &str) -> String {
    number(object, pointer).map(|number| number.to_string()).unwrap_or_default()
}

/// `2 OK / 3`, as kn writes it.
fn summary(object: &Value) -> String {
    let conditions = conditions(object);
    let good = conditions.iter().filter(|condition| condition.status == "True").count();
    format!("{good} OK / {}", conditions.len())
}

/// `90% hello-00001,10% hello-00002#next`
fn split(object: &Value) -> String {
    let share = |target: &Value| {
        let (percent, tag) = (number(target, "/percent").unwrap_or(0), text(target, "/tag"));
        let tag = if tag.is_empty() { String::new() } else { format!("#{tag}") };
        format!("{percent}% {}{tag}", text(target, "/revisionName"))
    };
    items(object, "/status/traffic").iter().map(share).collect::<Vec<_>>().join(",")
}

/// By digest where that is known.
fn revision_image(object: &Value) -> &str {
    match text(object, "/status/containerStatuses/0/imageDigest") {
        "" => text(object, "/spec/containers/0/image"),
        pinned => pinned,
    }
}

/// Labels a person gave; those that everything of a kind has say nothing in a short table.
fn own_labels(pairs: Vec<String>) -> Vec<String> {
    pairs.into_iter().filter(|pair| !pair.starts_with("kubernetes.io/")).collect()
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= LABELS_WIDTH_MAX {
        return text.to_owned();
    }
    let kept: String = text.chars().take(LABELS_WIDTH_MAX - 1).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW_S: i64 = 1_800_000_000;

    fn printed(kind: Kind, objects: &[Value], with_namespace: bool, wide: bool) -> String {
        table(kind, objects, with_namespace, wide, OffsetDateTime::from_unix_timestamp(NOW_S).unwrap())
    }

    fn service() -> Value {
        json!({
            "metadata": {"name": "hello", "namespace": "default", "creationTimestamp": "2027-01-15T07:59:00Z"},
            "spec": {"template": {"spec": {"containers": [{"image": "hub.tombolo/default/hello@sha256:00"}]}}},
            "status": {
                "url": "http://hello.default.localhost:8080",
                "latestCreatedRevisionName": "hello-00002",
                "latestReadyRevisionName": "hello-00001",
                "traffic": [{"percent": 100, "revisionName": "hello-00001"}, {"revisionName": "hello-00002", "tag": "next"}],
                "conditions": [
                    {"type": "ConfigurationsReady", "status": "False", "reason": "RevisionFailed"},
                    {"type": "Ready", "status": "False", "reason": "RevisionFailed"},
                    {"type": "RoutesReady", "status": "True"},
                ],
            },
        })
    }

    #[test]
    fn services_have_kubectls_columns() {
        assert_eq!(
            printed(Kind::Service, &[service()], false, false),
            "NAME    URL                                   LATESTCREATED   LATESTREADY   READY   REASON\n\
             hello   http://hello.default.localhost:8080   hello-00002     hello-00001   False   RevisionFailed\n"
        );
    }

    #[test]
    fn wide_and_all_namespaces_add_columns() {
        let table = printed(Kind::Service, &[service()], true, true);
        let (head, row) = table.split_once('\n').unwrap();
        assert!(head.starts_with("NAMESPACE   NAME"), "{head}");
        assert!(head.ends_with("AGE"), "{head}");
        assert!(row.starts_with("default     hello"), "{row}");
        for cell in
            ["1 OK / 3", "100% hello-00001,0% hello-00002#next", "hub.tombolo/default/hello@sha256:00", "60s"]
        {
            assert!(row.contains(cell), "{cell}: {row}");
        }
    }

    #[test]
    fn revisions_show_their_configuration_and_replicas() {
        let revision = json!({
            "metadata": {"name": "hello-00001", "labels": {"serving.knative.dev/configuration": "hello",
                "serving.knative.dev/configurationGeneration": "1"}},
            "status": {"actualReplicas": 0, "desiredReplicas": 1, "conditions": [{"type": "Ready", "status": "True"}]},
            "traffic": {"percent": "10%", "tags": "canary"},
        });
        assert_eq!(
            printed(Kind::Revision, &[revision], false, false),
            "NAME          CONFIG NAME   GENERATION   TRAFFIC   TAGS     READY   REASON   ACTUAL REPLICAS   DESIRED REPLICAS\n\
             hello-00001   hello         1            10%       canary   True             0                 1\n"
        );
    }

    #[test]
    fn nodes_show_only_the_labels_people_gave() {
        let node = json!({
            "metadata": {"name": "press-7", "creationTimestamp": "2027-01-15T06:00:00Z"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "serving": {"generation": 4, "epoch": 1},
                "pulls": [{"image": "hub.tombolo/a@sha256:0", "doneBytes": 30, "totalBytes": 120, "sinceS": 1}],
                "info": {"agentVersion": "0.1.0", "address": "10.0.0.7:8080",
                    "labels": {"kubernetes.io/arch": "amd64", "line": "3"}},
            },
        });
        assert_eq!(
            printed(Kind::Node, &[node], false, false),
            "NAME      READY   LABELS   VERSION   AGE    ADDRESS         GENERATION   PULLING\n\
             press-7   True    line=3   0.1.0     120m   10.0.0.7:8080   4            25%\n"
        );
    }

    #[test]
    fn namespaces_show_only_the_labels_people_gave() {
        let namespace = json!({
            "metadata": {"name": "line-3", "creationTimestamp": "2027-01-15T07:59:00Z",
                "labels": {"kubernetes.io/metadata.name": "line-3", "hall": "2"}},
            "status": {"phase": "Active"},
        });
        assert_eq!(
            printed(Kind::Namespace, &[namespace], false, true),
            "NAME     STATUS   AGE   LABELS\nline-3   Active   60s   hall=2\n"
        );
    }

    #[test]
    fn an_object_without_status_still_has_a_row() {
        for kind in Kind::ALL {
            let table = printed(kind, &[json!({"metadata": {"name": "new"}})], false, true);
            assert!(table.lines().nth(1).unwrap().starts_with("new "), "{table}");
        }
    }

    #[test]
    fn long_labels_are_cut_at_characters() {
        assert_eq!(shortened("a=b"), "a=b");
        let long = "ü".repeat(LABELS_WIDTH_MAX + 1);
        assert_eq!(shortened(&long).chars().count(), LABELS_WIDTH_MAX);
    }
}
