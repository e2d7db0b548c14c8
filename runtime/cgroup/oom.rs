//! The scores by which the kernel chooses whom it kills for lack of memory (proc_pid_oom_score_adj(5)): each process has
//! one, which its children inherit. A cgroup has none: the score of a container is that of all its processes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, Result};

/// How often processes that were forked meanwhile are looked for. What is forked by one that has the score has it as well,
/// so that two rounds are enough unless a fork crosses with a write.
const ROUNDS: usize = 16;

/// The longest score: `-1000` and a line break.
const LONGEST: usize = 8;

/// Scores that were set, with those of before.
#[derive(Debug, Default)]
#[must_use = "what is set can be taken back by this alone"]
pub struct Scores {
    former: Vec<(OwnedFd, i32)>,
}

impl Scores {
    /// Sets the scores of before. Processes that have ended meanwhile need none.
    #[must_use]
    pub fn take_back(self) -> Vec<String> {
        let restored = self.former.iter().rev().map(|(process, score)| write(process, *score));
        let failed = restored.filter_map(|result| result.err().filter(|errno| *errno != Errno::SRCH));
        failed
            .map(|errno| format!("failed to restore an oom_score_adj: {}", io::Error::from(errno)))
            .collect()
    }
}

impl Cgroup {
    /// Gives every process in it and below this score.
    ///
    /// # Errors
    /// The kernel refuses: lowering a score below what it once was set to takes `CAP_SYS_RESOURCE`. All scores are then as
    /// before.
    pub fn set_oom_score_adj(&self, score: i32) -> Result<Scores> {
        let mut scores = Scores::default();
        match self.set_all(score, &mut scores) {
            Ok(()) => Ok(scores),
            Err(error) => {
                let left = scores.take_back();
                Err(if left.is_empty() {
                    error
                } else {
                    CgroupError::Partly { error: Box::new(error), left }
                })
            }
        }
    }

    fn set_all(&self, score: i32, scores: &mut Scores) -> Result<()> {
        let mut done = BTreeSet::new();
        for _round in 0..ROUNDS {
            let new: Vec<i32> = self.processes()?.into_iter().filter(|pid| !done.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            let opened: Vec<(i32, OwnedFd)> =
                new.into_iter().filter_map(|pid| Some((pid, open(pid)?))).collect();
            // A pid may be another's by the time it is opened: only one that is listed again is a process of the cgroup.
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

/// Sets a score; the one of before, where that was another.
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
    fn a_score_is_changed_and_taken_back() {
        let sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let process = open(i32::try_from(sleeper.0.id()).unwrap()).unwrap();
        let former = read(&process).unwrap();
        // Raising a score takes no capability.
        let raised = (former + 100).min(1000);
        assert_eq!(change(&process, raised), Ok(Some(former)));
        assert_eq!((read(&process), change(&process, raised)), (Ok(raised), Ok(None)));
        let again = process.try_clone().unwrap();
        let scores = Scores { former: vec![(again, raised)] };
        assert_eq!(scores.take_back(), Vec::<String>::new());
        assert_eq!(read(&process), Ok(raised));
        drop(sleeper);
        assert!(read(&process).is_err(), "the descriptor is of a process that is gone");
    }
}
