//! Conditions of a status: how they are made, kept and summed up into `Ready`. Knows no resource.

use tombolo_api::meta::{Condition, ConditionStatus, Severity};

/// What is known of one aspect of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub status: ConditionStatus,
    /// One CamelCase word; never empty when `status` is `False`.
    pub reason: String,
    pub message: String,
}

impl Verdict {
    pub fn good() -> Self {
        Self { status: ConditionStatus::True, reason: String::new(), message: String::new() }
    }

    pub fn bad(reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::False, reason: reason.into(), message: message.into() }
    }

    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::Unknown, reason: reason.into(), message: message.into() }
    }

    pub fn is_good(&self) -> bool {
        self.status == ConditionStatus::True
    }

    pub fn is_bad(&self) -> bool {
        self.status == ConditionStatus::False
    }

    /// What a status says of `kind`; unknown if it says nothing.
    pub fn of(conditions: &[Condition], kind: &str) -> Self {
        match tombolo_api::meta::condition(conditions, kind) {
            Some(found) => {
                Self { status: found.status, reason: found.reason.clone(), message: found.message.clone() }
            }
            None => Self::unknown("", ""),
        }
    }

    /// The summary of several: the first bad one, else the first unknown one, else good.
    pub fn all(parts: &[&Self]) -> Self {
        let first = |status| parts.iter().find(|part| part.status == status).map(|part| (*part).clone());
        first(ConditionStatus::False).or_else(|| first(ConditionStatus::Unknown)).unwrap_or_else(Self::good)
    }
}

/// A verdict, and what it means for `Ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graded {
    pub verdict: Verdict,
    pub severity: Severity,
}

impl Graded {
    /// A verdict that feeds `Ready`.
    pub fn error(verdict: Verdict) -> Self {
        Self { verdict, severity: Severity::Error }
    }

    /// One of something that works, and worse than it should.
    pub fn warning(verdict: Verdict) -> Self {
        Self { verdict, severity: Severity::Warning }
    }

    /// What a status says of `kind`; unknown if it says nothing. A warning was of something that works.
    pub fn of(conditions: &[Condition], kind: &str) -> Verdict {
        match tombolo_api::meta::condition(conditions, kind) {
            Some(found) if found.severity != Severity::Error => Verdict::good(),
            _ => Verdict::of(conditions, kind),
        }
    }

    /// What `Ready` is to make of it.
    pub fn for_ready(&self) -> Verdict {
        match self.severity {
            Severity::Error => self.verdict.clone(),
            Severity::Warning | Severity::Info => Verdict::good(),
        }
    }
}

/// Builds a resource's conditions from verdicts.
pub struct Conditions<'a> {
    before: &'a [Condition],
    now: &'a str,
    built: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// `before` are the conditions so far: a status that stays keeps its transition time.
    pub fn new(before: &'a [Condition], now: &'a str) -> Self {
        Self { before, now, built: Vec::new() }
    }

    #[must_use]
    pub fn set(self, kind: &str, verdict: &Verdict) -> Self {
        self.with_severity(kind, verdict, Severity::Error)
    }

    /// A condition that does not feed `Ready`.
    #[must_use]
    pub fn info(self, kind: &str, verdict: &Verdict) -> Self {
        self.with_severity(kind, verdict, Severity::Info)
    }

    /// One that feeds `Ready` only if it must.
    #[must_use]
    pub fn graded(self, kind: &str, graded: &Graded) -> Self {
        self.with_severity(kind, &graded.verdict, graded.severity)
    }

    /// Sorted by type.
    pub fn build(mut self) -> Vec<Condition> {
        self.built.sort_by(|a, b| a.kind.cmp(&b.kind));
        self.built
    }

    fn with_severity(mut self, kind: &str, verdict: &Verdict, severity: Severity) -> Self {
        let since = tombolo_api::meta::condition(self.before, kind)
            .filter(|before| before.status == verdict.status && !before.last_transition_time.is_empty())
            .map_or(self.now, |before| &before.last_transition_time);
        self.built.push(Condition {
            last_transition_time: since.to_owned(),
            message: verdict.message.clone(),
            reason: verdict.reason.clone(),
            severity,
            status: verdict.status,
            kind: kind.to_owned(),
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_wins_over_unknown_wins_over_good() {
        let (good, unknown, bad) = (Verdict::good(), Verdict::unknown("U", ""), Verdict::bad("B", "m"));
        assert_eq!(Verdict::all(&[&good, &unknown, &bad]), bad);
        assert_eq!(Verdict::all(&[&good, &unknown]), unknown);
        assert_eq!(Verdict::all(&[&good, &good]), good);
    }

    #[test]
    fn a_status_that_stays_keeps_its_time() {
        let before =
            Conditions::new(&[], "t0").set("B", &Verdict::unknown("", "")).set("A", &Verdict::good()).build();
        assert_eq!(before.iter().map(|c| c.kind.as_str()).collect::<Vec<_>>(), ["A", "B"]);
        let after = Conditions::new(&before, "t1")
            .set("A", &Verdict::good())
            .set("B", &Verdict::bad("R", ""))
            .build();
        assert_eq!(after.iter().map(|c| c.last_transition_time.as_str()).collect::<Vec<_>>(), ["t0", "t1"]);
    }
}
