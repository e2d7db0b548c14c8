//! System V shared memory, semaphores and message queues (sysvipc(7)) of the IPC namespace of this thread: what a copy of
//! them in another namespace needs.

use std::ffi::c_void;
use std::io::{self, Read, Write};

use rustix::io::Errno;

use super::{Context, Result, checked};

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;
/// msgop(2): copies the message at a position, and does not remove it. Needs CONFIG_CHECKPOINT_RESTORE, as CRIU does.
const MSG_COPY: libc::c_int = 0o40000;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysvKind {
    /// A shared memory segment.
    Segment,
    /// A set of semaphores.
    Semaphores,
    /// A message queue.
    Queue,
}

/// Owner and permissions of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysvOwner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The permission bits.
    pub mode: u16,
}

impl SysvKind {
    /// Returns the name of its files below `/proc/sysvipc` and `/proc/sys/kernel`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "shm",
            Self::Semaphores => "sem",
            Self::Queue => "msg",
        }
    }

    /// Creates an object with this id, of a size in bytes or a number of semaphores.
    ///
    /// # Errors
    /// The id is in use, a limit of the namespace is reached, or the caller lacks the privilege.
    pub fn create(self, key: i32, id: i32, size: usize, mode: u16) -> Result<()> {
        let path = format!("/proc/sys/kernel/{}_next_id", self.name());
        std::fs::write(&path, id.to_string())
            .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
            .on("write", &path)?;
        let flags = libc::c_int::from(mode & 0o777) | libc::IPC_CREAT | libc::IPC_EXCL;
        // SAFETY: all arguments are plain numbers.
        let created = unsafe {
            match self {
                Self::Segment => libc::shmget(key, size, flags),
                Self::Semaphores => {
                    libc::semget(key, libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX), flags)
                }
                Self::Queue => libc::msgget(key, flags),
            }
        };
        let what = || format!("{} {id}", self.name());
        checked(created.into()).on("create", what())?;
        // The kernel takes the id as a wish.
        if created == id { Ok(()) } else { Err(Errno::EXIST).on("create", what()) }
    }

    /// Sets the owner and the permissions of an object.
    ///
    /// # Errors
    /// There is no such object, or the caller lacks the privilege.
    #[allow(clippy::useless_conversion, reason = "the type of the mode differs between architectures")]
    pub fn set_owner(self, id: i32, owner: SysvOwner) -> Result<()> {
        let fill = |perm: &mut libc::ipc_perm| {
            perm.uid = owner.uid;
            perm.gid = owner.gid;
            perm.mode = (owner.mode & 0o777).into();
        };
        // SAFETY: IPC_STAT fills the structure of its kind, which is plain numbers, and IPC_SET reads it (shmctl(2),
        // semctl(2), msgctl(2)).
        let set = unsafe {
            match self {
                Self::Segment => {
                    let mut data: libc::shmid_ds = std::mem::zeroed();
                    let found = libc::shmctl(id, libc::IPC_STAT, &raw mut data);
                    fill(&mut data.shm_perm);
                    if found < 0 { found } else { libc::shmctl(id, libc::IPC_SET, &raw mut data) }
                }
                Self::Semaphores => {
                    let mut data: libc::semid_ds = std::mem::zeroed();
                    let found = libc::semctl(id, 0, libc::IPC_STAT, &raw mut data);
                    fill(&mut data.sem_perm);
                    if found < 0 { found } else { libc::semctl(id, 0, libc::IPC_SET, &raw mut data) }
                }
                Self::Queue => {
                    let mut data: libc::msqid_ds = std::mem::zeroed();
                    let found = libc::msgctl(id, libc::IPC_STAT, &raw mut data);
                    fill(&mut data.msg_perm);
                    if found < 0 { found } else { libc::msgctl(id, libc::IPC_SET, &raw mut data) }
                }
            }
        };
        checked(set.into()).map(drop).on("set the owner of", format_args!("{} {id}", self.name()))
    }
}

/// A shared memory segment that this process has attached.
#[derive(Debug)]
pub struct AttachedSegment {
    address: *mut u8,
    length: usize,
    writable: bool,
}

impl AttachedSegment {
    /// Attaches a segment.
    ///
    /// # Errors
    /// There is no such segment, or there is no memory for it.
    pub fn open(id: i32, writable: bool) -> Result<Self> {
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: the structure is plain numbers, and IPC_STAT fills it (shmctl(2)).
        let (found, data) = unsafe {
            let mut data: libc::shmid_ds = std::mem::zeroed();
            (libc::shmctl(id, libc::IPC_STAT, &raw mut data), data)
        };
        checked(found.into()).on("shmctl", id)?;
        // SAFETY: the kernel chooses a free address (shmat(2)).
        let address = unsafe { libc::shmat(id, std::ptr::null::<c_void>(), flags) };
        checked(if address.addr() == usize::MAX { -1 } else { 0 }).on("shmat", id)?;
        Ok(Self { address: address.cast(), length: data.shm_segsz, writable })
    }

    /// Returns its size in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Writes its content.
    ///
    /// # Errors
    /// Writing fails.
    pub fn copy_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut chunk = vec![0_u8; CHUNK.min(self.length)];
        let mut done = 0;
        while done < self.length {
            let part = chunk.len().min(self.length - done);
            let piece = chunk.get_mut(..part).unwrap_or_default();
            // SAFETY: the segment is attached and has `length` bytes. Other processes may write to it meanwhile, so it is
            // copied by its address and never borrowed.
            unsafe { std::ptr::copy_nonoverlapping(self.address.add(done), piece.as_mut_ptr(), part) };
            out.write_all(piece)?;
            done += part;
        }
        Ok(())
    }

    /// Fills it from a source, up to its size.
    ///
    /// # Errors
    /// Reading fails, the source is shorter, or the segment is attached read-only.
    pub fn fill_from(&mut self, source: &mut impl Read) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut chunk = vec![0_u8; CHUNK.min(self.length)];
        let mut done = 0;
        while done < self.length {
            let part = chunk.len().min(self.length - done);
            let piece = chunk.get_mut(..part).unwrap_or_default();
            source.read_exact(piece)?;
            // Zeros stay pages that do not exist.
            if piece.iter().any(|byte| *byte != 0) {
                // SAFETY: as above; the segment is attached for writing.
                unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), self.address.add(done), part) };
            }
            done += part;
        }
        Ok(())
    }
}

impl Drop for AttachedSegment {
    fn drop(&mut self) {
        // SAFETY: the address is that of shmat(2), and nothing refers to it any more.
        unsafe { libc::shmdt(self.address.cast()) };
    }
}

/// Returns the values of a set of semaphores.
///
/// # Errors
/// There is no such set.
pub fn semaphore_values(id: i32) -> Result<Vec<u16>> {
    let mut values = vec![0_u16; count_of(id)?];
    // SAFETY: GETALL writes one number for each semaphore (semctl(2)), and their number never changes.
    let read = unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) };
    checked(read.into()).on("semctl(GETALL)", id)?;
    Ok(values)
}

/// Sets the values of a set of semaphores.
///
/// # Errors
/// There is no such set, or a value is too large.
pub fn set_semaphores(id: i32, values: &[u16]) -> Result<()> {
    if count_of(id)? != values.len() {
        return Err(Errno::INVAL).on("semctl(SETALL)", id);
    }
    // SAFETY: SETALL reads one number for each semaphore, of which there are as many (semctl(2)).
    let set = unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) };
    checked(set.into()).map(drop).on("semctl(SETALL)", id)
}

fn count_of(id: i32) -> Result<usize> {
    // SAFETY: the structure is plain numbers, and IPC_STAT fills it (semctl(2)).
    let (found, data) = unsafe {
        let mut data: libc::semid_ds = std::mem::zeroed();
        (libc::semctl(id, 0, libc::IPC_STAT, &raw mut data), data)
    };
    checked(found.into()).on("semctl(IPC_STAT)", id)?;
    usize::try_from(data.sem_nsems).map_err(|_| Errno::OVERFLOW).on("semctl(IPC_STAT)", id)
}

/// Returns a copy of the message at a position of a queue: its type and content. None behind the last one.
///
/// # Errors
/// There is no such queue, or the message is larger than `largest`.
pub fn copy_message(id: i32, position: usize, largest: usize) -> Result<Option<(i64, Vec<u8>)>> {
    const HEAD: usize = size_of::<libc::c_long>();
    let mut buffer = vec![0_u8; HEAD + largest];
    let position = libc::c_long::try_from(position).map_err(|_| Errno::OVERFLOW).on("msgrcv", id)?;
    // SAFETY: the buffer has room for the type and `largest` bytes (msgop(2)).
    let length = unsafe {
        libc::msgrcv(id, buffer.as_mut_ptr().cast(), largest, position, MSG_COPY | libc::IPC_NOWAIT)
    };
    let length = match checked(libc::c_long::try_from(length).unwrap_or(-1)) {
        Err(Errno::NOMSG) => return Ok(None),
        other => usize::try_from(other.on("msgrcv", id)?).unwrap_or_default(),
    };
    let content = buffer.get(HEAD..HEAD + length).unwrap_or_default().to_vec();
    let kind = buffer.first_chunk::<HEAD>().map(|bytes| libc::c_long::from_ne_bytes(*bytes));
    Ok(Some((kind.unwrap_or_default(), content)))
}

/// Adds a message to a queue. Does not wait.
///
/// # Errors
/// The queue is full, or the type is not positive.
pub fn send_message(id: i32, kind: i64, content: &[u8]) -> Result<()> {
    let message = [&kind.to_ne_bytes()[..], content].concat();
    // SAFETY: the message starts with its type, and the given number of bytes follows (msgop(2)).
    let sent = unsafe { libc::msgsnd(id, message.as_ptr().cast(), content.len(), libc::IPC_NOWAIT) };
    checked(sent.into()).map(drop).on("msgsnd", id)
}
