//! The state of the kernel's clock.

use rustix::io::Errno;

use super::{Context, Result};

/// Returns whether a time service keeps the clock synchronized (adjtimex(2), `STA_UNSYNC`).
///
/// # Errors
/// The call fails.
pub fn is_synchronized() -> Result<bool> {
    // SAFETY: all fields are numbers, for which zero is valid. No mode is set, so the call only reads.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the struct is valid for reads and writes during the call.
    let result = unsafe { libc::adjtimex(&raw mut state) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)).on("adjtimex", "");
    }
    Ok(state.status & libc::STA_UNSYNC == 0)
}
