//! `events`: prints the resource usage of a container as JSON lines, in the format of runc.

use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, Counters};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::arguments::Events;
use crate::error::{Error, Result};
use crate::state::print;
use crate::store::Store;

/// Runs the command, until the container has ended.
pub(crate) fn run(store: &Store, arguments: &Events) -> Result<()> {
    let container = store.find(&arguments.id)?;
    let interval = parse(&arguments.interval)?;
    let process = container.process().ok_or(Error::NotRunning)?;
    let cgroup = container.cgroup()?;
    let mut killed = cgroup.oom_kills();
    loop {
        print(&line(&arguments.id, "stats", &stats(&cgroup)))?;
        if arguments.stats {
            return Ok(());
        }
        let timeout = Timespec::try_from(interval).unwrap_or(Timespec { tv_sec: 5, tv_nsec: 0 });
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        let ended = poll(&mut watched, Some(&timeout)).is_ok_and(|ready| ready > 0);
        let now = cgroup.oom_kills();
        if now > killed {
            killed = now;
            print(&line(&arguments.id, "oom", &Value::Null))?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn line(id: &str, kind: &str, data: &Value) -> String {
    let mut line = json!({ "type": kind, "id": id });
    if let (Some(map), false) = (line.as_object_mut(), data.is_null()) {
        map.insert("data".to_owned(), data.clone());
    }
    format!("{line}\n")
}

fn stats(cgroup: &Cgroup) -> Value {
    let counters = cgroup.counters();
    let Counters { stats, cpu_user, cpu_system, throttling, memory, devices, huge_pages, limits, .. } =
        counters;
    let usage = stats.memory.as_ref();
    let throttling = throttling.map(|throttling| {
        json!({
            "periods": throttling.periods,
            "throttledPeriods": throttling.throttled_periods,
            "throttledTime": throttling.throttled_time,
        })
    });
    let bytes: Vec<_> = devices
        .iter()
        .flat_map(|device| {
            let entry = move |op: &str, value: u64| {
                json!({ "major": device.major, "minor": device.minor, "op": op, "value": value })
            };
            [entry("Read", device.read_bytes), entry("Write", device.written_bytes)]
        })
        .collect();
    let pages: serde_json::Map<_, _> = huge_pages
        .iter()
        .map(|pages| (pages.size.clone(), json!({ "usage": pages.usage, "max": pages.max_usage })))
        .collect();
    json!({
        "cpu": {
            "usage": { "total": stats.cpu, "user": cpu_user, "kernel": cpu_system },
            "throttling": throttling,
        },
        "memory": {
            "cache": memory.as_ref().map(|memory| memory.cache),
            "usage": {
                "usage": usage.map(|usage| usage.usage),
                "limit": limits.memory,
                "max": memory.as_ref().and_then(|memory| memory.max_usage),
                "failcnt": memory.as_ref().and_then(|memory| memory.limit_hits),
            },
        },
        "pids": { "current": stats.processes },
        "blkio": { "ioServiceBytesRecursive": bytes },
        "hugetlb": pages,
    })
}

/// Parses a time such as `5s`, `500ms` or `1m`.
fn parse(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok().filter(|number| *number > 0);
    let unit = text.get(digits.len()..).unwrap_or_default();
    let time = number.and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    });
    time.ok_or_else(|| Error::Invalid { field: "--interval", why: format!("{text:?} is not a time") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(parse("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(parse("1m").unwrap(), Duration::from_secs(60));
        for text in ["", "0s", "x", "5h", "-1s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
