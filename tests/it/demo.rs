//! `berth demo`: it runs a whole pod, prints each call with its time, and leaves nothing. A missing right is reported
//! in one sentence.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg("demo");
    command
}

/// Returns a lock. A demo compares the whole machine before and after, so two demos at the same time would see each
/// other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn the_demo_runs_a_pod_and_leaves_nothing() {
    let _alone = alone();
    let output = demo().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains('\x1b'), "piped output must not contain escape codes");
    for words in [
        "RunPodSandbox",
        "address 10.",
        "GET / from 127.0.0.1: 200",
        "hello from the other container",
        "GREETING=hello from the image",
        "exit code 0 (Completed)",
        "RemovePodSandbox",
        "no process, mount, interface, cgroup or file",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    let timed = text.lines().filter(|line| line.ends_with(" ms")).count();
    assert!(timed > 15, "{text}");
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let _alone = alone();
    for wait in [20, 100, 200] {
        let mut child = demo().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        let folder = format!("berth-demo-{}", child.id());
        let _ended = kill_process(Pid::from_child(&child), Signal::INT);
        let _status = child.wait().unwrap();
        let left: Vec<_> =
            walk("/sys/fs/cgroup", 3).into_iter().filter(|path| path.contains(&folder)).collect();
        assert_eq!(left, Vec::<String>::new(), "after {wait} ms");
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        assert!(!String::from_utf8_lossy(&links).contains("berth"), "after {wait} ms");
    }
}

fn walk(folder: &str, depth: usize) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found = Vec::new();
    for entry in folders {
        let path = entry.path().display().to_string();
        if depth > 1 {
            found.extend(walk(&path, depth - 1));
        }
        found.push(path);
    }
    found
}

#[test]
fn without_root_the_demo_fails_with_one_sentence() {
    let output = demo().uid(65534).gid(65534).output();
    // The build can be in a folder that only root can enter.
    let Ok(output) = output else { return };
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(message.contains("root") && message.lines().count() == 1, "{message}");
}
