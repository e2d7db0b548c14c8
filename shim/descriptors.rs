//! File descriptors of the daemon. A pod costs a few of them; at the limit nothing works any more, so that new work is refused
//! before it is reached.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// How many descriptors a piece of work has open at once while it is done. What it keeps is less: a pod keeps three.
const EACH: u64 = 16;

/// Promised to what is being done.
static PROMISED: AtomicU64 = AtomicU64::new(0);

/// Descriptors for one piece of work, until this is dropped.
#[derive(Debug)]
pub struct Permit(());

impl Drop for Permit {
    fn drop(&mut self) {
        PROMISED.fetch_sub(EACH, Ordering::AcqRel);
    }
}

/// Promises the descriptors for new work, where there are any left beside those that are open and promised.
///
/// # Errors
/// `ResourceExhausted`, with what is being asked for and the limit.
pub fn reserve(what: &str) -> Result<Permit, CriError> {
    let promised = PROMISED.fetch_add(EACH, Ordering::AcqRel) + EACH;
    let permit = Permit(());
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(permit) };
    // The kernel gives the lowest number that is free: all below it are taken.
    let lowest = rustix::io::fcntl_dupfd_cloexec(std::io::stderr().as_fd(), 3);
    let taken = match &lowest {
        Ok(fd) => u64::try_from(std::os::fd::AsRawFd::as_raw_fd(fd)).unwrap_or(0),
        Err(_) => limit,
    };
    if taken + promised + RESERVE.min(limit / 4) < limit {
        return Ok(permit);
    }
    Err(CriError::exhausted(
        what,
        format!(
            "the daemon has {taken} of at most {limit} files open, and needs up to {promised} for what it is doing \
             (RLIMIT_NOFILE, LimitNOFILE= of its service)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_done_counts_until_it_is_done() {
        let limit = getrlimit(Resource::Nofile).current.unwrap();
        let mut permits = Vec::new();
        let refused = loop {
            match reserve("run a pod sandbox") {
                Ok(permit) => permits.push(permit),
                Err(error) => break error,
            }
        };
        let most = usize::try_from(limit / EACH).unwrap();
        assert!(!permits.is_empty() && permits.len() < most, "{} of {most}", permits.len());
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        drop(permits);
        assert!(reserve("run a pod sandbox").is_ok());
    }
}
