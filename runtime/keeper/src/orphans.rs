//! Orphans: processes whose parent, a child of the keeper, has ended. An OCI runtime leaves such processes, and reports their
//! pid only afterwards: they may have ended before.

use std::collections::VecDeque;

use berth_runtime::sys::process::Ended;

/// The number of ends that are kept: more than processes end between the end of a command and the report of its pid.
const KEPT: usize = 256;

/// How the last orphans ended. Empty unless an OCI runtime is used.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    enabled: bool,
    ended: VecDeque<(i32, Ended)>,
}

impl Orphans {
    /// Keeps the ends of orphans from now on.
    pub(crate) fn enable(&mut self) {
        self.enabled = true;
    }

    /// Notes the end of a process that is not a known child.
    pub(crate) fn note(&mut self, pid: i32, ended: Ended) {
        if !self.enabled {
            return;
        }
        self.ended.retain(|(other, _)| *other != pid);
        if self.ended.len() >= KEPT {
            self.ended.pop_front();
        }
        self.ended.push_back((pid, ended));
    }

    /// Takes the end of a process.
    pub(crate) fn take(&mut self, pid: i32) -> Option<Ended> {
        let place = self.ended.iter().position(|(other, _)| *other == pid)?;
        self.ended.remove(place).map(|(_, ended)| ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ends_are_kept_once_enabled() {
        let mut orphans = Orphans::default();
        orphans.note(1, Ended::Code(1));
        assert_eq!(orphans.take(1), None);
        orphans.enable();
        for pid in 1..300 {
            orphans.note(pid, Ended::Code(pid));
        }
        orphans.note(299, Ended::Signal(9));
        assert_eq!(orphans.take(299), Some(Ended::Signal(9)));
        assert_eq!((orphans.take(299), orphans.take(1)), (None, None));
        assert_eq!(orphans.take(298), Some(Ended::Code(298)));
    }
}
