//! The scores by which the kernel selects processes to kill when memory is short (proc_pid_oom_score_adj(5)). A
//! process inherits its parent's score. A cgroup has none, so a container's score is set for each of its
//! processes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, Result};

/// The maximum number of rounds to find processes that were forked in the meantime. A child of a process with the
/// new score has it as well, so two rounds are enough unless a fork coincides with a write.
const ROUNDS: usize = 16;

/// The maximum length of a score: `-1000` and a line break.
const LONGEST: usize = 8;

/// The former scores of the processes whose scores were set.
#[derive(Debug, Default)]
#[must_use = "only this value can undo the change"]
pub struct OomScores {
    former: Vec<(OwnedFd, i32)>,
}

impl OomScores {
    /// Restores the former scores. Processes that have ended are skipped. Returns the errors.
    #[must_use]
    pub fn undo(self) -> Vec<String> {
        let restored = self.former.iter().rev().map(|(process, score)| write(process, *score));
        let failed = restored.filter_map(|result| result.err().filter(|errno| *errno != Errno::SRCH));
        failed
            .map(|errno| format!("failed to restore an oom_score_adj: {}", io::Error::from(errno)))
            .collect()
    }
}

impl Cgroup {
    /// Sets the score of every process in the cgroup and below.
    ///
    /// # Errors
    /// The kernel rejects a score: setting it below the lowest value that was set before requires
    /// `CAP_SYS_RESOURCE`. Then no score is changed.
    pub fn set_oom_score_adj(&self, score: i32) -> Result<OomScores> {
        let mut scores = OomScores::default();
        match self.set_all(score, &mut scores) {
            Ok(()) => Ok(scores),
            Err(error) => {
                let undo_errors = scores.undo();
                Err(if undo_errors.is_empty() {
                    error
                } else {
                    CgroupError::UndoFailed { error: Box::new(error), undo_errors }
                })
            }
        }
    }

    fn set_all(&self, score: i32, scores: &mut OomScores) -> Result<()> {
        let mut done = BTreeSet::new();
        for _round in 0..ROUNDS {
            let new: Vec<i32> = self.processes()?.into_iter().filter(|pid| !done.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            let opened: Vec<(i32, OwnedFd)> =
                new.into_iter().filter_map(|pid| Some((pid, open(pid)?))).collect();
            // Another process may have got the pid before it was opened. If it is listed again, it is a process of
            // the cgroup.
            let listed: BTreeSet<i32> = self.processes()?.into_iter().collect();
            for (pid, process) in opened.into_iter().filter(|(pid, _)| listed.contains(pid)) {
                let refused =
                    |errno: Errno| CgroupError::OomScore { pid, score, source: io::Error::from(errno) };
                match change(&process, score) {
                    Ok(former) => scores.former.extend(former.map(|former| (process, former))),
                    Err(Errno::SRCH | Errno::NOENT) => {}
                    Err(errno) => return Err(refused(errno)),
                }
                done.insert(pid);
            }
        }
        Ok(())
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()
}

/// Sets a score. Returns the former one if it differs.
fn change(process: &OwnedFd, score: i32) -> rustix::io::Result<Option<i32>> {
    let former = read(process)?;
    if former == score {
        return Ok(None);
    }
    write(process, score)?;
    Ok(Some(former))
}

fn read(process: &OwnedFd) -> rustix::io::Result<i32> {
    let file = rustix::fs::openat(process, "oom_score_adj", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0_u8; LONGEST];
    let length = rustix::io::read(&file, &mut text)?;
    let text = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
    text.trim().parse().map_err(|_| Errno::INVAL)
}

fn write(process: &OwnedFd, score: i32) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(process, "oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score.to_string().as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn a_score_is_changed_and_restored() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let process = open(i32::try_from(sleeper.0.id()).unwrap()).unwrap();
        let former = read(&process).unwrap();
        // Raising a score requires no capability.
        let raised = (former + 100).min(1000);
        assert_eq!(change(&process, raised), Ok(Some(former)));
        assert_eq!((read(&process), change(&process, raised)), (Ok(raised), Ok(None)));
        let again = process.try_clone().unwrap();
        let scores = OomScores { former: vec![(again, raised)] };
        assert_eq!(scores.undo(), Vec::<String>::new());
        assert_eq!(read(&process), Ok(raised));
        drop(sleeper);
        assert!(read(&process).is_err(), "the process of the descriptor has ended");
    }
}
