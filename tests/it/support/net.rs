//! Network namespaces for tests: hosts that are connected by veth, each kept open by a waiting process, and traffic
//! between them.
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

/// The longest time that a program can take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reference to the network namespace of a process.
#[derive(Clone, Copy)]
pub struct Netns {
    pid: u32,
    /// Whether commands run with the mounts of the process, too.
    mounts: bool,
}

impl Netns {
    /// Refers to the namespace of a process.
    pub fn of(pid: u32) -> Self {
        Self { pid, mounts: false }
    }

    /// Returns the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the path of the namespace's file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// Returns a command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        if self.mounts {
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.pid));
        }
        command.args(["--", program]);
        command
    }

    /// Runs a shell script in the namespace and waits for its exit.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a shell script, which must succeed, and returns its output.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// A separate network namespace. Drop ends it.
pub struct Namespace {
    process: Child,
    netns: Netns,
}

impl std::ops::Deref for Namespace {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Namespace {
    /// Creates a namespace in which only loopback is up.
    pub fn new() -> Self {
        Self::hold(&["--net"], "")
    }

    /// Creates a namespace with separate mounts: `/run` and `/var/lib` are empty, and `/sys` shows this network.
    pub fn with_mounts() -> Self {
        let script =
            "for folder in /run /var/lib; do mount -t tmpfs none $folder; done; mount -t sysfs none /sys";
        let mut namespace = Self::hold(&["--net", "--mount"], script);
        namespace.netns.mounts = true;
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
        let netns = Netns::of(process.id());
        Self { process, netns }
    }

    /// Creates a host that is connected to a node by a separate link. The node has the first address of each subnet,
    /// this host the second. It has no route to the networks behind the node.
    pub fn beside(node: &Netns, link: &str, v4: &str, v6: &str) -> Self {
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

/// A connection that iperf3 has measured.
#[derive(Debug)]
pub struct Traffic {
    /// The client's address as the server sees it. Behind a masquerade it is not the client's own address.
    pub client: String,
    /// The received bits per second.
    pub rate: f64,
}

/// Sends traffic from a client to a server with iperf3. `options` are the client's options, with the server's address
/// and port as the client reaches them; the server listens on `port`. Returns `None` if no connection was possible.
pub fn traffic(server: &Netns, port: u16, client: &Netns, options: &[&str]) -> Option<Traffic> {
    let port = port.to_string();
    let mut listening = server
        .command("iperf3")
        .args(["--server", "--one-off", "--json", "--port", &port])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The server is ready when the kernel shows its port.
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
    // iperf3's exit code does not show this error.
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
