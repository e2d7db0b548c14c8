//! The state that the containers of a pod share. CRIU does not dump it, because it belongs to the pod: the System V objects of its IPC
//! namespace, and the numbers of its PID namespace. In a checkpoint, this is untrusted.

use berth_runtime::sys::sysv::SysvKind;
use serde::{Deserialize, Serialize};

/// The most objects of a kind, and the most messages and semaphores in all. The kernel's own limits are of this size
/// (sysvipc(7)).
const MOST: usize = 32_000;
/// The largest PID (proc_sys_kernel(5), `pid_max`).
const LARGEST_PID: u32 = 4_194_304;
/// The permission of a segment that was removed and is still attached (shmctl(2), `SHM_DEST`).
const REMOVED: u32 = 0o1000;

/// The shared state of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SharedState {
    /// Whether the pod has its own IPC namespace. Otherwise it uses the memory of the host, which stays there.
    pub ipc: bool,
    /// The largest number of a process in the pod's PID namespace. None if its containers do not share it.
    pub last_pid: Option<u32>,
    /// System V shared memory. The content is in a file for each, by its position in this list.
    pub segments: Vec<SysvObject>,
    /// System V semaphores.
    pub semaphores: Vec<SysvObject>,
    /// System V message queues.
    pub queues: Vec<SysvObject>,
}

/// A System V object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SysvObject {
    /// The key by which programs find it.
    pub key: i32,
    /// Its id.
    pub id: i32,
    /// The permission bits: `ipc_perm.mode` (msgctl(2), semctl(2), shmctl(2)).
    pub mode: u16,
    /// The user id of the owner, as the pod sees it.
    pub uid: u32,
    /// The group id of the owner, as the pod sees it.
    pub gid: u32,
    /// The size of a segment in bytes, the number of semaphores or messages.
    pub size: u64,
    /// The values of semaphores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<u16>,
    /// The messages of a queue.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<SysvMessage>,
}

/// A message of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysvMessage {
    /// The type by which receivers select it, greater than 0 (msgop(2)).
    pub kind: i64,
    /// The text of the message, without its type.
    pub content: Vec<u8>,
}

impl SharedState {
    /// Checks the limits.
    ///
    /// # Errors
    /// The first that is exceeded.
    pub fn check(&self) -> Result<(), String> {
        let lists = [&self.segments, &self.semaphores, &self.queues];
        if lists.iter().any(|list| list.len() > MOST) {
            return Err(format!("more than {MOST} System V objects of a kind"));
        }
        let parts: usize =
            lists.iter().flat_map(|list| list.iter()).map(|o| o.values.len() + o.messages.len()).sum();
        if parts > MOST {
            return Err(format!("more than {MOST} System V semaphores and messages"));
        }
        let ids = lists.iter().flat_map(|list| list.iter()).map(|object| object.id);
        if ids.min().is_some_and(|id| id < 0) {
            return Err("a System V object with a negative id".to_owned());
        }
        match self.last_pid {
            Some(pid) if !(1..=LARGEST_PID).contains(&pid) => Err(format!("the pid {pid}")),
            _ => Ok(()),
        }
    }
}

/// Reads a list of `/proc/sysvipc` (proc_sysvipc(5)).
///
/// # Errors
/// A segment was removed and is still in use: there is no way to create one again.
pub fn parse_list(kind: SysvKind, text: &str) -> Result<Vec<SysvObject>, String> {
    let mut objects = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<i64>().ok());
        let object = object_of(kind, &fields, number);
        let (mode, object) = object.ok_or_else(|| format!("failed to read the line {line:?}"))?;
        if kind == SysvKind::Segment && mode & REMOVED != 0 {
            return Err(format!(
                "the System V shared memory segment {} was removed and is still in use",
                object.id
            ));
        }
        objects.push(object);
    }
    Ok(objects)
}

fn object_of(
    kind: SysvKind,
    fields: &[&str],
    number: impl Fn(usize) -> Option<i64>,
) -> Option<(u32, SysvObject)> {
    // The size, the owner and the group are in other columns for each kind.
    let (size, uid, gid) = match kind {
        SysvKind::Segment => (3, 7, 8),
        SysvKind::Semaphores => (3, 4, 5),
        SysvKind::Queue => (4, 7, 8),
    };
    let mode = u32::from_str_radix(fields.get(2)?, 8).ok()?;
    let object = SysvObject {
        key: i32::try_from(number(0)?).ok()?,
        id: i32::try_from(number(1)?).ok()?,
        mode: u16::try_from(mode & 0o777).ok()?,
        uid: u32::try_from(number(uid)?).ok()?,
        gid: u32::try_from(number(gid)?).ok()?,
        size: u64::try_from(number(size)?).ok()?,
        ..SysvObject::default()
    };
    Some((mode, object))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: &str = "\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
-824447279      32769   644               1048576  9737     0      0  1000  1001     0     0          0          0 1795822281                     0                     0
";

    #[test]
    fn lists_of_the_kernel_are_read() {
        let found = parse_list(SysvKind::Segment, SEGMENTS).unwrap();
        let expected = SysvObject {
            key: -824_447_279,
            id: 32769,
            mode: 0o644,
            uid: 1000,
            gid: 1001,
            size: 1 << 20,
            ..SysvObject::default()
        };
        assert_eq!(found, [expected]);
        let queues = "key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime\n\
                      7 1 600 12 3 1 0 5 6 0 0 0 0 0\n";
        let queue = &parse_list(SysvKind::Queue, queues).unwrap()[0];
        assert_eq!((queue.size, queue.uid, queue.gid), (3, 5, 6));
        let semaphores = "key semid perms nsems uid gid cuid cgid otime ctime\n7 2 666 4 5 6 0 0 0 0\n";
        let set = &parse_list(SysvKind::Semaphores, semaphores).unwrap()[0];
        assert_eq!((set.size, set.uid, set.gid), (4, 5, 6));
        assert!(parse_list(SysvKind::Queue, "x\n1 2\n").is_err());
    }

    #[test]
    fn a_removed_segment_that_is_in_use_is_refused() {
        let error = parse_list(SysvKind::Segment, &SEGMENTS.replace(" 644 ", "1644 ")).unwrap_err();
        assert!(error.contains("32769 was removed"), "{error}");
    }

    #[test]
    fn limits_hold_for_what_comes_from_outside() {
        let with = |change: fn(&mut SharedState)| {
            let mut state = SharedState::default();
            change(&mut state);
            state.check()
        };
        assert!(with(|_| {}).is_ok() && with(|state| state.last_pid = Some(77)).is_ok());
        assert!(with(|state| state.last_pid = Some(0)).is_err());
        assert!(with(|state| state.last_pid = Some(u32::MAX)).is_err());
        assert!(with(|state| state.segments = vec![SysvObject::default(); MOST + 1]).is_err());
        assert!(with(|state| state.queues = vec![SysvObject { id: -1, ..SysvObject::default() }]).is_err());
        let many = |count| SysvObject { values: vec![0; count], ..SysvObject::default() };
        let mut state = SharedState { semaphores: vec![many(MOST)], ..SharedState::default() };
        assert!(state.check().is_ok());
        state.semaphores.push(many(1));
        assert!(state.check().is_err());
    }
}
