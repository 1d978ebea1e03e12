//! The kinds of resources the command knows: their names, short names, and where the hub serves them.
//!
//! Must not know what stands in a resource.

use std::fmt;

use serde_json::Value;

/// A kind of resource the hub serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Configuration,
    Revision,
    Route,
    Node,
    Namespace,
}

/// A word that names no kind.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no kind of resource: use services, revisions, routes, configurations, nodes or namespaces")]
pub(crate) struct UnknownKind(String);

/// Not a whole pair of kind and name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    #[error("name it once: {0:?} holds a name already")]
    TwoNames(String),
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Service, Self::Configuration, Self::Revision, Self::Route, Self::Node, Self::Namespace];

    /// From what a person types: plural, singular, Knative's short names.
    pub(crate) fn parse(word: &str) -> Result<Self, UnknownKind> {
        let lower = word.to_ascii_lowercase();
        let plain = lower
            .strip_suffix(".serving.knative.dev")
            .or(lower.strip_suffix(".tombolo.dev"))
            .unwrap_or(&lower);
        Ok(match plain {
            "service" | "services" | "ksvc" | "kservice" | "kservices" | "svc" => Self::Service,
            "configuration" | "configurations" | "config" | "cfg" => Self::Configuration,
            "revision" | "revisions" | "rev" => Self::Revision,
            "route" | "routes" | "rt" => Self::Route,
            "node" | "nodes" | "no" => Self::Node,
            "namespace" | "namespaces" | "ns" => Self::Namespace,
            _ => return Err(UnknownKind(word.to_owned())),
        })
    }

    /// From `KIND NAME`, or `KIND/NAME` as other commands print it.
    pub(crate) fn parse_target(
        kind: &str,
        name: Option<&str>,
    ) -> Result<(Self, Option<String>), TargetError> {
        match (kind.split_once('/'), name) {
            (None, name) => Ok((Self::parse(kind)?, name.map(str::to_owned))),
            (Some((kind, name)), None) => Ok((Self::parse(kind)?, Some(name.to_owned()))),
            (Some(_), Some(_)) => Err(TargetError::TwoNames(kind.to_owned())),
        }
    }

    /// The kind of an object, by its `apiVersion` and `kind`.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let (version, name) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        Self::ALL.into_iter().find(|kind| kind.name() == name && kind.api_version() == version)
    }

    /// As written in `kind`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Configuration => "Configuration",
            Self::Revision => "Revision",
            Self::Route => "Route",
            Self::Node => "Node",
            Self::Namespace => "Namespace",
        }
    }

    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::Configuration => "configurations",
            Self::Revision => "revisions",
            Self::Route => "routes",
            Self::Node => "nodes",
            Self::Namespace => "namespaces",
        }
    }

    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::Node => "tombolo.dev/v1",
            Self::Namespace => "v1",
            _ => "serving.knative.dev/v1",
        }
    }

    pub(crate) fn namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace)
    }

    /// Path of the collection: of one namespace, or of all.
    pub(crate) fn collection(self, namespace: Option<&str>) -> String {
        let (version, plural) = (self.api_version(), self.plural());
        // What has no group stands apart, as Kubernetes has it.
        let root = if version.contains('/') { "apis" } else { "api" };
        match namespace {
            Some(namespace) if self.namespaced() => {
                format!("/{root}/{version}/namespaces/{}/{plural}", segment(namespace))
            }
            _ => format!("/{root}/{version}/{plural}"),
        }
    }

    /// Path of one object.
    pub(crate) fn item(self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(Some(namespace)), segment(name))
    }
}

/// `service.serving.knative.dev`: the singular with its group, as kubectl prints it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let singular = self.name().to_ascii_lowercase();
        match self.api_version().split_once('/') {
            Some((group, _)) => write!(f, "{singular}.{group}"),
            None => f.write_str(&singular),
        }
    }
}

/// One segment of a URL path: whatever could end it is percent-encoded, so that a strange name stays one name.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && text.len() > 2) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_word_is_known() {
        for (word, kind) in [
            ("ksvc", Kind::Service),
            ("Services", Kind::Service),
            ("services.serving.knative.dev", Kind::Service),
            ("rev", Kind::Revision),
            ("rt", Kind::Route),
            ("cfg", Kind::Configuration),
            ("no", Kind::Node),
            ("ns", Kind::Namespace),
        ] {
            assert_eq!(Kind::parse(word).unwrap(), kind, "{word}");
        }
        assert!(Kind::parse("pods").is_err());
    }

    #[test]
    fn targets_take_both_forms() {
        assert_eq!(Kind::parse_target("ksvc/a", None).unwrap(), (Kind::Service, Some("a".into())));
        assert_eq!(Kind::parse_target("ksvc", Some("a")).unwrap(), (Kind::Service, Some("a".into())));
        assert!(Kind::parse_target("ksvc/a", Some("b")).is_err());
    }

    #[test]
    fn kinds_are_printed_with_their_group() {
        assert_eq!(Kind::Service.to_string(), "service.serving.knative.dev");
        assert_eq!(Kind::Namespace.to_string(), "namespace");
    }

    #[test]
    fn names_cannot_leave_their_path_segment() {
        assert_eq!(
            Kind::Service.item("default", "../a?b"),
            "/apis/serving.knative.dev/v1/namespaces/default/services/..%2Fa%3Fb"
        );
        assert!(Kind::Service.item("default", "..").ends_with("/%2E%2E"));
        assert_eq!(Kind::Node.item("ignored", "press-7"), "/apis/tombolo.dev/v1/nodes/press-7");
        assert_eq!(Kind::Namespace.item("ignored", "line-3"), "/api/v1/namespaces/line-3");
    }
}
