//! The hub's wall clock, in the two forms that are written down.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339, whole seconds, UTC: as Kubernetes writes times.
pub(crate) fn now_rfc3339() -> String {
    rfc3339(now_s())
}

/// Seconds since 1970 (UTC).
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment in seconds since 1970 (UTC) as [`now_rfc3339`] writes it.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let moment =
        i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    moment.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).expect("years 1970 to 9999 have a notation")
}

/// The moment that [`rfc3339`] wrote, in seconds since 1970 (UTC).
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    OffsetDateTime::parse(text, &Rfc3339).ok().and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(super::rfc3339(1_763_000_000), "2025-11-13T02:13:20Z");
        assert_eq!(super::parse_rfc3339("2025-11-13T02:13:20Z"), Some(1_763_000_000));
        assert_eq!(super::parse_rfc3339("yesterday"), None);
        assert_eq!(super::rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }
}
