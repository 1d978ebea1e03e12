//! Annotation and label keys that Tombolo reads or writes: those of Knative's serving API, and its own.

pub const CREATOR: &str = "serving.knative.dev/creator";
pub const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
pub const ROLLOUT_DURATION: &str = "serving.knative.dev/rollout-duration";
pub const PROGRESS_DEADLINE: &str = "serving.knative.dev/progress-deadline";
pub const NO_GC: &str = "serving.knative.dev/no-gc";
pub const ROUTES: &str = "serving.knative.dev/routes";

pub const SERVICE: &str = "serving.knative.dev/service";
pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";
pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
pub const ROUTE: &str = "serving.knative.dev/route";
pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
pub const VISIBILITY: &str = "networking.knative.dev/visibility";

/// What an idle revision keeps: `cold`, `primed`, `running` or `frozen`.
pub const IDLE_TIER: &str = "tombolo.dev/idle-tier";
/// `fast`: the autoscaler may decide at every request instead of every 2 s.
pub const REACTION: &str = "tombolo.dev/reaction";
/// How a revision takes over from the one before it: `overlap`, `hand-over`, `stop-first` or `auto`. Without it: `overlap`, and
/// `auto` on nodes whose memory can never hold two instances.
pub const UPDATE_STRATEGY: &str = "tombolo.dev/update-strategy";
/// What becomes of an instance that holds more of a GPU's memory than it declared: `stop`, `warn` or `off`.
pub const MEMORY_OVERUSE: &str = "tombolo.dev/gpu-memory-overuse";
/// How long it may, a duration.
pub const MEMORY_OVERUSE_GRACE: &str = "tombolo.dev/gpu-memory-overuse-grace";
/// `now`: the image is fetched at once, whatever hours a node has for that; `in-hours` is the default.
pub const PULL: &str = "tombolo.dev/pull";
/// Images, by digest, that the revision's nodes fetch ahead of need and keep, separated by commas.
pub const PRELOAD: &str = "tombolo.dev/preload";
/// On a Service or Route: which requests a header sends to which tag, a JSON list.
pub const STEERING: &str = "tombolo.dev/steering";
/// On a Service or Route: `on` (the default) or `off`: whether a gradual rollout is undone when the new revision is worse.
pub const HEALTH_GATE: &str = "tombolo.dev/health-gate";
pub const GATE_MAX_ERROR_PERCENT: &str = "tombolo.dev/health-gate-max-error-percent";
pub const GATE_MAX_LATENCY_PERCENT: &str = "tombolo.dev/health-gate-max-latency-percent";
pub const GATE_MIN_REQUESTS: &str = "tombolo.dev/health-gate-min-requests";

/// Prefix of every key of Tombolo's own.
pub const TOMBOLO_PREFIX: &str = "tombolo.dev/";
/// Prefix of every key that Knative Serving keeps for itself.
pub const SERVING_PREFIX: &str = "serving.knative.dev/";
/// Group of the autoscaler's annotations.
pub const AUTOSCALING: &str = "autoscaling.knative.dev";
