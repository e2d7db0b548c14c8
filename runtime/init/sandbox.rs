//! The way of a pod's pause: the namespaces that the pod's containers join.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::Mode;

use super::{At, Descriptors, Done, Gate, seccomp};
use crate::plan::{NamespaceSource, SandboxPlan};
use crate::procfs::Proc;
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, FsContext};
use crate::sys::process::{default_signals, exec_descriptor, namespace, unshare};
use crate::sys::{self, Context, security};
use crate::wire::{InitFailure, Step};

/// What a pause starts with.
#[derive(Debug)]
pub struct Start<'a> {
    /// What to do.
    pub plan: &'a SandboxPlan,
    /// The pause's program.
    pub program: BorrowedFd<'a>,
    /// For the standard streams.
    pub null: BorrowedFd<'a>,
    /// The host's procfs, for a pause in a user namespace: it cannot mount one for processes that are the host's.
    pub proc: Option<Proc>,
    /// What the plan's slots mean.
    pub descriptors: Descriptors<'a>,
    /// To the keeper.
    pub gate: Gate,
}

/// The namespaces of a pause, for its clone.
#[must_use]
pub fn namespaces(plan: &SandboxPlan) -> u64 {
    let users = if plan.userns.is_some() { namespace::USER } else { 0 };
    [
        (plan.net, namespace::NET),
        (plan.ipc, namespace::IPC),
        (plan.uts, namespace::UTS),
        (plan.pid, namespace::PID),
    ]
    .iter()
    .filter(|(source, _)| *source == NamespaceSource::New)
    .fold(users, |all, (_, kind)| all | kind)
}

/// Walks the plan. Ends by exec, or by telling the failure.
pub fn run(start: Start<'_>) -> ! {
    let Start { plan, program, null, proc, descriptors, gate } = start;
    gate.enter(&plan.cgroup, descriptors);
    let filter = match seccomp::read(plan.seccomp.as_ref(), descriptors) {
        Ok(filter) => filter,
        Err(failure) => gate.fail(failure),
    };
    if let Err(failure) = prepare(plan, null, proc) {
        gate.fail(failure);
    }
    default_signals();
    if let Some(Err(failure)) = filter.map(|filter| filter.load(&gate)) {
        gate.fail(failure);
    }
    // Every descriptor of the keeper is closed on exec; the pause opens none.
    let errno = exec_descriptor(program, "berth-pause");
    gate.fail(InitFailure {
        step: Step::Exec,
        errno: errno.raw_os_error(),
        index: None,
        detail: "the pause".to_owned(),
    })
}

fn prepare(plan: &SandboxPlan, null: BorrowedFd<'_>, proc: Option<Proc>) -> Done<()> {
    rustix::process::setsid().on("setsid", "").at(Step::Stdio)?;
    for number in 0..3 {
        sys::pty::put_at(null, number).at(Step::Stdio)?;
    }
    let proc = match proc {
        Some(proc) => {
            // The ids are mapped by now; until here this process was nobody in its namespace.
            security::set_ids(0, 0, &[]).at(Step::Credentials)?;
            proc
        }
        None => Proc::mount().at(Step::PrivateMounts)?,
    };
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).on("sethostname", name).at(Step::Hostname)?;
    }
    for (index, (name, value)) in plan.sysctls.iter().enumerate() {
        proc.set_sysctl(name, value).at_index(Step::Sysctl, index)?;
    }
    // In a user namespace the keeper has set it: nobody there may.
    if let Some(score) = plan.oom_score_adj.filter(|_| plan.userns.is_none()) {
        proc.write("self/oom_score_adj", &score.to_string()).at(Step::OomScore)?;
    }
    if let Some(label) = &plan.selinux {
        proc.write("self/attr/exec", label).at(Step::SecurityLabel)?;
    }
    move_to_own_root(plan).at(Step::PivotRoot)?;
    security::no_new_privs().at(Step::NoNewPrivs)
}

/// The pause's root is the pod's shared memory, and nothing else: its mount namespace holds no mount of the host, which
/// could then not be taken off.
fn move_to_own_root(plan: &SandboxPlan) -> sys::Result<()> {
    unshare(namespace::MOUNT)?;
    let host_root = mount::place("/")?;
    mount::set_attributes(host_root.as_fd(), 0, 0, mount::PRIVATE, true)?;
    let context = FsContext::open("tmpfs")?;
    let mut attributes = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    match plan.shm_size {
        Some(size) => {
            context.set("source", Some("shm"))?;
            context.set("mode", Some("1777"))?;
            context.set("size", Some(&size.to_string()))?;
            if let Some(label) = &plan.mount_label {
                context.set("context", Some(label))?;
            }
        }
        None => {
            context.set("nr_inodes", Some("1"))?;
            attributes |= ATTR_RDONLY;
        }
    }
    let tree = context.mount(attributes)?;
    mount::attach(tree.as_fd(), host_root.as_fd())?;
    mount::pivot_to(tree.as_fd())?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}
