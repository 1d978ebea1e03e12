//! The agent's tasks: each has a name, by which it is told of should it end when it must not. Must not know what they do.

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The agent's tasks, as they are started.
pub(super) struct Tasks {
    pub(super) stop: CancellationToken,
    /// The router's, which stops before all others.
    pub(super) drain: CancellationToken,
    /// Cancelled when the router has ended.
    pub(super) drained: CancellationToken,
    /// End when `stop` is cancelled, or `drain`.
    pub(super) ending: JoinSet<&'static str>,
    /// Run for ever.
    pub(super) lasting: JoinSet<&'static str>,
}

impl Tasks {
    pub(super) fn new(stop: CancellationToken) -> Self {
        let (drain, drained) = (CancellationToken::new(), CancellationToken::new());
        Self { stop, drain, drained, ending: JoinSet::new(), lasting: JoinSet::new() }
    }

    pub(super) fn ending(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.ending.spawn(named(name, task));
    }

    pub(super) fn lasting(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.lasting.spawn(named(name, task));
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}
