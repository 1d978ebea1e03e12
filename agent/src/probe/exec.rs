//! Exec probes: a command in the container, passed by exit status 0. Who runs it is given; it must not know how.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Miss;

/// Longest part of a command's output in a message.
const OUTPUT_CHARS_MAX: usize = 200;

/// Runs a command in the instance and gives how it ended. It must end the command when the time is over, which is a failure. An
/// error says why there is no exit status.
pub(crate) type Exec = Arc<dyn Fn(Vec<String>, Duration) -> Running + Send + Sync>;

/// A command that runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Exit, Miss>> + Send>>;

/// How a command ended.
pub(crate) struct Exit {
    pub(crate) status: i32,
    /// The beginning of what it printed.
    pub(crate) output: String,
}

pub(super) async fn ask(exec: &Exec, command: &[String], timeout: Duration) -> Result<(), Miss> {
    let Exit { status, output } = exec(command.to_vec(), timeout).await?;
    let line = output.lines().next().unwrap_or_default();
    let said: String = line.chars().take(OUTPUT_CHARS_MAX).collect();
    match (status, said.as_str()) {
        (0, _) => Ok(()),
        (status, "") => Err(Miss::Failed(format!("exited with {status}"))),
        (status, said) => Err(Miss::Failed(format!("exited with {status}: {said}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_status_0_passes_and_a_failure_comes_with_the_first_words() {
        let table = [
            ((0, "fine"), Ok(())),
            ((1, ""), Err("exited with 1")),
            ((127, "no such file\nreally"), Err("exited with 127: no such file")),
        ];
        let failed = |words: &str| Miss::Failed(words.to_owned());
        for (ended, expected) in table {
            let exec: Exec = Arc::new(move |command, timeout| {
                assert_eq!((command, timeout), (vec!["is-well".to_owned()], Duration::from_secs(2)));
                let (status, output) = ended;
                Box::pin(async move { Ok(Exit { status, output: output.to_owned() }) })
            });
            let result = ask(&exec, &["is-well".to_owned()], Duration::from_secs(2)).await;
            assert_eq!(result, expected.map_err(failed));
        }
    }
}
