//! Durations as Go reads and prints them (`1h30m`, `-1.5s`), which is how Knative's annotations say them. Knows no annotation.

const NANOS_PER_MILLI: u64 = 1_000_000;

/// A duration in nanoseconds; `None` if it is not one, or too long for a clock.
pub fn nanos(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.bytes().position(|b| !b.is_ascii_digit() && b != b'.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.bytes().position(|b| b.is_ascii_digit() || b == b'.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        nanos = nanos.checked_add(decimal_times(number, unit_nanos(unit)?)?)?;
        rest = after;
    }
    i64::try_from(if negative { -nanos } else { nanos }).ok()
}

/// A duration in whole milliseconds; `None` if it is not one, or negative.
pub fn millis(text: &str) -> Option<u64> {
    u64::try_from(nanos(text)?).ok().map(|nanos| nanos / NANOS_PER_MILLI)
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn decimal_times(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(unit)?;
    let mut scale = unit;
    for digit in fraction.bytes() {
        scale /= 10;
        nanos = nanos.checked_add(i128::from(digit - b'0').checked_mul(scale)?)?;
    }
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let second = 1_000_000_000;
        let table = [
            ("0", Some(0)),
            ("6s", Some(6 * second)),
            ("1h30m", Some(5400 * second)),
            ("-1.5s", Some(-3 * second / 2)),
            (".5m", Some(30 * second)),
            ("1us", Some(1000)),
            ("", None),
            ("6", None),
            ("s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("99999999h", None),
        ];
        for (text, expected) in table {
            assert_eq!(nanos(text), expected, "{text}");
        }
    }

    #[test]
    fn milliseconds_are_whole_and_not_negative() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1h2m3.5s", Some(3_723_500)),
            ("250ms", Some(250)),
            ("1999us", Some(1)),
            ("-1s", None),
            ("10", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
    }
}
