//! The last steps inside the container: seccomp filter, signal dispositions, hooks of the start, `execve`.

use std::collections::HashMap;
use std::path::PathBuf;

use libcontainer::container::ContainerStatus;
use libcontainer::container::state::State;
use libcontainer::hooks::run_hooks;
use libcontainer::oci_spec::runtime::{Hook, Spec};
use libcontainer::utils::parse_env;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::prctl::set_dumpable;

use crate::causes::with_causes;
use crate::seccomp::Filters;
use crate::sys;

/// Executes the program of the specification under the filters, and before it what has to be done in the container by then.
#[derive(Clone, Debug)]
pub(crate) struct FilteredExecutor {
    pub(crate) filters: Filters,
    pub(crate) hooks: StartHooks,
}

/// Programs of the image that a specification of devices wants to run before the function's own, in its place and as its user. They
/// could be anything: they are held to the same filters, before which the container runtime itself would run them, and what starts
/// them is closed to them, which until the program replaces it is this one, with its memory and what it has open.
#[derive(Clone, Debug, Default)]
pub(crate) struct StartHooks {
    /// What they are told the container is called, and where its bundle is.
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) hooks: Vec<Hook>,
}

impl StartHooks {
    fn run(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if self.hooks.is_empty() {
            return Ok(());
        }
        // The program that follows is another one, and open again.
        set_dumpable(false)
            .map_err(|error| ExecutorError::Other(format!("cannot shut itself off: {error}")))?;
        let env: HashMap<_, _> = spec
            .process()
            .as_ref()
            .and_then(|process| process.env().as_deref())
            .map(parse_env)
            .unwrap_or_default();
        let pid = i32::try_from(std::process::id()).ok();
        let state = State::new(&self.id, ContainerStatus::Created, pid, self.bundle.clone());
        for hook in &self.hooks {
            run_hooks(Some(&vec![hook.clone()]), Some(&state), None, None, Some(&env)).map_err(|error| {
                let path = hook.path().display();
                ExecutorError::Other(format!("the hook {path} of its start failed: {}", with_causes(&error)))
            })?;
        }
        Ok(())
    }
}

impl Executor for FilteredExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        sys::default_signals();
        let filtered = self.filters.apply().map_err(|error| ExecutorError::Other(error.to_string()));
        let outcome =
            filtered.and_then(|()| self.hooks.run(spec)).and_then(|()| DefaultExecutor {}.exec(spec));
        // The starter has its answer already; whoever reads the log finds the reason, and the exit status says the rest.
        if let Err(error) = &outcome {
            eprintln!("tombolo: the program cannot be executed: {}", with_causes(error));
        }
        outcome
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}
