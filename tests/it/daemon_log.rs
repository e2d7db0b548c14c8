//! The daemon's own log: one line per operation, the level at run time, repeated warnings, and entries for journald. Runs as
//! root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use berth_proto::v1::*;
use rustix::process::{Signal, kill_process};
use tonic::Code;

use crate::support::{Berth, PATIENCE, Setup, code, sleeper};

fn log_of(berth: &Berth) -> String {
    fs::read_to_string(berth.path("daemon.log")).unwrap()
}

/// Waits until the log contains a text, and returns the log.
async fn wait_for(berth: &Berth, text: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = log_of(berth);
        if log.contains(text) {
            return log;
        }
        assert!(Instant::now() < until, "the log does not contain {text:?}: {log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes a call that logs a line at `debug`.
async fn status(berth: &mut Berth) {
    berth.runtime.status(StatusRequest { verbose: false }).await.unwrap();
}

/// Starts a daemon with the level `info`. Other tests run at `debug`.
async fn at_info() -> Berth {
    let mut berth = Berth::start().await;
    fs::create_dir(berth.path("conf.d")).unwrap();
    fs::write(berth.path("conf.d/90-level.toml"), "log_level = \"info\"\n").unwrap();
    berth.restart().await;
    fs::write(berth.path("daemon.log"), "").unwrap();
    berth
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_logs_one_line_with_the_times_of_its_steps() {
    let mut berth = at_info().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let container = berth.run(&pod, sleeper("sleeper")).await;
    berth.stop_container(&container, 10).await;
    berth.remove_container(&container).await;
    let failing = berth.try_create(&pod, crate::support::container("none", &["/nonexistent"])).await.unwrap();
    assert_eq!(code(berth.try_start_container(&failing).await), Code::FailedPrecondition);
    berth.stop_pod(&pod).await;
    berth.remove_pod(&pod).await;
    let log = log_of(&berth);
    for (text, count, object, steps) in [
        ("RunPodSandbox done", 1, &pod, vec!["intent ", "keeper ", "pause ", "network ", "record "]),
        ("CreateContainer done", 2, &container, vec!["writable layer ", "first process "]),
        ("StartContainer done", 1, &container, vec!["exec "]),
        ("StartContainer failed", 1, &failing, vec!["exec "]),
        ("StopContainer done", 1, &container, vec!["grace period "]),
        ("RemoveContainer done", 2, &container, vec!["writable layer ", "folder "]),
        ("StopPodSandbox done", 1, &pod, vec!["release "]),
        ("RemovePodSandbox done", 1, &pod, vec!["folders "]),
    ] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
        assert_eq!(lines.len(), count, "{text}: {log}");
        let line = lines.iter().find(|line| line.contains(object.as_str()));
        let line = line.unwrap_or_else(|| panic!("no line of {object}: {lines:?}"));
        assert!(line.contains(" INFO ") && line.contains(&pod), "{line}");
        let (_, found) = line.split_once("steps=\"").unwrap();
        for step in steps {
            let (_, time) = found.split_once(step).unwrap_or_else(|| panic!("{step}: {line}"));
            let (time, _) = time.split_once(" ms").unwrap();
            assert!(time.parse::<f64>().unwrap() < 120_000.0, "{line}");
        }
    }
    assert!(!log.contains(" DEBUG "), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn log_level(berth: &Berth, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg("log-level").args(arguments).arg("--config").arg(berth.path("config.toml"));
    command.output().unwrap()
}

fn shown(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_is_changed_by_command_and_by_signal() {
    let mut berth = at_info().await;
    assert_eq!(shown(&log_level(&berth, &[])), "info\n");
    status(&mut berth).await;
    assert!(!log_of(&berth).contains(" DEBUG "));
    assert_eq!(shown(&log_level(&berth, &["debug"])), "debug (configured: info)\n");
    status(&mut berth).await;
    let log = wait_for(&berth, " DEBUG ").await;
    assert!(
        log.contains("changing the log level from=\"info\" to=\"debug\" by=\"berth log-level\""),
        "{log}"
    );
    assert_eq!(shown(&log_level(&berth, &["--reset"])), "info\n");
    fs::write(berth.path("daemon.log"), "").unwrap();
    status(&mut berth).await;
    assert!(!log_of(&berth).contains(" DEBUG "));

    kill_process(berth.pid(), Signal::USR1).unwrap();
    wait_for(&berth, "to=\"debug\" by=\"SIGUSR1\"").await;
    status(&mut berth).await;
    wait_for(&berth, " DEBUG ").await;
    kill_process(berth.pid(), Signal::USR2).unwrap();
    wait_for(&berth, "to=\"info\" by=\"SIGUSR2\"").await;
    assert_eq!(shown(&log_level(&berth, &[])), "info\n");

    assert_eq!(
        shown(&log_level(&berth, &["warn,berth::server=debug"])),
        "warn,berth::server=debug (configured: info)\n"
    );
    for wrong in ["loud", "debug,,", ""] {
        let output = log_level(&berth, &[wrong]);
        assert!(!output.status.success(), "{wrong}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("log level"), "{output:?}");
    }
    // The daemon checks it, too.
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let request = berth_proto::admin::LogLevelRequest { level: "loud".to_owned(), reset: false };
    let answer = berth_proto::admin::admin_client::AdminClient::new(channel).log_level(request).await;
    assert_eq!(code(answer), Code::InvalidArgument);
    berth.restart().await;
    assert_eq!(shown(&log_level(&berth, &[])), "info\n", "a restart returns to the configuration");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_warning_is_held_back_and_counted() {
    let mut berth = at_info().await;
    for _ in 0..300 {
        let invalid = PodSandboxConfig { hostname: "not a hostname".to_owned(), ..berth.pod_config("pod") };
        assert_eq!(code(berth.try_run_pod(invalid).await), Code::InvalidArgument);
    }
    let log = log_of(&berth);
    let warnings = log.lines().filter(|line| line.contains(" WARN ")).count();
    // The calls may have taken more than one period of ten seconds.
    assert!((10..100).contains(&warnings), "{warnings}: {log}");
    let until = Instant::now() + PATIENCE;
    let held_back = loop {
        // The number is logged with the next line of any kind.
        drop(berth::server::connect(&berth.path("run/berth.sock")).await.unwrap());
        let pod = berth.run_pod(berth.pod_config("next")).await;
        berth.remove_pod(&pod).await;
        let log = log_of(&berth);
        let lines = log.lines().filter(|line| line.contains("held back repeats of: RunPodSandbox: invalid"));
        let numbers =
            lines.filter_map(|line| line.split_once("repeats=")?.1.split(' ').next()?.parse::<usize>().ok());
        let sum: usize = numbers.sum();
        if warnings + sum >= 300 || Instant::now() > until {
            break sum;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(warnings + held_back, 300, "{}", log_of(&berth));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// A socket in the place of journald's, for a daemon with a private mount namespace.
struct JournalSocket {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl JournalSocket {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        Self { folder, socket }
    }

    /// Returns a script that starts its arguments with this socket in place of journald's.
    fn script(&self) -> String {
        let folder = self.folder.path().display();
        format!(
            "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {folder} /run/systemd/journal && \
             exec \"$@\""
        )
    }

    /// Receives entries until one has all of these fields. Returns it as text.
    fn wait_for(&self, fields: &[&str]) -> String {
        let mut received = Vec::new();
        let mut buffer = vec![0; 256 << 10];
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if fields.iter().all(|field| entry.lines().any(|line| line.starts_with(field))) {
                return entry;
            }
            received.push(entry);
        }
        panic!("no entry with {fields:?}: {received:#?}");
    }

    fn receives_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let received = self.socket.recv(&mut [0; 10]).is_ok();
        self.socket.set_nonblocking(false).unwrap();
        !received
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_gets_entries_with_fields() {
    let journal = JournalSocket::new();
    let script = journal.script();
    let under = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let mut berth =
        Berth::start_as(Setup { more: "log_format = \"journald\"\n", under: &under, ..Setup::default() })
            .await;
    let reading = std::thread::spawn(move || {
        let entry = journal.wait_for(&["MESSAGE=RunPodSandbox done", "BERTH_POD="]);
        (entry, journal)
    });
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let (entry, journal) = reading.join().unwrap();
    for field in [
        &format!("BERTH_POD={pod}"),
        "BERTH_RPC=RunPodSandbox",
        "BERTH_STEPS=intent ",
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=berth",
        "BERTH_TARGET=berth::operation",
    ] {
        assert!(entry.lines().any(|line| line.starts_with(field)), "{field}: {entry}");
    }
    let message = entry.lines().next().unwrap();
    assert!(message.contains("steps=\"intent") && message.contains(&format!("pod=\"{pod}\"")), "{message}");
    assert!(!log_of(&berth).contains("RunPodSandbox done"), "{}", log_of(&berth));
    assert_eq!(berth.clean().await, Vec::<String>::new());
    drop((berth, journal));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_used_if_it_receives_standard_error() {
    let journal = JournalSocket::new();
    let script = journal.script();
    let mut berth = Berth::start_as(Setup {
        under: &["unshare", "--mount", "sh", "-c", &script, "sh"],
        ..Setup::default()
    })
    .await;
    let pod = berth.run_pod(berth.pod_config("first")).await;
    wait_for(&berth, "RunPodSandbox done").await;
    assert!(journal.receives_nothing(), "without JOURNAL_STREAM");
    let stderr = stream_of(&berth.path("daemon.log"));
    // A program that redirects standard error inherits the variable.
    for (stream, expected) in [("1:2".to_owned(), false), (stderr, true)] {
        let stream = format!("JOURNAL_STREAM={stream}");
        berth.start_under(&["unshare", "--mount", "sh", "-c", &script, "sh", "env", &stream]);
        berth.start_again();
        if expected {
            let entry = journal.wait_for(&["MESSAGE=ready", "BERTH_SOCKET="]);
            assert!(entry.contains("PRIORITY=6\n"), "{entry}");
        }
        berth.connect_again().await;
        if !expected {
            assert!(journal.receives_nothing(), "another stream");
        }
    }
    // From here on nothing reads the socket: a journald that hangs does not stop the daemon.
    let started = Instant::now();
    berth.remove_pod(&pod).await;
    let pod = berth.run_pod(berth.pod_config("second")).await;
    berth.remove_pod(&pod).await;
    assert!(started.elapsed() < PATIENCE);
    drop(journal);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Returns the value of JOURNAL_STREAM for a file as standard error.
fn stream_of(file: &Path) -> String {
    let metadata = fs::metadata(file).unwrap();
    format!("{}:{}", metadata.dev(), metadata.ino())
}
