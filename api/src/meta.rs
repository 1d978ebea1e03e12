//! Kubernetes object metadata.
