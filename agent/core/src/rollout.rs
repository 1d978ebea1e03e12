//! Gradual rollouts.

pub mod steps;
