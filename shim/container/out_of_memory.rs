//! Whether a container could not be made since its limit of memory is too little for what its first process does before the
//! command runs. The kernel kills that process, or answers ENOMEM to any of its calls.

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::{InitFailure, Step};

use crate::daemon::{Daemon, Shared, blocking};
use crate::error::CriError;
use crate::store::Container;

/// ENOMEM.
const NO_MEMORY: i32 = 12;

/// With less than this it is always too little, also where the kernel has not counted the kill yet.
const TOO_LITTLE: i64 = 4 << 20;

/// What is to be added to the failure: the limit that is the likely cause, and what to do. Empty where it is not.
pub(super) async fn hint(daemon: &Shared, container: &Container, failure: &InitFailure) -> String {
    let (limit, cgroup) =
        container.with(|record| (record.limits().memory_limit_in_bytes, record.cgroup.clone()));
    let suspect = failure.step == Step::Vanished || failure.errno == NO_MEMORY;
    if limit <= 0 || !suspect {
        return String::new();
    }
    let daemon = daemon.clone();
    let kills = blocking(move || kills(&daemon, &cgroup)).await.unwrap_or(0);
    text(limit, kills)
}

fn kills(daemon: &Daemon, cgroup: &str) -> Result<u64, CriError> {
    let path = CgroupPath::from_recorded(cgroup)?;
    Ok(Cgroup::open(&daemon.hierarchies, &path).oom_kills())
}

fn text(limit: i64, kills: u64) -> String {
    if kills == 0 && limit >= TOO_LITTLE {
        return String::new();
    }
    let certainty = if kills > 0 { "" } else { "probably " };
    format!(
        ": {certainty}for lack of memory: the limit (linux.resources.memory_limit_in_bytes) is {limit} bytes; raise it (in a \
         manifest 128Mi are megabytes, while 128m is less than a byte)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_little_is_named() {
        assert!(text(1, 0).contains("memory_limit_in_bytes) is 1 bytes"));
        assert!(text(1 << 30, 2).starts_with(": for lack of memory"));
        assert_eq!(text(1 << 30, 0), "");
    }
}
