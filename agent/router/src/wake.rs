//! How the router has a frozen instance go on. It must not know how instances are frozen.

use tombolo_agent_core::supervision::InstanceId;

/// Lets frozen instances go on.
pub trait Wake: Send + Sync {
    /// Have the instance's processes run again, soon and without waiting for it: this is called on the way of a request, which
    /// is then sent to the instance. Whether that can be expected. Nothing happens to one that runs.
    fn wake(&self, instance: &InstanceId) -> bool;
}
