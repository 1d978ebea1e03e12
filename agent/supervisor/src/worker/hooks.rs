//! The hooks of a specification, before the container runtime runs them: programs of the machine that finish a container's root
//! file system, as those of vendors' device specifications do.
//!
//! They run as root, outside the container's root directory, so what a hook names must be root's alone. Whoever can write a
//! specification of devices on the machine can name one; an image or a function cannot.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Spec};

/// Longest time of one hook, seconds. All of a container's have to fit into the time that its making may take.
const SECONDS_MAX: i64 = 10;

/// Hooks of one container. A vendor's tool makes one for each thing it does to a root file system, a handful.
const HOOKS_MAX: usize = 64;

/// What others than the owner may not have of a program that runs as root.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error(
        "{phase} hooks are not supported, such as {path}: only prestart, createRuntime and createContainer are"
    )]
    Unsupported { phase: &'static str, path: PathBuf },
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
}

/// Sees to it that the specification's hooks can run, and end. What they are called; nothing, if there are none.
pub(crate) fn prepare(spec: &mut Spec) -> Result<Vec<String>, HookError> {
    let Some(hooks) = spec.hooks_mut() else { return Ok(Vec::new()) };
    let never = [
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (phase, hooks) in never {
        if let Some(hook) = hooks.iter().flatten().next() {
            return Err(HookError::Unsupported { phase, path: hook.path().clone() });
        }
    }
    let (mut prestart, mut runtime, mut container) =
        (hooks.prestart().clone(), hooks.create_runtime().clone(), hooks.create_container().clone());
    let mut names = Vec::new();
    for hook in [&mut prestart, &mut runtime, &mut container].into_iter().flatten().flatten() {
        check(hook.path())?;
        let seconds = hook.timeout().filter(|seconds| *seconds > 0).unwrap_or(SECONDS_MAX);
        hook.set_timeout(Some(seconds.min(SECONDS_MAX)));
        names.push(name(hook));
    }
    hooks.set_prestart(prestart).set_create_runtime(runtime).set_create_container(container);
    match names.len() {
        0 => drop(spec.set_hooks(None)),
        1..=HOOKS_MAX => {}
        _ => return Err(HookError::TooMany),
    }
    Ok(names)
}

/// Its program, and what that is told to do.
fn name(hook: &Hook) -> String {
    let told = hook.args().iter().flatten().skip(1).take_while(|word| !word.starts_with('-'));
    let words: Vec<_> = told.map(String::as_str).collect();
    format!("{} {}", hook.path().display(), words.join(" ")).trim_end().to_owned()
}

fn check(path: &Path) -> Result<(), HookError> {
    let absent = |source| HookError::Absent { path: path.to_owned(), source };
    let real = path.canonicalize().map_err(absent)?;
    let metadata = fs::metadata(&real).map_err(absent)?;
    let mode = metadata.permissions().mode();
    let is_safe = metadata.uid() == 0 && mode & WRITABLE_BY_OTHERS == 0;
    if !path.is_absolute() || !metadata.is_file() || mode & 0o111 == 0 || !is_safe {
        return Err(HookError::Unsafe { path: path.to_owned() });
    }
    if real.starts_with("/run") {
        return Err(HookError::Covered { path: path.to_owned() });
    }
    Ok(())
}
