//! Annotation and label keys of Knative's serving API that Tombolo reads or writes.

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

/// Prefix of every key that Knative Serving keeps for itself.
pub const SERVING_PREFIX: &str = "serving.knative.dev/";
/// Group of the autoscaler's annotations.
pub const AUTOSCALING: &str = "autoscaling.knative.dev";
