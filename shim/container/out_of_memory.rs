//! Detects that a container could not be created because its memory limit is too small for the steps before its
//! command. The kernel kills the first process then, or one of its system calls fails with ENOMEM.

use berth_runtime::wire::{InitFailure, Step};

use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::store::Container;

/// The error of a call that the memory limit has stopped (ENOMEM).
const NO_MEMORY: i32 = 12;

/// A limit below this is always too small, even if the kernel has not counted the kill yet.
const TOO_SMALL: i64 = 4 << 20;

/// Returns the text to add to the failure: the limit as the likely cause, and the fix. Empty if the limit is not the
/// cause.
pub(super) async fn hint(cgroups: &Cgroups, container: &Container, failure: &InitFailure) -> String {
    let (limit, cgroup) =
        container.with(|record| (record.limits().memory_limit_in_bytes, record.cgroup.clone()));
    let suspect = failure.step == Step::Vanished || failure.errno == NO_MEMORY;
    if limit <= 0 || !suspect {
        return String::new();
    }
    let cgroups = cgroups.clone();
    let kills =
        blocking(move || Ok::<_, CriError>(cgroups.recorded(&cgroup)?.oom_kills())).await.unwrap_or(0);
    text(limit, kills)
}

fn text(limit: i64, kills: u64) -> String {
    if kills == 0 && limit >= TOO_SMALL {
        return String::new();
    }
    let certainty = if kills > 0 { "" } else { "probably " };
    format!(
        ": {certainty}out of memory: the limit (linux.resources.memory_limit_in_bytes) is {limit} bytes; raise it (in a \
         manifest 128Mi means mebibytes, while 128m is less than one byte)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_small_is_named() {
        assert!(text(1, 0).contains("memory_limit_in_bytes) is 1 bytes"));
        assert!(text(1 << 30, 2).starts_with(": out of memory"));
        assert_eq!(text(1 << 30, 0), "");
    }
}
