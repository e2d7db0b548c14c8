//! Pressure stall information of v2, for processors, memory and I/O (Documentation/accounting/psi.rst). Version 1 has
//! none.

use std::path::Path;

use super::files::read;

/// Time in which tasks waited (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// The time in which some tasks waited.
    pub some: StallTimes,
    /// The time in which all tasks waited simultaneously.
    pub full: StallTimes,
}

/// Shares of time in percent, and the total in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StallTimes {
    /// The share over ten seconds.
    pub avg10: f64,
    /// The share over one minute.
    pub avg60: f64,
    /// The share over five minutes.
    pub avg300: f64,
    /// The total since the cgroup was created.
    pub total: u64,
}

/// Reads a file such as `cpu.pressure`.
pub(super) fn pressure(folder: &Path, file: &str) -> Option<Pressure> {
    read(&folder.join(file)).map(|text| parse(&text))
}

/// Parses lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn parse(text: &str) -> Pressure {
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let field =
            |name: &str| line.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let share = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or_default();
        StallTimes {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total: field("total").and_then(|text| text.parse().ok()).unwrap_or_default(),
        }
    };
    Pressure { some: line("some"), full: line("full") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::folder_with;

    #[test]
    fn pressure_is_parsed() {
        let lines = "some avg10=1.50 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let folder = folder_with(&[("io.pressure", lines)]);
        let io = pressure(folder.path(), "io.pressure").unwrap();
        assert_eq!((io.some.avg10, io.some.total, io.full.total), (1.5, 42, 7));
        assert_eq!(pressure(folder.path(), "cpu.pressure"), None);
    }
}
