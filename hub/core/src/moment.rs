//! Moments as resources carry them, in seconds: a core has no clock and compares the times it is given.

/// Seconds since 1970 of an RFC 3339 moment in UTC, fractions cut off; `None` if it is not one.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let number = |part: &str| -> Option<i64> {
        (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let [year, month, day] = three(date, '-')?;
    let [hour, minute, second] = three(time, ':')?;
    let whole = second.split('.').next().unwrap_or_default();
    let (year, month, day) = (number(year)?, number(month)?, number(day)?);
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(whole)?);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    in_range.then(|| ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

fn three(text: &str, between: char) -> Option<[&str; 3]> {
    text.split(between).collect::<Vec<_>>().try_into().ok()
}

/// Days from 1970-01-01. The year is counted from March, so that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let leaps = year / 4 - year / 100 + year / 400;
    const FROM_MARCH_OF_YEAR_0_TO_1970: i64 = 719_468;
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - FROM_MARCH_OF_YEAR_0_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2025-11-13T02:13:20Z", Some(1_763_000_000)),
            ("2000-02-29T23:59:59.999Z", Some(951_868_799)),
            ("2000-03-01T00:00:00Z", Some(951_868_800)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("", None),
            ("2025-11-13", None),
            ("2025-11-13T02:13Z", None),
            ("2025-13-13T02:13:20Z", None),
            ("2025-11-13T02:13:20+01:00", None),
            ("+025-11-13T02:13:20Z", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
