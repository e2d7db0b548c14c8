//! The steps of a pod's pause: it creates the namespaces that the pod's containers join.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::container::{PAUSE_PROC, PAUSE_SHM};
use super::{At, Descriptors, Gate, MAPPED, StepResult, seccomp};
use crate::plan::{NamespaceSource, SandboxPlan};
use crate::procfs::Proc;
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, FsContext};
use crate::sys::namespaces::{self, Namespaces};
use crate::sys::process::{default_signals, exec_descriptor};
use crate::sys::spawn::SingleThread;
use crate::sys::{self, Context, keys, security};
use crate::wire::{InitFailure, Step};

/// The arguments of [`run`].
#[derive(Debug)]
pub struct SandboxStart<'a> {
    /// The pod's plan.
    pub plan: &'a SandboxPlan,
    /// The pause's program.
    pub program: BorrowedFd<'a>,
    /// The null device, for the standard streams.
    pub null: BorrowedFd<'a>,
    /// The keeper's private procfs.
    pub proc: &'a Proc,
    /// The descriptors that the plan's slots refer to.
    pub descriptors: Descriptors<'a>,
    /// The socket to the keeper.
    pub gate: Gate,
    /// Proof that this process has one thread and can be cloned.
    pub single: SingleThread,
}

/// Returns the new namespaces of a pause, for its clone.
#[must_use]
pub fn namespaces_of(plan: &SandboxPlan) -> Namespaces {
    let users = if plan.userns.is_some() { Namespaces::USER } else { Namespaces::NONE };
    let others = [
        (plan.net, Namespaces::NET),
        (plan.ipc, Namespaces::IPC),
        (plan.uts, Namespaces::UTS),
        (plan.pid, Namespaces::PID),
    ];
    let new = others.iter().filter(|(source, _)| *source == NamespaceSource::New).map(|(_, kind)| *kind);
    new.chain([users]).collect()
}

/// Executes the plan. The process ends by exec, or after it has reported a failure.
pub fn run(start: SandboxStart<'_>) -> ! {
    let SandboxStart { plan, program, null, proc, descriptors, gate, single } = start;
    gate.enter(&plan.cgroup, descriptors);
    if plan.userns.is_some() {
        gate.wait_for(MAPPED);
    }
    let filter = match seccomp::read(plan.seccomp.as_ref(), descriptors) {
        Ok(filter) => filter,
        Err(failure) => gate.fail(failure),
    };
    if let Err(failure) = prepare(plan, null, proc) {
        gate.fail(failure);
    }
    default_signals();
    if let Some(Err(failure)) = filter.map(|filter| seccomp::load(&filter, &gate, single)) {
        gate.fail(failure);
    }
    // The keeper opens its descriptors with close-on-exec, and has set this flag on those that it was started
    // with.
    let errno = exec_descriptor(program, "berth-pause");
    gate.fail(InitFailure {
        step: Step::Exec,
        errno: errno.raw_os_error(),
        index: None,
        detail: "the pause".to_owned(),
    })
}

fn prepare(plan: &SandboxPlan, null: BorrowedFd<'_>, proc: &Proc) -> StepResult<()> {
    rustix::process::setsid().on("setsid", "").at(Step::Stdio)?;
    rustix::stdio::dup2_stdin(null).on("dup2", "a standard stream").at(Step::Stdio)?;
    rustix::stdio::dup2_stdout(null).on("dup2", "a standard stream").at(Step::Stdio)?;
    rustix::stdio::dup2_stderr(null).on("dup2", "a standard stream").at(Step::Stdio)?;
    keys::leave_session().at(Step::Keyring)?;
    if plan.userns.is_some() {
        // The ids are mapped now. Until this call the process has the overflow ids (user_namespaces(7)).
        security::set_ids(0, 0, &[]).at(Step::Credentials)?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).on("sethostname", name).at(Step::Hostname)?;
    }
    for (index, (name, value)) in plan.sysctls.iter().enumerate() {
        proc.set_sysctl(name, value).at_index(Step::Sysctl, index)?;
    }
    // In a user namespace the process may not set it; the keeper has done so.
    if let Some(score) = plan.oom_score_adj.filter(|_| plan.userns.is_none()) {
        proc.write("self/oom_score_adj", &score.to_string()).at(Step::OomScore)?;
    }
    if let Some(profile) = &plan.apparmor {
        proc.write("self/attr/apparmor/exec", &format!("exec {profile}")).at(Step::SecurityLabel)?;
    }
    if let Some(label) = &plan.selinux {
        proc.write("self/attr/exec", label).at(Step::SecurityLabel)?;
    }
    move_to_own_root(plan).at(Step::PivotRoot)?;
    security::set_ids(plan.uid, plan.gid, &plan.groups).at(Step::Credentials)?;
    security::no_new_privs().at(Step::NoNewPrivs)
}

/// Moves the pause to a root that contains only what the pod's containers use: the pod's files, its shared memory,
/// and the procfs of shared processes. No mount of the host remains in its mount namespace, where it could not be
/// unmounted.
fn move_to_own_root(plan: &SandboxPlan) -> sys::Result<()> {
    namespaces::unshare(Namespaces::MOUNT)?;
    let host_root = mount::place("/")?;
    mount::set_attributes(host_root.as_fd(), 0, 0, mount::PRIVATE, true)?;
    let closed = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let root = with_files(plan, closed)?;
    mount::attach(root.as_fd(), host_root.as_fd())?;
    if let Some(size) = plan.shm_size {
        attach_below(root.as_fd(), PAUSE_SHM, shm(plan, size, closed)?.as_fd())?;
    }
    if plan.pid == NamespaceSource::New {
        attach_below(root.as_fd(), PAUSE_PROC, FsContext::open("proc")?.mount(closed)?.as_fd())?;
    }
    mount::set_attributes(root.as_fd(), ATTR_RDONLY, 0, 0, false)?;
    mount::pivot_to(root.as_fd())
}

/// The number of folders: root, shared memory and procfs.
const FOLDERS: usize = 3;

/// The number of bytes that containers may add to the pod's files, or somewhat less, because the kernel counts
/// pages. The files are in memory, which the kernel charges to the cgroup of the process that writes them
/// (Documentation/admin-guide/cgroup-v1/memory.rst, "Shared Page Accounting").
const FILES_RESERVE: usize = 1 << 20;

/// Creates the pause's root with the pod's files.
fn with_files(plan: &SandboxPlan, attributes: u64) -> sys::Result<OwnedFd> {
    let size = plan.files.iter().map(|file| file.content.len()).sum::<usize>();
    let context = FsContext::open("tmpfs")?;
    context.set("nr_inodes", Some(&(FOLDERS + plan.files.len()).to_string()))?;
    context.set("size", Some(&(size + FILES_RESERVE).to_string()))?;
    context.set("mode", Some("755"))?;
    if let Some(label) = &plan.mount_label {
        context.set("context", Some(label))?;
    }
    let root = context.mount(attributes)?;
    for file in &plan.files {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&root, &file.name, flags, Mode::from_raw_mode(0o644));
        let opened = opened.on("create", &file.name)?;
        let mut rest = file.content.as_bytes();
        while !rest.is_empty() {
            let written = rustix::io::write(&opened, rest).on("write", &file.name)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    Ok(root)
}

fn shm(plan: &SandboxPlan, size: u64, attributes: u64) -> sys::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set("source", Some("shm"))?;
    context.set("mode", Some("1777"))?;
    context.set("size", Some(&size.to_string()))?;
    if let Some(label) = &plan.mount_label {
        context.set("context", Some(label))?;
    }
    context.mount(attributes)
}

fn attach_below(root: BorrowedFd<'_>, path: &str, tree: BorrowedFd<'_>) -> sys::Result<()> {
    let name = path.trim_start_matches('/');
    rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o555)).on("mkdir", path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(root, name, flags, Mode::empty()).on("open", path)?;
    mount::attach(tree, place.as_fd())
}
