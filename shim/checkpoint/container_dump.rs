//! The dump of one container, in the helper process of a checkpoint.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_image::WritableDiff;
use berth_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies};
use serde::{Deserialize, Serialize};

use super::arguments::{self, DumpFacts};
use super::mounts;
use super::work::{CheckpointWork, DELETED_FILES, DUMP_LOG, ROOTFS_DIFF};

/// The names of the standard streams, in the format of runc: a restore connects them again.
const DESCRIPTORS: &str = "descriptors.json";
/// The number of lines of CRIU's log that an error quotes.
const QUOTED_LINES: usize = 3;
/// A message of CRIU that has no effect on a dump.
const HARMLESS: &str = "RLIMIT_NOFILE";

/// A container that is dumped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerDump {
    /// Its name in errors, if there are several.
    pub name: Option<String>,
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

/// A container that is dumped, with the lock of its work folder.
pub(super) struct OpenedDump<'a> {
    order: &'a ContainerDump,
    work: CheckpointWork,
    _lock: File,
    cgroup: Cgroup,
}

impl<'a> OpenedDump<'a> {
    /// Takes the lock of the work folder.
    pub(super) fn open(order: &'a ContainerDump) -> Result<Self, String> {
        let work = CheckpointWork::at(order.work.clone());
        let cgroup = open_cgroup(&order.cgroup)?;
        Ok(Self { order, _lock: work.lock_for_helper()?, work, cgroup })
    }

    /// Freezes the container until the result is dropped.
    pub(super) fn freeze(&self) -> Result<Frozen<'_>, String> {
        Frozen::freeze(&self.cgroup, &self.work).map_err(|why| self.named(why))
    }

    /// Checks that the first process still exists.
    pub(super) fn check_runs(&self) -> Result<(), String> {
        let runs = self.cgroup.processes().is_ok_and(|processes| processes.contains(&self.order.pid));
        if runs { Ok(()) } else { Err(self.named("its first process has ended".to_owned())) }
    }

    /// Refuses processes that are attached to System V shared memory. CRIU restores it only in a namespace that it has created, and
    /// containers of a pod share one.
    pub(super) fn check_memory(&self) -> Result<(), String> {
        let processes = self.cgroup.processes().unwrap_or_default();
        let segment = processes.iter().find_map(|process| {
            let maps = fs::read(format!("/proc/{process}/maps")).unwrap_or_default();
            attached_segment(&String::from_utf8_lossy(&maps))
        });
        match segment {
            Some(id) => Err(self.named(format!(
                "a process is attached to the System V shared memory segment {id}, which CRIU cannot restore in a pod"
            ))),
            None => Ok(()),
        }
    }

    /// Writes the images of CRIU and the changes of the root filesystem.
    pub(super) fn write(&self, criu: &Path) -> Result<(), String> {
        let Self { order, work, cgroup, .. } = self;
        let written = || {
            let facts =
                facts(order, cgroup).map_err(|error| format!("failed to read its process: {error}"))?;
            write_descriptors(order.pid, work)
                .map_err(|error| format!("failed to write {DESCRIPTORS}: {error}"))?;
            run_criu(criu, &facts, work)?;
            write_diff(&order.diff, work)
        };
        written().map_err(|why| self.named(why))
    }

    fn named(&self, why: String) -> String {
        match &self.order.name {
            Some(name) => format!("container {name}: {why}"),
            None => why,
        }
    }
}

/// Opens the cgroup at a recorded path.
pub(super) fn open_cgroup(recorded: &str) -> Result<Cgroup, String> {
    let hierarchies = Hierarchies::detect().map_err(|error| error.to_string())?;
    let path = CgroupPath::from_recorded(recorded).map_err(|error| error.to_string())?;
    Ok(Cgroup::open(&hierarchies, &path))
}

/// A frozen container. It is thawed when this is dropped.
pub(super) struct Frozen<'a> {
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

fn facts(order: &ContainerDump, cgroup: &Cgroup) -> io::Result<DumpFacts> {
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

/// Returns the id of an attached System V segment in a list of mappings (proc_pid_maps(5)): it is the inode.
fn attached_segment(maps: &str) -> Option<String> {
    let line = maps.lines().find(|line| line.contains(" /SYSV"))?;
    line.split_whitespace().nth(4).map(str::to_owned)
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

fn run_criu(criu: &Path, facts: &DumpFacts, work: &CheckpointWork) -> Result<(), String> {
    let arguments = arguments::dump(facts, &work.images(), work.path());
    let output = Command::new(criu)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("failed to run {}: {error}", criu.display()))?;
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
    fn attached_segments_are_found() {
        let maps = "7f00-7f10 rw-p 00000000 00:01 77  /usr/bin/x\n\
                    7f20-7f30 rw-s 00000000 00:01 32769    /SYSV00004242 (deleted)\n";
        assert_eq!(attached_segment(maps).as_deref(), Some("32769"));
        assert_eq!(attached_segment("7f00-7f10 rw-p 00000000 00:01 77  /usr/SYSV\n"), None);
    }

    #[test]
    fn the_first_process_of_a_pid_namespace_has_number_1() {
        assert!(is_first_of_namespace("Name:\tx\nNSpid:\t812\t1\n"));
        assert!(!is_first_of_namespace("NSpid:\t812\t7\n") && !is_first_of_namespace("NSpid:\t812\n"));
        assert!(!is_first_of_namespace(""));
    }
}
