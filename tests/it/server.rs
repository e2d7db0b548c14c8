//! The daemon as a process: its socket, its lock, the messages to the service manager, and its end. Runs as root.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use berth::server::connect;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::{StatusRequest, StatusResponse, VersionRequest, VersionResponse};
use rustix::process::{Pid, Signal, kill_process};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// The longest time that a daemon can take to start or exit in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folders of a daemon and its configuration.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = format!(
            "socket = \"{path}/run/berth.sock\"\nroot = \"{path}/root\"\nstate = \"{path}/run\"\n\
             cni_conf_dir = \"{path}/net.d\"\ncerts_dir = \"{path}/certs.d\"\nregistries_conf = \"{path}/registries.conf\"\nsignature_policy = \"{path}/policy.json\"\n\
             [nri]\nsocket_path = \"{path}/run/nri.sock\"\nplugin_path = \"{path}/nri\"\n\
             [network]\nbridge = \"berthtest0\"\nsubnets = [\"10.98.7.0/24\"]\n"
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/berth.sock")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(["serve", "--config"]).arg(self.path("config.toml"));
        command
    }

    /// Starts a daemon and waits until it reports that it is ready.
    fn start(&self) -> Daemon {
        self.start_by(self.command())
    }

    fn start_by(&self, mut command: Command) -> Daemon {
        let place = self.path("notify");
        // An earlier daemon can have used the same path.
        drop(fs::remove_file(&place));
        let notify = UnixDatagram::bind(&place).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = command.env("NOTIFY_SOCKET", &place).stderr(log).spawn().unwrap();
        let daemon = Daemon { child, notify };
        let state = daemon.next_message();
        assert!(state.contains("READY=1"), "{state}\n{}", self.log());
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

struct Daemon {
    child: Child,
    notify: UnixDatagram,
}

impl Daemon {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns the next message to the service manager.
    fn next_message(&self) -> String {
        let mut message = [0; 512];
        let length = self.notify.recv(&mut message).unwrap_or(0);
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn wait_for_exit(&mut self) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the daemon does not exit");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The daemon can have exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

async fn version(socket: &Path) -> VersionResponse {
    let mut client = RuntimeServiceClient::new(connect(socket).await.unwrap());
    client.version(VersionRequest::default()).await.unwrap().into_inner()
}

async fn status(socket: &Path) -> StatusResponse {
    let mut client = RuntimeServiceClient::new(connect(socket).await.unwrap());
    client.status(StatusRequest { verbose: true }).await.unwrap().into_inner()
}

#[tokio::test]
async fn when_the_daemon_reports_ready_its_socket_answers() {
    let home = Home::new();
    let mut command = home.command();
    command.args(["--log-level", "info,berth::server=debug"]);
    let mut daemon = home.start_by(command);
    let version = version(&home.socket()).await;
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_version.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("berth", "0.1.0", "v1")
    );
    let mode = |name: &str| fs::metadata(home.path(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("run/berth.sock"), mode("run"), mode("root")), (0o660, 0o711, 0o700));
    // An open stream does not delay the exit, and SIGHUP has no effect.
    let mut health = HealthClient::new(connect(&home.socket()).await.unwrap());
    let _watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    daemon.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(status(&home.socket()).await.status.unwrap().conditions[0].r#type, "RuntimeReady");
    daemon.signal(Signal::TERM);
    assert!(daemon.next_message().contains("STOPPING=1"));
    assert!(daemon.wait_for_exit().success(), "{}", home.log());
    assert!(!home.socket().exists());
    let client = format!("client connected pid={} uid=0 gid=0", std::process::id());
    assert!(home.log().contains(&client), "{}", home.log());
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_continues() {
    let home = Home::new();
    let daemon = home.start();
    let output = run(home.command());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&format!("another berth, process {}", daemon.pid())), "{text}");
    version(&home.socket()).await;
}

#[tokio::test]
async fn a_daemon_starts_after_one_that_was_killed() {
    let home = Home::new();
    let mut daemon = home.start();
    daemon.signal(Signal::KILL);
    daemon.wait_for_exit();
    assert!(
        fs::symlink_metadata(home.socket()).unwrap().file_type().is_socket(),
        "SIGKILL must leave the socket"
    );
    let _next = home.start();
    version(&home.socket()).await;
    assert_eq!(fs::read_dir(home.path("run")).unwrap().filter(|e| is_hidden(e.as_ref().unwrap())).count(), 0);
}

/// A container can have filled the disk with the daemon's log.
#[tokio::test]
async fn a_log_that_cannot_be_written_does_not_stop_the_daemon() {
    let home = Home::new();
    std::os::unix::fs::symlink("/dev/full", home.path("log")).unwrap();
    let mut daemon = home.start();
    for _ in 0..3 {
        assert_eq!(version(&home.socket()).await.runtime_name, "berth");
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());
}

fn is_hidden(entry: &fs::DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

#[tokio::test]
async fn status_reports_a_broken_drop_in_and_describes_the_host() {
    let home = Home::new();
    fs::create_dir(home.path("conf.d")).unwrap();
    fs::write(home.path("conf.d/50-bad.toml"), "\nsokcet = 1\n").unwrap();
    let _daemon = home.start();
    let answer = status(&home.socket()).await;
    let conditions = answer.status.unwrap().conditions;
    let broken = conditions.iter().find(|condition| condition.r#type == "ConfigReady:50-bad.toml").unwrap();
    assert!(!broken.status && broken.message.contains("50-bad.toml:2: sokcet"), "{broken:?}");
    let config: serde_json::Value = serde_json::from_str(&answer.info["config"]).unwrap();
    assert_eq!(config["socket"].as_str(), home.socket().to_str());
    let host: serde_json::Value = serde_json::from_str(&answer.info["host"]).unwrap();
    assert_eq!(host["fit"], true, "{host}");
    let names: Vec<_> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "berth"]);
}

/// The daemon uses a socket that systemd has created, and does not remove it when it exits (sd_listen_fds(3)).
#[tokio::test]
async fn the_daemon_accepts_a_socket_from_systemd() {
    let home = Home::new();
    let place = home.path("systemd.sock");
    let listener = UnixListener::bind(&place).unwrap();
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    command
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_berth"), "serve", "--config"])
        .arg(home.path("config.toml"))
        .stdin(Stdio::from(OwnedFd::from(listener)));
    let mut daemon = home.start_by(command);
    assert_eq!(version(&place).await.runtime_name, "berth");
    assert!(!home.socket().exists());
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for_exit().success());
    assert!(place.exists());
}

/// The service manager restarts a daemon that sends no notification in time (sd_watchdog_enabled(3)).
#[test]
fn the_watchdog_is_notified_only_while_the_daemon_answers_on_its_socket() {
    let home = Home::new();
    let mut command = home.command();
    command.env("WATCHDOG_USEC", "600000");
    let daemon = home.start_by(command);
    for _ in 0..3 {
        assert_eq!(daemon.next_message(), "WATCHDOG=1\n");
    }
    // The checks fail when the socket is gone. A check that has already connected can still succeed.
    fs::remove_file(home.socket()).unwrap();
    let began = Instant::now();
    while !home.log().contains("failed the health check") {
        assert!(began.elapsed() < PATIENCE, "{}", home.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.notify.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while !daemon.next_message().is_empty() {}
    daemon.notify.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(daemon.next_message(), "", "no notification follows a failed check");
}

#[test]
fn without_a_daemon_commands_fail_with_one_line() {
    let home = Home::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(["load", "--config"]).arg(home.path("config.toml")).arg(home.path("config.toml"));
    let output = run(command);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "berth: failed to connect to {}: No such file or directory (os error 2)\n",
        home.socket().display()
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
}
