//! Dates as the clouds write them, as seconds since 1970: pure functions.

/// A date and time of day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

impl Moment {
    /// Days are counted in years that begin in March, so that the leap day is the last.
    fn seconds(self) -> Option<i64> {
        let fits = (1970..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && (0..24).contains(&self.hour)
            && (0..60).contains(&self.minute)
            && (0..=60).contains(&self.second);
        if !fits {
            return None;
        }
        let year = if self.month > 2 { self.year } else { self.year - 1 };
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month = (self.month + 9) % 12;
        let of_year = (153 * month + 2) / 5 + self.day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        Some(days * 86_400 + self.hour * 3600 + self.minute * 60 + self.second)
    }

    fn of(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * years + years / 4 - years / 100);
        let shifted = (5 * of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: years + era * 400 + i64::from(month <= 2),
            month,
            day: of_year - (153 * shifted + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }
}

fn number(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn time_of_day(text: &str) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(':');
    let mut next = || number(parts.next()?);
    Some((next()?, next()?, next()?))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that may be sent.
pub(crate) fn from_http(text: &str) -> Option<i64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.strip_suffix(" GMT")?.split(' ');
    let day = number(words.next()?)?;
    let month = words.next()?;
    let month = MONTHS.iter().zip(1..).find(|(name, _)| **name == month)?.1;
    let year = number(words.next()?)?;
    let (hour, minute, second) = time_of_day(words.next()?)?;
    Moment { year, month, day, hour, minute, second }.seconds()
}

/// `2022-08-30T10:51:04Z`, with or without a fraction of a second, or `+00:00` for `Z`.
pub(crate) fn from_iso(text: &str) -> Option<i64> {
    let (date, time) = text.trim().split_once('T')?;
    let time = time.strip_suffix('Z').or_else(|| time.strip_suffix("+00:00"))?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    number(fraction)?;
    let mut parts = date.split('-');
    let mut next = || number(parts.next()?);
    let (year, month, day) = (next()?, next()?, next()?);
    let (hour, minute, second) = time_of_day(time)?;
    Moment { year, month, day, hour, minute, second }.seconds()
}

/// `20130524T000000Z`, as signatures have it; its first eight characters are the day.
pub(crate) fn to_amz(seconds: i64) -> String {
    let Moment { year, month, day, hour, minute, second } = Moment::of(seconds);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_read_as_they_are_written() {
        assert_eq!(from_http("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(from_http("Thu, 29 Feb 2024 23:59:60 GMT"), Some(1_709_251_200));
        assert_eq!(from_iso("2022-08-30T10:51:04Z"), Some(1_661_856_664));
        assert_eq!(from_iso("2022-08-30T10:51:04.123Z"), Some(1_661_856_664));
        assert_eq!(from_iso("1970-01-01T00:00:00+00:00"), Some(0));
        assert_eq!(to_amz(1_369_353_600), "20130524T000000Z");
        assert_eq!(to_amz(1_709_251_199), "20240229T235959Z");
        for odd in ["", "yesterday", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, -6 Nov 1994 8:0:0 GMT"]
        {
            assert_eq!(from_http(odd), None, "{odd}");
        }
        for odd in ["", "2022-08-30", "2022-13-01T00:00:00Z", "2022-08-30T10:51:04", "xTyZ"] {
            assert_eq!(from_iso(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn every_second_is_written_as_it_is_read(seconds in 0_i64..253_402_300_799) {
            let moment = Moment::of(seconds);
            prop_assert_eq!(moment.seconds(), Some(seconds));
            let text = to_amz(seconds);
            let (date, time) = (&text[..8], &text[9..15]);
            let iso = format!(
                "{}-{}-{}T{}:{}:{}Z",
                &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..]
            );
            prop_assert_eq!(from_iso(&iso), Some(seconds));
        }

        #[test]
        fn no_text_breaks_the_reading(text in ".{0,40}") {
            from_http(&text);
            from_iso(&text);
        }
    }
}
