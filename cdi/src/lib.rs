//! The Container Device Interface, specification 1.1.0: vendors describe in files what a container needs for a device, and
//! whoever makes containers applies it.
//!
//! A [`Cache`] holds what the directories say, [`Cache::apply`] edits an OCI `config.json` for the devices asked for, and
//! [`ContainerEdits`] is one such edit, whoever made it. [`Spec::write`] is for those who describe devices.
//!
//! Knows neither what a device is for nor who asks for it, and watches nothing: [`Cache::refresh`] is told when to look.

mod annotations;
mod apply;
mod cache;
mod edits;
mod name;
mod spec;
mod version;

pub use annotations::asked_for;
pub use apply::ApplyError;
pub use cache::{Cache, Conflict, DIRECTORIES, FileError, InjectError, Unresolved};
pub use edits::{
    ContainerEdits, DeviceNode, DeviceType, EnvVariable, Hook, HookName, IntelRdt, InvalidEnv,
    InvalidPermissions, Mount, NetDevice, Permissions,
};
pub use name::{DeviceName, InvalidName, Kind, QualifiedName};
pub use spec::{Device, Format, ParseError, Spec, SpecError, WriteError};
pub use version::{InvalidVersion, Version};
