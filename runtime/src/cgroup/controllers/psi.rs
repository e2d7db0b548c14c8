//! Pressure stall information of v2, for processors, memory and I/O (Documentation/accounting/psi.rst). Version 1 has
//! none.

use crate::cgroup::files::Reader;
use crate::cgroup::interface::Interface;

/// A resource that tasks can wait for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    Cpu,
    Memory,
    Io,
}

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

/// Reads the pressure of a resource.
pub(super) fn pressure(reader: &Reader<'_>, resource: Resource) -> Option<Pressure> {
    let (controller, file) = match (reader.interface, resource) {
        (Interface::V1, _) => return None,
        (Interface::V2, Resource::Cpu) => ("cpu", "cpu.pressure"),
        (Interface::V2, Resource::Memory) => ("memory", "memory.pressure"),
        (Interface::V2, Resource::Io) => ("io", "io.pressure"),
    };
    reader.text(controller, file).map(|text| parse(&text))
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
    use crate::cgroup::files::with_files;

    #[test]
    fn pressure_is_parsed() {
        let lines = "some avg10=1.50 avg60=0.00 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        with_files(Interface::V2, &[("io.pressure", lines)], |reader| {
            let io = pressure(reader, Resource::Io).unwrap();
            assert_eq!((io.some.avg10, io.some.total, io.full.total), (1.5, 42, 7));
            assert_eq!(pressure(reader, Resource::Cpu), None);
        });
        with_files(Interface::V1, &[("io.pressure", lines)], |reader| {
            assert_eq!(pressure(reader, Resource::Io), None);
        });
    }
}
