//! The helper process that gives a new pod what its containers shared at the checkpoint, before they are created. It works in
//! the cgroup of the pod, to which the memory is charged.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use berth_image::{Limits, unpack_files};
use berth_runtime::sys::namespaces;
use berth_runtime::sys::sysv::{self, AttachedSegment, SysvKind, SysvOwner};
use serde::{Deserialize, Serialize};

use super::container_dump::open_cgroup;
use super::helper;
use super::shared_dump::{MEMORY_FILES, in_ipc_of, pods_memory, segment_file};
use super::shared_state::{SharedState, SysvObject};

/// The hidden command of berth that runs the helper.
pub const COMMAND: &str = "checkpoint-share";
/// The hidden command that sets the last pid of the PID namespace that it is started in.
pub const LAST_PID_COMMAND: &str = "checkpoint-last-pid";

/// The task of the helper.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedRestore {
    /// The pause of the new pod.
    pub pause: i32,
    /// The recorded path of the pod's cgroup.
    pub cgroup: String,
    /// The folder of the checkpoint. Its files are untrusted.
    pub source: PathBuf,
    /// The state in it.
    pub state: SharedState,
}

/// Runs the helper and waits for its end.
///
/// # Errors
/// The reason why the pod does not have the shared state, or only a part of it.
pub async fn run(order: &SharedRestore) -> Result<(), String> {
    helper::run(COMMAND, order).await
}

/// The helper process.
#[must_use]
pub fn serve() -> ExitCode {
    helper::serve(|order: SharedRestore| restore(&order))
}

/// The process that sets the last pid.
#[must_use]
pub fn set_last_pid(pid: u32) -> ExitCode {
    match fs::write("/proc/sys/kernel/ns_last_pid", pid.to_string()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn restore(order: &SharedRestore) -> Result<(), String> {
    order.state.check()?;
    open_cgroup(&order.cgroup)?.enter().map_err(|error| error.to_string())?;
    if order.state.ipc {
        in_ipc_of(order.pause, || create_objects(order))?;
        restore_memory_files(order)?;
    }
    match order.state.last_pid {
        Some(pid) => reserve_pids(order.pause, pid),
        None => Ok(()),
    }
}

fn create_objects(order: &SharedRestore) -> Result<(), String> {
    let state = &order.state;
    for (index, segment) in state.segments.iter().enumerate() {
        create(SysvKind::Segment, segment)?;
        fill_segment(order, index, segment)
            .map_err(|why| format!("failed to fill shared memory {}: {why}", segment.id))?;
    }
    for set in &state.semaphores {
        create(SysvKind::Semaphores, set)?;
        sysv::set_semaphores(set.id, &set.values).map_err(|error| error.to_string())?;
    }
    for queue in &state.queues {
        create(SysvKind::Queue, queue)?;
        for message in &queue.messages {
            sysv::send_message(queue.id, message.kind, &message.content)
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn create(kind: SysvKind, object: &SysvObject) -> Result<(), String> {
    let size = usize::try_from(object.size).map_err(|error| error.to_string())?;
    kind.create(object.key, object.id, size, object.mode).map_err(|error| error.to_string())?;
    let owner = SysvOwner { uid: object.uid, gid: object.gid, mode: object.mode };
    kind.set_owner(object.id, owner).map_err(|error| error.to_string())
}

fn fill_segment(order: &SharedRestore, index: usize, segment: &SysvObject) -> Result<(), String> {
    let mut source = open_regular(&order.source, &segment_file(index)).map_err(|error| error.to_string())?;
    let mut attached = AttachedSegment::open(segment.id, true).map_err(|error| error.to_string())?;
    attached.fill_from(&mut source).map_err(|error| error.to_string())
}

fn restore_memory_files(order: &SharedRestore) -> Result<(), String> {
    let failed = |error: io::Error| format!("failed to fill /dev/shm: {error}");
    let archive = open_regular(&order.source, MEMORY_FILES).map_err(failed)?;
    let folder = File::open(pods_memory(order.pause)).map_err(failed)?;
    let source = BufReader::with_capacity(1 << 20, archive);
    unpack_files(MEMORY_FILES, source, folder.into(), Limits::default())
        .map_err(|error| format!("failed to fill /dev/shm: {error}"))
}

/// Opens a regular file of a folder, not through a link.
pub(super) fn open_regular(folder: &Path, name: &str) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let failed = |error| io::Error::other(format!("{name}: {error}"));
    let file = File::options().read(true).custom_flags(flags).open(folder.join(name)).map_err(failed)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{name} is not a regular file"))),
    }
}

/// Makes new processes of the pod get larger numbers than those of the checkpoint. Otherwise a process that a restored
/// container starts could get the number of one that is still to be restored (pid_namespaces(7)).
fn reserve_pids(pause: i32, last: u32) -> Result<(), String> {
    let failed = |why: String| format!("failed to reserve the pids of the checkpoint: {why}");
    let namespace = File::open(format!("/proc/{pause}/ns/pid")).map_err(|error| failed(error.to_string()))?;
    namespaces::join_pids(namespace.as_fd()).map_err(|error| failed(error.to_string()))?;
    let status = Command::new("/proc/self/exe")
        .args([LAST_PID_COMMAND, &last.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}
