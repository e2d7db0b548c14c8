//! The dump of what the containers of a pod share, in the helper process of a checkpoint while they are frozen.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use berth_image::WritableDiff;
use berth_runtime::sys::mount::FsContext;
use berth_runtime::sys::namespaces::{self, Namespaces};
use berth_runtime::sys::process;
use berth_runtime::sys::sysv::{self, AttachedSegment, SysvKind};
use serde::{Deserialize, Serialize};

use super::container_dump::open_cgroup;
use super::shared_state::{SharedState, SysvMessage, SysvObject, parse_list};
use super::work::CheckpointWork;
use crate::store::file;

/// The archive of the pod's `/dev/shm`.
pub const MEMORY_FILES: &str = "shm.tar";
/// The state that the helper has found.
pub const SHARED_STATE: &str = "shared.json";
/// The largest message that is copied (sysvipc(7), `msgmax` is 8192 bytes if it was not changed).
const LARGEST_MESSAGE: usize = 1 << 20;

/// The shared state that is dumped.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedDump {
    /// The pause of the pod, whose namespaces and mounts its containers share.
    pub pause: i32,
    /// The work folder.
    pub work: PathBuf,
    /// Whether the pod has its own IPC namespace.
    pub ipc: bool,
    /// The cgroups of the containers that share the PID namespace of the pod.
    pub sharing_pids: Vec<String>,
}

/// The shared state with the lock of its work folder.
pub(super) struct OpenedShared<'a> {
    order: &'a SharedDump,
    work: CheckpointWork,
    _lock: File,
}

/// Returns the name of the file with the content of a segment.
#[must_use]
pub fn segment_file(index: usize) -> String {
    format!("segment-{index}")
}

impl SharedDump {
    /// Takes the lock of the work folder.
    pub(super) fn open(&self) -> Result<OpenedShared<'_>, String> {
        let work = CheckpointWork::at(self.work.clone());
        Ok(OpenedShared { order: self, _lock: work.lock_for_helper()?, work })
    }
}

impl OpenedShared<'_> {
    /// Refuses what cannot be dumped.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.order.ipc {
            return Ok(());
        }
        in_ipc_of(self.order.pause, || {
            list(SysvKind::Segment)?;
            match posix_queues()?.first() {
                Some(name) => {
                    Err(format!("the POSIX message queue /{name} exists, which CRIU cannot restore"))
                }
                None => Ok(()),
            }
        })
    }

    /// Writes the shared state to the work folder.
    pub(super) fn write(&self) -> Result<(), String> {
        let Self { order, work, .. } = self;
        let mut state = SharedState { ipc: order.ipc, ..SharedState::default() };
        if order.ipc {
            self.write_memory_files()?;
            let objects = |state: &mut SharedState| -> Result<(), String> {
                state.segments = list(SysvKind::Segment)?;
                for (index, segment) in state.segments.iter().enumerate() {
                    write_segment(segment.id, &work.file(&segment_file(index)))
                        .map_err(|why| format!("failed to copy shared memory {}: {why}", segment.id))?;
                }
                state.semaphores = list(SysvKind::Semaphores)?;
                state.semaphores.iter_mut().try_for_each(read_values)?;
                state.queues = list(SysvKind::Queue)?;
                state.queues.iter_mut().try_for_each(read_messages)
            };
            in_ipc_of(order.pause, || objects(&mut state))?;
        }
        for cgroup in &order.sharing_pids {
            let processes = open_cgroup(cgroup)?.processes().map_err(|error| error.to_string())?;
            state.last_pid = state.last_pid.max(processes.into_iter().filter_map(largest_pid).max());
        }
        state.check()?;
        file::replace(&work.file(SHARED_STATE), &state).map_err(|error| error.to_string())
    }

    fn write_memory_files(&self) -> Result<(), String> {
        let upper = pods_memory(self.order.pause);
        let diff = WritableDiff { upper, lower: Vec::new(), uids: Vec::new(), gids: Vec::new() };
        let file = File::create(self.work.file(MEMORY_FILES)).map_err(|error| error.to_string())?;
        let removed =
            diff.write(BufWriter::with_capacity(1 << 20, file)).map_err(|error| error.to_string())?;
        match removed.first() {
            Some(name) => Err(format!("/dev/shm/{name} is a device")),
            None => Ok(()),
        }
    }
}

/// Returns the path of a pod's `/dev/shm`.
pub(super) fn pods_memory(pause: i32) -> PathBuf {
    Path::new("/proc").join(pause.to_string()).join("root/shm")
}

/// Runs a function in a thread in the IPC namespace of a process. CRIU, which the main thread starts, must stay outside.
pub(super) fn in_ipc_of(pause: i32, work: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    let joined = || {
        let process = process::open(pause).map_err(|error| error.to_string())?;
        namespaces::join_of(process.as_fd(), Namespaces::IPC).map_err(|error| error.to_string())?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(joined).join()).map_err(|_| "a thread has failed".to_owned())?
}

fn list(kind: SysvKind) -> Result<Vec<SysvObject>, String> {
    let path = format!("/proc/sysvipc/{}", kind.name());
    let text = fs::read_to_string(&path).map_err(|error| format!("failed to read {path}: {error}"))?;
    parse_list(kind, &text)
}

/// Returns the names of the POSIX message queues of this thread's IPC namespace (mq_overview(7)).
fn posix_queues() -> Result<Vec<String>, String> {
    let tree = FsContext::open("mqueue").and_then(|context| context.mount(0));
    let tree = tree.map_err(|error| error.to_string())?;
    let entries = fs::read_dir(format!("/proc/self/fd/{}", tree.as_fd().as_raw_fd()));
    let entries = entries.map_err(|error| format!("failed to list the POSIX message queues: {error}"))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn write_segment(id: i32, path: &Path) -> Result<(), String> {
    let segment = AttachedSegment::open(id, false).map_err(|error| error.to_string())?;
    let written = || {
        let mut file = BufWriter::new(File::create(path)?);
        segment.copy_to(&mut file)?;
        file.flush()
    };
    written().map_err(|error: std::io::Error| error.to_string())
}

fn read_values(set: &mut SysvObject) -> Result<(), String> {
    set.values = sysv::semaphore_values(set.id).map_err(|error| error.to_string())?;
    Ok(())
}

fn read_messages(queue: &mut SysvObject) -> Result<(), String> {
    let mut position = 0;
    while let Some((kind, content)) =
        sysv::copy_message(queue.id, position, LARGEST_MESSAGE).map_err(|error| error.to_string())?
    {
        queue.messages.push(SysvMessage { kind, content });
        position += 1;
    }
    Ok(())
}

/// Returns the largest number of the threads of a process in its innermost PID namespace.
fn largest_pid(process: i32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let statuses =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    statuses.filter_map(|status| innermost_pid(&status)).max()
}

/// Returns the number of a process in its innermost PID namespace, by its status.
fn innermost_pid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_pid_is_the_last_one() {
        assert_eq!(innermost_pid("Name:\tx\nNSpid:\t812\t7\n"), Some(7));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
        let own = largest_pid(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own > 1, "{own}");
    }
}
