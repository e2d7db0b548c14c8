//! A container that writes 100-byte lines as fast as it can: `cat` of a file in the page cache. The measurement
//! covers the way from the container's standard output to the log file.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_proto::v1::{ContainerState, ContainerStatusRequest, Mount, NamespaceMode, StartContainerRequest};

use crate::bench::{Bench, Task};
use crate::client::{Timed, timed};
use crate::error::BenchError;
use crate::figures::number;

/// The length of a line with its line break.
const LINE: usize = 100;

/// The number of lines in the file. The container reads the file several times, so it can be smaller than the log.
const LINES: usize = 100_000;

/// The size of the file in megabytes.
const FILE_MB: u32 = 10;

/// The interval in which the log's size is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The log is complete when the container has exited and the file has not grown for this time.
const QUIET: Duration = Duration::from_millis(500);

/// The deadline of the measurement: a fixed part and a part for each megabyte.
const DEADLINE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_millis(200));

/// The path of the file in the container.
const IN_CONTAINER: &str = "/berth-bench-lines";

pub(super) async fn measure(bench: &Bench) -> Result<(), BenchError> {
    let times = bench.options.log_mb.div_ceil(FILE_MB);
    let lines = bench.folder.path().join("lines");
    write_lines(&lines).map_err(file("write", &lines))?;
    let pod = bench.run_pod(NamespaceMode::Pod).await?.answer;
    let log = pod.log_file();
    let command = std::iter::once("cat").chain((0..times).map(|_| IN_CONTAINER)).map(str::to_owned).collect();
    let mount = Mount {
        container_path: IN_CONTAINER.to_owned(),
        host_path: lines.display().to_string(),
        readonly: true,
        ..Default::default()
    };
    let Timed { answer: container, .. } =
        bench.create_container(&pod, Some(Task { command, mounts: vec![mount] })).await?;
    let start = Instant::now();
    let request = StartContainerRequest { container_id: container.clone() };
    timed("StartContainer", bench.client.runtime.clone().start_container(request)).await?;
    let limit = DEADLINE.0 + DEADLINE.1 * bench.options.log_mb;
    let end = tokio::time::timeout(limit, last_growth(bench, &container, &log)).await.map_err(|_| {
        BenchError::TooSlow(format!("a log of {} MB", bench.options.log_mb), limit.as_secs())
    })??;
    let took = end.saturating_duration_since(start);
    let wrote = u64::from(times) * u64::try_from(LINE * LINES).unwrap_or(u64::MAX);
    let found = payload(&log).map_err(file("read", &log))?;
    if found != wrote {
        return Err(BenchError::LogDiffers { found, wrote });
    }
    let megabytes = number(times * FILE_MB);
    bench.add_figure(format!("log of {LINE}-byte lines"), megabytes / took.as_secs_f64(), "MB/s");
    Ok(())
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BenchError {
    let path = PathBuf::from(path);
    move |source| BenchError::File { action, path, source }
}

fn write_lines(path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let line = format!("{}\n", "0123456789".repeat(LINE / 10).split_at(LINE - 1).0);
    for _ in 0..LINES {
        file.write_all(line.as_bytes())?;
    }
    file.flush()
}

/// Returns the time at which the log last grew.
async fn last_growth(bench: &Bench, container: &str, log: &Path) -> Result<Instant, BenchError> {
    let (mut size, mut grown) = (0, Instant::now());
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let now = std::fs::metadata(log).map_or(0, |metadata| metadata.len());
        if now != size {
            (size, grown) = (now, Instant::now());
        } else if grown.elapsed() > QUIET && has_ended(bench, container).await? {
            return Ok(grown);
        }
    }
}

async fn has_ended(bench: &Bench, container: &str) -> Result<bool, BenchError> {
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
    let answer =
        timed("ContainerStatus", bench.client.runtime.clone().container_status(request)).await?.answer;
    let status = answer.status.ok_or(BenchError::Answer { rpc: "ContainerStatus", what: "status" })?;
    Ok(status.state() == ContainerState::ContainerExited)
}

/// Returns the number of bytes that the container wrote, according to its log: without `TIME STREAM TAG ` and, in
/// partial records (`P`), without the line break, which the runtime added.
fn payload(log: &Path) -> std::io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(log)?);
    let mut line = Vec::new();
    let mut sum = 0;
    while reader.read_until(b'\n', &mut line)? > 0 {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let tag = words.nth(2).unwrap_or_default();
        let text = words.next().unwrap_or_default().len();
        sum += u64::try_from(if tag == b"P" { text.saturating_sub(1) } else { text }).unwrap_or_default();
        line.clear();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_what_the_container_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let text = "2026-01-01T00:00:00.1Z stdout F a b\n2026-01-01T00:00:00.1Z stdout P abc\n\
                    2026-01-01T00:00:00.1Z stderr F def\n2026-01-01T00:00:00.1Z stdout F \n";
        std::fs::write(&log, text).unwrap();
        assert_eq!(payload(&log).unwrap(), 4 + 3 + 4 + 1);
    }

    #[test]
    fn the_file_has_lines_of_one_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        write_lines(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), LINES);
        assert!(text.lines().all(|line| line.len() + 1 == LINE));
        assert_eq!(u64::try_from(text.len()).unwrap(), u64::from(FILE_MB) * 1_000_000);
    }
}
