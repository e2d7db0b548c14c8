//! Time stamps of log lines: RFC 3339 with nanoseconds in UTC, without a calendar library.

use rustix::time::{ClockId, clock_gettime};

/// The length of a time stamp in bytes: `2026-11-23T14:58:40.123456789Z`.
pub(crate) const LENGTH: usize = 30;

/// Returns the time in nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// A time stamp as text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp([u8; LENGTH]);

impl Stamp {
    /// Formats a time in nanoseconds since the epoch.
    pub(crate) fn of(nanos: i64) -> Self {
        let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let fields = [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, second / 3600),
            (14, 2, second / 60 % 60),
            (17, 2, second % 60),
            (20, 9, nanos),
        ];
        for (at, width, value) in fields {
            let mut rest = value;
            for place in text.iter_mut().skip(at).take(width).rev() {
                *place = b'0' + u8::try_from(rest.rem_euclid(10)).unwrap_or(0);
                rest = rest.div_euclid(10);
            }
        }
        Self(text)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Returns the year, month and day of a day since the epoch, in the Gregorian calendar. In this calculation a year
/// begins in March, so that the leap day is its last day. 719 468 days lie between 1 March of the year 0 and the
/// epoch.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_match_date() {
        // date -u -d @SECONDS +%Y-%m-%dT%H:%M:%S
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (1_795_359_520, "2026-11-22T14:58:40.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(Stamp::of(seconds * 1_000_000_000).as_str(), text);
        }
        assert_eq!(Stamp::of(1_000_000_001).as_str(), "1970-01-01T00:00:01.000000001Z");
    }
}
