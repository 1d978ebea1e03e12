//! Nothing: this package is its tests, `e2e/` of the running system and `tidy.rs` of the source tree.
