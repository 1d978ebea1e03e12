//! What the command's exit code says, and how an error is printed.

use std::process::ExitCode;

use tombolo_oci::TransferError;

use crate::hub::RequestError;
use crate::output::PipeClosed;

/// Exit codes, as documented in `tombolo --help`. 2 (wrong use) is also clap's.
const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const TIMED_OUT: u8 = 4;
/// And the signal's number, as shells have it.
const SIGNALLED: u8 = 128;

/// What was asked makes no sense, whatever the hub's state.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUse(pub(crate) String);

/// What was waited for did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TimedOut(pub(crate) String);

/// Somebody ended what was being done, by this signal.
#[derive(Debug, thiserror::Error)]
#[error("broken off")]
pub(crate) struct Interrupted(pub(crate) u8);

/// Prints an error and tells its exit code.
pub(crate) fn with(error: &anyhow::Error) -> ExitCode {
    let code = code(error);
    if code == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<PipeClosed>() {
            return 0;
        }
        if cause.is::<WrongUse>()
            || cause.is::<crate::kinds::UnknownKind>()
            || cause.is::<crate::kinds::TargetError>()
        {
            return USAGE;
        }
        if cause.is::<TimedOut>() {
            return TIMED_OUT;
        }
        match cause.downcast_ref::<RequestError>() {
            Some(RequestError::Url(_) | RequestError::Trust(_)) => return USAGE,
            Some(RequestError::Unreachable { .. } | RequestError::NotAHub { .. }) => return UNREACHABLE,
            Some(RequestError::Timeout { .. }) => return TIMED_OUT,
            _ => {}
        }
        if cause.is::<crate::tls::TrustError>() {
            return USAGE;
        }
        match cause.downcast_ref::<TransferError>() {
            Some(TransferError::Unreachable { .. }) => return UNREACHABLE,
            Some(TransferError::Timeout { .. }) => return TIMED_OUT,
            _ => {}
        }
        if let Some(interrupted) = cause.downcast_ref::<Interrupted>() {
            return SIGNALLED.saturating_add(interrupted.0);
        }
    }
    REFUSED
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn codes_are_found_below_context() {
        let unreachable = RequestError::Unreachable { url: "u".into(), cause: "c".into() };
        let wrapped = Err::<(), _>(unreachable).context("deploying").unwrap_err();
        assert_eq!(code(&wrapped), UNREACHABLE);
        assert_eq!(code(&TimedOut("late".into()).into()), TIMED_OUT);
        assert_eq!(code(&WrongUse("no".into()).into()), USAGE);
        assert_eq!(code(&PipeClosed.into()), 0);
        assert_eq!(code(&anyhow::anyhow!("other")), REFUSED);
    }
}
