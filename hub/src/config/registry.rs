//! What a hub is told of its own registry.

use serde::Deserialize;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Content that no manifest names is removed when no push has used it for this long.
    pub unused_s: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { unused_s: 86_400 }
    }
}
