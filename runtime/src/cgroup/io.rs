//! Reads and writes of block devices: `blkio` of v1, `io` of v2 (Documentation/admin-guide/cgroup-v1/blkio-controller.rst,
//! cgroup-v2.rst).

use std::collections::BTreeMap;
use std::path::Path;

use super::files::read;

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

/// Reads the counters of v1.
pub(super) fn counters_v1(folder: &Path) -> Vec<DeviceCounters> {
    let text = |file: &str| read(&folder.join(file)).unwrap_or_default();
    blkio(&text("blkio.throttle.io_service_bytes_recursive"), &text("blkio.throttle.io_serviced_recursive"))
}

/// Reads the counters of v2.
pub(super) fn counters_v2(folder: &Path) -> Vec<DeviceCounters> {
    read(&folder.join("io.stat")).map(|text| io_stat(&text)).unwrap_or_default()
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
