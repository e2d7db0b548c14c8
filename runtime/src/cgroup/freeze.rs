//! Freezes and thaws a cgroup (cgroup-v2.rst, `cgroup.freeze`; freezer-subsystem.rst).

use std::fs;
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupError, Result};

/// The time limit for all processes to be frozen or thawed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Freezes or thaws everything in the cgroup, and waits for that.
    ///
    /// # Errors
    /// There is no freezer, or a process is in an uninterruptible sleep until the time limit.
    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        let (file, value) = match (self.v2, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let path = self.process_folder.join(file);
        let failed = |action, source| CgroupError::File { action, path: path.clone(), source };
        let until = Instant::now() + PATIENCE;
        loop {
            // On v1 a process that is cloned meanwhile may escape: the write is repeated.
            fs::write(&path, value).map_err(|source| failed("write", source))?;
            if self.has_state(frozen).map_err(|source| failed("read", source))? {
                return Ok(());
            }
            if Instant::now() > until {
                let late = std::io::Error::from_raw_os_error(rustix::io::Errno::TIMEDOUT.raw_os_error());
                return Err(failed("freeze", late));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn has_state(&self, frozen: bool) -> std::io::Result<bool> {
        let read = |file: &str| fs::read_to_string(self.process_folder.join(file));
        match self.v2 {
            true => {
                Ok(read("cgroup.events")?.lines().any(|line| line == format!("frozen {}", u8::from(frozen))))
            }
            false => Ok(read("freezer.state")?.trim() == if frozen { "FROZEN" } else { "THAWED" }),
        }
    }
}
