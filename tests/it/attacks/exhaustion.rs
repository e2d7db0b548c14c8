//! Exhaustion of the host's memory, descriptors, processes and disks by a container, an image or a client.

use std::fs;
use std::path::Path;

use berth_proto::v1::*;
use serde_json::json;
use tar::EntryType;
use tokio::io::AsyncWriteExt as _;

use crate::attacks::lab::{Lab, Layer, eventually, of_image, times};
use crate::support::streams::Streams;
use crate::support::{IMAGE, PATIENCE, container, shell, sleeper, with_security};

/// The limit in kB for the growth of the daemon's memory under any attack.
const MEMORY_LIMIT_KB: u64 = 96 << 10;

fn status_kb(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Measures the peak growth of the daemon's memory in kB.
struct Peak {
    pid: i32,
    before: u64,
}

impl Peak {
    fn start(lab: &Lab) -> Self {
        let pid = lab.pid().as_raw_nonzero().get();
        // Resets the peak to the current value (proc(5), clear_refs).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        Self { pid, before: status_kb(pid, "VmRSS:") }
    }

    fn is_below(&self, limit: u64, what: &str) {
        let risen = status_kb(self.pid, "VmHWM:").saturating_sub(self.before);
        assert!(risen < limit, "{what}: the daemon's memory has risen by {risen} kB");
    }
}

fn exec_sync(
    lab: &Lab,
    id: &str,
    script: &str,
    timeout: i64,
) -> impl Future<Output = ExecSyncResponse> + use<> {
    let mut client = lab.runtime.clone();
    let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
    async move { client.exec_sync(request).await.unwrap().into_inner() }
}

/// The output of an exec is limited and not kept in memory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_1708_cve_2022_31030_exec_output_is_limited() {
    let (mut lab, pod) = Lab::with_pod().await;
    let id = lab.run(&pod, sleeper("c")).await;
    let peak = Peak::start(&lab);
    let script = "head -c 100000000 /dev/zero & head -c 100000000 /dev/zero >&2; wait";
    let (first, second) = tokio::join!(exec_sync(&lab, &id, script, 0), exec_sync(&lab, &id, script, 0));
    for answer in [first, second] {
        assert_eq!((answer.stdout.len(), answer.stderr.len(), answer.exit_code), (16 << 20, 16 << 20, 0));
    }
    // Two execs with two streams of 16 MiB each, and the same again in the responses.
    peak.is_below(MEMORY_LIMIT_KB + (256 << 10), "output of execs");
    lab.finish().await;
}

/// An exec does not wait for background processes that hold its output open.
#[tokio::test(flavor = "multi_thread")]
async fn ghsa_7jxh_36q5_gcqv_cve_2026_53495_an_exec_does_not_wait_for_its_children() {
    let (mut lab, pod) = Lab::with_pod().await;
    let id = lab.run(&pod, sleeper("c")).await;
    let (daemon, keeper) = (lab.pid().as_raw_nonzero().get(), lab.keeper(&pod));
    drop(exec_sync(&lab, &id, "true", 0).await);
    let before = (Lab::descriptors(daemon), Lab::descriptors(keeper), status_kb(daemon, "Threads:"));
    let number = times(200, 24);
    let runs = (0..number).map(|_| exec_sync(&lab, &id, "sleep 5781 & setsid sleep 5781 & echo answer", 0));
    let answers = tokio::time::timeout(PATIENCE, futures_util::future::join_all(runs)).await;
    for answer in
        answers.unwrap_or_else(|_| panic!("execs wait for the processes that they have left behind"))
    {
        assert_eq!((&answer.stdout[..], answer.exit_code), (&b"answer\n"[..], 0));
    }
    let now = || (Lab::descriptors(daemon), Lab::descriptors(keeper), status_kb(daemon, "Threads:"));
    // A few threads of the daemon's pool can stay for a while.
    let over = || now().0 <= before.0 && now().1 <= before.1 && now().2 <= before.2 + 16;
    eventually("descriptors of execs are left", over).await;
    assert_eq!(lab.sh(&id, "echo still here").await, "still here");
    lab.finish().await;
}

/// Returns a masked WebSocket frame of a channel.
fn frame(channel: u8, text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap();
    [&[0x82, 0x80 | length, 0, 0, 0, 0, channel], text].concat()
}

/// Clients attach, resize and disconnect.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23471_cve_2025_64329_disconnected_clients_leave_no_memory_or_descriptors() {
    let (mut lab, pod) = Lab::with_pod().await;
    let mut config = shell("tty", "while true; do sleep 0.1; done");
    (config.tty, config.stdin) = (true, true);
    let id = lab.run(&pod, config).await;
    let (daemon, keeper) = (lab.pid().as_raw_nonzero().get(), lab.keeper(&pod));
    let url = lab.attach_url(&id, Streams::TERMINAL).await;
    drop(lab.websocket(&url, "v4.channel.k8s.io").await);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let before = (Lab::descriptors(daemon), Lab::descriptors(keeper));
    let peak = Peak::start(&lab);
    for _ in 0..times(500, 40) {
        let url = lab.attach_url(&id, Streams::TERMINAL).await;
        let mut client = lab.websocket(&url, "v4.channel.k8s.io").await;
        for width in 20..60 {
            let size = format!("{{\"Width\":{width},\"Height\":10}}");
            client.write_all(&frame(4, size.as_bytes())).await.unwrap();
        }
        drop(client);
        // A session that is requested and never used must expire, too.
        drop(lab.attach_url(&id, Streams::TERMINAL).await);
    }
    let over = || Lab::descriptors(daemon) <= before.0 && Lab::descriptors(keeper) <= before.1;
    eventually("descriptors of attachments are left", over).await;
    peak.is_below(MEMORY_LIMIT_KB, "attachments");
    lab.finish().await;
}

/// Clients announce more than they send, or send data that expands.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_35469_large_frames_use_little_memory() {
    let (mut lab, pod) = Lab::with_pod().await;
    let id = lab.run(&pod, sleeper("c")).await;
    let peak = Peak::start(&lab);
    let mut clients = Vec::new();
    for number in 0..16 {
        let request = crate::support::streams::exec(&id, &["sleep", "5791"], Streams::OUTPUT);
        let url = lab.exec_url(request).await;
        let mut client = lab.spdy(&url, "v4.channel.k8s.io").await;
        if number % 2 == 0 {
            // 64 MiB of headers in some kilobytes. The server can close the connection before it has received all of
            // them, and this client then panics.
            let bomb = async move {
                client.open(1, &[("streamType", "error"), ("bomb", &"a".repeat(64 << 20))]).await;
                client
            };
            clients.extend(tokio::spawn(bomb).await);
        } else {
            // Frames of 16 MiB that are sent in part only: SYN_STREAM, SETTINGS, PING.
            let kind = [1, 4, 6][number % 3];
            drop(client.io.write_all(&[0x80, 3, 0, kind, 0, 0xff, 0xff, 0xff]).await);
            drop(client.io.write_all(&vec![0; 1 << 20]).await);
            clients.push(client);
        }
    }
    assert_eq!(lab.sh(&id, "echo still here").await, "still here");
    peak.is_below(MEMORY_LIMIT_KB, "frames");
    drop(clients);
    lab.finish().await;
}

/// Containers can write only a limited amount to the /etc files that the runtime provides.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_8557_etc_files_of_a_pod_cannot_fill_the_disk() {
    let (mut lab, pod) = Lab::with_pod().await;
    let script = "for file in hosts hostname resolv.conf; do head -c 100000000 /dev/zero >>/etc/$file; \
                  wc -c </etc/$file; done 2>/dev/null";
    let (_, output) = lab.run_to_end(&pod, shell("c", script)).await;
    let written: u64 = output.lines().map(|line| line.trim().parse::<u64>().unwrap_or(0)).sum();
    assert!(written < 64 << 20, "{written} bytes are written to the /etc files of the pod: {output}");
    lab.finish().await;
}

/// Also CVE-2024-9676 (containers/storage): unlimited passwd and group files.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_4437_cve_2026_47262_large_passwd_files_use_little_memory() {
    let (mut lab, pod) = Lab::with_pod().await;
    let users = "web:x:1000:1000::/:/bin/sh\n".repeat((48 << 20) / 27);
    let groups = format!("web:x:1000:{}\n", "web,".repeat(8 << 20));
    let large = Layer::default().file("etc/passwd", &users).file("etc/group", &groups);
    let pipes = Layer::default()
        .entry(EntryType::Fifo, "etc/passwd", "", 0o644, b"")
        .symlink("etc/group", "/dev/zero");
    let config = |user: &str| json!({ "Env": ["PATH=/bin"], "WorkingDir": "/", "User": user });
    let mut images = Vec::new();
    for user in ["web", "1000", "web:web"] {
        let name = user.replace(':', "-");
        images.push(lab.load(&format!("large-{name}"), large.clone(), config(user)).await);
        images.push(lab.load(&format!("pipes-{name}"), pipes.clone(), config(user)).await);
    }
    let peak = Peak::start(&lab);
    for (number, image) in images.iter().enumerate() {
        // Whether refused or not, the call must not use much time or memory.
        drop(lab.try_create(&pod, of_image(shell(&format!("c{number}"), "id"), image)).await);
    }
    peak.is_below(64 << 10, "files of users");
    lab.finish().await;
}

/// The JSON documents of an archive are large.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_25153_large_archive_documents_are_refused() {
    let mut lab = Lab::start_with("").await;
    let spaces = " ".repeat(192 << 20);
    let peak = Peak::start(&lab);
    for name in ["manifest.json", "index.json", "oci-layout"] {
        let archive = lab.path("large.tar");
        let layout = r#"{ "imageLayoutVersion": "1.0.0" }"#;
        let layer = match name {
            "index.json" => Layer::default().file("oci-layout", layout),
            _ => Layer::default(),
        };
        fs::write(&archive, layer.file(name, &spaces).bytes()).unwrap();
        let refused = lab.load_archive(&archive).await;
        assert!(refused.is_err(), "{name}");
        fs::remove_file(&archive).unwrap();
    }
    peak.is_below(MEMORY_LIMIT_KB, "documents");
    let listed = lab.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert!(listed.is_empty(), "{listed:?}");
    lab.finish().await;
}

/// Returns the processor time of a process in hundredths of a second (proc(5), stat).
fn used(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

/// Many opaque markers for one folder cost no more than as many files.
#[tokio::test(flavor = "multi_thread")]
async fn ghsa_rp3h_jf77_q9p4_repeated_opaque_markers_cost_little() {
    const COUNT: usize = 4000;
    let mut lab = Lab::start_with("").await;
    let pid = lab.pid().as_raw_nonzero().get();
    let files = || (0..COUNT).fold(Layer::default(), |layer, number| layer.file(&format!("d/f{number}"), ""));
    let opaque = (0..COUNT).fold(files(), |layer, _| layer.file("d/.wh..wh..opq", ""));
    let whiteouts = (0..COUNT).fold(files(), |layer, number| layer.file(&format!("d/.wh.f{number}"), ""));
    let plain = (0..COUNT).fold(files(), |layer, number| layer.file(&format!("d/g{number}"), ""));
    let config = || json!({ "Env": ["PATH=/bin"], "WorkingDir": "/" });
    let mut times = Vec::new();
    for (name, layer) in [("plain", plain), ("opaque", opaque), ("whiteouts", whiteouts)] {
        let before = used(pid);
        drop(lab.try_load(name, &[layer], config()).await);
        times.push(used(pid) - before);
    }
    assert!(times[1..].iter().all(|time| *time < 4 * times[0] + 100), "{times:?} hundredths of a second");
    lab.finish().await;
}

/// Returns the memory cgroup of a process.
fn cgroup_of(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains(":memory:"))
        .or_else(|| text.lines().find(|line| line.starts_with("0::")));
    line.unwrap().rsplit(':').next().unwrap().to_owned()
}

/// A pod with a user namespace has the same limits as any other pod.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_47291_a_pod_with_a_user_namespace_has_limits() {
    let mut lab = Lab::start().await;
    let mapping = IdMapping { host_id: 400_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![mapping], gids: vec![mapping] };
    let mut config = lab.pod_config("users");
    let linux = config.linux.get_or_insert_default();
    let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    options.userns_options = Some(users.clone());
    let pod = lab.run_pod(config).await;
    let mut config = with_security(sleeper("c"), |security| {
        security.namespace_options.get_or_insert_default().userns_options = Some(users.clone());
    });
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        ..Default::default()
    });
    let id = lab.run(&pod, config).await;
    let info = lab.info(&id).await;
    let cgroup = cgroup_of(&info["pid"].to_string());
    assert_eq!(cgroup, info["cgroup"].as_str().unwrap());
    assert!(cgroup.starts_with(&lab.cgroup_parent), "{cgroup} must be below the kubelet's cgroup");
    // The limits hold, also for an exec.
    let script = "x=; while true; do x=$x$x.; done";
    let code = lab.exec(&id, &["sh", "-c", script], 0).await.unwrap().exit_code;
    assert_eq!(code, 137);
    lab.finish().await;
}

/// The keeper of a pod is not killed when the pod runs out of memory.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_14891_the_keeper_survives_an_oom_kill_in_its_pod() {
    let (mut lab, pod) = Lab::with_pod().await;
    let keeper = lab.keeper(&pod);
    assert!(
        !cgroup_of(&keeper.to_string()).starts_with(&lab.cgroup_parent),
        "a keeper must not be in a pod's cgroup"
    );
    for number in 0..3 {
        let mut config = shell(&format!("c{number}"), "x=; while true; do x=$x$x.; done");
        config.linux.as_mut().unwrap().resources =
            Some(LinuxContainerResources { memory_limit_in_bytes: 20 << 20, ..Default::default() });
        let id = lab.run(&pod, config).await;
        assert_eq!(lab.wait_exited(&id).await.reason, "OOMKilled");
    }
    assert_eq!(lab.keeper(&pod), keeper);
    lab.finish().await;
}

/// All processes of a fork bomb are ended with its container.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_ended_with_its_container() {
    let (mut lab, pod) = Lab::with_pod().await;
    let mut config = container(
        "bomb",
        &[
            "sh",
            "-c",
            "b() { b | b & }; trap '' TERM HUP; b; while true; do setsid sh -c 'trap \"\" TERM; sleep 5793 & sleep 5793' & done",
        ],
    );
    let resources = LinuxContainerResources {
        unified: if crate::support::is_v2() {
            std::collections::HashMap::from([("pids.max".to_owned(), "60".to_owned())])
        } else {
            std::collections::HashMap::new()
        },
        cpu_quota: 20_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    config.linux.as_mut().unwrap().resources = Some(resources);
    config.image = Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() });
    let id = lab.run(&pod, config).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    lab.stop_container(&id, 1).await;
    lab.remove_container(&id).await;
    let left = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x005793\0"))
    });
    assert_eq!(left.count(), 0);
    assert!(Path::new("/proc").exists());
    lab.finish().await;
}
