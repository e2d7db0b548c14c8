//! A bundle of this host's busybox, and the runtime's commands on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bundle and a folder for the states of containers.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Value,
}

impl Lab {
    pub(crate) fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        make_rootfs(&folder.path().join("rootfs"));
        let mut lab = Self { config: Value::Null, folder };
        let bundle = lab.folder.path().display().to_string();
        succeed(&lab.berth(&["spec", "--bundle", &bundle]));
        let text = fs::read_to_string(lab.path("config.json")).unwrap();
        lab.config = serde_json::from_str(&text).unwrap();
        lab.config["process"]["terminal"] = false.into();
        lab.config["process"]["args"] = json!(["sh", "-c", script]);
        lab.config["linux"]["cgroupsPath"] = format!("/berth-oci-test/{}", lab.name()).into();
        lab.write();
        lab
    }

    pub(crate) fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn name(&self) -> String {
        self.folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-oci"));
        command.arg("--root").arg(self.path("state")).args(arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn berth(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Creates a container with its output in a file. A pipe would be held open by the container.
    pub(crate) fn create(&self, arguments: &[&str]) {
        self.leave_running(&[&["create"], arguments].concat());
    }

    /// Runs a command that leaves a process with its streams.
    pub(crate) fn leave_running(&self, arguments: &[&str]) {
        let output = fs::File::create(self.path("output")).unwrap();
        let mut command = self.command(arguments);
        command.stdout(output.try_clone().unwrap()).stderr(output);
        assert!(command.status().unwrap().success(), "{}", self.output());
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        let output = self.berth(&["state", id]);
        serde_json::from_str(&succeed(&output)).unwrap()
    }

    pub(crate) fn until_status(&self, id: &str, status: &str) {
        self.until(|| self.state(id)["status"] == status);
    }

    /// Waits until a condition is met.
    pub(crate) fn until(&self, mut met: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !met() {
            assert!(Instant::now() < until, "{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn fail(&self, arguments: &[&str], expected: &str) {
        let output = self.berth(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("state")).into_iter().flatten().flatten() {
            drop(self.berth(&["delete", "--force", entry.file_name().to_str().unwrap()]));
        }
        for mount in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            drop(fs::remove_dir(mount.path().join("berth-oci-test")));
        }
        drop(fs::remove_dir("/sys/fs/cgroup/berth-oci-test"));
    }
}

fn make_rootfs(rootfs: &Path) {
    for folder in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
    for line in String::from_utf8_lossy(&Command::new("ldd").arg(busybox).output().unwrap().stdout).lines() {
        let library = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(library) = library {
            let target = rootfs.join(library.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(library, target).unwrap();
        }
    }
    for name in [
        "sh", "cat", "echo", "sleep", "id", "true", "tty", "stty", "kill", "env", "touch", "ls", "chmod",
        "mount", "grep", "wc",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
}

pub(crate) fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A container that runs until it gets a signal.
pub(crate) const SLEEPER: &str = "trap 'exit 7' TERM; echo started; while true; do sleep 0.05; done";
