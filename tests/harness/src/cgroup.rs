//! A place beside an instance's control groups, for a program that is measured against it: with as much of the processors, and
//! as much to be scheduled through. Must not know what is measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::cgroups_of;

/// What decides over a group's share of the processors, on v1 and v2; a v1 `cpuset` takes nobody before it is set.
const COPIED: [&str; 4] = ["cpu.shares", "cpu.weight", "cpuset.cpus", "cpuset.mems"];

/// Control groups, removed when this is dropped; by then their processes must have ended.
pub struct Beside {
    directories: Vec<PathBuf>,
}

impl Beside {
    /// Makes groups beside those of the instance whose init is `pid`.
    pub fn instance(pid: i32, name: &str) -> Result<Self> {
        let mut place = Self { directories: Vec::new() };
        for group in cgroups_of(pid) {
            let directory = group.with_file_name(name);
            if place.directories.contains(&directory) {
                continue;
            }
            fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
            copy(&group, &directory)?;
            place.directories.push(directory);
        }
        ensure!(!place.directories.is_empty(), "process {pid} is in no instance's control groups");
        Ok(place)
    }

    /// Puts a process there.
    pub fn add(&self, pid: i32) -> Result<()> {
        for directory in &self.directories {
            let file = directory.join("cgroup.procs");
            fs::write(&file, pid.to_string()).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for directory in &self.directories {
            if let Err(error) = fs::remove_dir(directory) {
                eprintln!("{} stays: {error}", directory.display());
            }
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in COPIED {
        if let Ok(value) = fs::read_to_string(from.join(name))
            && !value.trim().is_empty()
        {
            fs::write(to.join(name), value).with_context(|| format!("setting {name}"))?;
        }
    }
    Ok(())
}
