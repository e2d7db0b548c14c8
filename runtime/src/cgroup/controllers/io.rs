//! Reads and writes of block devices: `blkio` of v1, `io` of v2 (Documentation/admin-guide/cgroup-v1/blkio-controller.rst,
//! cgroup-v2.rst).

use std::collections::BTreeMap;

use crate::cgroup::files::Reader;
use crate::cgroup::interface::Interface;

/// Reads and writes of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Completed reads.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
}

/// Reads the counters.
pub(super) fn counters(reader: &Reader<'_>) -> Vec<DeviceCounters> {
    let blkio_file = |file: &str| reader.text("blkio", file).unwrap_or_default();
    match reader.interface {
        Interface::V1 => blkio(
            &blkio_file("blkio.throttle.io_service_bytes_recursive"),
            &blkio_file("blkio.throttle.io_serviced_recursive"),
        ),
        Interface::V2 => io_stat(&reader.text("io", "io.stat").unwrap_or_default()),
    }
}

/// Parses lines such as `8:0 Read 4096` of two files: bytes, and operations.
fn blkio(bytes: &str, operations: &str) -> Vec<DeviceCounters> {
    let mut devices: BTreeMap<(u32, u32), DeviceCounters> = BTreeMap::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for (major, minor, operation, figure) in text.lines().filter_map(blkio_line) {
            let new = DeviceCounters { major, minor, ..DeviceCounters::default() };
            let device = devices.entry((major, minor)).or_insert(new);
            match (operation, is_bytes) {
                ("Read", true) => device.read_bytes = figure,
                ("Write", true) => device.written_bytes = figure,
                ("Read", false) => device.reads = figure,
                ("Write", false) => device.writes = figure,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

fn blkio_line(line: &str) -> Option<(u32, u32, &str, u64)> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?, words.next()?, words.next()?.parse().ok()?))
}

/// Parses lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io_stat(text: &str) -> Vec<DeviceCounters> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut device = DeviceCounters {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..DeviceCounters::default()
        };
        for (key, figure) in words.filter_map(|word| word.split_once('=')) {
            let figure = figure.parse().unwrap_or(0);
            match key {
                "rbytes" => device.read_bytes = figure,
                "wbytes" => device.written_bytes = figure,
                "rios" => device.reads = figure,
                "wios" => device.writes = figure,
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::with_files;

    const DISK: DeviceCounters =
        DeviceCounters { major: 8, minor: 16, read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 };

    #[test]
    fn counters_of_version_1() {
        let bytes = "8:16 Read 4096\n8:16 Write 8192\n8:16 Total 1\nTotal 1\n";
        let files = [
            ("blkio.throttle.io_service_bytes_recursive", bytes),
            ("blkio.throttle.io_serviced_recursive", "8:16 Read 1\n8:16 Write 2\nTotal 3\n"),
        ];
        with_files(Interface::V1, &files, |reader| assert_eq!(counters(reader), [DISK]));
        with_files(Interface::V1, &[], |reader| assert_eq!(counters(reader), []));
    }

    #[test]
    fn counters_of_version_2() {
        let files = [("io.stat", "8:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0\n")];
        let unused = DeviceCounters { major: 7, ..DeviceCounters::default() };
        with_files(Interface::V2, &files, |reader| assert_eq!(counters(reader), [DISK, unused]));
        with_files(Interface::V2, &[], |reader| assert_eq!(counters(reader), []));
    }
}
