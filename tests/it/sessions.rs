//! Exec and attach at the daemon's internal interface: streams, terminals, several clients, and leftovers.
//! `streaming.rs` tests them over the network. Runs as root.

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
async fn an_exec_with_a_terminal_has_window_size_and_control_keys() {
    let (inside, ids) = Inside::start(vec![sleeper("c")]).await;
    let script = "tty; stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; \
                  echo ready; while true; do sleep 0.05; done";
    let mut exec = inside.exec(&ids[0], script, TERMINAL).await;
    let start = until(&mut exec.streams.stdout, "ready").await;
    assert!(start.contains("/dev/pts/"), "{start}");
    exec.control.resize(TerminalSize { width: 132, height: 43 }).await.unwrap();
    until(&mut exec.streams.stdout, "43 132").await;
    write(&mut exec.streams.stdin, "\u{3}").await;
    until(&mut exec.streams.stdout, "interrupted").await;
    assert_eq!(within(exec.end()).await, SessionEnd::Exited(5));
    all(&mut exec.streams.stdout).await;

    let mut cat = inside.exec(&ids[0], "cat; echo over", TERMINAL).await;
    write(&mut cat.streams.stdin, "line").await;
    drop(cat.streams.stdin.take());
    until(&mut cat.streams.stdout, "over").await;
    assert_eq!(
        within(cat.end()).await,
        SessionEnd::Exited(0),
        "the end of the input must reach the terminal"
    );

    let size = TerminalSize { width: 101, height: 33 };
    let command = ["stty", "size"].map(str::to_owned).to_vec();
    let mut sized =
        session::exec_with_size(&ContainerAccess::of(&inside.daemon), &ids[0], command, TERMINAL, Some(size))
            .await
            .unwrap();
    assert_eq!(
        all(&mut sized.streams.stdout).await.trim(),
        "33 101",
        "the size must be set before the command starts"
    );
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
async fn attached_clients_share_streams_and_stdin_once_closes_with_the_first() {
    let config = interactive(shell("once", "cat; echo eof; read x </dev/null; sleep 600"), true, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut watching =
        inside.attach(&ids[0], RequestedStreams { stdout: true, ..RequestedStreams::default() }).await;
    let mut first = inside.attach(&ids[0], ALL).await;
    let mut second = inside.attach(&ids[0], ALL).await;
    write(&mut first.streams.stdin, "from the first\n").await;
    until(&mut first.streams.stdout, "from the first\n").await;
    until(&mut second.streams.stdout, "from the first\n").await;
    write(&mut second.streams.stdin, "from the second\n").await;
    until(&mut watching.streams.stdout, "from the second\n").await;
    drop(watching);
    drop(first.streams.stdin.take());
    until(&mut first.streams.stdout, "eof\n").await;
    until(&mut second.streams.stdout, "eof\n").await;
    // The input of the container is closed for every client, also for later ones.
    let mut late = inside.attach(&ids[0], ALL).await;
    for session in [&mut second, &mut late] {
        let stdin = session.streams.stdin.as_mut().unwrap();
        eventually_broken(stdin).await;
    }
    assert_eq!(inside.log("once"), "from the first\nfrom the second\neof\n");
    drop((first, second, late));
    assert!(
        inside.daemon.pods.store.container(&ids[0]).unwrap().state().pid().is_some(),
        "the container must still run"
    );
    inside.finish().await;
}

async fn eventually_broken(stdin: &mut Writer) {
    let writing = async {
        while stdin.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(writing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stdin_once_the_input_stays_open_after_clients_leave() {
    let script = "while read line; do echo got $line; [ $line = bye ] && exit 7; done; exit 9";
    let config = interactive(shell("stays", script), false, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut first = inside.attach(&ids[0], ALL).await;
    write(&mut first.streams.stdin, "one\n").await;
    until(&mut first.streams.stdout, "got one\n").await;
    within(first.streams.stdin.as_mut().unwrap().shutdown()).await.unwrap();
    assert_eq!(within(first.end()).await, SessionEnd::Detached);
    assert_eq!(all(&mut first.streams.stdout).await, "");
    let vanished = inside.attach(&ids[0], ALL).await;
    drop(vanished);
    let mut second = inside.attach(&ids[0], ALL).await;
    write(&mut second.streams.stdin, "bye\n").await;
    assert_eq!(all(&mut second.streams.stdout).await, "got bye\n");
    assert_eq!(within(second.end()).await, SessionEnd::Exited(7));
    assert_eq!(inside.log("stays"), "got one\ngot bye\n");
    let error = attach(&inside.daemon.pods.store, &ids[0], ALL).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_is_not_lost_while_the_container_does_not_read() {
    let script = "read go; read line; echo $line; wc -c";
    let config = interactive(shell("slow", script), true, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut client = inside.attach(&ids[0], ALL).await;
    let mut stdin = client.streams.stdin.take().unwrap();
    // More than the pipes in between can hold.
    let sending = tokio::spawn(async move {
        let large = vec![b'x'; 3 << 20];
        stdin.write_all(b"go\nline\n").await.unwrap();
        stdin.write_all(&large).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    until(&mut client.streams.stdout, "line\n").await;
    within(sending).await.unwrap();
    until(&mut client.streams.stdout, &format!("{}\n", 3 << 20)).await;
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_blocks_nothing() {
    let script = "read go; head -c 25000000 /dev/zero | tr '\\0' x; echo; echo end; read more; exit 0";
    let config = interactive(shell("fast", script), false, false);
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut slow =
        inside.attach(&ids[0], RequestedStreams { stdout: true, ..RequestedStreams::default() }).await;
    let mut writing =
        inside.attach(&ids[0], RequestedStreams { stdin: true, ..RequestedStreams::default() }).await;
    write(&mut writing.streams.stdin, "go\n").await;
    let log = inside.path("logs/pod/fast.log");
    let ends = || fs::read(&log).is_ok_and(|log| log.ends_with(b" stdout F end\n"));
    eventually("the log does not contain all output", ends).await;
    assert_eq!(within(slow.end()).await, SessionEnd::TooSlow);
    let behind = all(&mut slow.streams.stdout).await;
    assert!(
        behind.bytes().all(|byte| byte == b'x'),
        "a slow client must receive the beginning of the output"
    );
    assert!((4 << 20..25_000_000).contains(&behind.len()), "{}", behind.len());
    assert_eq!(inside.log("fast").len(), 25_000_000 + "\nend\n".len());
    write(&mut writing.streams.stdin, "more\n").await;
    assert_eq!(within(writing.end()).await, SessionEnd::Exited(0));
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_survives_the_daemon() {
    let script = "trap 'stty size' WINCH; stty -echo; while true; do read line && echo got $line; done";
    let config = interactive(shell("tty", script), false, true);
    // The daemon that created the terminal was already killed.
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut first = inside.attach(&ids[0], TERMINAL).await;
    assert!(first.streams.stderr.is_none());
    write(&mut first.streams.stdin, "one\n").await;
    until(&mut first.streams.stdout, "got one").await;
    first.control.resize(TerminalSize { width: 91, height: 17 }).await.unwrap();
    until(&mut first.streams.stdout, "17 91").await;
    let inside = inside.reopen().await;
    let mut second = inside.attach(&ids[0], TERMINAL).await;
    write(&mut second.streams.stdin, "two\n").await;
    until(&mut second.streams.stdout, "got two").await;
    let mut sizes = inside
        .exec(
            &ids[0],
            "stty size </proc/1/fd/0",
            RequestedStreams { stdout: true, ..RequestedStreams::default() },
        )
        .await;
    assert_eq!(all(&mut sizes.streams.stdout).await, "17 91\n");
    drop((first, second, sizes));
    assert!(inside.log("tty").contains("got two"), "the log must contain the output");
    inside.finish().await;
}

/// The terminal comes from the devpts of the container. Anything else at its path is refused (CVE-2025-52565).
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_comes_only_from_the_containers_devpts() {
    let mut mounts_over = crate::support::with_security(sleeper("c"), |security| security.privileged = true);
    mounts_over.tty = true;
    let (inside, ids) = Inside::start(vec![mounts_over]).await;
    for script in [
        "mount -t tmpfs none /dev/pts && ln -s /dev/null /dev/pts/ptmx",
        "umount /dev/pts && umount -l /dev/pts; rmdir /dev/pts && mkdir /dev/real && ln -s real /dev/pts && \
         mount -t devpts -o newinstance,ptmxmode=0666 none /dev/real",
    ] {
        let mut prepare = inside.exec(&ids[0], script, ALL).await;
        let stderr = all(&mut prepare.streams.stderr).await;
        assert_eq!(within(prepare.end()).await, SessionEnd::Exited(0), "{stderr}");
        let command = vec!["true".to_owned()];
        let refused = session::exec(&ContainerAccess::of(&inside.daemon), &ids[0], command, TERMINAL)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("make the terminal"), "{refused}");
    }
    let Inside { mut berth, daemon, threads, pod } = inside;
    end(daemon, threads).await;
    berth.restart().await;
    let folder = berth.path("pts");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/null", folder.join("ptmx")).unwrap();
    let mut volume = sleeper("volume");
    volume.tty = true;
    volume.mounts.push(Mount {
        container_path: "/dev/pts".to_owned(),
        host_path: folder.display().to_string(),
        ..Mount::default()
    });
    let security = volume.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
    let refused = berth.try_create(&pod, volume).await.unwrap_err();
    assert!(refused.message().contains("make the terminal"), "{refused}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
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
