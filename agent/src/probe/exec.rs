//! Exec probes: a command in the container, passed by exit status 0. Who runs it is given; it must not know how.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Longest part of a command's output in a message.
const OUTPUT_CHARS_MAX: usize = 200;

/// Runs a command in the instance and gives how it ended. It must end the command when the time is over. An error says why
/// there is no exit status.
pub(crate) type Exec = Arc<dyn Fn(Vec<String>, Duration) -> Running + Send + Sync>;

/// A command that runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Exit, String>> + Send>>;

/// How a command ended.
pub(crate) struct Exit {
    pub(crate) status: i32,
    /// The beginning of what it printed.
    pub(crate) output: String,
}

pub(super) async fn ask(exec: &Exec, command: &[String], timeout: Duration) -> Result<(), String> {
    let Exit { status, output } = exec(command.to_vec(), timeout).await?;
    let line = output.lines().next().unwrap_or_default();
    let said: String = line.chars().take(OUTPUT_CHARS_MAX).collect();
    match (status, said.as_str()) {
        (0, _) => Ok(()),
        (status, "") => Err(format!("exited with {status}")),
        (status, said) => Err(format!("exited with {status}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_status_0_passes_and_a_failure_comes_with_the_first_words() {
        let table = [
            (Ok((0, "fine")), Ok(())),
            (Ok((1, "")), Err("exited with 1")),
            (Ok((127, "no such file\nreally")), Err("exited with 127: no such file")),
            (Err("the instance is gone"), Err("the instance is gone")),
        ];
        for (ended, expected) in table {
            let exec: Exec = Arc::new(move |command, timeout| {
                assert_eq!((command, timeout), (vec!["is-well".to_owned()], Duration::from_secs(2)));
                let ended = ended.map(|(status, output)| Exit { status, output: output.to_owned() });
                Box::pin(async move { ended.map_err(str::to_owned) })
            });
            let result = ask(&exec, &["is-well".to_owned()], Duration::from_secs(2)).await;
            assert_eq!(result, expected.map_err(str::to_owned));
        }
    }
}
