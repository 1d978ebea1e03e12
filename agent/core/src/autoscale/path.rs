//! What the reference makes of a decision's spare capacity: whether requests still go through its activators, and through how
//! many. A node's router is always in the path; these say what a cluster would do with the same numbers.

use super::parameters::Parameters;

/// Fewest activators of a revision, so that one may fail.
const ACTIVATORS_MIN: u32 = 2;

/// Whether requests may go to the instances directly.
pub fn is_direct(want: Option<u32>, excess_burst_capacity: i32) -> bool {
    want.is_some_and(|want| want > 0) && excess_burst_capacity >= 0
}

/// Activators for a revision with `ready` instances, each reckoned with `activator_capacity`.
pub fn activators(parameters: &Parameters, activator_capacity: f64, ready: u32) -> u32 {
    if parameters.target_burst_capacity == 0.0 {
        return ACTIVATORS_MIN;
    }
    let burst = parameters.target_burst_capacity.max(0.0);
    let capacity = f64::from(ready) * parameters.total_value + burst;
    ((capacity / activator_capacity).ceil() as u32).max(ACTIVATORS_MIN)
}
