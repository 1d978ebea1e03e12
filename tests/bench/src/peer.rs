//! What Tombolo is measured beside: programs that must be installed, or the row says nothing of them.

pub(crate) mod bundle;
pub(crate) mod nginx;

use std::path::{Path, PathBuf};

/// A program on the search path, the folders of system programs included.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("{name} is not installed: its rows have no peer");
    }
    found
}
