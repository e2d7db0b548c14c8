//! Network namespaces for tests: hosts of their own that are connected by veth, each held by a process that waits; and
//! traffic between them.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test uses a part"
)]

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a program may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace that a process is in.
#[derive(Clone, Copy)]
pub struct Place {
    pid: u32,
    /// The process' mounts are used, too.
    mounts: bool,
}

impl Place {
    /// Where a process is.
    pub fn of(pid: u32) -> Self {
        Self { pid, mounts: false }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The namespace's file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        if self.mounts {
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.pid));
        }
        command.args(["--", program]);
        command
    }

    /// Runs a shell script in it, to its end.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap()
    }

    /// What a shell script prints, which must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// A network namespace of its own, which ends with this value.
pub struct Namespace {
    process: Child,
    place: Place,
}

impl std::ops::Deref for Namespace {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Namespace {
    /// With loopback up and nothing else.
    pub fn new() -> Self {
        Self::hold(&["--net"], "")
    }

    /// With mounts of its own: `/run` and `/var/lib` are empty, `/sys` shows this network.
    pub fn with_mounts() -> Self {
        let script =
            "for folder in /run /var/lib; do mount -t tmpfs none $folder; done; mount -t sysfs none /sys";
        let mut namespace = Self::hold(&["--net", "--mount"], script);
        namespace.place.mounts = true;
        namespace
    }

    fn hold(kinds: &[&str], script: &str) -> Self {
        let script = format!("set -e; ip link set lo up; {script}\necho ready; exec sleep infinity");
        let command = Command::new("unshare")
            .args(kinds)
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = command.unwrap();
        let mut ready = [0_u8; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a network namespace");
        let place = Place::of(process.id());
        Self { process, place }
    }

    /// A host beside a node, on a link of its own: the node has the first addresses of it, this the second. It knows no
    /// way to anything behind the node.
    pub fn beside(node: &Place, link: &str, v4: &str, v6: &str) -> Self {
        let host = Self::new();
        node.sh(&format!(
            "ip link add {link} type veth peer name far0 netns {}
             ip addr add {v4}.1/24 dev {link}; ip addr add {v6}::1/64 dev {link} nodad; ip link set {link} up",
            host.pid()
        ));
        host.sh(&format!(
            "ip addr add {v4}.2/24 dev far0; ip addr add {v6}::2/64 dev far0 nodad; ip link set far0 up"
        ));
        host
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A connection that iperf3 made.
#[derive(Debug)]
pub struct Traffic {
    /// Who the server has seen: behind a masquerade, that is another than the client.
    pub client: String,
    /// Bits a second that have arrived.
    pub rate: f64,
}

/// Traffic from a client to a server, measured by iperf3: `options` are the client's, with the server's address and port as
/// the client knows them; the server listens at `port`. `None`: no connection.
pub fn traffic(server: &Place, port: u16, client: &Place, options: &[&str]) -> Option<Traffic> {
    let port = port.to_string();
    let mut listening = server
        .command("iperf3")
        .args(["--server", "--one-off", "--json", "--port", &port])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is there when the port is, as the kernel says it.
    let until = Instant::now() + PATIENCE;
    while server.sh(&format!("ss -Hltn 'sport = :{port}'")).is_empty() {
        assert!(Instant::now() < until, "iperf3 does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = client
        .command("iperf3")
        .args(["--json", "--connect-timeout", "3000"])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let read = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("iperf3's JSON") };
    let of_client = read(&output.stdout);
    // Its exit code does not say it.
    if of_client.get("error").is_some() {
        drop(listening.kill());
        drop(listening.wait());
        return None;
    }
    let of_server = read(&listening.wait_with_output().unwrap().stdout);
    let client = of_server["start"]["accepted_connection"]["host"].as_str().unwrap_or_default().to_owned();
    let end = &of_client["end"];
    let rate = ["sum_received", "sum"].iter().find_map(|sum| end[sum]["bits_per_second"].as_f64());
    Some(Traffic { client, rate: rate.unwrap_or_default() })
}
