//! File descriptors of the daemon. A pod costs a few of them; at the limit nothing works any more, so that new work is refused
//! before it is reached.

use std::os::fd::AsFd;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::error::CriError;

/// Descriptors that are left for what must always work: answering, stopping, removing, cleaning up.
const RESERVE: u64 = 128;

/// Raises the soft limit of open files to the hard one: a service manager sets the soft limit low for programs that use
/// select(2) (systemd.exec(5), `LimitNOFILE=`). Not being able to is no error.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "failed to raise the limit of open files (RLIMIT_NOFILE)");
    }
}

/// Whether there are descriptors for new work.
///
/// # Errors
/// `ResourceExhausted`, with what is being asked for and the limit.
pub fn check(what: &str) -> Result<(), CriError> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // The kernel gives the lowest number that is free: all below it are taken.
    let lowest = rustix::io::fcntl_dupfd_cloexec(std::io::stderr().as_fd(), 3);
    let taken = match &lowest {
        Ok(fd) => u64::try_from(std::os::fd::AsRawFd::as_raw_fd(fd)).unwrap_or(0),
        Err(_) => limit,
    };
    if taken + RESERVE.min(limit / 4) < limit {
        return Ok(());
    }
    Err(CriError::exhausted(
        what,
        format!(
            "the daemon has {taken} of at most {limit} files open (RLIMIT_NOFILE, LimitNOFILE= of its service)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_descriptors_in_a_test() {
        assert_eq!(check("run a pod"), Ok(()));
    }
}
