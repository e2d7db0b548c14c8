//! The steps of a container's first process, except for the last ones, which are in `last.rs`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::last::{self, FinalSteps};
use super::masks::Masks;
use super::mounts::{self, MountSource, PodMounts};
use super::process::{self, Streams};
use super::seccomp;
use super::{At, Descriptors, Gate, HOOKED, StepResult, devices};
use crate::hooks;
use crate::path::Root;
use crate::plan::{ContainerPlan, HookKind, Hooks, MountKind, NamespaceSource, PidNamespace};
use crate::procfs::Proc;
use crate::sys::keys::{self, KeyringName};
use crate::sys::namespaces::{self, Namespaces};
use crate::sys::program::Program;
use crate::sys::spawn::SingleThread;
use crate::sys::{self, Context, mount, security};
use crate::wire::Step;
use crate::wire::transport::Report;

/// The arguments of [`run`].
#[derive(Debug)]
pub struct ContainerStart<'a> {
    /// The container's plan.
    pub plan: &'a ContainerPlan,
    /// The descriptors that the plan's slots refer to.
    pub descriptors: Descriptors<'a>,
    /// The processes and namespaces that the container joins.
    pub joined: JoinTargets<'a>,
    /// The name of the container's session keyring.
    pub keyring: &'a KeyringName,
    /// The keeper's private procfs.
    pub proc: &'a Proc,
    /// The standard streams. A terminal replaces them.
    pub streams: Streams<'a>,
    /// The socket to the keeper.
    pub gate: Gate,
    /// The number of descriptors after the standard streams that the program gets. They are open.
    pub preserved: u32,
    /// Proof that this process has one thread and can be cloned.
    pub single: SingleThread,
}

/// The processes and namespaces of its pod that a container joins.
#[derive(Clone, Copy, Debug)]
pub struct JoinTargets<'a> {
    /// The pause, for the container to join its namespaces.
    pub pause: Option<BorrowedFd<'a>>,
    /// The pod's user namespace, if it has one.
    pub userns: Option<BorrowedFd<'a>>,
    /// A process for the container to join its PID namespace: the pause, or another container's first process.
    pub pid_target: Option<BorrowedFd<'a>>,
}

/// Executes the plan. The process ends by exec, or after it has reported a failure.
pub fn run(start: ContainerStart<'_>) -> ! {
    // The container must not be able to inspect this process (ptrace(2), PTRACE_MODE checks).
    drop(security::set_dumpable(false));
    start.gate.enter(&start.plan.cgroup, start.descriptors);
    match prepare(&start) {
        Ok(program) => last::run(start.gate, start.single, program),
        Err(failure) => start.gate.fail(failure),
    }
}

fn prepare(start: &ContainerStart<'_>) -> StepResult<Program> {
    let ContainerStart { plan, descriptors, joined, .. } = start;
    rustix::process::umask(rustix::fs::Mode::empty());
    keys::join_session(start.keyring).at(Step::Keyring)?;
    let filter = seccomp::read(plan.process.seccomp.as_ref(), *descriptors)?;
    let userns = joined.userns.filter(|_| plan.userns.is_some());
    let opened = Opened::open(start, userns)?;
    join_opened(plan, *descriptors)?;
    enter_users(start, userns)?;
    join_and_unshare(plan, joined.pause)?;
    let Built { root, terminal } = build_root(start, opened)?;
    mount::pivot_to(root.as_fd()).at(Step::PivotRoot)?;
    set_root_attributes(plan).at(Step::RootAttributes)?;
    set_hostname(plan)?;
    become_user(start, terminal.as_ref())?;
    let variant = FinalSteps {
        terminal: terminal.is_some(),
        joins_processes: joined.pid_target.is_some(),
        waits: true,
        keeps_gate: false,
        preserved: start.preserved,
    };
    let start_hooks = plan.hooks.as_ref().filter(|hooks| hooks.has(HookKind::StartContainer));
    Ok(last::program(&plan.process, filter, start_hooks, variant))
}

/// Objects that can only be opened or created in the host's user and mount namespace.
struct Opened {
    /// One for each mount of the plan, in its order.
    sources: Vec<MountSource>,
    /// The device nodes of a pod with a user namespace. Such a pod cannot create nodes (user_namespaces(7)).
    nodes: Option<Vec<OwnedFd>>,
    /// The covers of masked paths. `None`: the plan has no masked paths.
    masks: Option<Masks>,
}

impl Opened {
    fn open(start: &ContainerStart<'_>, userns: Option<BorrowedFd<'_>>) -> StepResult<Self> {
        let ContainerStart { plan, descriptors, joined, single, .. } = start;
        let pod_mounts = open_pod_mounts(plan, *joined)?;
        let opener = mounts::Opener { descriptors: *descriptors, pod_mounts: &pod_mounts, userns, single };
        let sources = opener.open_all(&plan.mounts)?;
        let nodes = match userns {
            Some(_) => Some(devices::open_all(&plan.devices).at(Step::Device)?),
            None => None,
        };
        let masks = match plan.masked_paths.is_empty() {
            true => None,
            false => Some(Masks::create(plan.mount_label.as_deref()).at(Step::MaskedPath)?),
        };
        Ok(Self { sources, nodes, masks })
    }
}

/// A complete root filesystem, before the pivot.
struct Built {
    root: Root,
    /// The container's end of its terminal.
    terminal: Option<OwnedFd>,
}

/// Attaches the root filesystem in the new mount namespace, fills it and runs the hooks that see it before the pivot.
fn build_root(start: &ContainerStart<'_>, opened: Opened) -> StepResult<Built> {
    let ContainerStart { plan, descriptors, gate, .. } = start;
    let Opened { sources, nodes, masks } = opened;
    let host_root = mount::place("/").at(Step::PrivateMounts)?;
    mount::set_attributes(host_root.as_fd(), 0, 0, mount::PRIVATE, true).at(Step::PrivateMounts)?;
    if let Some(masks) = &masks {
        masks.attach().at(Step::MaskedPath)?;
    }
    // It covers the host's root, which is gone after the pivot. Nothing else of the host is changed. Hooks find it
    // at a path.
    let rootfs = descriptors.get(plan.rootfs).at(Step::AttachRootfs)?;
    let hooks_root = plan.hooks.as_ref().and_then(|hooks| hooks.root.as_deref());
    let place = match hooks_root {
        Some(folder) => mount::place(folder).at(Step::AttachRootfs)?,
        None => host_root,
    };
    mount::attach(rootfs, place.as_fd()).at(Step::AttachRootfs)?;
    let root = Root::new(mount::same_place(rootfs).at(Step::AttachRootfs)?);
    for (index, (op, source)) in plan.mounts.iter().zip(sources).enumerate() {
        mounts::attach(&root, op, source, index)?;
    }
    fill(plan, &root, start.proc, nodes)?;
    let terminal = match plan.stdio.tty {
        true => Some(open_terminal(&root, plan, gate)?),
        false => None,
    };
    protect_paths(&root, plan, masks.as_ref())?;
    if hooks_root.is_some()
        && let Some(masks) = &masks
    {
        masks.detach().at(Step::MaskedPath)?;
    }
    if let Some(hooks) = &plan.hooks {
        run_hooks(hooks, gate)?;
    }
    Ok(Built { root, terminal })
}

/// Creates the terminal, sends its other end to the keeper and attaches it as `/dev/console`.
fn open_terminal(root: &Root, plan: &ContainerPlan, gate: &Gate) -> StepResult<OwnedFd> {
    let (master, slave) = process::open_terminal(root, &plan.process)?;
    mounts::attach_console(root, &slave).at(Step::Terminal)?;
    last::hand_over_terminal(gate, &master);
    Ok(slave)
}

/// Makes the plan's read-only paths read-only and hides its masked paths.
fn protect_paths(root: &Root, plan: &ContainerPlan, masks: Option<&Masks>) -> StepResult<()> {
    for (index, path) in plan.readonly_paths.iter().enumerate() {
        mounts::make_read_only(root, path).at_index(Step::ReadonlyPath, index)?;
    }
    let Some(masks) = masks else { return Ok(()) };
    for (index, path) in plan.masked_paths.iter().enumerate() {
        masks.hide(root, path).at_index(Step::MaskedPath, index)?;
    }
    Ok(())
}

/// Waits until the parent has run the hooks of the host, and runs those that change the root filesystem.
fn run_hooks(hooks: &Hooks, gate: &Gate) -> StepResult<()> {
    if hooks.has_host_hooks() {
        gate.report(&Report::Hooks, None);
        gate.wait_for(HOOKED);
    }
    if hooks.has(HookKind::CreateContainer) {
        // The keeper ignores signals, and its children inherit that.
        sys::process::default_signals();
        // Runtimes write the pid of the process's own namespace here.
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        hooks::run(hooks, HookKind::CreateContainer, pid, None)?;
    }
    Ok(())
}

/// If the pod has a user namespace, joins it for all following steps. If the container gets a new process
/// namespace, that must belong to the user namespace: a new process, cloned there, continues.
fn enter_users(start: &ContainerStart<'_>, userns: Option<BorrowedFd<'_>>) -> StepResult<()> {
    let plan = start.plan;
    let Some(ids) = &plan.userns else { return Ok(()) };
    let userns =
        userns.ok_or(rustix::io::Errno::SRCH).on("setns", "the pod's users").at(Step::JoinNamespaces)?;
    process::enter_user_namespace(&plan.process, ids, &start.streams, start.proc, || {
        namespaces::join_users(userns)
    })?;
    // A change of ids may reset the attribute (prctl(2), PR_SET_DUMPABLE).
    drop(security::set_dumpable(false));
    if plan.pid != PidNamespace::New {
        return Ok(());
    }
    start.single.continue_as_sibling(Namespaces::PID).at(Step::Unshare)?;
    start.gate.report(&Report::Moved, None);
    Ok(())
}

/// The mount points, in the pause's root, of the pod's shared memory and, if the pod shares its processes, of
/// their procfs.
pub(super) const PAUSE_SHM: &str = "/shm";
pub(super) const PAUSE_PROC: &str = "/proc";

/// Clones mounts of other processes of the pod, each from the mount namespace in which it is attached. The procfs
/// cannot be a new one: a new procfs shows the processes of the mounter's PID namespace, and this process has not
/// joined the pod's yet.
pub(super) fn open_pod_mounts(plan: &ContainerPlan, joined: JoinTargets<'_>) -> StepResult<PodMounts> {
    let wants = |kind: fn(&MountKind) -> bool| plan.mounts.iter().any(|op| kind(&op.kind));
    let shm = wants(|kind| matches!(kind, MountKind::PodShm));
    let files: Vec<&String> = plan.mounts.iter().filter_map(|op| op.kind.pod_file()).collect();
    let proc = joined.pid_target.filter(|_| wants(MountKind::is_procfs));
    let open_from_pause = || {
        let shm = shm.then(|| mount::clone_path(PAUSE_SHM, false)).transpose()?;
        let clone = |name: &String| Ok((name.clone(), mount::clone_path(&format!("/{name}"), false)?));
        Ok((shm, files.iter().copied().map(clone).collect::<sys::Result<Vec<_>>>()?))
    };
    let of_pause = joined.pause.filter(|_| shm || !files.is_empty());
    let of_pause =
        of_pause.map(|pause| from_mounts_of(pause, open_from_pause)).transpose().at(Step::PodShm)?;
    let (shm, files) = of_pause.unwrap_or_default();
    Ok(PodMounts {
        shm,
        files,
        proc: proc.map(|of| from_mounts_of(of, mounts::clone_procfs)).transpose().at(Step::PodProc)?,
    })
}

fn from_mounts_of<T>(process: BorrowedFd<'_>, open: impl FnOnce() -> sys::Result<T>) -> sys::Result<T> {
    let original = mounts::own_mount_namespace()?;
    namespaces::join_of(process, Namespaces::MOUNT)?;
    let opened = open();
    namespaces::join_mounts(original.as_fd())?;
    opened
}

/// The namespaces of a plan that have a source.
fn kinds(plan: &ContainerPlan) -> [(NamespaceSource, Namespaces); 3] {
    [(plan.net, Namespaces::NET), (plan.ipc, Namespaces::IPC), (plan.uts, Namespaces::UTS)]
}

/// Joins the namespaces of descriptors. Root of the container's user namespace could only join those that belong to it.
pub(super) fn join_opened(plan: &ContainerPlan, descriptors: Descriptors<'_>) -> StepResult<()> {
    for (source, kind) in kinds(plan) {
        if let NamespaceSource::Descriptor(slot) = source {
            let namespace = descriptors.get(slot).at(Step::JoinNamespaces)?;
            namespaces::join_of(namespace, kind).at(Step::JoinNamespaces)?;
        }
    }
    Ok(())
}

pub(super) fn join_and_unshare(plan: &ContainerPlan, pause: Option<BorrowedFd<'_>>) -> StepResult<()> {
    let of = |requested: NamespaceSource| -> Namespaces {
        let kinds = kinds(plan);
        kinds.iter().filter(|(source, _)| *source == requested).map(|(_, kind)| *kind).collect()
    };
    let joined = of(NamespaceSource::Pod);
    if !joined.is_empty() {
        let pause =
            pause.ok_or(rustix::io::Errno::SRCH).on("setns", "the pod's pause").at(Step::JoinNamespaces)?;
        namespaces::join_of(pause, joined).at(Step::JoinNamespaces)?;
    }
    // The process is in its cgroup already, which becomes the root of a new cgroup namespace.
    let cgroup = if plan.cgroup_namespace { Namespaces::CGROUP } else { Namespaces::NONE };
    namespaces::unshare(of(NamespaceSource::New) | Namespaces::MOUNT | cgroup).at(Step::Unshare)
}

fn fill(plan: &ContainerPlan, root: &Root, proc: &Proc, nodes: Option<Vec<OwnedFd>>) -> StepResult<()> {
    match nodes {
        Some(nodes) => devices::attach_all(root, "", &plan.devices, &nodes).at(Step::Device)?,
        None => {
            for (index, node) in plan.devices.iter().enumerate() {
                devices::create(root, &node.path, node).at_index(Step::Device, index)?;
            }
        }
    }
    make_folders(plan, root)?;
    for (index, (name, value)) in plan.sysctls.iter().enumerate() {
        proc.set_sysctl(name, value).at_index(Step::Sysctl, index)?;
    }
    Ok(())
}

/// Creates the volumes of the image and the working folder.
pub(super) fn make_folders(plan: &ContainerPlan, root: &Root) -> StepResult<()> {
    let folders = plan.directories.iter().chain([&plan.process.cwd]);
    for (index, path) in folders.enumerate() {
        // If the working folder cannot be entered, its own step reports it.
        let folder = root.make_folder(path).at_index(Step::Directory, index)?;
        let is_volume = index < plan.directories.len();
        if is_volume && plan.rootfs_readonly && plan.mounts.iter().all(|op| op.target != *path) {
            mounts::attach_to_itself(&folder).at_index(Step::Directory, index)?;
        }
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

fn set_hostname(plan: &ContainerPlan) -> StepResult<()> {
    match (&plan.hostname, plan.uts) {
        (Some(name), NamespaceSource::New) => {
            rustix::system::sethostname(name.as_bytes()).on("sethostname", name).at(Step::Hostname)
        }
        _ => Ok(()),
    }
}

fn become_user(start: &ContainerStart<'_>, slave: Option<&OwnedFd>) -> StepResult<()> {
    let ContainerStart { plan, proc, .. } = start;
    match slave {
        Some(slave) => process::set_streams(&Streams::of_terminal(slave), &plan.process)?,
        None => process::set_streams(&start.streams, &plan.process)?,
    }
    match &plan.userns {
        Some(_) => process::set_labels(&plan.process, proc)?,
        None => process::set_limits_and_labels(&plan.process, proc)?,
    }
    if let Some(of) = start.joined.pid_target {
        namespaces::join_of(of, Namespaces::PID).at(Step::JoinNamespaces)?;
    }
    process::set_credentials_and_cwd(&plan.process)
}
