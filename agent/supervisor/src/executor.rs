//! The last steps inside the container: seccomp filter, signal dispositions, `execve`.

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::causes::with_causes;
use crate::seccomp::Filters;
use crate::sys;

/// Executes the program of the specification under the filters.
#[derive(Clone, Debug)]
pub(crate) struct FilteredExecutor {
    pub(crate) filters: Filters,
}

impl Executor for FilteredExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        sys::default_signals();
        let outcome = match self.filters.apply() {
            Ok(()) => DefaultExecutor {}.exec(spec),
            Err(error) => Err(ExecutorError::Other(error.to_string())),
        };
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
