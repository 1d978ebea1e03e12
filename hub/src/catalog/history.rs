//! The latest changes, for clients that follow them. Bounded: who falls too far behind has to list again.

use std::collections::VecDeque;
use std::sync::Arc;

use tombolo_hub_core::Object;

/// Changes remembered. A deployment makes about a dozen, and a client that follows reads at once; each keeps one old
/// version of an object, a few kilobytes.
const EVENTS_MAX: usize = 512;

/// One change of one object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) version: u64,
    pub(crate) before: Option<Object>,
    pub(crate) after: Option<Object>,
}

/// The changes asked for are not remembered any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub(crate) struct Expired {
    pub(crate) asked: u64,
    pub(crate) oldest: u64,
}

/// Why the state of a version cannot be shown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VersionError {
    #[error(transparent)]
    Expired(#[from] Expired),
    /// Not given away yet: the hub lost its store, or the client asks another hub than before.
    #[error("Timeout: Too large resource version: {asked}, current: {current}")]
    TooLarge { asked: u64, current: u64 },
}

#[derive(Debug)]
pub(super) struct History {
    /// Every change after this version is here.
    complete_after: u64,
    events: VecDeque<Arc<Event>>,
}

impl History {
    pub(super) fn starting_at(version: u64) -> Self {
        Self { complete_after: version, events: VecDeque::new() }
    }

    pub(super) fn add(&mut self, events: Vec<Event>) {
        for event in events {
            self.events.push_back(Arc::new(event));
            if self.events.len() > EVENTS_MAX
                && let Some(forgotten) = self.events.pop_front()
            {
                self.complete_after = forgotten.version;
            }
        }
    }

    /// What came after `version`, oldest first.
    pub(super) fn since(&self, version: u64) -> Result<Vec<Arc<Event>>, Expired> {
        if version < self.complete_after {
            return Err(Expired { asked: version, oldest: self.complete_after });
        }
        let first = self.events.partition_point(|event| event.version <= version);
        Ok(self.events.range(first..).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest_and_says_so() {
        let mut history = History::starting_at(10);
        let event = |version| Event { version, before: None, after: None };
        history.add(vec![event(11), event(12)]);
        let versions = |history: &History, after| {
            history.since(after).map(|events| events.iter().map(|event| event.version).collect::<Vec<_>>())
        };
        assert_eq!(versions(&history, 10), Ok(vec![11, 12]));
        assert_eq!(versions(&history, 11), Ok(vec![12]));
        assert_eq!(versions(&history, 12), Ok(vec![]));
        assert_eq!(versions(&history, 9), Err(Expired { asked: 9, oldest: 10 }));
        history.add((13..13 + EVENTS_MAX as u64).map(event).collect());
        assert_eq!(versions(&history, 11), Err(Expired { asked: 11, oldest: 12 }));
        assert_eq!(versions(&history, 12).unwrap().len(), EVENTS_MAX);
    }
}
