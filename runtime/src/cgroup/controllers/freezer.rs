//! Freezes and thaws a cgroup (freezer-subsystem.rst; cgroup-v2.rst, `cgroup.freeze`).

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::CWD;

use crate::cgroup::interface::Interface;
use crate::cgroup::{Cgroup, CgroupError, Result};
use crate::sys::fs::read_record;

/// The time limit for all processes to be frozen or thawed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The file that requests a state, and its values.
struct FreezerNames {
    file: &'static str,
    frozen: &'static str,
    thawed: &'static str,
}

const V1: FreezerNames = FreezerNames { file: "freezer.state", frozen: "FROZEN", thawed: "THAWED" };
const V2: FreezerNames = FreezerNames { file: "cgroup.freeze", frozen: "1", thawed: "0" };

impl FreezerNames {
    fn of(interface: Interface) -> Self {
        match interface {
            Interface::V1 => V1,
            Interface::V2 => V2,
        }
    }

    fn value(&self, frozen: bool) -> &'static str {
        if frozen { self.frozen } else { self.thawed }
    }
}

impl Cgroup {
    /// Freezes or thaws everything in the cgroup, and waits for that.
    ///
    /// # Errors
    /// There is no freezer, or a process is in an uninterruptible sleep until the time limit.
    pub fn set_frozen(&self, frozen: bool) -> Result<()> {
        let path = self.process_folder.join(FreezerNames::of(self.interface).file);
        let failed = |action, source| CgroupError::File { action, path: path.clone(), source };
        let until = Instant::now() + PATIENCE;
        loop {
            // On v1 a process that is cloned meanwhile may escape: the write is repeated.
            request(self.interface, &self.process_folder, frozen)
                .map_err(|source| failed("write", source))?;
            if has_state(self.interface, &self.process_folder, frozen)
                .map_err(|source| failed("read", source))?
            {
                return Ok(());
            }
            if Instant::now() > until {
                let late = io::Error::from_raw_os_error(rustix::io::Errno::TIMEDOUT.raw_os_error());
                return Err(failed("freeze", late));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns whether the cgroup is frozen or being frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let names = FreezerNames::of(self.interface);
        read_record(CWD, self.process_folder.join(names.file)).is_ok_and(|state| state.trim() != names.thawed)
    }
}

/// Requests a state.
pub(in crate::cgroup) fn request(interface: Interface, folder: &Path, frozen: bool) -> io::Result<()> {
    let names = FreezerNames::of(interface);
    fs::write(folder.join(names.file), names.value(frozen))
}

/// Returns whether all processes have the requested state. On v2 another file reports it.
fn has_state(interface: Interface, folder: &Path, frozen: bool) -> io::Result<bool> {
    let read = |file: &str| fs::read_to_string(folder.join(file));
    match interface {
        Interface::V1 => Ok(read(V1.file)?.trim() == V1.value(frozen)),
        Interface::V2 => {
            Ok(read("cgroup.events")?.lines().any(|line| line == format!("frozen {}", u8::from(frozen))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::folder_with;

    #[test]
    fn states_of_both_versions() {
        let v1 = |state| {
            let folder = folder_with(&[("freezer.state", state)]);
            [true, false].map(|frozen| has_state(Interface::V1, folder.path(), frozen).unwrap())
        };
        assert_eq!([v1("FROZEN\n"), v1("FREEZING\n")], [[true, false], [false, false]]);
        assert_eq!(v1("THAWED\n"), [false, true]);
        let folder = folder_with(&[("cgroup.events", "populated 1\nfrozen 0\n"), ("cgroup.freeze", "0\n")]);
        request(Interface::V2, folder.path(), true).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("cgroup.freeze")).unwrap(), "1");
        let state = |frozen| has_state(Interface::V2, folder.path(), frozen).unwrap();
        assert_eq!([state(true), state(false)], [false, true], "the request is not yet the state");
    }
}
