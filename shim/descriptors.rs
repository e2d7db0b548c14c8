//! The limit of file descriptors. Each pod costs the daemon a few descriptors. At the limit nothing works, so new
//! work is refused before the limit is reached.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::error::CriError;

/// The descriptors that are kept free for calls that must always work: status, stop, remove, cleanup.
const RESERVE: u64 = 128;

/// Raises the soft limit of open files to the hard limit. A service manager sets the soft limit low for programs that
/// use select(2) (systemd.exec(5), `LimitNOFILE=`). A failure is logged and is not an error.
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

/// The number of descriptors that one operation has open at the same time. A pod keeps three of them.
const PER_OPERATION: u64 = 16;

/// The descriptors that are reserved for running operations.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// A reservation of descriptors for one operation, until it is dropped.
#[derive(Debug)]
pub struct Permit(());

impl Drop for Permit {
    fn drop(&mut self) {
        RESERVED.fetch_sub(PER_OPERATION, Ordering::AcqRel);
    }
}

/// Reserves descriptors for a new operation, if enough are left beside the open and the reserved ones.
///
/// # Errors
/// `ResourceExhausted`, with the operation and the limit.
pub fn reserve(what: &str) -> Result<Permit, CriError> {
    let reserved = RESERVED.fetch_add(PER_OPERATION, Ordering::AcqRel) + PER_OPERATION;
    let permit = Permit(());
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(permit) };
    let open = open_files(limit);
    if open + reserved + RESERVE.min(limit / 4) < limit {
        return Ok(permit);
    }
    Err(CriError::exhausted(
        what,
        format!(
            "the daemon has {open} of at most {limit} files open, and needs up to {reserved} for running operations \
             (RLIMIT_NOFILE, LimitNOFILE= of its service)"
        ),
    ))
}

/// Returns the number of open files, at least: the kernel assigns the lowest free number, so all numbers below it are in use.
fn open_files(limit: u64) -> u64 {
    match rustix::io::fcntl_dupfd_cloexec(std::io::stderr().as_fd(), 3) {
        Ok(fd) => u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap_or(0),
        Err(_) => limit,
    }
}

/// Returns whether a client may connect. Clients must not take the descriptors that an operation of another client needs.
#[must_use]
pub fn have_room_for_client() -> bool {
    getrlimit(Resource::Nofile).current.is_none_or(|limit| open_files(limit) + PER_OPERATION < limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_operations_count_until_they_finish() {
        let limit = getrlimit(Resource::Nofile).current.unwrap();
        let mut permits = Vec::new();
        let refused = loop {
            match reserve("run a pod sandbox") {
                Ok(permit) => permits.push(permit),
                Err(error) => break error,
            }
        };
        let most = usize::try_from(limit / PER_OPERATION).unwrap();
        assert!(!permits.is_empty() && permits.len() < most, "{} of {most}", permits.len());
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        drop(permits);
        assert!(reserve("run a pod sandbox").is_ok());
    }
}
