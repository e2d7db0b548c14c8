//! The steps of a first process that executes the program which restores a checkpoint. They prepare the place of
//! [`crate::restore`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};

use super::container::{self, ContainerStart};
use super::last::{self, FinalSteps};
use super::masks::Masks;
use super::mounts::{self, MountSource};
use super::{At, StepResult, process};
use crate::path::Root;
use crate::plan::{MountKind, MountOp, ProcessPlan, RestorePlan};
use crate::restore;
use crate::sys::keys;
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, FsContext};
use crate::sys::namespaces::{self, Namespaces};
use crate::sys::program::Program;
use crate::sys::{self, Context, security};
use crate::wire::Step;

/// The folders in which CRIU finds the programs that it needs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Executes the helper program. The process ends by exec, or after it has reported a failure.
pub fn run(start: ContainerStart<'_>, restore: &RestorePlan) -> ! {
    drop(security::set_dumpable(false));
    start.gate.enter(&start.plan.cgroup, start.descriptors);
    match prepare(&start, restore) {
        Ok(program) => last::run(start.gate, start.single, program),
        Err(failure) => start.gate.fail(failure),
    }
}

fn prepare(start: &ContainerStart<'_>, restore: &RestorePlan) -> StepResult<Program> {
    let ContainerStart { plan, descriptors, joined, .. } = start;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // The restored processes inherit it.
    keys::join_session(start.keyring).at(Step::Keyring)?;
    let pod_mounts = container::open_pod_mounts(plan, *joined)?;
    let opener = mounts::Opener {
        descriptors: *descriptors,
        pod_mounts: &pod_mounts,
        userns: None,
        single: &start.single,
    };
    let sources = opener.open_all(&plan.mounts)?;
    let masks = Masks::create(plan.mount_label.as_deref()).at(Step::MaskedPath)?;
    let work = mount::clone_path(&restore.folder, false).at(Step::Restore)?;
    let program =
        descriptors.get(restore.program).and_then(|program| mount::clone_descriptor(program, false));
    let program = program.at(Step::Restore)?;
    // The helper and CRIU are in the namespaces in which the processes are restored.
    container::join_opened(plan, *descriptors)?;
    container::join_and_unshare(plan, joined.pause)?;
    close_host().at(Step::PrivateMounts)?;
    make_place().at(Step::Restore)?;
    let rootfs = descriptors.get(plan.rootfs).at(Step::AttachRootfs)?;
    attach_folder(rootfs, restore::ROOT).at(Step::AttachRootfs)?;
    attach_folder(work.as_fd(), restore::WORK).at(Step::Restore)?;
    attach_file(program.as_fd(), restore::PROGRAM).at(Step::Restore)?;
    make_folder(restore::MASKS).and_then(|()| masks.attach_at(restore::MASKS)).at(Step::MaskedPath)?;
    make_folder(restore::MOUNTS).at(Step::Restore)?;
    let root = Root::new(mount::same_place(rootfs).at(Step::AttachRootfs)?);
    for (index, (op, source)) in plan.mounts.iter().zip(sources).enumerate() {
        attach_mount(&root, op, source, index)?;
    }
    if plan.rootfs_readonly {
        mount::set_attributes(rootfs, ATTR_RDONLY, 0, 0, false).at(Step::RootAttributes)?;
    }
    process::set_streams(&start.streams, &plan.process)?;
    if let Some(of) = joined.pid_target {
        // For the children of the helper: the helper itself stays outside.
        namespaces::join_of(of, Namespaces::PID).at(Step::JoinNamespaces)?;
    }
    rustix::process::chdir("/").on("chdir", "/").at(Step::WorkingDirectory)?;
    let helper = ProcessPlan {
        args: vec![restore::PROGRAM.to_owned(), restore::COMMAND.to_owned()],
        env: vec![PATH.to_owned()],
        ..ProcessPlan::default()
    };
    let variant =
        FinalSteps { terminal: false, joins_processes: false, waits: true, keeps_gate: true, preserved: 0 };
    Ok(last::program(&helper, None, None, variant))
}

/// Makes the host's mounts private and read-only, except for procfs, through which CRIU sets up processes: an image of a
/// checkpoint that misleads CRIU does not change files of the host.
fn close_host() -> sys::Result<()> {
    let root = mount::place("/")?;
    mount::set_attributes(root.as_fd(), ATTR_RDONLY, 0, mount::PRIVATE, true)?;
    mount::set_attributes(mount::place("/proc")?.as_fd(), 0, ATTR_RDONLY, 0, false)
}

/// Attaches a filesystem in memory for the place.
fn make_place() -> sys::Result<()> {
    let context = FsContext::open("tmpfs")?;
    context.set("source", Some("restore"))?;
    context.set("mode", Some("700"))?;
    let tree = context.mount(ATTR_NOSUID | ATTR_NODEV)?;
    mount::attach(tree.as_fd(), mount::place(restore::PLACE)?.as_fd())
}

pub(super) fn make_folder(path: &str) -> sys::Result<()> {
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)).on("mkdir", path)
}

fn attach_folder(tree: BorrowedFd<'_>, path: &str) -> sys::Result<()> {
    make_folder(path)?;
    mount::attach(tree, mount::place(path)?.as_fd())
}

fn attach_file(tree: BorrowedFd<'_>, path: &str) -> sys::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600)).map(drop).on("create", path)?;
    mount::attach(tree, mount::place(path)?.as_fd())
}

/// Attaches a mount that comes from outside of the container in the place, from which CRIU takes it. CRIU creates all others.
/// Their mount points are created as for any container.
fn attach_mount(root: &Root, op: &MountOp, source: MountSource, index: usize) -> StepResult<()> {
    let MountSource::Tree(tree) = source else {
        // A mount point below another mount is not in the root filesystem.
        let is_first = op.target.trim_start_matches('/').split('/').count() == 1;
        return if is_first {
            root.make_folder(&op.target).map(drop).at_index(Step::MountTarget, index)
        } else {
            Ok(())
        };
    };
    if matches!(op.kind, MountKind::Filesystem { .. }) {
        return Ok(());
    }
    mounts::set_attributes(tree.as_fd(), op).at_index(Step::MountAttributes, index)?;
    mounts::target(root, op, tree.as_fd()).at_index(Step::MountTarget, index)?;
    attach_by_kind(&tree, &format!("{}/{index}", restore::MOUNTS)).at_index(Step::Mount, index)
}

pub(super) fn attach_by_kind(tree: &OwnedFd, path: &str) -> sys::Result<()> {
    match mounts::is_folder(tree).on("fstat", path)? {
        true => attach_folder(tree.as_fd(), path),
        false => attach_file(tree.as_fd(), path),
    }
}
