//! Times, sizes and tables in the output for people.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

const SECOND: u64 = 1;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The characters of an id in tables, as crictl shows them.
const SHORT_ID: usize = 13;

/// Formats a size.
pub(super) fn size(bytes: u64) -> String {
    let mut whole = bytes;
    let mut rest = 0;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if whole < 1024 {
            let tenth = rest * 10 / 1024;
            return if unit == "B" { format!("{whole} B") } else { format!("{whole}.{tenth} {unit}") };
        }
        rest = whole % 1024;
        whole /= 1024;
    }
    format!("{whole}.{} TiB", rest * 10 / 1024)
}

/// Formats a duration in its two largest units: `0.4s`, `12s`, `5m12s`, `3h4m`, `2d3h`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, unit: &str, small: u64, rest: &str| match (seconds % large) / small {
        0 => format!("{}{unit}", seconds / large),
        more => format!("{}{unit}{more}{rest}", seconds / large),
    };
    match seconds {
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..MINUTE => format!("{seconds}s"),
        MINUTE..HOUR => two(MINUTE, "m", SECOND, "s"),
        HOUR..DAY => two(HOUR, "h", MINUTE, "m"),
        _ => two(DAY, "d", HOUR, "h"),
    }
}

/// Parses a time, or a duration before the current time.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let duration: SignedDuration =
        text.parse().map_err(|_| "is neither a time nor a duration such as 90s, 10m or 2h".to_owned())?;
    Timestamp::now().checked_sub(duration).map_err(|error| error.to_string())
}

/// Returns the time between two times in nanoseconds since the epoch; zero if the clock was set back.
pub(super) fn between(from: i64, to: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// Formats the time since `from`; empty if it is not set.
pub(super) fn age(from: i64, now: i64) -> String {
    if from <= 0 { String::new() } else { duration(between(from, now)) }
}

/// Formats nanoseconds since the epoch in UTC with milliseconds; empty if they are not set.
pub(super) fn time(nanoseconds: i64) -> String {
    if nanoseconds <= 0 {
        return String::new();
    }
    let time = Timestamp::from_nanosecond(nanoseconds.into());
    time.map(|time| format!("{time:.3}")).unwrap_or_default()
}

/// Shortens an id.
pub(super) fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(SHORT_ID).collect()
}

/// Aligns the columns of a table. The first row has the titles.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            ((3 << 30) + (1 << 29), "3.5 GiB"),
            (2 << 40, "2.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0.0s"),
            (9, "9.0s"),
            (59, "59s"),
            (60, "1m"),
            (312, "5m12s"),
            (3600, "1h"),
            (11_040, "3h4m"),
            (86_400, "1d"),
            (183_600, "2d3h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(age(0, 5), "");
        assert_eq!(age(9_000_000_000, 5), "0.0s", "the clock was set back");
        assert_eq!(age(1, 90_000_000_001), "1m30s");
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(0), "");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        let row = |one: &str, two: &str| [one.to_owned(), two.to_owned()];
        assert_eq!(table(&[row("A", "B"), row("long", ""), row("é", "x")]), "A     B\nlong\né     x\n");
    }
}
