//! What hub, agent and command line share of OCI images: the content store, layers, image documents, building, and
//! the distribution client.
//!
//! Knows neither hub nor agent: nothing here decides what should be present, it only makes it present.

pub mod archive;
pub mod build;
pub mod client;
pub mod delta;
pub mod image;
pub mod layer;
pub mod reference;
pub mod signature;
pub mod store;

pub use archive::{Archive, ArchiveError};
pub use build::{
    BuildError, BuildOptions, BuiltImage, Composition, Documents, FileEntry, Layer, Members, Source,
    build_directory, write_layer,
};
pub use client::{
    BaseImage, BasicAuth, BlobStream, Client, Content, Endpoint, Gate, Pace, Progress, PushBlob, PushContent,
    Scheme, TransferError,
};
pub use image::{ImageError, ImageSummary, Platform, RunConfig};
pub use layer::UnpackError;
pub use reference::{HUB_HOST, ImageReference, Repository, Tag, Target};
pub use store::{Partial, Store, StoreError};
