//! Exec and attach at the daemon's internal interface: streams, terminals, several clients, and leftovers.
//! `streaming` tests them over the network. Runs as root.

mod attach;
mod terminals;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::support::{Berth, PATIENCE, shell, sleeper};
use berth::daemon::Shared;
use berth::exec::ContainerAccess;
use berth::exec::attach::attach;
use berth::exec::session::{self, OutputReader, Session, SessionEnd, TerminalSize, Writer};
use berth::session_url::RequestedStreams;
use berth_proto::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

const ALL: RequestedStreams = RequestedStreams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: RequestedStreams = RequestedStreams { stdin: true, stdout: true, stderr: false, tty: true };

/// A daemon in this process. It has taken over the pods of a daemon that was killed.
struct Inside {
    berth: Berth,
    daemon: Shared,
    /// A separate runtime. It is shut down with the daemon, whatever its tasks do.
    threads: Runtime,
    pod: String,
}

impl Deref for Inside {
    type Target = Berth;

    fn deref(&self) -> &Berth {
        &self.berth
    }
}

impl DerefMut for Inside {
    fn deref_mut(&mut self) -> &mut Berth {
        &mut self.berth
    }
}

impl Inside {
    /// Runs these containers, kills the daemon with SIGKILL, and takes over its pods.
    async fn start(configs: Vec<ContainerConfig>) -> (Self, Vec<String>) {
        let mut berth = Berth::start().await;
        let mut config = berth.pod_config("pod");
        config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: NamespaceMode::Node.into(),
                ..NamespaceOption::default()
            }),
            privileged: configs.iter().any(is_privileged),
            ..LinuxSandboxSecurityContext::default()
        });
        let pod = berth.run_pod(config).await;
        let mut ids = Vec::new();
        for mut config in configs {
            let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
            security.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
            ids.push(berth.run(&pod, config).await);
        }
        berth.kill();
        let (daemon, threads) = open(&berth).await;
        (Self { berth, daemon, threads, pod }, ids)
    }

    /// Ends this daemon and opens another one.
    async fn reopen(self) -> Self {
        let Self { berth, daemon, threads, pod } = self;
        end(daemon, threads).await;
        let (daemon, threads) = open(&berth).await;
        Self { berth, daemon, threads, pod }
    }

    async fn exec(&self, id: &str, script: &str, wanted: RequestedStreams) -> Session {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        session::exec(&ContainerAccess::of(&self.daemon), id, command, wanted).await.unwrap()
    }

    async fn attach(&self, id: &str, wanted: RequestedStreams) -> Session {
        attach(&self.daemon.pods.store, id, wanted).await.unwrap()
    }

    fn log(&self, name: &str) -> String {
        crate::support::text_of(&fs::read_to_string(self.path(&format!("logs/pod/{name}.log"))).unwrap())
    }

    fn keeper(&self) -> Vec<u32> {
        keepers_of(&self.pod)
    }

    /// Removes everything and checks for leftovers.
    async fn finish(self) {
        let Self { mut berth, daemon, threads, .. } = self;
        end(daemon, threads).await;
        berth.restart().await;
        assert_eq!(berth.clean().await, Vec::<String>::new());
    }
}

fn is_privileged(config: &ContainerConfig) -> bool {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.is_some_and(|security| security.privileged)
}

async fn open(berth: &Berth) -> (Shared, Runtime) {
    let file = berth.path("config.toml");
    let config = berth::config::load(Some(&file), berth::config::Layer::default()).unwrap();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let start = async move {
        let daemon = berth::daemon::open(config).await?;
        berth::recover::run(&daemon).await?;
        Ok::<_, berth::error::CriError>(daemon)
    };
    let daemon = threads.spawn(start).await.unwrap().unwrap();
    (daemon, threads)
}

async fn end(daemon: Shared, threads: Runtime) {
    drop(daemon);
    tokio::task::spawn_blocking(move || threads.shutdown_timeout(PATIENCE)).await.unwrap();
}

fn keepers_of(pod: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains("berth-keeper") && command.contains(pod)
    })
    .collect()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

/// Reads to the end.
async fn all(reader: &mut Option<OutputReader>) -> String {
    let mut text = String::new();
    within(reader.as_mut().unwrap().read_to_string(&mut text)).await.unwrap();
    text
}

/// Reads until the text contains `wanted`.
async fn until(reader: &mut Option<OutputReader>, wanted: &str) -> String {
    let (mut got, mut piece) = (String::new(), [0_u8; 4096]);
    while !got.contains(wanted) {
        let read = within(reader.as_mut().unwrap().read(&mut piece)).await.unwrap();
        assert!(read > 0, "the stream ended before {wanted:?}: {got:?}");
        got.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    got
}

async fn write(writer: &mut Option<Writer>, text: &str) {
    within(writer.as_mut().unwrap().write_all(text.as_bytes())).await.unwrap();
}

fn interactive(mut config: ContainerConfig, once: bool, tty: bool) -> ContainerConfig {
    (config.stdin, config.stdin_once, config.tty) = (true, once, tty);
    config
}

/// Waits until a condition is true.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn runs(command: &str) -> bool {
    let wanted: Vec<_> = command.split(' ').collect();
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        line.trim_end_matches('\0').split('\0').eq(wanted.iter().copied())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_stdin_stdout_stderr_and_an_exit_code() {
    let (inside, ids) = Inside::start(vec![sleeper("c")]).await;
    let mut exec = inside.exec(&ids[0], "cat; echo done >&2; exit 3", ALL).await;
    write(&mut exec.streams.stdin, "one\n").await;
    assert_eq!(until(&mut exec.streams.stdout, "\n").await, "one\n");
    write(&mut exec.streams.stdin, "two\n").await;
    within(exec.streams.stdin.as_mut().unwrap().shutdown()).await.unwrap();
    assert_eq!(all(&mut exec.streams.stdout).await, "two\n");
    assert_eq!(all(&mut exec.streams.stderr).await, "done\n");
    assert_eq!(within(exec.end()).await, SessionEnd::Exited(3));
    assert_eq!(within(exec.end()).await, SessionEnd::Exited(3), "a second call must return the same result");

    // A slow reader blocks the command and loses no data.
    let mut large = inside
        .exec(&ids[0], "seq 300000", RequestedStreams { stdout: true, ..RequestedStreams::default() })
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(all(&mut large.streams.stdout).await.lines().count(), 300_000);
    assert_eq!(within(large.end()).await, SessionEnd::Exited(0));
    let gone = session::exec(&ContainerAccess::of(&inside.daemon), &ids[0], vec!["/nope".to_owned()], ALL)
        .await
        .unwrap_err();
    assert!(gone.to_string().contains("/nope"), "{gone}");
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_exec_is_ended_with_everything_it_started() {
    let (inside, ids) = Inside::start(vec![sleeper("c")]).await;
    for wanted in [ALL, TERMINAL] {
        let script = "setsid sleep 5711 & (setsid sleep 5712 &) ; echo started; sleep 5713";
        let mut exec = inside.exec(&ids[0], script, wanted).await;
        until(&mut exec.streams.stdout, "started").await;
        eventually("the commands do not start", || {
            ["5711", "5712", "5713"].iter().all(|n| runs(&format!("sleep {n}")))
        })
        .await;
        drop(exec);
        eventually("the commands are not ended", || {
            ["5711", "5712", "5713"].iter().all(|n| !runs(&format!("sleep {n}")))
        })
        .await;
    }
    // If the command exits by itself, its background processes stay in the container.
    let mut leaves = inside.exec(&ids[0], "sleep 5714 >/dev/null 2>&1 & exit 0", ALL).await;
    assert_eq!(within(leaves.end()).await, SessionEnd::Exited(0));
    drop(leaves);
    let mut next = inside.exec(&ids[0], "exit 1", ALL).await;
    assert_eq!(within(next.end()).await, SessionEnd::Exited(1));
    drop(next);
    assert!(runs("sleep 5714"));
    // The caller disconnects while the command starts.
    let giving_up = inside.exec(&ids[0], "sleep 5715", ALL);
    drop(tokio::time::timeout(Duration::from_micros(300), giving_up).await);
    eventually("the command of a cancelled call is not ended", || {
        !runs("sleep 5715") && !runs("sh -c sleep 5715")
    })
    .await;
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_of_a_killed_daemon_are_ended() {
    let (inside, ids) = Inside::start(vec![sleeper("c")]).await;
    let Inside { mut berth, daemon, threads, pod } = inside;
    end(daemon, threads).await;
    berth.restart().await;
    let mut client = berth.runtime.clone();
    let request = ExecSyncRequest {
        container_id: ids[0].clone(),
        cmd: ["sleep", "5721"].map(str::to_owned).to_vec(),
        timeout: 0,
    };
    let probe = tokio::spawn(async move { client.exec_sync(request).await });
    eventually("the command does not start", || runs("sleep 5721")).await;
    berth.kill();
    drop(within(probe).await);
    let (daemon, threads) = open(&berth).await;
    let inside = Inside { berth, daemon, threads, pod };
    eventually("the next daemon does not end the command", || !runs("sleep 5721")).await;
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_leave_nothing_in_keeper_daemon_or_cgroup() {
    let (inside, ids) = Inside::start(vec![sleeper("c"), interactive(sleeper("a"), false, false)]).await;
    let keeper = inside.keeper()[0];
    let times = std::env::var("BERTH_TEST_EXECS").map_or(500, |times| times.parse().unwrap());
    let round = async |times: u32| {
        for number in 0..times {
            let wanted = if number % 5 == 0 { TERMINAL } else { ALL };
            // Some execs leave a short background process. A later exec removes its cgroup.
            let script = if number % 10 == 1 { "sleep 0.2 >/dev/null 2>&1 & echo x" } else { "echo x" };
            let mut exec = inside.exec(&ids[0], script, wanted).await;
            assert_eq!(all(&mut exec.streams.stdout).await.trim(), "x");
            if number % 3 != 0 {
                assert_eq!(within(exec.end()).await, SessionEnd::Exited(0));
            }
            drop(exec);
            drop(inside.attach(&ids[1], ALL).await);
        }
    };
    round(50).await;
    let cgroup = inside.daemon.pods.store.container(&ids[0]).unwrap().with(|record| record.cgroup.clone());
    let execs = || {
        let folders = crate::support::leftovers::cgroup_folders(&cgroup);
        folders.iter().filter(|folder| folder.to_string_lossy().contains("exec-")).count()
    };
    let descriptors = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let memory = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // The last execs can have left cgroups, because no exec follows them.
    eventually("cgroups of execs are left", || execs() <= 20).await;
    let own = std::process::id();
    let before = (descriptors(keeper), memory(keeper));
    let own_before = descriptors(own);
    round(times).await;
    eventually("cgroups of execs are left", || execs() <= 20).await;
    eventually("descriptors are left in the keeper", || descriptors(keeper) <= before.0).await;
    // Other tests of this process also have descriptors, but not hundreds.
    assert!(descriptors(own) < own_before + 300, "{} after {own_before}", descriptors(own));
    assert!(memory(keeper) <= before.1 + 128, "{} kB after {} kB", memory(keeper), before.1);
    inside.finish().await;
}
