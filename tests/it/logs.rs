//! The log of a container contains what the container wrote, whatever happens to the log file. Runs as root.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Berth, PATIENCE, shell, sleeper};
use berth_proto::v1::*;
use tonic::{Code, Status};

/// One record of a log.
struct Record<'a> {
    time: &'a str,
    stream: &'a str,
    tag: &'a str,
    text: &'a str,
}

/// Returns the records of a log. Each record must be complete.
fn records(log: &str) -> Vec<Record<'_>> {
    assert!(log.is_empty() || log.ends_with('\n'), "the last record is incomplete");
    let mut records = Vec::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let mut field = || fields.next().unwrap_or_else(|| panic!("incomplete record: {line:?}"));
        let record = Record { time: field(), stream: field(), tag: field(), text: field() };
        let time: jiff::Timestamp = record.time.parse().unwrap_or_else(|_| panic!("invalid time: {line:?}"));
        assert!(record.time.len() == 30 && record.time.ends_with('Z'), "{line:?}");
        assert!(time > jiff::Timestamp::UNIX_EPOCH);
        assert!(
            ["stdout", "stderr"].contains(&record.stream) && ["P", "F"].contains(&record.tag),
            "{line:?}"
        );
        records.push(record);
    }
    records
}

async fn reopen(berth: &mut Berth, id: &str) -> Result<(), Status> {
    let request = ReopenContainerLogRequest { container_id: id.to_owned() };
    berth.runtime.reopen_container_log(request).await.map(drop)
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_loses_repeats_and_splits_no_record() {
    const LINES: u32 = 500_000;
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let script = format!("seq {LINES} & seq {LINES} >&2; wait");
    let id = berth.run(&pod, shell("busy", &script)).await;
    let log = berth.path("logs/pod/busy.log");
    let mut files: Vec<PathBuf> = Vec::new();
    while berth.status(&id).await.state() == ContainerState::ContainerRunning {
        let rotated = log.with_extension(format!("{}", files.len()));
        fs::rename(&log, &rotated).unwrap();
        files.push(rotated);
        match reopen(&mut berth, &id).await {
            Ok(()) => {}
            Err(ended) if ended.code() == Code::FailedPrecondition => break,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(files.len() > 5, "the container exited before enough rotations: {}", files.len());
    files.extend(log.exists().then_some(log));
    let mut next = HashMap::new();
    for file in &files {
        for record in records(&fs::read_to_string(file).unwrap()) {
            let expected = next.entry(record.stream.to_owned()).or_insert(1_u32);
            assert_eq!((record.tag, record.text), ("F", expected.to_string().as_str()), "{}", file.display());
            *expected += 1;
        }
    }
    assert_eq!(next, HashMap::from([("stdout".to_owned(), LINES + 1), ("stderr".to_owned(), LINES + 1)]));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lines_are_logged_in_parts_of_16_kib() {
    const PART: usize = 16 << 10;
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let script = "head -c 50000 /dev/zero | tr '\\0' x; echo; echo short; head -c 16384 /dev/zero | tr '\\0' y; \
                  echo; printf 'no end'";
    let (code, _) = berth.script(&pod, "long", script).await;
    assert_eq!(code, 0);
    let log = fs::read_to_string(berth.path("logs/pod/long.log")).unwrap();
    let parts: Vec<_> = records(&log).iter().map(|record| (record.tag, record.text.len())).collect();
    let rest = 50_000 - 3 * PART;
    assert_eq!(parts, [("P", PART), ("P", PART), ("P", PART), ("F", rest), ("F", 5), ("F", PART), ("P", 6)]);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A small tmpfs of the host. Drop unmounts it.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn new(folder: PathBuf, bytes: u32) -> Self {
        fs::create_dir(&folder).unwrap();
        let size = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "berth-test"]).arg(&folder).status();
        assert!(mounted.unwrap().success());
        Self { folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.folder).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_block_containers_and_logging_resumes_when_space_is_freed() {
    let mut berth = Berth::start().await;
    let disk = SmallDisk::new(berth.path("disk"), 2 << 20);
    let folder = disk.folder.clone();
    let mut config = berth.pod_config("pod");
    config.log_directory = folder.display().to_string();
    let pod = berth.run_pod(config).await;
    fs::write(folder.join("others"), vec![0; 1 << 20]).unwrap();
    let script = "echo first; seq 500000; touch /tmp/written; until [ -e /tmp/room ]; do sleep 0.05; done; \
                  echo after; echo last; exit 3";
    let id = berth.run(&pod, shell("c", script)).await;
    // The container writes many times the capacity of the disk, and is not blocked.
    assert_eq!(berth.sh(&id, "until [ -e /tmp/written ]; do sleep 0.05; done; echo yes").await, "yes");
    let log = folder.join("c.log");
    let full = fs::read_to_string(&log).unwrap();
    let kept = records(&full);
    assert!(kept.len() > 1000 && kept.len() < 500_000, "{}", kept.len());
    assert_eq!(kept[0].text, "first");
    assert!(kept[1..].iter().enumerate().all(|(n, record)| record.text == (n + 1).to_string()));
    fs::remove_file(folder.join("others")).unwrap();
    berth.exec(&id, &["touch", "/tmp/room"], 0).await.unwrap();
    assert_eq!(berth.wait_exited(&id).await.exit_code, 3);
    let log = fs::read_to_string(&log).unwrap();
    let rest: Vec<_> = records(&log).into_iter().skip(kept.len()).map(|record| record.text).collect();
    let lost = 500_001 - kept.len();
    assert_eq!(rest, [&format!("[berth: {lost} log records could not be written]"), "after", "last"]);
    drop(disk);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_reopened_after_its_folder_was_removed_and_recreated() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, shell("c", "while true; do echo tick; sleep 0.02; done")).await;
    let folder = berth.path("logs/pod");
    let log = folder.join("c.log");
    eventually("the log does not grow", || size(&log) > 0).await;
    fs::remove_dir_all(&folder).unwrap();
    let error = reopen(&mut berth, &id).await.unwrap_err();
    assert!(error.message().contains("logs/pod"), "{error}");
    assert_eq!(berth.sh(&id, "echo still here").await, "still here");
    fs::create_dir(&folder).unwrap();
    reopen(&mut berth, &id).await.unwrap();
    eventually("the log does not grow again", || size(&log) > 0).await;
    // A symbolic link in the place of the log file is not followed.
    fs::remove_file(&log).unwrap();
    let elsewhere = berth.path("elsewhere");
    symlink(&elsewhere, &log).unwrap();
    assert!(reopen(&mut berth, &id).await.is_err());
    assert!(!elsewhere.exists());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Replaces the file or folder at a path.
fn replace(path: &Path, make: impl FnOnce(&Path)) {
    if path.is_dir() && !path.is_symlink() {
        fs::rename(path, path.with_extension("away")).unwrap();
    } else {
        fs::remove_file(path).unwrap();
    }
    make(path);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_special_files_below_the_log_folder_are_refused() {
    let mut berth = Berth::start().await;
    let elsewhere = berth.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let assert_nothing_elsewhere = || assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    let nested = |name: &str, script: &str| {
        let mut config = shell(name, script);
        config.log_path = format!("{name}/0.log");
        config
    };
    // Symbolic links above the log folder belong to the host and are followed: /var/log can be on another disk.
    fs::create_dir(berth.path("disk")).unwrap();
    symlink("disk", berth.path("logs")).unwrap();
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let folder = berth.path("disk/pod");
    let runs = berth.run(&pod, nested("runs", "while true; do echo tick; sleep 0.02; done")).await;
    eventually("the log does not grow", || size(&folder.join("runs/0.log")) > 0).await;
    assert_eq!(berth.status(&runs).await.log_path, berth.path("logs/pod/runs/0.log").display().to_string());

    // The log folders of a container that is not yet created, and of a running container.
    symlink(&elsewhere, folder.join("next")).unwrap();
    let error = berth.try_create(&pod, nested("next", "true")).await.unwrap_err();
    assert!(error.message().contains("next"), "{error}");
    let logs = folder.join("runs");
    replace(&logs, |path| symlink(&elsewhere, path).unwrap());
    assert!(reopen(&mut berth, &runs).await.is_err());
    assert_nothing_elsewhere();
    replace(&logs, |path| fs::create_dir(path).unwrap());

    // Files that are not regular files with one name.
    let precious = folder.join("precious");
    fs::write(&precious, "").unwrap();
    let log = logs.join("0.log");
    let make = |program: &'static str, arguments: &'static [&'static str]| {
        move |path: &Path| {
            assert!(Command::new(program).arg(path).args(arguments).status().unwrap().success());
        }
    };
    fs::write(&log, "").unwrap();
    replace(&log, |path| fs::hard_link(&precious, path).unwrap());
    assert!(reopen(&mut berth, &runs).await.unwrap_err().message().contains("another hard link"));
    replace(&log, make("mkfifo", &[]));
    assert!(reopen(&mut berth, &runs).await.unwrap_err().message().contains("not a regular file"));
    replace(&log, make("mknod", &["c", "1", "3"]));
    assert!(reopen(&mut berth, &runs).await.unwrap_err().message().contains("not a regular file"));
    assert_eq!(size(&precious), 0);
    fs::remove_file(&log).unwrap();
    reopen(&mut berth, &runs).await.unwrap();
    eventually("the log does not grow again", || size(&log) > 0).await;

    // The folder of the pod itself. The next daemon also refuses to follow the link.
    replace(&folder, |path| symlink(&elsewhere, path).unwrap());
    for round in ["before", "after"] {
        assert!(reopen(&mut berth, &runs).await.is_err(), "{round}");
        assert!(berth.try_create(&pod, nested("late", "true")).await.is_err(), "{round}");
        assert_nothing_elsewhere();
        berth.restart().await;
    }
    replace(&folder, |path| fs::create_dir(path).unwrap());
    let (code, _) = berth.run_to_end(&pod, nested("late", "echo late")).await;
    assert_eq!(code, 0);
    let text = fs::read_to_string(folder.join("late/0.log")).unwrap();
    assert_eq!(crate::support::text_of(&text), "late\n");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_path_output_is_read_and_discarded() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut config = shell("silent", "seq 200000; seq 200000 >&2; exit 6");
    config.log_path = String::new();
    let id = berth.run(&pod, config).await;
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.log_path.as_str()), (6, ""));
    let waits = {
        let mut config = sleeper("waits");
        config.log_path = String::new();
        berth.run(&pod, config).await
    };
    reopen(&mut berth, &waits).await.unwrap();
    assert_eq!(fs::read_dir(berth.path("logs/pod")).unwrap().count(), 0);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_writers_do_not_starve_other_containers_of_their_pod() {
    const GROWTH: u64 = 2 << 20;
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut logs = Vec::new();
    for name in ["one", "two", "three"] {
        berth.run(&pod, shell(name, "while true; do seq 1000000; done")).await;
        logs.push(berth.path(&format!("logs/pod/{name}.log")));
    }
    let quiet = berth.run(&pod, shell("quiet", "echo a; read x </dev/null; echo b; exit 2")).await;
    eventually("not every container writes", || logs.iter().all(|log| size(log) > 0)).await;
    let before: Vec<_> = logs.iter().map(|log| size(log)).collect();
    let growth = || logs.iter().zip(&before).map(|(log, before)| size(log) - before).collect::<Vec<_>>();
    // The scheduler decides how much each container writes in a short time. The keeper must read from all of them.
    eventually("not every log grows", || growth().iter().all(|grown| *grown > GROWTH)).await;
    assert_eq!(berth.wait_exited(&quiet).await.exit_code, 2);
    let log = fs::read_to_string(berth.path("logs/pod/quiet.log")).unwrap();
    assert_eq!(crate::support::text_of(&log), "a\nb\n");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
