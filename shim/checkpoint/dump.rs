//! The helper process of a checkpoint. It freezes the container, runs CRIU, copies the changes of the root filesystem while
//! nothing can change them, and thaws the container. It is a separate process so that the container goes on even if the
//! daemon is killed in the middle.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use berth_image::WritableDiff;
use berth_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;

use super::arguments::{self, DumpFacts};
use super::mounts;
use super::work::{CheckpointWork, DELETED_FILES, DUMP_LOG, ROOTFS_DIFF};

/// The hidden command of berth that runs the helper.
pub const COMMAND: &str = "checkpoint-dump";
/// The names of the standard streams, in the format of runc: a restore connects them again.
const DESCRIPTORS: &str = "descriptors.json";
/// The number of lines of CRIU's log that an error quotes.
const QUOTED_LINES: usize = 3;
/// A message of CRIU that has no effect on a dump.
const HARMLESS: &str = "RLIMIT_NOFILE";

/// The task of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct DumpOrder {
    /// The program CRIU.
    pub criu: PathBuf,
    /// The first process of the container.
    pub pid: i32,
    /// The recorded path of its cgroup.
    pub cgroup: String,
    /// The work folder.
    pub work: PathBuf,
    /// The destinations of its bind mounts.
    pub bound: Vec<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Its writable layer.
    pub diff: WritableDiff,
}

/// The helper's answer. An empty text is a success.
#[derive(Debug, Serialize, Deserialize)]
struct DumpAnswer {
    why: String,
}

/// Runs the helper and waits for its end. The helper goes on when the caller gives up.
///
/// # Errors
/// The reason why there is no dump. The container runs.
pub async fn run(order: &DumpOrder) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to run the helper: {error}");
    // The path of the program may belong to another version meanwhile.
    let mut helper = tokio::process::Command::new("/proc/self/exe")
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A signal to the daemon's group, such as Ctrl-C, does not reach the helper.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let text = serde_json::to_vec(order).map_err(|error| error.to_string())?;
    if let Some(mut input) = helper.stdin.take() {
        input.write_all(&text).await.map_err(failed)?;
    }
    let output = helper.wait_with_output().await.map_err(failed)?;
    match serde_json::from_slice::<DumpAnswer>(&output.stdout) {
        Ok(answer) if answer.why.is_empty() => Ok(()),
        Ok(answer) => Err(answer.why),
        Err(_) => Err(format!("the helper ended without an answer ({})", output.status)),
    }
}

/// The helper process: reads its order from standard input and writes its answer to standard output.
#[must_use]
pub fn helper() -> ExitCode {
    let done = read_order().and_then(|order| dump(&order));
    let code = if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let answer = DumpAnswer { why: done.err().unwrap_or_default() };
    if let Ok(text) = serde_json::to_vec(&answer) {
        // The daemon may have been killed.
        drop(io::stdout().write_all(&text));
    }
    code
}

fn read_order() -> Result<DumpOrder, String> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn dump(order: &DumpOrder) -> Result<(), String> {
    let work = CheckpointWork::at(order.work.clone());
    let lock = work.lock().map_err(|error| format!("failed to lock the work folder: {error}"))?;
    let _lock = lock.ok_or("the daemon was restarted")?;
    let hierarchies = Hierarchies::detect().map_err(|error| error.to_string())?;
    let path = CgroupPath::from_recorded(&order.cgroup).map_err(|error| error.to_string())?;
    let cgroup = Cgroup::open(&hierarchies, &path);
    let _frozen = Frozen::freeze(&cgroup, &work)?;
    let runs = cgroup.processes().is_ok_and(|processes| processes.contains(&order.pid));
    if !runs {
        return Err("its first process has ended".to_owned());
    }
    let facts = facts(order, &cgroup).map_err(|error| format!("failed to read its process: {error}"))?;
    write_descriptors(order.pid, &work).map_err(|error| format!("failed to write {DESCRIPTORS}: {error}"))?;
    run_criu(order, &facts, &work)?;
    write_diff(&order.diff, &work)
}

/// A frozen container. It is thawed when this is dropped.
struct Frozen<'a> {
    cgroup: &'a Cgroup,
    work: &'a CheckpointWork,
    /// Someone else had frozen the container: it stays frozen.
    stays: bool,
}

impl<'a> Frozen<'a> {
    fn freeze(cgroup: &'a Cgroup, work: &'a CheckpointWork) -> Result<Self, String> {
        let stays = cgroup.is_frozen();
        let frozen = Self { cgroup, work, stays };
        if !stays {
            work.mark_frozen().map_err(|error| format!("failed to mark the container: {error}"))?;
            cgroup.set_frozen(true).map_err(|error| error.to_string())?;
        }
        Ok(frozen)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // A cgroup that does not exist any more has nothing to thaw.
        if !self.stays && (self.cgroup.set_frozen(false).is_ok() || !self.cgroup.is_frozen()) {
            self.work.clear_frozen();
        }
    }
}

fn facts(order: &DumpOrder, cgroup: &Cgroup) -> io::Result<DumpFacts> {
    let process = PathBuf::from(format!("/proc/{}", order.pid));
    let mountinfo = fs::read(process.join("mountinfo"))?;
    let seen = mounts::parse(&String::from_utf8_lossy(&mountinfo));
    let status = fs::read_to_string(process.join("status"))?;
    let pids = other_namespace(&process, "pid")?.filter(|_| !is_first_of_namespace(&status));
    Ok(DumpFacts {
        pid: order.pid,
        freezer: cgroup.process_folder().to_owned(),
        network: other_namespace(&process, "net")?,
        shared_pids: pids,
        external_mounts: mounts::external(&seen, &order.bound),
        terminal: order.terminal,
    })
}

/// Returns the inode of a namespace of a process, unless this process is in it, too.
fn other_namespace(process: &Path, kind: &str) -> io::Result<Option<u64>> {
    let its = fs::metadata(process.join("ns").join(kind))?.ino();
    let ours = fs::metadata(Path::new("/proc/self/ns").join(kind))?.ino();
    Ok((its != ours).then_some(its))
}

/// Whether a process is number 1 of its PID namespace (proc_pid_status(5), `NSpid`).
fn is_first_of_namespace(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.and_then(|ids| ids.split_whitespace().next_back()) == Some("1")
}

fn write_descriptors(pid: i32, work: &CheckpointWork) -> io::Result<()> {
    let link = |number: u32| fs::read_link(format!("/proc/{pid}/fd/{number}"));
    let names = (0..3).map(|number| match link(number) {
        Ok(name) => name.display().to_string(),
        Err(_) => "/dev/null".to_owned(),
    });
    let names: Vec<String> = names.collect();
    fs::write(work.images().join(DESCRIPTORS), serde_json::to_vec(&names)?)
}

fn run_criu(order: &DumpOrder, facts: &DumpFacts, work: &CheckpointWork) -> Result<(), String> {
    let arguments = arguments::dump(facts, &work.images(), work.path());
    let output = Command::new(&order.criu)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("failed to run {}: {error}", order.criu.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let log = fs::read(work.file(DUMP_LOG)).unwrap_or(output.stderr);
    Err(format!("CRIU failed ({}): {}", output.status, errors_of(&String::from_utf8_lossy(&log))))
}

/// Returns the first errors of CRIU's log, without their positions in its source.
pub(super) fn errors_of(log: &str) -> String {
    let errors = log.lines().filter_map(|line| {
        let (_, text) = line.split_once("Error (")?;
        text.split_once("): ").map(|(_, text)| text)
    });
    let mut errors: Vec<&str> = errors.filter(|line| !line.contains(HARMLESS)).collect();
    errors.dedup();
    errors.truncate(QUOTED_LINES);
    if errors.is_empty() { "its log has no errors".to_owned() } else { errors.join("; ") }
}

fn write_diff(diff: &WritableDiff, work: &CheckpointWork) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to write {ROOTFS_DIFF}: {error}");
    let file = File::create(work.file(ROOTFS_DIFF)).map_err(failed)?;
    let removed = diff.write(BufWriter::with_capacity(1 << 20, file)).map_err(|error| error.to_string())?;
    if removed.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_vec(&removed).map_err(|error| error.to_string())?;
    fs::write(work.file(DELETED_FILES), text)
        .map_err(|error| format!("failed to write {DELETED_FILES}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_of_the_log_are_quoted_without_positions() {
        let log = "(00.06) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.19) Warn  (compel/x.c:1): Will restore\n\
                   (00.22) Error (criu/sk-unix.c:11): unix: External socket is used\n\
                   (00.30) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        assert_eq!(errors_of(log), "unix: External socket is used; Dumping FAILED.");
        assert_eq!(errors_of(""), "its log has no errors");
    }

    #[test]
    fn the_first_process_of_a_pid_namespace_has_number_1() {
        assert!(is_first_of_namespace("Name:\tx\nNSpid:\t812\t1\n"));
        assert!(!is_first_of_namespace("NSpid:\t812\t7\n") && !is_first_of_namespace("NSpid:\t812\n"));
        assert!(!is_first_of_namespace(""));
    }
}
