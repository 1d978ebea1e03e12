//! Deltas: of a layer that resembles one which is here, only the content travels that is not.
//!
//! ```text
//! registry: blob ─▶ decode ─▶ cut into chunks ─▶ ChunkList (digest and length of each)
//! node:     list ─▶ what of it is in layers that are here ─▶ Selection of the rest ─▶ fetched ─▶ whole layer, verified by diff id
//! ```
//!
//! Chunks are cut where the content says so ([`Chunks`]), so that a byte more or less moves only the cuts around it. What a layer is put
//! together from is believed by nobody: the whole counts only once its digest is right, and otherwise the blob is fetched as ever.
//! Must not know how lists and chunks travel.

mod bases;
mod chunks;
mod list;
mod rebuild;
mod selection;
#[cfg(test)]
mod tests;

pub use chunks::Chunks;
pub use list::{ChunkDigest, ChunkList, CutError, ListError, MAX_ENCODED};
pub use selection::{MAX_SELECTION, Selection, SelectionError, write_selected};

pub(crate) use bases::resembling;
pub(crate) use rebuild::{Arriving, RebuildError, Rebuilding, retain};

/// Layers below this many compressed bytes travel whole: a list and a request more cost as much time as they save.
pub const WORTHWHILE_FROM: u64 = 256 * 1024;
