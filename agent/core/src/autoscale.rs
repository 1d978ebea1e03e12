//! How many instances a revision should have: the Knative Pod Autoscaler as pure code. Time is an argument, samples come in,
//! a number of instances goes out.
//!
//! ```text
//! annotations ─▶ parameters ─┐
//! sample a second ─▶ metrics ┴▶ decide ─▶ delay ─▶ bounds ─▶ zero ─▶ wanted instances ─▶ capacity ─▶ allowed ones
//! ```
//!
//! Must not know what an instance is, how requests are counted, or what a node does with the answer.

pub mod bounds;
pub mod capacity;
pub mod decide;
pub mod delay;
pub mod metrics;
pub mod mode;
pub mod parameters;
pub mod scaler;
pub mod window;
pub mod zero;

/// Between two decisions, milliseconds. Knative's.
pub const TICK_MS: u64 = 2_000;

/// Between two samples, and what a bucket of a window spans, milliseconds. Knative's.
pub const SAMPLE_MS: u64 = 1_000;

pub use mode::Mode;
pub use parameters::{Defaults, Parameters, Reaction};
pub use scaler::{Decision, Observed, Sample, Scaler};
