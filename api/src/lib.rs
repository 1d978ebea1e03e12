//! The contract between Tombolo's processes: resources as users write them, desired state as nodes receive it,
//! topics and wire formats. Pure data and pure functions: no clock, no files, no sockets.

pub mod bundle;
pub mod desired;
pub mod digest;
pub mod duration;
pub mod frame;
pub mod manifest;
pub mod meta;
pub mod names;
pub mod quantity;
pub mod report;
pub mod serving;
pub mod tail;
pub mod topics;
pub mod verification;

pub use digest::Digest;
pub use names::{NodeId, RevisionKey};
