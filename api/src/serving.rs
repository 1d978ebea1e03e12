//! Knative's serving resources as users write them and clients read them. Data only: what a field does is decided by
//! the hub's and the agent's cores, whether it may be set by [`admission`].

pub mod admission;
pub mod keys;
mod revision_spec;
pub mod rollout;
pub mod steering;

use serde::{Deserialize, Serialize};

use crate::meta::{Condition, ObjectMeta, is_zero, null_is_default};
use crate::verification::ImageSignatures;

pub use revision_spec::{
    Capabilities, ConfigMapKeySelector, Container, ContainerPort, DEFAULT_PORT, EmptyDir, EnvFromSource,
    EnvSourceRef, EnvVar, EnvVarSource, ExecAction, FieldRef, GrpcAction, HttpGetAction, HttpHeader,
    KeyToPath, LocalObjectReference, Probe, ProjectedVolume, Projection, ProtocolName, ResourceFieldRef,
    Resources, RevisionSpec, SeccompProfile, SecurityContext, ServiceAccountToken, SourceVolume,
    TcpSocketAction, Volume, VolumeMount,
};

/// API group of all resources here.
pub const GROUP: &str = "serving.knative.dev";
/// `apiVersion` of all resources here.
pub const API_VERSION: &str = "serving.knative.dev/v1";

/// The one resource most users write: a Configuration and a Route under one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ServiceSpec,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: ServiceStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    pub template: RevisionTemplateSpec,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub traffic: Vec<TrafficTarget>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub latest_created_revision_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub latest_ready_revision_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
}

/// The wanted Revision; every change of its template makes a new one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ConfigurationSpec,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: ConfigurationStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationSpec {
    pub template: RevisionTemplateSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub latest_created_revision_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub latest_ready_revision_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
}

/// What a Configuration stamps out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionTemplateSpec {
    pub metadata: ObjectMeta,
    pub spec: RevisionSpec,
}

/// One immutable snapshot of code and configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: RevisionSpec,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: RevisionStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_replicas: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_url: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
}

/// Which image a Revision's container really is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Of the image, as they were last found; `None`: nobody has looked for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<ImageSignatures>,
}

/// Which Revisions answer under which host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: RouteSpec,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: RouteStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub traffic: Vec<TrafficTarget>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
}

/// Where an addressable resource listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Address {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
}

/// A share of traffic, or a tag, for one Revision or for the latest ready one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficTarget {
    /// Never in a Service, never in a status.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub configuration_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub revision_name: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub tag: String,
    /// Status only.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub url: String,
}

impl Service {
    pub fn new(metadata: ObjectMeta, spec: ServiceSpec) -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: "Service".into(),
            metadata,
            spec,
            status: ServiceStatus::default(),
        }
    }
}

impl Configuration {
    pub fn new(metadata: ObjectMeta, spec: ConfigurationSpec) -> Self {
        let status = ConfigurationStatus::default();
        Self { api_version: API_VERSION.into(), kind: "Configuration".into(), metadata, spec, status }
    }
}

impl Revision {
    pub fn new(metadata: ObjectMeta, spec: RevisionSpec) -> Self {
        let status = RevisionStatus::default();
        Self { api_version: API_VERSION.into(), kind: "Revision".into(), metadata, spec, status }
    }
}

impl Route {
    pub fn new(metadata: ObjectMeta, spec: RouteSpec) -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: "Route".into(),
            metadata,
            spec,
            status: RouteStatus::default(),
        }
    }
}
