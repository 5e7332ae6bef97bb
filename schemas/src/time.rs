use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

const MS_PER_HOUR: i64 = 3_600_000;
const MS_PER_DAY: i64 = 24 * MS_PER_HOUR;

/// The moment at which something happened in the world, in milliseconds since the Unix epoch,
/// UTC. Never the moment of its arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// Before every event: the watermark of a stream of which nothing is known yet.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// After every event.
    pub const MAX: EventTime = EventTime(i64::MAX);

    /// Events are accepted between the years 1900 and 2200: a time outside is a wrong unit
    /// (seconds or microseconds for milliseconds), not an old transaction.
    pub const EARLIEST: EventTime = EventTime(-2_208_988_800_000);
    pub const LATEST: EventTime = EventTime(7_258_118_400_000);

    pub const fn from_millis(millis: i64) -> EventTime {
        EventTime(millis)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Hour of the day, 0 to 23, UTC.
    pub const fn hour(self) -> u32 {
        (self.0.rem_euclid(MS_PER_DAY) / MS_PER_HOUR) as u32
    }

    /// Day of the week, Monday = 0 to Sunday = 6, UTC.
    pub const fn weekday(self) -> u32 {
        // 1970-01-01 was a Thursday.
        ((self.0.div_euclid(MS_PER_DAY) + 3).rem_euclid(7)) as u32
    }

    /// `self - duration`, staying at [`EventTime::MIN`] instead of overflowing.
    pub const fn saturating_sub(self, duration: Duration) -> EventTime {
        EventTime(self.0.saturating_sub(millis(duration)))
    }

    /// `self + duration`, staying at [`EventTime::MAX`] instead of overflowing.
    pub const fn saturating_add(self, duration: Duration) -> EventTime {
        EventTime(self.0.saturating_add(millis(duration)))
    }
}

const fn millis(duration: Duration) -> i64 {
    let millis = duration.as_millis();
    if millis > i64::MAX as u128 { i64::MAX } else { millis as i64 }
}

impl Add<Duration> for EventTime {
    type Output = EventTime;
    fn add(self, duration: Duration) -> EventTime {
        self.saturating_add(duration)
    }
}

impl Sub<Duration> for EventTime {
    type Output = EventTime;
    fn sub(self, duration: Duration) -> EventTime {
        self.saturating_sub(duration)
    }
}

/// RFC 3339, to the millisecond; without an offset it is UTC.
impl std::str::FromStr for EventTime {
    type Err = String;

    fn from_str(text: &str) -> Result<EventTime, String> {
        let time = humantime::parse_rfc3339_weak(text)
            .map_err(|error| format!("`{text}` is no time: {error}; write it as in 2018-04-01T00:00:31Z"))?;
        let since = time.duration_since(std::time::UNIX_EPOCH).map_err(|_| format!("`{text}` is before 1970"))?;
        i64::try_from(since.as_millis()).map(EventTime::from_millis).map_err(|_| format!("`{text}` is too late"))
    }
}

/// RFC 3339 with milliseconds and `Z`, as in `2018-04-01T00:00:31.000Z`.
impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0.div_euclid(MS_PER_DAY);
        let in_day = self.0.rem_euclid(MS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute) = (in_day / MS_PER_HOUR, in_day / 60_000 % 60);
        let (second, milli) = (in_day / 1000 % 60, in_day % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        let epoch = EventTime::from_millis(0);
        assert_eq!(epoch.to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!((epoch.weekday(), epoch.hour()), (3, 0));
        // A Sunday, the first row of the Handbook's data.
        let first = EventTime::from_millis(1_522_540_831_000);
        assert_eq!(first.to_string(), "2018-04-01T00:00:31.000Z");
        assert_eq!((first.weekday(), first.hour()), (6, 0));
        assert_eq!(EventTime::from_millis(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
        assert_eq!(EventTime::from_millis(-1).to_string(), "1969-12-31T23:59:59.999Z");
        assert_eq!(EventTime::EARLIEST.to_string(), "1900-01-01T00:00:00.000Z");
        assert_eq!(EventTime::LATEST.to_string(), "2200-01-01T00:00:00.000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(EventTime::MIN - Duration::from_secs(1), EventTime::MIN);
        assert_eq!(EventTime::MAX + Duration::MAX, EventTime::MAX);
    }
}
