//! Reading what all resources have in common: metadata, conditions, times. For people: nothing here fails, what is
//! absent is empty.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One condition of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition<'a> {
    pub(crate) kind: &'a str,
    pub(crate) status: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) message: &'a str,
    /// RFC 3339.
    pub(crate) since: &'a str,
    /// Empty for what feeds `Ready`, else `Warning` or `Info`.
    pub(crate) severity: &'a str,
}

impl Condition<'_> {
    /// Does not feed `Ready`.
    pub(crate) fn is_informative(&self) -> bool {
        !self.severity.is_empty()
    }

    /// `Reason: message`, what is empty left out.
    pub(crate) fn cause(&self) -> String {
        joined(&[self.reason, self.message])
    }

    /// `RoutesReady: Reason: message`, what is empty left out.
    pub(crate) fn sentence(&self) -> String {
        joined(&[self.kind, self.reason, self.message])
    }
}

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(": ")
}

/// The text at a JSON pointer, empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer.
pub(crate) fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The elements of the array at a JSON pointer, none if there is none.
pub(crate) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// How far images are that a node fetches, in one cell.
pub(crate) fn pulling(pulls: &[Value]) -> String {
    let sum = |pointer| pulls.iter().filter_map(|pull| number(pull, pointer)).fold(0, i64::saturating_add);
    let percent = sum("/doneBytes").saturating_mul(100).checked_div(sum("/totalBytes")).unwrap_or(0);
    match pulls.len() {
        0 => String::new(),
        1 => format!("{percent}%"),
        images => format!("{percent}% of {images} images"),
    }
}

pub(crate) fn conditions(object: &Value) -> Vec<Condition<'_>> {
    let read = |condition| Condition {
        kind: text(condition, "/type"),
        status: text(condition, "/status"),
        reason: text(condition, "/reason"),
        message: text(condition, "/message"),
        since: text(condition, "/lastTransitionTime"),
        severity: text(condition, "/severity"),
    };
    items(object, "/status/conditions").iter().map(read).collect()
}

pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<Condition<'a>> {
    conditions(object).into_iter().find(|condition| condition.kind == kind)
}

/// The members of a map of texts at a JSON pointer, as `key=value`.
pub(crate) fn pairs(object: &Value, pointer: &str) -> Vec<String> {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect()
}

/// Time since an RFC 3339 time, as kubectl writes ages; `<unknown>` if it is none.
pub(crate) fn age(since: &str, now: OffsetDateTime) -> String {
    OffsetDateTime::parse(since, &Rfc3339)
        .map_or_else(|_| "<unknown>".to_owned(), |since| span((now - since).whole_seconds()))
}

/// Time since a number of milliseconds after 1970.
pub(crate) fn age_of_ms(since_ms: i64, now: OffsetDateTime) -> String {
    span(now.unix_timestamp() - since_ms / 1000)
}

/// Two units where one would say little. A clock that is behind makes no negative ages.
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if days < 2 => format!("{hours}h"),
        () if days < 8 => two(days, 'd', hours % 24, 'h'),
        () if days < 2 * 365 => format!("{days}d"),
        () => two(days / 365, 'y', days % 365, 'd'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages_read_as_kubectls() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (305, "5m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 65, "3h1m"),
            (9 * 3600, "9h"),
            (49 * 3600, "2d1h"),
            (9 * 86_400, "9d"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        assert_eq!(age("2027-01-15T07:59:55Z", now), "5s");
        assert_eq!(age("", now), "<unknown>");
        assert_eq!(age_of_ms(1_799_999_990_900, now), "10s");
    }

    #[test]
    fn absent_fields_are_empty() {
        let object = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "R", "message": "m",
            "severity": "Info"}]}, "metadata": {"labels": {"a": "b"}}});
        let ready = condition(&object, "Ready").unwrap();
        assert!(ready.is_informative());
        assert_eq!((ready.sentence().as_str(), ready.cause().as_str()), ("Ready: R: m", "R: m"));
        assert_eq!(condition(&object, "Other"), None);
        assert_eq!(condition(&json!(null), "Ready"), None);
        assert_eq!(pairs(&object, "/metadata/labels"), ["a=b"]);
        assert_eq!(text(&object, "/no/such"), "");
        assert_eq!(number(&object, "/status/x"), None);
    }
}
