//! Protects the program from its containers. A process in a container may open the program of a process that joins it,
//! by `/proc/PID/exe`, and write to it later (CVE-2019-5736). The program therefore runs from a read-only mount of its
//! file, which is attached nowhere and cannot be remounted.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use berth_runtime::sys::{fs::descriptor_path, mount};
use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::error::{Error, Result};

const PROGRAM: &str = "/proc/self/exe";

/// Set in the program that was executed from the mount.
const MARK: &str = "BERTH_OCI_PROTECTED";

/// Executes this program again from a read-only mount, unless it runs from one.
pub(crate) fn seal_program() -> Result<()> {
    let failed = |source: std::io::Error| Error::Io { action: "protect the program", source };
    let stat = statvfs(PROGRAM).map_err(|errno| failed(errno.into()))?;
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        return Err(failed(std::io::Error::other("it runs from a mount that can be written to")));
    }
    let program = mount::clone_path(PROGRAM, false)?;
    mount::set_attributes(program.as_fd(), mount::ATTR_RDONLY, 0, 0, false)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "berth-oci".into());
    let mut command = Command::new(descriptor_path(program.as_fd()));
    Err(failed(command.arg0(name).args(arguments).env(MARK, "1").exec()))
}
