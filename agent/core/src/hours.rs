//! The hours in which a node may fetch images. Pure: told the time, and from which second of which day on it is allowed.

/// Seconds of a day.
const DAY: u64 = 86_400;

/// Hours of every day, in a fixed offset from UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hours {
    /// From and until, seconds of the day; one that ends before it begins goes on into the next day. None: always.
    windows: Vec<(u64, u64)>,
    /// Seconds that are added to UTC.
    offset_s: i64,
}

/// Whether it is allowed at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    Always,
    /// For so many seconds more.
    For(u64),
    /// In so many seconds.
    In(u64),
}

impl Hours {
    /// From texts such as `22:00-05:00`, and an offset such as `+02:00`.
    pub fn parse(windows: &[String], utc_offset: &str) -> Result<Self, String> {
        let window = |text: &String| {
            let (from, until) = text.split_once('-')?;
            let (from, until) = (time(from)?, time(until)?);
            (from != until && from < DAY).then_some((from, until))
        };
        let windows = windows
            .iter()
            .map(|text| {
                window(text).ok_or_else(|| format!("hours: {text:?} must be such as \"22:00-05:00\""))
            })
            .collect::<Result<_, _>>()?;
        let offset_s = offset(utc_offset)
            .ok_or_else(|| format!("utc_offset: {utc_offset:?} must be such as \"+02:00\""))?;
        Ok(Self { windows, offset_s })
    }

    /// What a clock on the wall shows at so many seconds since 1970 (UTC).
    pub fn clock(&self, unix_s: u64) -> String {
        let (minute, offset) = (self.second_of_day(unix_s) / 60, self.offset_s.unsigned_abs() / 60);
        let sign = if self.offset_s < 0 { '-' } else { '+' };
        format!("{:02}:{:02} UTC{sign}{:02}:{:02}", minute / 60, minute % 60, offset / 60, offset % 60)
    }

    /// At so many seconds since 1970 (UTC).
    pub fn at(&self, unix_s: u64) -> Allowed {
        if self.windows.is_empty() {
            return Allowed::Always;
        }
        let second = self.second_of_day(unix_s);
        let until = |moment: u64| (moment % DAY + DAY - second) % DAY;
        let left = self.windows.iter().filter_map(|&(from, end)| {
            let is_in =
                if from < end { (from..end).contains(&second) } else { second >= from || second < end };
            is_in.then(|| until(end))
        });
        if let Some(left) = left.max() {
            return Allowed::For(left);
        }
        Allowed::In(self.windows.iter().map(|&(from, _)| until(from)).min().unwrap_or(0))
    }
}

impl Hours {
    fn second_of_day(&self, unix_s: u64) -> u64 {
        let local = i64::try_from(unix_s).unwrap_or(0).wrapping_add(self.offset_s);
        u64::try_from(local.rem_euclid(86_400)).unwrap_or(0)
    }
}

/// Seconds of the day at `22:30`; `24:00` is its end.
fn time(text: &str) -> Option<u64> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| if text.len() == 2 { text.parse::<u64>().ok() } else { None };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let second = (hour * 60 + minute) * 60;
    (minute < 60 && second <= DAY).then_some(second)
}

fn offset(text: &str) -> Option<i64> {
    let (sign, rest) = text.split_at_checked(1)?;
    let seconds = i64::try_from(time(rest)?).ok()?;
    match sign {
        "+" => Some(seconds),
        "-" => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(windows: &[&str], offset: &str) -> Hours {
        let windows: Vec<String> = windows.iter().map(|text| (*text).to_owned()).collect();
        Hours::parse(&windows, offset).unwrap()
    }

    #[test]
    fn nights_and_lunch_breaks() {
        let (h, m) = (3600, 60);
        for (windows, offset, now, allowed) in [
            (&[][..], "+00:00", 0, Allowed::Always),
            (&["22:00-05:00"], "+00:00", 22 * h, Allowed::For(7 * h)),
            (&["22:00-05:00"], "+00:00", DAY * 20_000 + 4 * h + 59 * m, Allowed::For(m)),
            (&["22:00-05:00"], "+00:00", 5 * h, Allowed::In(17 * h)),
            (&["22:00-05:00"], "+02:00", 20 * h, Allowed::For(7 * h)),
            (&["22:00-05:00"], "-05:30", 3 * h, Allowed::In(30 * m)),
            (&["12:00-13:00", "22:00-24:00"], "+00:00", 13 * h, Allowed::In(9 * h)),
            (&["12:00-13:00", "22:00-24:00"], "+00:00", 23 * h, Allowed::For(h)),
            (&["00:00-24:00"], "+00:00", 7, Allowed::For(DAY - 7)),
            (&["12:00-13:00", "12:30-14:00"], "+00:00", 12 * h + 45 * m, Allowed::For(75 * m)),
        ] {
            assert_eq!(hours(windows, offset).at(now), allowed, "{windows:?} {offset} {now}");
        }
    }

    #[test]
    fn whatever_the_clock_says_it_is_allowed_within_a_day() {
        let hours = hours(&["03:10-03:20"], "+01:00");
        for now in (0..3 * DAY).step_by(61).chain([u64::MAX, u64::MAX / 2]) {
            match hours.at(now) {
                Allowed::In(seconds) => {
                    assert!(seconds < DAY);
                    let then = now.saturating_add(seconds);
                    assert!(now > u64::MAX / 4 || matches!(hours.at(then), Allowed::For(600)), "{now}");
                }
                Allowed::For(seconds) => assert!(seconds <= 600, "{now}"),
                Allowed::Always => panic!("never always"),
            }
        }
    }

    #[test]
    fn the_clock_on_the_wall_is_shown() {
        assert_eq!(hours(&[], "-05:30").clock(3 * 3600), "21:30 UTC-05:30");
        assert_eq!(hours(&[], "+02:00").clock(22 * 3600), "00:00 UTC+02:00");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in
            ["", "22:00", "22-05", "22:00-22:00", "25:00-01:00", "2:00-3:00", "01:60-02:00", "24:00-01:00"]
        {
            assert!(Hours::parse(&[bad.into()], "+00:00").is_err(), "{bad}");
        }
        for bad in ["", "1", "02:00", "+2:00", "+02", "é1:00"] {
            assert!(Hours::parse(&[], bad).is_err(), "{bad}");
        }
    }
}
