//! What an instance may open of the machine's devices: the list that is kept of it, and the rules that its cgroup gets when
//! the list becomes another. How the nodes come into its `/dev` is `worker::refit`'s; which devices it gets, the agent's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use serde::{Deserialize, Serialize};

use crate::bpf;
use crate::cgroup::{CgroupPath, Hierarchies};
use crate::sys;

/// In the instance's directory.
const FILE: &str = "devices.json";

/// What the container runtime allows every container on cgroup v1 beside what programs need: to make any node, the
/// console, and tun.
const RUNTIME_ALLOWS: [&str; 4] = [
    r#"{"allow":true,"type":"c","access":"m"}"#,
    r#"{"allow":true,"type":"b","access":"m"}"#,
    r#"{"allow":true,"type":"c","major":5,"minor":1,"access":"rwm"}"#,
    r#"{"allow":true,"type":"c","major":10,"minor":200,"access":"rwm"}"#,
];

/// The devices of an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fitted {
    pub(crate) nodes: Vec<LinuxDevice>,
    pub(crate) rules: Vec<LinuxDeviceCgroup>,
    /// The host's user that is root inside, if the instance has a user namespace of its own.
    pub(crate) root: Option<u32>,
}

impl Fitted {
    pub(crate) fn of(spec: &Spec, root: Option<u32>) -> Self {
        let linux = spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        Self {
            nodes: linux.and_then(|linux| linux.devices().clone()).unwrap_or_default(),
            rules: resources.and_then(|resources| resources.devices().clone()).unwrap_or_default(),
            root,
        }
    }

    /// Whether it has any but what every container has.
    pub(crate) fn has_devices(&self) -> bool {
        !self.nodes.is_empty() || self.rules.iter().any(LinuxDeviceCgroup::allow)
    }

    /// What it has if it may have either.
    pub(crate) fn united(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.nodes.extend(other.nodes.iter().filter(|node| !self.nodes.contains(node)).cloned());
        all.rules.extend(other.rules.iter().filter(|rule| !self.rules.contains(rule)).cloned());
        all
    }

    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let text = std::fs::read(directory.join(FILE)).map_err(|error| {
            io::Error::new(error.kind(), format!("the container was made by an older supervisor: no {FILE}"))
        })?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Replaces the file in the instance's directory, which may be out of reach by its path.
    pub(crate) fn write(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let new = "devices.new";
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let fd = openat(Some(directory.as_raw_fd()), new, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        File::from(sys::received_fd(fd)).write_all(&serde_json::to_vec(self)?)?;
        Ok(renameat(Some(directory.as_raw_fd()), new, Some(directory.as_raw_fd()), FILE)?)
    }
}

/// Takes from a container that was just made what the runtime allowed it of itself. Needed on cgroup v1 only.
pub(crate) fn withdraw_defaults(
    fitted: &Fitted,
    hierarchies: &Hierarchies,
    cgroup: &CgroupPath,
) -> io::Result<()> {
    let mut made = fitted.clone();
    for rule in RUNTIME_ALLOWS {
        made.rules.push(serde_json::from_str(rule)?);
    }
    restrict(&made, fitted, hierarchies, cgroup)
}

/// Makes what the cgroup may open `after` instead of `before`. On cgroup v1 what is lost is denied before anything is allowed;
/// on v2 one program takes the other's place.
pub(crate) fn restrict(
    before: &Fitted,
    after: &Fitted,
    hierarchies: &Hierarchies,
    cgroup: &CgroupPath,
) -> io::Result<()> {
    let directory = hierarchies.directory("devices", cgroup).ok_or_else(|| {
        io::Error::new(io::ErrorKind::Unsupported, "this machine has no devices controller")
    })?;
    if hierarchies.is_unified() {
        return bpf::restrict_devices(&directory, &after.rules);
    }
    for (file, line) in steps(&before.rules, &after.rules) {
        std::fs::write(directory.join(file), line)?;
    }
    Ok(())
}

/// `type major:minor`, and which of read, write and mknod.
type Accesses = BTreeMap<String, [bool; 3]>;

const LETTERS: [char; 3] = ['r', 'w', 'm'];

/// What the controller is to be told, and in which file of it.
fn steps(before: &[LinuxDeviceCgroup], after: &[LinuxDeviceCgroup]) -> Vec<(&'static str, String)> {
    let (had, gets) = (accesses(before), accesses(after));
    let mut stays = gets.clone();
    for (major, minor) in bpf::ALWAYS {
        let minor = minor.map_or("*".to_owned(), |minor| minor.to_string());
        stays.insert(format!("c {major}:{minor}"), [true; 3]);
    }
    let without = |access: [bool; 3], other: Option<&[bool; 3]>| {
        let letter = |index: usize| access[index] && !other.is_some_and(|other| other[index]);
        let letters = (0..LETTERS.len()).filter(|index| letter(*index)).map(|index| LETTERS[index]);
        letters.collect::<String>()
    };
    let line =
        |(device, letters): (&String, String)| (!letters.is_empty()).then(|| format!("{device} {letters}"));
    let lost = had.iter().map(|(device, access)| (device, without(*access, stays.get(device))));
    // Also what it has already: who died half-way may not have come to it.
    let got = gets.iter().map(|(device, access)| (device, without(*access, None)));
    let lost = lost.filter_map(line).map(|line| ("devices.deny", line)).collect::<Vec<_>>();
    lost.into_iter().chain(got.filter_map(line).map(|line| ("devices.allow", line))).collect()
}

/// What rules allow; those that deny are the first, which denies everything.
fn accesses(rules: &[LinuxDeviceCgroup]) -> Accesses {
    let mut all = Accesses::new();
    let number = |number: Option<i64>| {
        number.filter(|number| *number >= 0).map_or("*".to_owned(), |number| number.to_string())
    };
    for rule in rules.iter().filter(|rule| rule.allow()) {
        let kind = match rule.typ() {
            Some(LinuxDeviceType::B) => "b",
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => "c",
            _ => "a",
        };
        let device = format!("{kind} {}:{}", number(rule.major()), number(rule.minor()));
        let access = all.entry(device).or_default();
        for (index, letter) in LETTERS.iter().enumerate() {
            access[index] |= rule.access().as_deref().unwrap_or("rwm").contains(*letter);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn rule(text: &str) -> LinuxDeviceCgroup {
        serde_json::from_str(text).unwrap()
    }

    fn fitted(rules: &[&str]) -> Fitted {
        let nothing = rule(r#"{"allow":false,"access":"rwm"}"#);
        Fitted {
            rules: std::iter::once(nothing).chain(rules.iter().map(|text| rule(text))).collect(),
            ..Fitted::default()
        }
    }

    #[test]
    fn what_is_lost_is_denied_first_and_what_every_program_needs_never() {
        let [old, new, partly, zero] = [
            r#"{"allow":true,"type":"c","major":189,"minor":3,"access":"rw"}"#,
            r#"{"allow":true,"type":"c","major":189,"minor":4,"access":"rw"}"#,
            r#"{"allow":true,"type":"c","major":189,"minor":3,"access":"r"}"#,
            r#"{"allow":true,"type":"c","major":1,"minor":5,"access":"rwm"}"#,
        ];
        let told = |before: &[&str], after: &[&str]| -> Vec<String> {
            let steps = steps(&fitted(before).rules, &fitted(after).rules);
            steps.iter().map(|(file, line)| format!("{} {line}", &file[8..])).collect()
        };
        assert_eq!(told(&[old], &[new]), ["deny c 189:3 rw", "allow c 189:4 rw"]);
        assert_eq!(told(&[old, new], &[new]), ["deny c 189:3 rw", "allow c 189:4 rw"]);
        assert_eq!(told(&[old], &[partly]), ["deny c 189:3 w", "allow c 189:3 r"]);
        assert_eq!(told(&[zero], &[]), [""; 0]);
        assert_eq!(
            told(&RUNTIME_ALLOWS, &[]),
            ["deny b *:* m", "deny c *:* m", "deny c 10:200 rwm", "deny c 5:1 rwm"]
        );
    }

    #[test]
    fn half_a_change_is_known_as_both() {
        let a = fitted(&[r#"{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}"#]);
        let b = fitted(&[r#"{"allow":true,"type":"b","major":7,"minor":0,"access":"r"}"#]);
        let both = a.united(&b);
        assert_eq!(both.rules.len(), 3, "the rule that denies everything is there once");
        let directory = tempfile::tempdir().unwrap();
        assert!(Fitted::read(directory.path()).is_err());
        both.write(File::open(directory.path()).unwrap().as_fd()).unwrap();
        assert_eq!(Fitted::read(directory.path()).unwrap(), both);
    }
}
