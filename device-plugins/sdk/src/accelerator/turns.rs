//! Whose turn it is: sets of processes that calls have in hand, no process twice. It must not know what is done with them.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::Pid;

/// Processes in hand.
#[derive(Default)]
pub(super) struct Turns(watch::Sender<BTreeSet<Pid>>);

/// These processes are in hand as long as this lives.
pub(super) struct Turn {
    processes: BTreeSet<Pid>,
    in_hand: watch::Sender<BTreeSet<Pid>>,
}

impl Turns {
    /// Takes all of them at once, when nobody has any of them: two who want the same never wait for each other.
    pub(super) async fn take(&self, processes: BTreeSet<Pid>) -> Turn {
        let mut changes = self.0.subscribe();
        loop {
            let is_taken = self.0.send_if_modified(|in_hand| {
                let is_free = in_hand.is_disjoint(&processes);
                if is_free {
                    in_hand.extend(&processes);
                }
                is_free
            });
            if is_taken {
                return Turn { processes, in_hand: self.0.clone() };
            }
            // Not an error: the sender is this one's own.
            let _ = changes.wait_for(|in_hand| in_hand.is_disjoint(&processes)).await;
        }
    }
}

impl Turn {
    pub(super) fn processes(&self) -> &BTreeSet<Pid> {
        &self.processes
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.in_hand.send_modify(|in_hand| in_hand.retain(|pid| !self.processes.contains(pid)));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;

    use super::*;

    fn set(numbers: &[u32]) -> BTreeSet<Pid> {
        numbers.iter().map(|number| Pid(*number)).collect()
    }

    #[tokio::test]
    async fn whoever_shares_a_process_waits_and_nobody_else() {
        let turns = Turns::default();
        let first = turns.take(set(&[1, 2])).await;
        let mut second = Box::pin(turns.take(set(&[2, 3])));
        assert!(poll!(&mut second).is_pending());
        let third = turns.take(set(&[3, 4])).await;
        drop(first);
        assert!(poll!(&mut second).is_pending(), "one of them is the third's");
        drop(third);
        let Poll::Ready(second) = poll!(&mut second) else { panic!("all of them are free") };
        assert_eq!(*second.processes(), set(&[2, 3]));
    }
}
