//! Session keyrings (keyrings(7), session-keyring(7)). A process inherits its parent's. Without these calls, every
//! container would share the daemon's.

use std::ffi::CStr;

use rustix::io::Errno;

use super::{Context, Result, checked};

/// The size of a keyring's name in bytes. The kernel's limit is far above (security/keys/keyctl.c,
/// `KEY_MAX_DESC_SIZE`).
const NAME: usize = 48;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;

/// All permissions for processes that possess the keyring (`KEY_POS_ALL`), and the permission to find it by name
/// for its owner (`KEY_USR_SEARCH`): keyctl_setperm(3).
const POSSESSOR_AND_BY_NAME: u32 = 0x3f00_0000 | 0x0008_0000;

/// The name of the keyring that the processes of one container share. It is secret: a process that has the name
/// can join the keyring.
#[derive(Clone)]
pub struct KeyringName([u8; NAME]);

impl std::fmt::Debug for KeyringName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyringName")
    }
}

impl KeyringName {
    /// Creates a new random name, which cannot be guessed.
    ///
    /// # Errors
    /// The kernel returns no random numbers (getrandom(2)).
    pub fn new() -> Result<Self> {
        let mut random = [0_u8; 16];
        rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())
            .on("getrandom", "")?;
        let mut name = [0_u8; NAME];
        let text = format!("_ses.{:032x}", u128::from_ne_bytes(random));
        for (place, byte) in name.iter_mut().zip(text.bytes().take(NAME - 1)) {
            *place = byte;
        }
        Ok(Self(name))
    }

    /// Returns the name, to be kept in a file that only root can read.
    #[must_use]
    pub fn secret(&self) -> String {
        String::from_utf8_lossy(&self.0).trim_end_matches('\0').to_owned()
    }

    /// Returns the name with a text that [`KeyringName::secret`] has returned.
    #[must_use]
    pub fn from_secret(text: &str) -> Self {
        let mut name = [0_u8; NAME];
        for (place, byte) in name.iter_mut().zip(text.bytes().take(NAME - 1)) {
            *place = byte;
        }
        Self(name)
    }
}

/// Replaces the session keyring by the one with this name, which is created if there is none. On a host without
/// keyrings nothing is shared, and this does nothing.
///
/// # Errors
/// There are too many keyrings (`EDQUOT`).
pub fn join_session(name: &KeyringName) -> Result<()> {
    let name = CStr::from_bytes_until_nul(&name.0).map_err(|_| Errno::INVAL).on("keyctl", "the name")?;
    let Some(serial) = join(name.as_ptr())? else { return Ok(()) };
    // SAFETY: all arguments are plain numbers.
    let set = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, POSSESSOR_AND_BY_NAME) };
    checked(set).map(drop).on("keyctl(KEYCTL_SETPERM)", "the session keyring")
}

/// Replaces the session keyring by a new one without a name.
///
/// # Errors
/// There are too many keyrings (`EDQUOT`).
pub fn leave_session() -> Result<()> {
    join(std::ptr::null()).map(drop)
}

fn join(name: *const libc::c_char) -> Result<Option<libc::c_long>> {
    // SAFETY: the name is null or a C string that is only read (keyctl_join_session_keyring(3)).
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) };
    match checked(joined) {
        // The kernel has no keyrings, or a sandbox around the daemon denies them to all processes in it.
        Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        joined => joined.map(Some).on("keyctl(KEYCTL_JOIN_SESSION_KEYRING)", ""),
    }
}
