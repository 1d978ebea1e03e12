//! What a container gets for its devices, and how that is said to the kubelet.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tombolo_device_api::v1beta1;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    pub env: BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub nodes: Vec<DeviceNode>,
    pub annotations: BTreeMap<String, String>,
    /// Qualified CDI names, `vendor/class=device`.
    pub cdi: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub host: PathBuf,
    pub container: PathBuf,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    pub host: PathBuf,
    pub container: PathBuf,
    pub permissions: Permissions,
}

/// What a container may do with a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    pub read: bool,
    pub write: bool,
    /// It may make the node itself.
    pub make: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} are no permissions of a device: write some of r (read), w (write) and m (make the node), like \"rw\""
)]
pub struct PermissionsError(String);

/// A path that the kubelet cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path {} is not UTF-8: rename what lies there", .0.display())]
pub struct PathError(PathBuf);

impl Permissions {
    pub const READ_WRITE: Self = Self { read: true, write: true, make: false };
}

impl DeviceNode {
    /// The node at `path`, at the same path in the container, to be read and written.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { host: path.clone(), container: path, permissions: Permissions::READ_WRITE }
    }
}

impl FromStr for Permissions {
    type Err = PermissionsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut permissions = Self { read: false, write: false, make: false };
        for char in text.chars() {
            let flag = match char {
                'r' => &mut permissions.read,
                'w' => &mut permissions.write,
                'm' => &mut permissions.make,
                _ => return Err(PermissionsError(text.to_owned())),
            };
            if std::mem::replace(flag, true) {
                return Err(PermissionsError(text.to_owned()));
            }
        }
        if text.is_empty() { Err(PermissionsError(String::new())) } else { Ok(permissions) }
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, char) in [(self.read, "r"), (self.write, "w"), (self.make, "m")] {
            if flag {
                f.write_str(char)?;
            }
        }
        Ok(())
    }
}

impl Edits {
    pub(crate) fn message(self) -> Result<v1beta1::ContainerAllocateResponse, PathError> {
        let mount = |mount: Mount| {
            Ok(v1beta1::Mount {
                container_path: text(&mount.container)?,
                host_path: text(&mount.host)?,
                read_only: mount.read_only,
            })
        };
        let node = |node: DeviceNode| {
            Ok(v1beta1::DeviceSpec {
                container_path: text(&node.container)?,
                host_path: text(&node.host)?,
                permissions: node.permissions.to_string(),
            })
        };
        Ok(v1beta1::ContainerAllocateResponse {
            envs: self.env,
            mounts: self.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
            devices: self.nodes.into_iter().map(node).collect::<Result<_, _>>()?,
            annotations: self.annotations,
            cdi_devices: self.cdi.into_iter().map(|name| v1beta1::CdiDevice { name }).collect(),
        })
    }
}

fn text(path: &Path) -> Result<String, PathError> {
    path.to_str().map(str::to_owned).ok_or_else(|| PathError(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_read_and_written_alike() {
        for text in ["r", "w", "m", "rw", "rm", "rwm"] {
            assert_eq!(text.parse::<Permissions>().map(|it| it.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("wr".parse(), Ok(Permissions::READ_WRITE));
        for bad in ["", "x", "rr", "r w"] {
            assert_eq!(bad.parse::<Permissions>(), Err(PermissionsError(bad.to_owned())));
        }
    }

    #[test]
    fn what_a_container_gets_reaches_the_kubelet_whole() {
        let edits = Edits {
            env: BTreeMap::from([("K".to_owned(), "v".to_owned())]),
            mounts: vec![Mount { host: "/h".into(), container: "/c".into(), read_only: true }],
            nodes: vec![DeviceNode::at("/dev/x")],
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            cdi: vec!["v.com/c=d".to_owned()],
        };
        let message = edits.message().unwrap();
        assert_eq!((message.envs["K"].as_str(), message.annotations["a"].as_str()), ("v", "b"));
        let mount = v1beta1::Mount { container_path: "/c".into(), host_path: "/h".into(), read_only: true };
        assert_eq!(message.mounts, [mount]);
        let (container_path, host_path) = ("/dev/x".to_owned(), "/dev/x".to_owned());
        assert_eq!(
            message.devices,
            [v1beta1::DeviceSpec { container_path, host_path, permissions: "rw".into() }]
        );
        assert_eq!(message.cdi_devices, [v1beta1::CdiDevice { name: "v.com/c=d".into() }]);
    }

    #[test]
    fn a_path_that_cannot_be_said_is_an_error() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(b"/dev/\xff"));
        let edits = Edits { nodes: vec![DeviceNode::at(path.clone())], ..Edits::default() };
        assert_eq!(edits.message(), Err(PathError(path)));
    }
}
