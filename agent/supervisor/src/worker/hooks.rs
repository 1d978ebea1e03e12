//! The hooks of a specification: programs of the machine that finish a container's root file system, or are told of its start and
//! its end, as those of vendors' device specifications are.
//!
//! They run as root, outside the container's root directory, so what a hook names must be root's alone. Whoever can write a
//! specification of devices on the machine can name one; an image or a function cannot. Those of the start (`startContainer`) are
//! programs of the image and run inside, as the function's own does: they are `FilteredExecutor`'s to run.
//!
//! Others before the start are the container runtime's to run. It runs none after it where a container is started by a message, so
//! these are kept in the instance's directory until their moment.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use libcontainer::container::ContainerStatus;
use libcontainer::container::state::State;
use libcontainer::hooks::run_hooks;
use oci_spec::runtime::{Hook, Hooks, Spec};
use serde::{Deserialize, Serialize};

use crate::causes::with_causes;
use crate::worker::create::RUNTIME_DIRECTORY;

/// In the instance's directory, if there are any: hooks for after its start.
const FILE: &str = "hooks.json";

/// Longest time of one hook, seconds. All of a container's have to fit into the time that its making may take.
const SECONDS_MAX: i64 = 10;

/// Hooks of one container. A vendor's tool makes one for each thing it does to a root file system, a handful.
const HOOKS_MAX: usize = 64;

/// What others than the owner may not have of a program that runs as root.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("the hook {path} has no absolute path: correct the specification of its devices")]
    Relative { path: PathBuf },
    #[error("the specification has more than {HOOKS_MAX} hooks")]
    TooMany,
    #[error("the hook {path} cannot be found: install it, or make the specification of its devices anew")]
    Absent { path: PathBuf, source: io::Error },
    #[error("the hook {path} is no program that only root can change")]
    Unsafe { path: PathBuf },
    #[error(
        "the hook {path} is below /run, which is covered while a container is made: install it elsewhere"
    )]
    Covered { path: PathBuf },
    #[error("cannot keep hooks for later")]
    Keep(#[source] io::Error),
}

/// When hooks run that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Started,
    Gone,
}

/// Hooks to run.
#[derive(Debug)]
pub(crate) struct HooksTask {
    pub(crate) moment: Moment,
    pub(crate) id: String,
    /// The instance's directory.
    pub(crate) directory: PathBuf,
}

/// Hooks that are kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Later {
    started: Vec<Hook>,
    gone: Vec<Hook>,
}

/// Whether the instance in `directory` has hooks for after its start.
pub(crate) fn are_kept(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

/// Runs the hooks of a moment, each whether or not another fails, as the specification of runtimes has it. What failed.
pub(crate) fn run(task: &HooksTask) -> io::Result<Vec<String>> {
    let later: Later = serde_json::from_slice(&fs::read(task.directory.join(FILE))?)?;
    let runtime = task.directory.join(RUNTIME_DIRECTORY).join(&task.id);
    let mut state = State::load(&runtime).map_err(io::Error::other)?;
    let hooks = match task.moment {
        Moment::Started => later.started,
        Moment::Gone => later.gone,
    };
    state.status = match task.moment {
        Moment::Started => ContainerStatus::Running,
        Moment::Gone => ContainerStatus::Stopped,
    };
    let mut failed = Vec::new();
    for hook in hooks {
        let name = name(&hook);
        if let Err(error) = run_hooks(Some(&vec![hook]), Some(&state), None, None, None) {
            failed.push(format!("{name}: {}", with_causes(&error)));
        }
    }
    Ok(failed)
}

/// Hooks of before the program.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// What those are called that the container runtime runs.
    pub(crate) names: Vec<String>,
    /// Those of the start.
    pub(crate) start: Vec<Hook>,
}

/// Sees to it that the specification's hooks can run, and end; keeps those for after the start. Leaves in it those that the
/// container runtime is to run.
pub(crate) fn prepare(spec: &mut Spec, directory: &Path) -> Result<Before, HookError> {
    let Some(hooks) = spec.hooks_mut() else { return Ok(Before::default()) };
    let taken = |hooks: &Option<Vec<Hook>>| hooks.clone().unwrap_or_default();
    let mut before = [hooks.prestart(), hooks.create_runtime(), hooks.create_container()].map(taken);
    let mut later = Later { started: taken(hooks.poststart()), gone: taken(hooks.poststop()) };
    let mut names = Vec::new();
    for hook in before.iter_mut().flatten() {
        check(hook)?;
        if hook.path().canonicalize().is_ok_and(|real| real.starts_with("/run")) {
            return Err(HookError::Covered { path: hook.path().clone() });
        }
        names.push(name(hook));
    }
    let mut start = taken(hooks.start_container());
    for hook in &mut start {
        if !hook.path().is_absolute() {
            return Err(HookError::Relative { path: hook.path().clone() });
        }
        bound(hook);
    }
    let kept = later.started.len() + later.gone.len();
    for hook in later.started.iter_mut().chain(&mut later.gone) {
        check(hook)?;
    }
    if names.len() + start.len() + kept > HOOKS_MAX {
        return Err(HookError::TooMany);
    }
    if kept > 0 {
        let text = serde_json::to_vec(&later).map_err(|error| HookError::Keep(error.into()))?;
        fs::write(directory.join(FILE), text).map_err(HookError::Keep)?;
    }
    let [prestart, runtime, container] = before.map(|hooks| (!hooks.is_empty()).then_some(hooks));
    let mut left = Hooks::default();
    left.set_prestart(prestart).set_create_runtime(runtime).set_create_container(container);
    spec.set_hooks((!names.is_empty()).then_some(left));
    Ok(Before { names, start })
}

/// Its program, and what that is told to do.
fn name(hook: &Hook) -> String {
    let told = hook.args().iter().flatten().skip(1).take_while(|word| !word.starts_with('-'));
    let words: Vec<_> = told.map(String::as_str).collect();
    format!("{} {}", hook.path().display(), words.join(" ")).trim_end().to_owned()
}

/// Sees to it that a hook is a program that only root can change, and ends.
fn check(hook: &mut Hook) -> Result<(), HookError> {
    let path = hook.path().clone();
    let absent = |source| HookError::Absent { path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(absent)?;
    let mode = metadata.permissions().mode();
    let is_safe = metadata.uid() == 0 && mode & WRITABLE_BY_OTHERS == 0;
    if !path.is_absolute() || !metadata.is_file() || mode & 0o111 == 0 || !is_safe {
        return Err(HookError::Unsafe { path });
    }
    bound(hook);
    Ok(())
}

fn bound(hook: &mut Hook) {
    let seconds = hook.timeout().filter(|seconds| *seconds > 0).unwrap_or(SECONDS_MAX);
    hook.set_timeout(Some(seconds.min(SECONDS_MAX)));
}
