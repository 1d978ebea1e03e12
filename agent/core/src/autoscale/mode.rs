//! Whether the ready instances of a revision can take the burst that is asked of them, in Knative's words. A node's router is
//! in the path either way; a cluster then leaves its activators out of it, or keeps them in.

/// The mode of Knative's ServerlessService.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Instances are there, and have the spare capacity that is asked.
    Serve,
    /// They have not: a burst will wait in the queue.
    Proxy,
}

impl Mode {
    /// `want`: instances, `None` if that is not known.
    pub fn of(want: Option<u32>, excess_burst_capacity: i32) -> Self {
        let is_up = want.is_some_and(|want| want > 0);
        if is_up && excess_burst_capacity >= 0 { Self::Serve } else { Self::Proxy }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Serve => "Serve",
            Self::Proxy => "Proxy",
        }
    }
}
