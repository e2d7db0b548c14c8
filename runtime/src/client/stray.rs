//! Finds keepers that cannot be reached over their socket because its folder was removed. They are found among the
//! processes of the host by attributes that a keeper cannot lose: its program, its argument and its log.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{KeeperProcess, LOG};

/// The name that the kernel shows for the file that a keeper is executed from (memfd_create(2)). Any process can
/// choose this name. If a process in a container does, it is ended like a keeper, with its own children; no other
/// process is affected.
const PROGRAM: &str = "/memfd:berth-keeper (deleted)";

/// The suffix that procfs adds to the path of a removed file (proc(5), `/proc/PID/exe`).
const REMOVED: &str = " (deleted)";

/// The time limit for killed processes to end. A process in an uninterruptible sleep waits for its disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// An error of ending a keeper.
#[derive(Debug, thiserror::Error)]
pub enum StrayError {
    /// Processes of its pod are still running.
    #[error("failed to end the keeper of pod {pod}: processes {pids:?} are still running")]
    Alive {
        /// The id of the pod.
        pod: String,
        /// The processes that still run.
        pids: Vec<i32>,
    },
    /// Its descendants cannot be listed.
    #[error("failed to list the processes of pod {pod}: {source}")]
    List {
        /// The id of the pod.
        pod: String,
        /// The error of the read from /proc.
        source: io::Error,
    },
}

/// A keeper among the processes of the host.
#[derive(Debug)]
pub struct FoundKeeper {
    pod: String,
    folder: Option<PathBuf>,
    pid: i32,
    pidfd: OwnedFd,
}

/// Finds the keepers of this host that `filter` accepts, including those of other and older daemons. Only
/// processes in the caller's user and process namespaces are considered.
///
/// # Errors
/// Processes cannot be inspected. Some keepers may then be missing.
pub fn find_keepers(filter: impl Fn(&FoundKeeper) -> bool) -> io::Result<Vec<FoundKeeper>> {
    let mut found = Vec::new();
    for pid in pids()? {
        found.extend(FoundKeeper::at(pid)?.filter(|keeper| filter(keeper)));
    }
    Ok(found)
}

impl FoundKeeper {
    /// Returns the id of the pod that the keeper was started for.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// Returns the keeper's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the pod's volatile folder at the keeper's start, without symbolic links: the folder that contains,
    /// or contained, the keeper's log.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Returns the process.
    #[must_use]
    pub fn into_process(self) -> KeeperProcess {
        KeeperProcess::new(self.pid, self.pidfd)
    }

    /// Returns the keeper with this pid, if the process is a keeper.
    fn at(pid: i32) -> io::Result<Option<Self>> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        if !is_keeper(&process) {
            return Ok(None);
        }
        let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Self::identify(&process, pid.as_raw_nonzero().get(), pidfd),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn identify(process: &Path, pid: i32, pidfd: OwnedFd) -> io::Result<Option<Self>> {
        // The pid refers to the process of the pidfd as long as that lives, which is checked last.
        let own = |kind: &str| {
            let namespace = |process: &Path| fs::read_link(process.join("ns").join(kind)).ok();
            let ours = namespace(Path::new("/proc/self"));
            ours.is_some() && namespace(process) == ours
        };
        if !is_keeper(process) || !own("user") || !own("pid") {
            return Ok(None);
        }
        // A child of a keeper that has not yet executed its program has the keeper's program and is in the session
        // that the keeper leads.
        if stat_of(pid)?.is_none_or(|stat| stat.session != pid) {
            return Ok(None);
        }
        let command = match fs::read(process.join("cmdline")) {
            Ok(command) => command,
            Err(_) if !lives(&pidfd) => return Ok(None),
            // Out of descriptors, for example: the process may be a keeper, and must not be skipped.
            Err(error) => return Err(error),
        };
        let pod =
            command.split(|byte| *byte == 0).nth(1).and_then(|pod| String::from_utf8(pod.to_vec()).ok());
        let log = fs::read_link(process.join("fd/2")).ok();
        let folder = log.as_deref().and_then(|log| folder_of(log.to_str()?));
        Ok(pod.filter(|_| lives(&pidfd)).map(|pod| Self { pod, folder, pid, pidfd }))
    }

    /// Kills all processes of the pod, and then the keeper. All of them are the keeper's descendants, because it
    /// is the reaper of its children and of the orphans that they leave (prctl(2), `PR_SET_CHILD_SUBREAPER`).
    /// Returns the cgroups that they were in, which are then empty.
    ///
    /// # Errors
    /// A process does not end, or the processes of the host cannot be listed.
    pub fn end(&self) -> Result<BTreeSet<String>, StrayError> {
        let until = Instant::now() + PATIENCE;
        let mut cgroups = BTreeSet::new();
        loop {
            let below = self.descendants()?;
            if below.is_empty() {
                break;
            }
            if Instant::now() > until {
                return Err(self.alive(below));
            }
            cgroups.extend(below.iter().filter_map(|pid| cgroup_of(*pid)));
            let opened: Vec<_> = below.into_iter().filter_map(|pid| Some((pid, open(pid)?))).collect();
            // A pid may have referred to another process when it was opened. A process that is still a descendant
            // of the keeper is the right one.
            let still = self.descendants()?;
            let opened: Vec<_> = opened.into_iter().filter(|(pid, _)| still.contains(pid)).collect();
            opened.iter().for_each(|(_, process)| kill(process));
            wait_for(opened.iter().map(|(_, process)| process), until);
        }
        kill(&self.pidfd);
        wait_for([&self.pidfd], until);
        if lives(&self.pidfd) { Err(self.alive(vec![self.pid])) } else { Ok(cgroups) }
    }

    fn alive(&self, pids: Vec<i32>) -> StrayError {
        StrayError::Alive { pod: self.pod.clone(), pids }
    }

    fn descendants(&self) -> Result<Vec<i32>, StrayError> {
        descendants(self.pid).map_err(|source| StrayError::List { pod: self.pod.clone(), source })
    }
}

fn is_keeper(process: &Path) -> bool {
    fs::read_link(process.join("exe")).is_ok_and(|exe| exe == Path::new(PROGRAM))
}

/// Returns the folder of a keeper's log from the log's path.
fn folder_of(log: &str) -> Option<PathBuf> {
    let folder = log.strip_suffix(REMOVED).unwrap_or(log).strip_suffix(LOG)?.strip_suffix('/')?;
    folder.starts_with('/').then(|| folder.into())
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn lives(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

fn kill(process: &OwnedFd) {
    // The only possible error is that the process has ended.
    let _gone = pidfd_send_signal(process, Signal::KILL);
}

/// Waits until processes have ended, or until a time.
fn wait_for<'a>(processes: impl IntoIterator<Item = &'a OwnedFd>, until: Instant) {
    for process in processes {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        let _ended = poll(&mut fds, Some(&timeout));
    }
}

fn pids() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Returns the living descendants of a process.
fn descendants(ancestor: i32) -> io::Result<Vec<i32>> {
    let mut rest = Vec::new();
    for pid in pids()? {
        rest.extend(stat_of(pid)?.map(|stat| (pid, stat)));
    }
    let mut found = BTreeSet::from([ancestor]);
    loop {
        let (children, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|(_, stat)| found.contains(&stat.parent));
        if children.is_empty() {
            break;
        }
        found.extend(children.iter().filter(|(_, stat)| !stat.ended).map(|(pid, _)| *pid));
        rest = others;
    }
    found.remove(&ancestor);
    Ok(found.into_iter().collect())
}

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// 0 if its leader is outside of this pid namespace (pid_namespaces(7)).
    session: i32,
    ended: bool,
}

/// Reads `/proc/PID/stat`. Returns `None` if the process has ended.
///
/// # Errors
/// The file cannot be read, for example because this process has no more file descriptors.
fn stat_of(pid: i32) -> io::Result<Option<Stat>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        // A process can give itself any bytes as a name (PR_SET_NAME(2const)).
        Ok(stat) => Ok(parse(&String::from_utf8_lossy(&stat))),
        // The process may end at any time: before open(2), or between that and read(2).
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses `PID (NAME) STATE PARENT GROUP SESSION ...` (proc_pid_stat(5)). The name may contain any bytes.
fn parse(stat: &str) -> Option<Stat> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let (state, parent, _group, session) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    Some(Stat {
        parent: parent.parse().ok()?,
        session: session.parse().ok()?,
        ended: matches!(state, "Z" | "X"),
    })
}

/// Returns the cgroup that contains the whole container: that of v2, or that of the v1 freezer.
fn cgroup_of(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let find = |name: &str| {
        text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == name).then(|| path.to_owned())
        })
    };
    find("freezer").or_else(|| find(""))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_keepers_folder_is_derived_from_its_log() {
        let of = |log: &str| folder_of(log).map(|folder| folder.display().to_string());
        assert_eq!(of("/run/berth/pods/7/keeper.log").as_deref(), Some("/run/berth/pods/7"));
        assert_eq!(of("/run/berth/pods/7/keeper.log (deleted)").as_deref(), Some("/run/berth/pods/7"));
        for other in ["/dev/null", "pipe:[7]", "/xkeeper.log", "keeper.log", "/run/keeper.log/x"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn descendants_of_all_generations_are_found() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 100 & sh -c 'sleep 100 & echo; wait' & wait"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let found = descendants(pid).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        let own = descendants(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.contains(&pid) && found.iter().all(|pid| own.contains(pid)));
        let keeper = FoundKeeper { pod: String::new(), folder: None, pid, pidfd: open(pid).unwrap() };
        keeper.end().unwrap();
        shell.wait().unwrap();
        assert!(descendants(pid).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_name_of_a_process_is_skipped(
            pid in 1..99_999_i32, name in "\\PC{0,16}", parent in 0..99_999_i32, session in 0..99_999_i32,
        ) {
            let stat = parse(&format!("{pid} ({name}) S {parent} 1 {session} 0 -1"));
            prop_assert_eq!(stat, Some(Stat { parent, session, ended: false }));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let parsed = parse(&text);
            prop_assert!(parsed.is_none() || text.contains(')'));
        }
    }
}
