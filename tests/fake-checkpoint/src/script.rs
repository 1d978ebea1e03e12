//! What the library is to answer, and what it was asked.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The variable that names the script.
pub const VARIABLE: &str = "FAKE_CHECKPOINT";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// As the library writes it: 12.8 is 12080.
    pub cuda_version: i32,
    pub processes: Vec<Process>,
    /// Calls that fail as long as they stand here.
    pub failing: Vec<Failing>,
    /// Calls that do not end as long as they stand here.
    pub held_up: Vec<Call>,
    /// What was called, in the order of beginnings.
    pub calls: Vec<Call>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    pub state: State,
    /// What it has on its GPU, or had.
    pub bytes: u64,
    pub gpu: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    Locked,
    Checkpointed,
    Failed,
}

/// A call by its name, for a process; for none where it is for none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub name: String,
    pub pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    pub call: Call,
    /// What it answers.
    pub code: i32,
}

impl Default for Script {
    fn default() -> Self {
        let (processes, failing, held_up, calls) = Default::default();
        Self { cuda_version: 12_080, processes, failing, held_up, calls }
    }
}

impl Call {
    pub fn new(name: &str, pid: Option<u32>) -> Self {
        Self { name: name.to_owned(), pid }
    }
}

impl Script {
    /// Reads the script, and writes what `change` makes of it, as one step.
    pub fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> T) -> io::Result<T> {
        let turn = File::create(path.with_extension("lock"))?;
        turn.lock()?;
        let mut script: Self = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error),
        };
        let before = script.clone();
        let changed = change(&mut script);
        if script != before {
            fs::write(path, serde_json::to_vec(&script)?)?;
        }
        Ok(changed)
    }
}
