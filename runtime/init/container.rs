//! The way of a container's first process, from its clone to the gate and through it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::hooks;
use super::mounts::{self, Masks};
use super::process::{self, Streams};
use super::seccomp::{self, Filter};
use super::{At, Descriptors, Done, Gate, START};
use crate::path::Root;
use crate::plan::{ContainerPlan, MountKind, NamespaceSource, PidNamespace};
use crate::procfs::Proc;
use crate::sys::mount;
use crate::sys::process::{clone_sibling, exit_now, join_namespace, join_namespaces_of, namespace, unshare};
use crate::sys::{self, Context, security};
use crate::wire::Step;
use crate::wire::transport::Report;

/// What a container's first process starts with.
#[derive(Debug)]
pub struct Start<'a> {
    /// What to do.
    pub plan: &'a ContainerPlan,
    /// What the plan's slots mean.
    pub descriptors: Descriptors<'a>,
    /// The pause, whose namespaces are joined.
    pub pause: Option<BorrowedFd<'a>>,
    /// The pod's user namespace, where it has one.
    pub userns: Option<BorrowedFd<'a>>,
    /// Standard streams; with a terminal these are replaced by it.
    pub streams: Streams<'a>,
    /// To the keeper.
    pub gate: Gate,
}

/// Walks the plan. Ends by exec, or by telling the failure.
pub fn run(start: Start<'_>) -> ! {
    // The container must not be able to look into what sets it up (ptrace(2), PTRACE_MODE checks).
    drop(security::set_dumpable(false));
    start.gate.enter(&start.plan.cgroup, start.descriptors);
    let Start { plan, descriptors, pause, userns, streams, gate } = start;
    let pod = PodOf { pause, userns };
    match prepare(plan, descriptors, pod, &streams, &gate) {
        Ok(prepared) => go_through(gate, plan, prepared),
        Err(failure) => gate.fail(failure),
    }
}

/// What is joined.
#[derive(Clone, Copy)]
struct PodOf<'a> {
    pause: Option<BorrowedFd<'a>>,
    userns: Option<BorrowedFd<'a>>,
}

/// What is left to do at the gate.
struct Prepared {
    master: Option<OwnedFd>,
    filter: Option<Filter>,
}

fn go_through(gate: Gate, plan: &ContainerPlan, prepared: Prepared) -> ! {
    // The report goes first: it carries the terminal's master, which is closed with everything else after that.
    let master = prepared.master.as_ref().map(AsFd::as_fd);
    gate.report(&Report::Ready, master);
    let gate = match gate.keep_alone() {
        Ok(gate) => gate,
        // Without its socket this process cannot tell anything: its end tells the keeper.
        Err(_) => exit_now(1),
    };
    gate.wait_for(START);
    gate.fail(process::become_program(&plan.process, prepared.filter, &gate))
}

fn prepare(
    plan: &ContainerPlan,
    descriptors: Descriptors<'_>,
    pod: PodOf<'_>,
    streams: &Streams<'_>,
    gate: &Gate,
) -> Done<Prepared> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let filter = seccomp::read(plan.process.seccomp.as_ref(), descriptors)?;
    let shm = open_pod_shm(plan, pod.pause).at(Step::PodShm)?;
    let userns = pod.userns.filter(|_| plan.userns.is_some());
    let sources = mounts::open_sources(&plan.mounts, descriptors, shm.as_ref(), userns)?;
    let nodes = match userns {
        Some(_) => Some(mounts::open_nodes(&plan.devices).at(Step::Device)?),
        None => None,
    };
    let mut masks = match plan.masked_paths.is_empty() {
        true => None,
        false => Some(Masks::open().at(Step::MaskedPath)?),
    };
    enter_users(plan, userns, streams, gate)?;
    join_and_unshare(plan, pod.pause)?;
    let proc = Proc::mount().at(Step::PrivateMounts)?;
    let host_root = mount::place("/").at(Step::PrivateMounts)?;
    mount::set_attributes(host_root.as_fd(), 0, 0, mount::PRIVATE, true).at(Step::PrivateMounts)?;

    // Over the host's root, which is gone after the pivot. Nothing else of the host is touched. Hooks look for it at a
    // path.
    let rootfs = descriptors.get(plan.rootfs).at(Step::AttachRootfs)?;
    let place = match &plan.hooks {
        Some(hooks) => mount::place(&hooks.root).at(Step::AttachRootfs)?,
        None => host_root,
    };
    mount::attach(rootfs, place.as_fd()).at(Step::AttachRootfs)?;
    let root = Root::new(mount::same_place(rootfs).at(Step::AttachRootfs)?);
    for (index, (op, source)) in plan.mounts.iter().zip(sources).enumerate() {
        mounts::attach(&root, op, source, index)?;
    }
    fill(plan, &root, &proc, nodes)?;
    let terminal = match plan.stdio.tty {
        true => Some(process::open_terminal(&root, &plan.process)?),
        false => None,
    };
    if let Some((_, slave)) = &terminal {
        mounts::attach_console(&root, slave).at(Step::Terminal)?;
    }
    for (index, path) in plan.readonly_paths.iter().enumerate() {
        mounts::make_read_only(&root, path).at_index(Step::ReadonlyPath, index)?;
    }
    if let Some(masks) = &mut masks {
        for (index, path) in plan.masked_paths.iter().enumerate() {
            masks.hide(&root, path).at_index(Step::MaskedPath, index)?;
        }
    }
    if let Some(hooks) = &plan.hooks {
        hooks::run(hooks)?;
    }
    mount::pivot_to(root.as_fd()).at(Step::PivotRoot)?;
    set_root_attributes(plan).at(Step::RootAttributes)?;
    set_hostname(plan)?;
    become_user(plan, streams, terminal.as_ref().map(|(_, slave)| slave), &proc)?;
    Ok(Prepared { master: terminal.map(|(master, _)| master), filter })
}

/// Where the pod has a user namespace, all that follows is done in it: by this process, or, for a process namespace that
/// is to belong to it, by one that is cloned there.
fn enter_users(
    plan: &ContainerPlan,
    userns: Option<BorrowedFd<'_>>,
    streams: &Streams<'_>,
    gate: &Gate,
) -> Done<()> {
    let Some(ids) = &plan.userns else { return Ok(()) };
    let userns =
        userns.ok_or(rustix::io::Errno::SRCH).on("setns", "the pod's users").at(Step::JoinNamespaces)?;
    let proc = Proc::mount().at(Step::PrivateMounts)?;
    process::enter_user_namespace(&plan.process, ids, streams, &proc, || {
        join_namespace(userns, namespace::USER)
    })?;
    // What a change of ids has made readable or not (prctl(2), PR_SET_DUMPABLE).
    drop(security::set_dumpable(false));
    if plan.pid != PidNamespace::New {
        return Ok(());
    }
    if let Some(child) = clone_sibling(namespace::PID).at(Step::Unshare)? {
        gate.report(&Report::Moved { pid: child.pid }, Some(child.pidfd.as_fd()));
        exit_now(0);
    }
    Ok(())
}

/// The pod's shared memory is the root of the pause: it is cloned from within the pause's mount namespace, the only one
/// in which it is attached.
fn open_pod_shm(plan: &ContainerPlan, pause: Option<BorrowedFd<'_>>) -> sys::Result<Option<OwnedFd>> {
    let wanted = plan.mounts.iter().any(|op| matches!(op.kind, MountKind::PodShm));
    let Some(pause) = pause.filter(|_| wanted) else { return Ok(None) };
    let own = mounts::own_mount_namespace()?;
    join_namespaces_of(pause, namespace::MOUNT)?;
    let shm = mount::clone_path("/", false);
    join_namespace(own.as_fd(), namespace::MOUNT)?;
    shm.map(Some)
}

fn join_and_unshare(plan: &ContainerPlan, pause: Option<BorrowedFd<'_>>) -> Done<()> {
    let kinds = [(plan.net, namespace::NET), (plan.ipc, namespace::IPC), (plan.uts, namespace::UTS)];
    let of = |wanted: NamespaceSource| {
        kinds.iter().filter(|(source, _)| *source == wanted).fold(0, |all, (_, kind)| all | kind)
    };
    let joined = of(NamespaceSource::Pod);
    if joined != 0 {
        let pause =
            pause.ok_or(rustix::io::Errno::SRCH).on("setns", "the pod's pause").at(Step::JoinNamespaces)?;
        join_namespaces_of(pause, joined).at(Step::JoinNamespaces)?;
    }
    // Now that the process is in its cgroup, that is what a new cgroup namespace takes for its root.
    let cgroup = if plan.cgroup_namespace { namespace::CGROUP } else { 0 };
    unshare(of(NamespaceSource::New) | namespace::MOUNT | cgroup).at(Step::Unshare)
}

fn fill(plan: &ContainerPlan, root: &Root, proc: &Proc, nodes: Option<Vec<OwnedFd>>) -> Done<()> {
    match nodes {
        Some(nodes) => mounts::attach_nodes(root, "", &plan.devices, &nodes).at(Step::Device)?,
        None => {
            for (index, node) in plan.devices.iter().enumerate() {
                mounts::make_node(root, &node.path, node).at_index(Step::Device, index)?;
            }
        }
    }
    let folders = plan.directories.iter().chain([&plan.process.cwd]);
    for (index, path) in folders.enumerate() {
        // Whether the working folder can be entered is for its own step to tell.
        root.make_folder(path).at_index(Step::Directory, index)?;
    }
    for (index, (name, value)) in plan.sysctls.iter().enumerate() {
        proc.set_sysctl(name, value).at_index(Step::Sysctl, index)?;
    }
    Ok(())
}

fn set_root_attributes(plan: &ContainerPlan) -> sys::Result<()> {
    let root = mount::place("/")?;
    let propagation = mounts::flag_of(plan.rootfs_propagation);
    let set = if plan.rootfs_readonly { mount::ATTR_RDONLY } else { 0 };
    if set | propagation != 0 {
        mount::set_attributes(root.as_fd(), set, 0, propagation, false)?;
    }
    Ok(())
}

fn set_hostname(plan: &ContainerPlan) -> Done<()> {
    match (&plan.hostname, plan.uts) {
        (Some(name), NamespaceSource::New) => {
            rustix::system::sethostname(name.as_bytes()).on("sethostname", name).at(Step::Hostname)
        }
        _ => Ok(()),
    }
}

fn become_user(
    plan: &ContainerPlan,
    streams: &Streams<'_>,
    slave: Option<&OwnedFd>,
    proc: &Proc,
) -> Done<()> {
    match slave.map(AsFd::as_fd) {
        Some(slave) => {
            let streams = Streams { stdin: slave, stdout: slave, stderr: slave };
            process::set_streams(&streams, true, &plan.process)?;
        }
        None => process::set_streams(streams, false, &plan.process)?,
    }
    match &plan.userns {
        Some(_) => process::set_labels(&plan.process, proc)?,
        None => process::set_limits_and_labels(&plan.process, proc)?,
    }
    process::set_credentials(&plan.process)?;
    process::change_to_cwd(&plan.process)
}
