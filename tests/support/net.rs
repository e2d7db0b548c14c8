//! Network namespaces for tests: hosts of their own that are connected by veth, each held by a process that waits.
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

/// A network namespace, which ends with this value.
pub struct Namespace {
    process: Child,
    mounts: bool,
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
        namespace.mounts = true;
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
        Self { process, mounts: false }
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        if self.mounts {
            command.arg(format!("--mount=/proc/{}/ns/mnt", self.pid()));
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

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
