//! Exec probes: a command in the container, passed by exit status 0. Who runs it is given; it must not know how.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Runs a command in the instance and gives its exit status. It must end the command when the time is over, and when it is
/// dropped. An error says why there is no status.
pub(crate) type Exec = Arc<dyn Fn(Vec<String>, Duration) -> Running + Send + Sync>;

/// A command that runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<i32, String>> + Send>>;

pub(super) async fn ask(exec: &Exec, command: &[String], timeout: Duration) -> Result<(), String> {
    match exec(command.to_vec(), timeout).await? {
        0 => Ok(()),
        status => Err(format!("exited with {status}")),
    }
}
