//! Credentials and security attributes of a process: ids, capabilities, limits, the seccomp filter.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Context, Result, checked};
use crate::plan::CapabilityMasks;

/// Sets groups, gid and uid in this order, because each step takes away the privilege for the one before
/// (credentials(7)).
///
/// # Errors
/// The caller lacks the privilege, or an id is not mapped in its user namespace.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let raw: Vec<libc::gid_t> = groups.to_vec();
    // The raw calls change only this thread, and this process has one. glibc's wrappers would signal other threads.
    // SAFETY: the pointer and the length are those of a live array.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, raw.len(), raw.as_ptr()) };
    checked(result).on("setgroups", format_args!("{groups:?}"))?;
    // SAFETY: all arguments are plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).on("setresgid", gid)?;
    // SAFETY: all arguments are plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).on("setresuid", uid)?;
    Ok(())
}

/// Preserves capabilities in the following change of the uid (capabilities(7), `PR_SET_KEEPCAPS`).
///
/// # Errors
/// None on kernels with capabilities.
pub fn keep_capabilities(keep: bool) -> Result<()> {
    rustix::thread::set_keep_capabilities(keep).on("prctl(PR_SET_KEEPCAPS)", "")
}

/// CAP_CHECKPOINT_RESTORE, the newest capability of the oldest kernel that berth supports (Linux 5.15). Every
/// supported kernel has this one and those below it.
const ALWAYS_PRESENT: u32 = 40;

/// Removes every capability that is not in `keep` from the bounding set. This needs CAP_SETPCAP, so it comes
/// first.
///
/// # Errors
/// The caller is not permitted to read or change the bounding set.
pub fn limit_bounding_set(keep: u64) -> Result<()> {
    for number in 0..u64::BITS {
        // SAFETY: all arguments are plain numbers.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        match checked(present.into()) {
            Ok(0) => {}
            Ok(_) if keep >> number & 1 == 1 => {}
            Ok(_) => {
                // SAFETY: all arguments are plain numbers.
                let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
                checked(dropped.into()).on("prctl(PR_CAPBSET_DROP)", number)?;
            }
            Err(errno) if is_past_the_last(number, errno) => return Ok(()),
            Err(errno) => return Err(errno).on("prctl(PR_CAPBSET_READ)", number),
        }
    }
    Ok(())
}

/// Returns whether an error of `PR_CAPBSET_READ` means that the kernel does not have this capability (prctl(2):
/// EINVAL). Any other error, such as one from a seccomp filter, does not mean that, and must not end the loop.
fn is_past_the_last(number: u32, errno: Errno) -> bool {
    errno == Errno::INVAL && number > ALWAYS_PRESENT
}

/// Sets the effective, permitted, inheritable and ambient sets.
///
/// # Errors
/// A set contains a capability that the caller does not have.
pub fn set_capabilities(masks: &CapabilityMasks) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(masks.effective),
        permitted: CapabilitySet::from_bits_retain(masks.permitted),
        inheritable: CapabilitySet::from_bits_retain(masks.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).on("capset", format_args!("{masks:x?}"))?;
    rustix::thread::clear_ambient_capability_set().on("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", "")?;
    for number in 0..64_u32 {
        if masks.ambient >> number & 1 == 1 {
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            // SAFETY: all arguments are plain numbers.
            let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, number, 0, 0) };
            checked(raised.into()).on("prctl(PR_CAP_AMBIENT_RAISE)", number)?;
        }
    }
    Ok(())
}

/// Sets `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// None on supported kernels.
pub fn no_new_privs() -> Result<()> {
    rustix::thread::set_no_new_privs(true).on("prctl(PR_SET_NO_NEW_PRIVS)", "")
}

/// Loads a seccomp filter: the bytes of an array of `struct sock_filter` (seccomp(2)). With
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` it returns the descriptor through which a supervisor receives system calls.
/// The descriptor is closed on exec.
///
/// # Errors
/// The program is invalid, or the caller lacks the privilege.
pub fn load_seccomp(program: &[u8], flags: u64) -> Result<Option<OwnedFd>> {
    let size = size_of::<libc::sock_filter>();
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(size)
        .map(|bytes| {
            let byte = |index: usize| bytes.get(index).copied().unwrap_or(0);
            libc::sock_filter {
                code: u16::from_ne_bytes([byte(0), byte(1)]),
                jt: byte(2),
                jf: byte(3),
                k: u32::from_ne_bytes([byte(4), byte(5), byte(6), byte(7)]),
            }
        })
        .collect();
    let Ok(len) = u16::try_from(filters.len()) else { return Err(Errno::INVAL).on("seccomp", "too long") };
    let program = libc::sock_fprog { len, filter: filters.as_ptr().cast_mut() };
    // SAFETY: the program points to an array of `len` filters that lives until the call returns and is only read.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let number = checked(result).on("seccomp", "")?;
    // Without a listener the result is 0, which is not a new descriptor.
    Ok(RawFd::try_from(number).ok().filter(|number| *number > 0).map(|number| {
        // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }))
}

/// Sets whether other processes may inspect this one (`PR_SET_DUMPABLE`). This is denied until its own program
/// runs, so that a container cannot trace a process that enters it.
///
/// # Errors
/// None.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    // SAFETY: all arguments are plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_int::from(dumpable), 0, 0, 0) };
    checked(result.into()).map(drop).on("prctl(PR_SET_DUMPABLE)", "")
}

/// Sets a resource limit (getrlimit(2)). `u64::MAX` means unlimited.
///
/// # Errors
/// The number is not a resource, or the caller is not permitted to raise the limit.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a live struct that is only read, and the old limit is not requested.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit>(),
        )
    };
    checked(result).map(drop).on("prlimit", resource)
}

/// `RLIMIT_NPROC` (getrlimit(2)).
pub const RLIMIT_NPROC: u32 = libc::RLIMIT_NPROC;

/// Raises a resource's hard limit to `hard` if it is lower, and the soft limit with it. Never lowers a limit.
///
/// # Errors
/// The caller is not permitted to raise it.
pub fn raise_hard_rlimit(resource: u32, hard: u64) -> Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let no_limit = std::ptr::null::<libc::rlimit>();
    // SAFETY: `now` is a live struct that is only written to, and no new limit is passed.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, no_limit, &raw mut now) };
    checked(result).on("prlimit", resource)?;
    if now.rlim_max < hard { set_rlimit(resource, hard, hard) } else { Ok(()) }
}

/// Lowers a resource limit of another process to at most `soft` and `hard`. Never raises one.
///
/// # Errors
/// The process does not exist, or the number is not a resource.
pub fn lower_rlimit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let no_limit = std::ptr::null::<libc::rlimit>();
    // SAFETY: `now` is a live struct that is only written to, and no new limit is passed.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, no_limit, &raw mut now) };
    checked(result).on("prlimit", resource)?;
    let hard = now.rlim_max.min(hard);
    let limit = libc::rlimit { rlim_cur: now.rlim_cur.min(soft).min(hard), rlim_max: hard };
    let no_result = std::ptr::null_mut::<libc::rlimit>();
    // SAFETY: `limit` is a live struct that is only read, and the old limit is not requested.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, no_result) };
    checked(result).map(drop).on("prlimit", resource)
}

/// Makes this process the reaper of all its orphaned descendants (`PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// None.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: all arguments are plain numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    checked(result.into()).map(drop).on("prctl(PR_SET_CHILD_SUBREAPER)", "")
}

/// Sets the name that ps and top show.
///
/// # Errors
/// None.
pub fn set_name(name: &std::ffi::CStr) -> Result<()> {
    rustix::thread::set_name(name).on("prctl(PR_SET_NAME)", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bounding set of this thread (proc(5), `CapBnd`).
    fn bounding_set() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
        u64::from_str_radix(set.trim(), 16).unwrap()
    }

    #[test]
    fn the_bounding_set_keeps_only_requested_capabilities() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // The set belongs to a thread, so the change ends with this one.
        let keep = 1 << 0 | 1 << 10;
        let thread = std::thread::spawn(move || {
            let before = bounding_set();
            limit_bounding_set(keep).unwrap();
            (before, bounding_set())
        });
        let (before, after) = thread.join().unwrap();
        assert_eq!(after, before & keep);
    }

    #[test]
    fn only_an_unknown_capability_ends_the_loop() {
        assert!(is_past_the_last(41, Errno::INVAL));
        assert!(!is_past_the_last(41, Errno::PERM), "a seccomp filter rejects the call");
        assert!(!is_past_the_last(7, Errno::INVAL), "every kernel has it");
    }
}
