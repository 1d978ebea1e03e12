//! Which fields Knative's API has, of which type, and which of them its webhook refuses. One table drives pruning and
//! type errors. Knows no limits of values and not what Tombolo serves.
//!
//! Go's type names stand in the messages of type errors, so they stand in the table too.

/// A field's type.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Str,
    Bool,
    Int32,
    Int64,
    IntOrString,
    Quantity,
    /// Map of strings.
    Strings,
    /// Map of amounts.
    Quantities,
    /// A list, and the field that must be unique in it.
    List(&'static Kind, Option<&'static str>),
    Object(&'static Object),
    /// Whatever it holds: nothing within is looked at.
    Opaque(&'static str),
}

/// Whether the API takes a field it knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Allowed,
    /// Behind a feature flag that is off: refused when set.
    Refused,
    /// As [`Rule::Refused`], with Go's pointer semantics: a zero value counts as set.
    RefusedPointer,
    /// May only say `false`.
    OnlyFalse,
}

pub(super) struct Field {
    pub(super) name: &'static str,
    /// The Go struct that is inlined between the object and this field; empty mostly.
    pub(super) inlined: &'static str,
    pub(super) kind: Kind,
    pub(super) rule: Rule,
}

pub(super) struct Object {
    pub(super) go: &'static str,
    pub(super) fields: &'static [Field],
    /// Unknown members are not pruned by the API server, so the webhook trips over them.
    pub(super) open: bool,
}

const fn of(name: &'static str, kind: Kind) -> Field {
    Field { name, inlined: "", kind, rule: Rule::Allowed }
}

const fn inlined(inlined: &'static str, name: &'static str, kind: Kind) -> Field {
    Field { name, inlined, kind, rule: Rule::Allowed }
}

const fn pod(name: &'static str, kind: Kind) -> Field {
    inlined("PodSpec", name, kind)
}

const fn refused(name: &'static str, kind: Kind, rule: Rule) -> Field {
    Field { name, inlined: "", kind, rule }
}

const fn refused_pod(name: &'static str, kind: Kind, rule: Rule) -> Field {
    Field { name, inlined: "PodSpec", kind, rule }
}

const fn object(go: &'static str, fields: &'static [Field]) -> Object {
    Object { go, fields, open: false }
}

const STRINGS: Kind = Kind::List(&Kind::Str, None);
const OPAQUES: Kind = Kind::List(&Kind::Opaque("v1.Object"), None);

pub(super) static SERVICE: Object = object(
    "Service",
    &[of(
        "spec",
        Kind::Object(&Object {
            go: "ServiceSpec",
            fields: &[
                inlined("ConfigurationSpec", "template", Kind::Object(&TEMPLATE)),
                inlined("RouteSpec", "traffic", TRAFFIC),
            ],
            open: false,
        }),
    )],
);

pub(super) static CONFIGURATION: Object = object(
    "Configuration",
    &[of(
        "spec",
        Kind::Object(&Object {
            go: "ConfigurationSpec",
            fields: &[of("template", Kind::Object(&TEMPLATE))],
            open: false,
        }),
    )],
);

pub(super) static ROUTE: Object = object(
    "Route",
    &[of("spec", Kind::Object(&Object { go: "RouteSpec", fields: &[of("traffic", TRAFFIC)], open: false }))],
);

pub(super) static REVISION: Object = object("Revision", &[of("spec", Kind::Object(&REVISION_SPEC))]);

pub(super) static METADATA: Object = object(
    "ObjectMeta",
    &[
        of("annotations", Kind::Strings),
        of("creationTimestamp", Kind::Opaque("v1.Time")),
        of("deletionGracePeriodSeconds", Kind::Int64),
        of("deletionTimestamp", Kind::Opaque("v1.Time")),
        of("finalizers", STRINGS),
        of("generateName", Kind::Str),
        of("generation", Kind::Int64),
        of("labels", Kind::Strings),
        of("managedFields", OPAQUES),
        of("name", Kind::Str),
        of("namespace", Kind::Str),
        of("ownerReferences", Kind::List(&Kind::Object(&OWNER_REFERENCE), None)),
        of("resourceVersion", Kind::Str),
        of("selfLink", Kind::Str),
        of("uid", Kind::Str),
    ],
);

static TEMPLATE_METADATA: Object = Object { go: METADATA.go, fields: METADATA.fields, open: true };

static OWNER_REFERENCE: Object = object(
    "OwnerReference",
    &[
        of("apiVersion", Kind::Str),
        of("blockOwnerDeletion", Kind::Bool),
        of("controller", Kind::Bool),
        of("kind", Kind::Str),
        of("name", Kind::Str),
        of("uid", Kind::Str),
    ],
);

static TEMPLATE: Object = object(
    "RevisionTemplateSpec",
    &[of("metadata", Kind::Object(&TEMPLATE_METADATA)), of("spec", Kind::Object(&REVISION_SPEC))],
);

const TRAFFIC: Kind = Kind::List(
    &Kind::Object(&Object {
        go: "TrafficTarget",
        fields: &[
            of("configurationName", Kind::Str),
            of("latestRevision", Kind::Bool),
            of("percent", Kind::Int64),
            of("revisionName", Kind::Str),
            of("tag", Kind::Str),
            of("url", Kind::Str),
        ],
        open: false,
    }),
    None,
);

static REVISION_SPEC: Object = object(
    "RevisionSpec",
    &[
        refused_pod("affinity", Kind::Opaque("v1.Affinity"), Rule::RefusedPointer),
        Field {
            name: "automountServiceAccountToken",
            inlined: "PodSpec",
            kind: Kind::Bool,
            rule: Rule::OnlyFalse,
        },
        of("containerConcurrency", Kind::Int64),
        pod("containers", Kind::List(&Kind::Object(&CONTAINER), None)),
        refused_pod("dnsConfig", Kind::Opaque("v1.PodDNSConfig"), Rule::RefusedPointer),
        refused_pod("dnsPolicy", Kind::Str, Rule::Refused),
        pod("enableServiceLinks", Kind::Bool),
        refused_pod("hostAliases", OPAQUES, Rule::Refused),
        refused_pod("hostIPC", Kind::Bool, Rule::Refused),
        refused_pod("hostNetwork", Kind::Bool, Rule::Refused),
        refused_pod("hostPID", Kind::Bool, Rule::Refused),
        of("idleTimeoutSeconds", Kind::Int64),
        pod("imagePullSecrets", Kind::List(&Kind::Object(&LOCAL_REFERENCE), Some("name"))),
        refused_pod("initContainers", OPAQUES, Rule::Refused),
        pod("nodeSelector", Kind::Strings),
        refused_pod("priorityClassName", Kind::Str, Rule::Refused),
        of("responseStartTimeoutSeconds", Kind::Int64),
        refused_pod("runtimeClassName", Kind::Str, Rule::RefusedPointer),
        refused_pod("schedulerName", Kind::Str, Rule::Refused),
        refused_pod("securityContext", Kind::Opaque("v1.PodSecurityContext"), Rule::RefusedPointer),
        pod("serviceAccountName", Kind::Str),
        refused_pod("shareProcessNamespace", Kind::Bool, Rule::RefusedPointer),
        of("timeoutSeconds", Kind::Int64),
        refused_pod("tolerations", OPAQUES, Rule::Refused),
        refused_pod("topologySpreadConstraints", OPAQUES, Rule::Refused),
        pod("volumes", Kind::List(&Kind::Object(&VOLUME), Some("name"))),
    ],
);

static LOCAL_REFERENCE: Object = object("LocalObjectReference", &[of("name", Kind::Str)]);

static CONTAINER: Object = object(
    "Container",
    &[
        of("args", STRINGS),
        of("command", STRINGS),
        of("env", Kind::List(&Kind::Object(&ENV_VAR), Some("name"))),
        of("envFrom", Kind::List(&Kind::Object(&ENV_FROM), None)),
        of("image", Kind::Str),
        of("imagePullPolicy", Kind::Str),
        of("livenessProbe", Kind::Object(&PROBE)),
        of("name", Kind::Str),
        of("ports", Kind::List(&Kind::Object(&PORT), None)),
        of("readinessProbe", Kind::Object(&PROBE)),
        of("resources", Kind::Object(&RESOURCES)),
        of("securityContext", Kind::Object(&SECURITY_CONTEXT)),
        of("startupProbe", Kind::Object(&PROBE)),
        of("terminationMessagePath", Kind::Str),
        of("terminationMessagePolicy", Kind::Str),
        of("volumeMounts", Kind::List(&Kind::Object(&VOLUME_MOUNT), Some("mountPath"))),
        of("workingDir", Kind::Str),
    ],
);

static ENV_VAR: Object = object(
    "EnvVar",
    &[of("name", Kind::Str), of("value", Kind::Str), of("valueFrom", Kind::Object(&ENV_VAR_SOURCE))],
);

static ENV_VAR_SOURCE: Object = object(
    "EnvVarSource",
    &[
        of("configMapKeyRef", Kind::Object(&KEY_SELECTOR)),
        refused("fieldRef", Kind::Opaque("v1.ObjectFieldSelector"), Rule::RefusedPointer),
        refused("resourceFieldRef", Kind::Opaque("v1.ResourceFieldSelector"), Rule::RefusedPointer),
        of("secretKeyRef", Kind::Object(&KEY_SELECTOR)),
    ],
);

static KEY_SELECTOR: Object = object(
    "SecretKeySelector",
    &[of("key", Kind::Str), inlined("LocalObjectReference", "name", Kind::Str), of("optional", Kind::Bool)],
);

static ENV_FROM: Object = object(
    "EnvFromSource",
    &[
        of("configMapRef", Kind::Object(&ENV_FROM_REF)),
        of("prefix", Kind::Str),
        of("secretRef", Kind::Object(&ENV_FROM_REF)),
    ],
);

static ENV_FROM_REF: Object = object(
    "SecretEnvSource",
    &[inlined("LocalObjectReference", "name", Kind::Str), of("optional", Kind::Bool)],
);

static PORT: Object = object(
    "ContainerPort",
    &[of("containerPort", Kind::Int32), of("name", Kind::Str), of("protocol", Kind::Str)],
);

static RESOURCES: Object =
    object("ResourceRequirements", &[of("limits", Kind::Quantities), of("requests", Kind::Quantities)]);

static PROBE: Object = object(
    "Probe",
    &[
        inlined(
            "ProbeHandler",
            "exec",
            Kind::Object(&Object { go: "ExecAction", fields: &[of("command", STRINGS)], open: false }),
        ),
        of("failureThreshold", Kind::Int32),
        inlined(
            "ProbeHandler",
            "grpc",
            Kind::Object(&Object {
                go: "GRPCAction",
                fields: &[of("port", Kind::Int32), of("service", Kind::Str)],
                open: false,
            }),
        ),
        inlined("ProbeHandler", "httpGet", Kind::Object(&HTTP_GET)),
        of("initialDelaySeconds", Kind::Int32),
        of("periodSeconds", Kind::Int32),
        of("successThreshold", Kind::Int32),
        inlined(
            "ProbeHandler",
            "tcpSocket",
            Kind::Object(&Object {
                go: "TCPSocketAction",
                fields: &[of("host", Kind::Str), of("port", Kind::IntOrString)],
                open: false,
            }),
        ),
        of("timeoutSeconds", Kind::Int32),
    ],
);

static HTTP_GET: Object = object(
    "HTTPGetAction",
    &[
        of("host", Kind::Str),
        of(
            "httpHeaders",
            Kind::List(
                &Kind::Object(&Object {
                    go: "HTTPHeader",
                    fields: &[of("name", Kind::Str), of("value", Kind::Str)],
                    open: false,
                }),
                None,
            ),
        ),
        of("path", Kind::Str),
        of("port", Kind::IntOrString),
        of("scheme", Kind::Str),
    ],
);

static SECURITY_CONTEXT: Object = object(
    "SecurityContext",
    &[
        of("allowPrivilegeEscalation", Kind::Bool),
        of(
            "capabilities",
            Kind::Object(&Object {
                go: "Capabilities",
                fields: &[refused("add", STRINGS, Rule::Refused), of("drop", STRINGS)],
                open: false,
            }),
        ),
        refused("privileged", Kind::Bool, Rule::OnlyFalse),
        of("readOnlyRootFilesystem", Kind::Bool),
        of("runAsGroup", Kind::Int64),
        of("runAsNonRoot", Kind::Bool),
        of("runAsUser", Kind::Int64),
        of(
            "seccompProfile",
            Kind::Object(&Object {
                go: "SeccompProfile",
                fields: &[of("localhostProfile", Kind::Str), of("type", Kind::Str)],
                open: false,
            }),
        ),
    ],
);

static VOLUME_MOUNT: Object = object(
    "VolumeMount",
    &[
        of("mountPath", Kind::Str),
        refused("mountPropagation", Kind::Str, Rule::RefusedPointer),
        of("name", Kind::Str),
        of("readOnly", Kind::Bool),
        of("subPath", Kind::Str),
    ],
);

const fn source(name: &'static str, kind: Kind) -> Field {
    inlined("VolumeSource", name, kind)
}

const fn refused_source(name: &'static str, go: &'static str) -> Field {
    Field { name, inlined: "VolumeSource", kind: Kind::Opaque(go), rule: Rule::RefusedPointer }
}

static VOLUME: Object = object(
    "Volume",
    &[
        source("configMap", Kind::Object(&CONFIG_MAP_VOLUME)),
        refused_source("csi", "v1.CSIVolumeSource"),
        source(
            "emptyDir",
            Kind::Object(&Object {
                go: "EmptyDirVolumeSource",
                fields: &[of("medium", Kind::Str), of("sizeLimit", Kind::Quantity)],
                open: true,
            }),
        ),
        refused_source("hostPath", "v1.HostPathVolumeSource"),
        refused_source("image", "v1.ImageVolumeSource"),
        of("name", Kind::Str),
        refused_source("persistentVolumeClaim", "v1.PersistentVolumeClaimVolumeSource"),
        source(
            "projected",
            Kind::Object(&Object {
                go: "ProjectedVolumeSource",
                fields: &[
                    of("defaultMode", Kind::Int32),
                    of("sources", Kind::List(&Kind::Object(&PROJECTION), None)),
                ],
                open: false,
            }),
        ),
        source(
            "secret",
            Kind::Object(&Object {
                go: "SecretVolumeSource",
                fields: &[
                    of("defaultMode", Kind::Int32),
                    of("items", KEYS_TO_PATHS),
                    of("optional", Kind::Bool),
                    of("secretName", Kind::Str),
                ],
                open: false,
            }),
        ),
    ],
);

static CONFIG_MAP_VOLUME: Object = object(
    "ConfigMapVolumeSource",
    &[
        of("defaultMode", Kind::Int32),
        of("items", KEYS_TO_PATHS),
        inlined("LocalObjectReference", "name", Kind::Str),
        of("optional", Kind::Bool),
    ],
);

const KEYS_TO_PATHS: Kind = Kind::List(
    &Kind::Object(&Object {
        go: "KeyToPath",
        fields: &[of("key", Kind::Str), of("mode", Kind::Int32), of("path", Kind::Str)],
        open: false,
    }),
    None,
);

static PROJECTION: Object = object(
    "VolumeProjection",
    &[
        of("configMap", Kind::Object(&PROJECTED_SOURCE)),
        of("downwardAPI", Kind::Object(&DOWNWARD_API)),
        of("secret", Kind::Object(&PROJECTED_SOURCE)),
        of(
            "serviceAccountToken",
            Kind::Object(&Object {
                go: "ServiceAccountTokenProjection",
                fields: &[
                    of("audience", Kind::Str),
                    of("expirationSeconds", Kind::Int64),
                    of("path", Kind::Str),
                ],
                open: false,
            }),
        ),
    ],
);

static PROJECTED_SOURCE: Object = object(
    "SecretProjection",
    &[
        of("items", KEYS_TO_PATHS),
        inlined("LocalObjectReference", "name", Kind::Str),
        of("optional", Kind::Bool),
    ],
);

static DOWNWARD_API: Object = object(
    "DownwardAPIProjection",
    &[of(
        "items",
        Kind::List(
            &Kind::Object(&Object {
                go: "DownwardAPIVolumeFile",
                fields: &[
                    of("fieldRef", Kind::Opaque("v1.ObjectFieldSelector")),
                    of("mode", Kind::Int32),
                    of("path", Kind::Str),
                    of("resourceFieldRef", Kind::Opaque("v1.ResourceFieldSelector")),
                ],
                open: false,
            }),
            None,
        ),
    )],
);
