//! How many requests of a revision run, wait or are refused: the counts of Knative's breaker, without the requests themselves.
//!
//! The caller keeps the waiters and starts as many of them as it is told to, first come, first served; it also watches their
//! deadlines and calls [`Breaker::abandon`]. Nobody waits while there is room.

/// The counts of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Most requests at a time, waiting ones included.
    limit: usize,
    /// Most requests that run at a time now.
    capacity: usize,
    executing: usize,
    waiting: usize,
}

/// What happens to a request that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It runs now; [`Breaker::finish`] follows.
    Admit,
    /// It waits until it is started or [abandoned](Breaker::abandon).
    Queue,
    /// It is refused and counts no further.
    Full,
}

impl Breaker {
    /// Admits `queue_depth` and `max_concurrency` requests together whatever the capacity: a queue in front of nothing yet holds
    /// those too that will run at once.
    pub fn new(queue_depth: usize, max_concurrency: usize, capacity: usize) -> Self {
        Self { limit: queue_depth.saturating_add(max_concurrency), capacity, executing: 0, waiting: 0 }
    }

    /// A request comes.
    #[must_use]
    pub fn arrive(&mut self) -> Admission {
        if self.in_flight() >= self.limit {
            Admission::Full
        } else if self.executing < self.capacity {
            self.executing += 1;
            Admission::Admit
        } else {
            self.waiting += 1;
            Admission::Queue
        }
    }

    /// A request comes that does not want to wait; `true`: it runs now.
    #[must_use]
    pub fn reserve(&mut self) -> bool {
        let free = self.in_flight() < self.limit && self.executing < self.capacity;
        self.executing += usize::from(free);
        free
    }

    /// A running request ended. Returns how many waiters start now.
    #[must_use]
    pub fn finish(&mut self) -> usize {
        debug_assert!(self.executing > 0, "only what runs can end");
        self.executing = self.executing.saturating_sub(1);
        self.start_waiters()
    }

    /// A waiter gave up: its deadline passed or its client went away.
    pub fn abandon(&mut self) {
        debug_assert!(self.waiting > 0, "only what waits can give up");
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// More or fewer may run from now on; what runs already is left alone. Returns how many waiters start now.
    #[must_use]
    pub fn set_capacity(&mut self, capacity: usize) -> usize {
        self.capacity = capacity;
        self.start_waiters()
    }

    /// Changes how many are admitted in all; those that are stay.
    pub fn set_limit(&mut self, queue_depth: usize, max_concurrency: usize) {
        self.limit = queue_depth.saturating_add(max_concurrency);
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn executing(&self) -> usize {
        self.executing
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Running and waiting.
    pub fn in_flight(&self) -> usize {
        self.executing + self.waiting
    }

    fn start_waiters(&mut self) -> usize {
        let started = self.waiting.min(self.capacity.saturating_sub(self.executing));
        self.waiting -= started;
        self.executing += started;
        started
    }
}
