//! The root filesystem of a container and its mounts. A source is opened in the host's mounts, and a target is
//! resolved to a descriptor in the new root. The mount then uses both descriptors (move_mount(2)): no path is
//! resolved twice (CVE-2021-30465).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{At, Descriptors, StepResult, devices, peers, users};
use crate::path::Root;
use crate::plan::{CgroupHierarchy, DeviceNode, MountIds, MountKind, MountOp, Propagation};
use crate::procfs::PROC_MAGIC;
use crate::sys::mount::{self, FsContext};
use crate::sys::spawn::SingleThread;
use crate::sys::{self, Context};
use crate::wire::Step;

/// The source of a mount: open already, or created later.
#[derive(Debug)]
pub(super) enum MountSource {
    /// A detached tree.
    Tree(OwnedFd),
    /// Created inside the container's namespaces.
    Deferred,
    /// The same, with the host's device nodes: in a user namespace none can be created (mknod(2)).
    DeferredWithNodes(Vec<OwnedFd>),
}

/// Clones of mounts of other processes of the pod.
#[derive(Debug)]
pub(super) struct PodMounts {
    /// The pod's shared memory.
    pub(super) shm: Option<OwnedFd>,
    /// The pod's files that the container mounts, by name.
    pub(super) files: Vec<(String, OwnedFd)>,
    /// The procfs of the PID namespace that the container shares.
    pub(super) proc: Option<OwnedFd>,
}

/// Opens the sources of mounts in the host's mounts.
pub(super) struct Opener<'a> {
    pub(super) descriptors: Descriptors<'a>,
    pub(super) pod_mounts: &'a PodMounts,
    /// The pod's user namespace.
    pub(super) userns: Option<BorrowedFd<'a>>,
    pub(super) single: &'a SingleThread,
}

impl Opener<'_> {
    pub(super) fn open_all(&self, mounts: &[MountOp]) -> StepResult<Vec<MountSource>> {
        mounts.iter().enumerate().map(|(index, op)| self.open(op, index)).collect()
    }

    fn open(&self, op: &MountOp, index: usize) -> StepResult<MountSource> {
        Ok(match &op.kind {
            MountKind::Bind { source, recursive, create, ids } => {
                let tree = open_bind(source, *recursive, *create).at_index(Step::OpenSource, index)?;
                peers::check(source, op.propagation, index)?;
                self.map_ids(tree.as_fd(), ids, *recursive).at_index(Step::MountAttributes, index)?;
                MountSource::Tree(tree)
            }
            MountKind::Dev { nodes, .. } if self.userns.is_some() => {
                MountSource::DeferredWithNodes(devices::open_all(nodes).at_index(Step::OpenSource, index)?)
            }
            MountKind::Tree { tree } => {
                let tree = self.descriptors.get(*tree).and_then(|fd| fd.try_clone_to_owned().on("dup", ""));
                MountSource::Tree(tree.at_index(Step::OpenSource, index)?)
            }
            MountKind::PodShm => {
                let shm =
                    self.pod_mounts.shm.as_ref().ok_or(Errno::NOENT).on("open", "the pod's shared memory");
                MountSource::Tree(shm.and_then(dup).at_index(Step::PodShm, index)?)
            }
            MountKind::PodFile { name } => {
                let file =
                    self.pod_mounts.files.iter().find(|(other, _)| other == name).map(|(_, file)| file);
                let file = file.ok_or(Errno::NOENT).on("open", name);
                MountSource::Tree(file.and_then(dup).at_index(Step::PodShm, index)?)
            }
            kind if kind.is_procfs() => match &self.pod_mounts.proc {
                Some(proc) => MountSource::Tree(dup(proc).at_index(Step::PodProc, index)?),
                None => MountSource::Deferred,
            },
            MountKind::Filesystem { .. } | MountKind::Dev { .. } | MountKind::Cgroup { .. } => {
                MountSource::Deferred
            }
        })
    }

    fn map_ids(&self, tree: BorrowedFd<'_>, ids: &MountIds, recursive: bool) -> sys::Result<()> {
        match ids {
            MountIds::Host => Ok(()),
            MountIds::Pod => {
                let pods = self.userns.ok_or(Errno::SRCH).on("idmap", "the pod's users")?;
                mount::idmap(tree, pods, recursive)
            }
            MountIds::Mapped(ids) => {
                mount::idmap(tree, users::namespace(ids, self.single)?.as_fd(), recursive)
            }
        }
    }
}

fn dup(tree: &OwnedFd) -> sys::Result<OwnedFd> {
    tree.try_clone().on("dup", "")
}

/// `PROC_ROOT_INO` (include/linux/proc_fs.h): the inode number of a procfs's root.
const PROC_ROOT: u64 = 1;

/// Clones the procfs at /proc in the current mount namespace, which may be a container's. Anything but the root of
/// a procfs is rejected, and mounts below it are not cloned.
pub(super) fn clone_procfs() -> sys::Result<OwnedFd> {
    let path = "/proc";
    let place = Root::new(mount::place("/")?).resolve_strictly(path)?;
    let magic = rustix::fs::fstatfs(&place).on("fstatfs", path)?.f_type;
    let is_root = rustix::fs::fstat(&place).on("fstat", path)?.st_ino == PROC_ROOT;
    if u64::try_from(magic).ok() != Some(PROC_MAGIC) || !is_root {
        return Err(Errno::XDEV).on("open_tree", format_args!("{path}, which is not a procfs"));
    }
    let tree = mount::clone_descriptor(place.as_fd(), false)?;
    mount::set_attributes(tree.as_fd(), 0, mount::ATTR_RDONLY, 0, false)?;
    Ok(tree)
}

fn open_bind(source: &str, recursive: bool, create: bool) -> sys::Result<OwnedFd> {
    match mount::clone_path(source, recursive) {
        Err(error) if error.errno == Errno::NOENT && create => {
            make_host_folder(source)?;
            mount::clone_path(source, recursive)
        }
        result => result,
    }
}

fn make_host_folder(path: &str) -> sys::Result<()> {
    for (end, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
        let part = path.get(..end).unwrap_or(path);
        match rustix::fs::mkdirat(CWD, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).on("mkdir", part),
        }
    }
    Ok(())
}

/// Attaches one mount in the new root.
pub(super) fn attach(root: &Root, op: &MountOp, source: MountSource, index: usize) -> StepResult<()> {
    let tree = match (source, &op.kind) {
        (MountSource::Tree(tree), _) => tree,
        (MountSource::Deferred, MountKind::Filesystem { fstype, source, options, .. }) => {
            filesystem(fstype, source, options, op.set).at_index(Step::Mount, index)?
        }
        (MountSource::DeferredWithNodes(trees), MountKind::Dev { options, nodes, links }) => {
            let dev = dev(options, &[], links, op.set).at_index(Step::Mount, index)?;
            set_attributes(dev.as_fd(), op).at_index(Step::MountAttributes, index)?;
            let target = target(root, op, dev.as_fd()).at_index(Step::MountTarget, index)?;
            mount::attach(dev.as_fd(), target.as_fd()).at_index(Step::Mount, index)?;
            return devices::attach_all(root, &op.target, nodes, &trees).at_index(Step::Mount, index);
        }
        (MountSource::Deferred, MountKind::Dev { options, nodes, links }) => {
            dev(options, nodes, links, op.set).at_index(Step::Mount, index)?
        }
        (MountSource::Deferred, MountKind::Cgroup { hierarchies }) => {
            return cgroup(root, op, hierarchies).at_index(Step::Mount, index);
        }
        (MountSource::Deferred | MountSource::DeferredWithNodes(_), _) => {
            return Err(Errno::INVAL).on("mount", "").at_index(Step::Mount, index);
        }
    };
    set_attributes(tree.as_fd(), op).at_index(Step::MountAttributes, index)?;
    let target = target(root, op, tree.as_fd()).at_index(Step::MountTarget, index)?;
    mount::attach(tree.as_fd(), target.as_fd()).at_index(Step::Mount, index)
}

/// Mounts a folder on itself, so that it stays writable when the mount that contains it becomes read-only. An
/// image's volumes are therefore writable in a container with a read-only root, and initially contain the image's
/// files, as in containerd.
pub(super) fn attach_to_itself(folder: &OwnedFd) -> sys::Result<()> {
    let tree = mount::clone_descriptor(folder.as_fd(), false)?;
    mount::attach(tree.as_fd(), folder.as_fd())
}

/// Returns the target of a mount. Creates it if absent: a folder for a folder, a file for a file.
pub(super) fn target(root: &Root, op: &MountOp, tree: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    match op.kind {
        MountKind::Filesystem { .. } | MountKind::Dev { .. } | MountKind::Cgroup { .. } => {
            strict_folder(root, &op.target)
        }
        _ => {
            let is_folder = is_folder(tree).on("fstat", &op.target)?;
            // An existing target must be of the same kind (mount(2), ENOTDIR). The kernel's error alone would not
            // explain the problem.
            if let Ok(existing) = root.resolve(&op.target) {
                return match (is_folder, self::is_folder(&existing).on("fstat", &op.target)?) {
                    (true, false) => {
                        Err(Errno::NOTDIR).on("a folder cannot be mounted over a file,", &op.target)
                    }
                    (false, true) => {
                        Err(Errno::ISDIR).on("a file cannot be mounted over a folder,", &op.target)
                    }
                    _ => Ok(existing),
                };
            }
            match is_folder {
                true => root.make_folder(&op.target),
                false => root.make_file(&op.target),
            }
        }
    }
}

pub(super) fn is_folder(place: impl AsFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(place)?.st_mode).is_dir())
}

/// Returns the folder for one of the kernel's filesystems. Its path must not contain a symbolic link.
fn strict_folder(root: &Root, path: &str) -> sys::Result<OwnedFd> {
    match root.resolve_strictly(path) {
        Err(error) if error.errno == Errno::NOENT => {
            root.make_folder(path)?;
            root.resolve_strictly(path)
        }
        result => result,
    }
}

pub(super) fn set_attributes(tree: BorrowedFd<'_>, op: &MountOp) -> sys::Result<()> {
    let propagation = flag_of(op.propagation);
    if op.recursive_attributes == op.recursive_propagation {
        if op.set | op.clear | propagation != 0 {
            mount::set_attributes(tree, op.set, op.clear, propagation, op.recursive_attributes)?;
        }
        return Ok(());
    }
    if op.set | op.clear != 0 {
        mount::set_attributes(tree, op.set, op.clear, 0, op.recursive_attributes)?;
    }
    if propagation != 0 {
        mount::set_attributes(tree, 0, 0, propagation, op.recursive_propagation)?;
    }
    Ok(())
}

/// Returns the `MS_*` flag of a propagation. 0 changes nothing.
pub(super) fn flag_of(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Unchanged => 0,
        Propagation::Private => mount::PRIVATE,
        Propagation::Slave => mount::SLAVE,
        Propagation::Shared => mount::SHARED,
        Propagation::Unbindable => mount::UNBINDABLE,
    }
}

type FsOptions = [(String, Option<String>)];

fn filesystem(fstype: &str, source: &str, options: &FsOptions, attributes: u64) -> sys::Result<OwnedFd> {
    let context = FsContext::open(fstype)?;
    if !source.is_empty() {
        context.set("source", Some(source))?;
    }
    for (key, value) in options {
        context.set(key, value.as_deref())?;
    }
    context.mount(attributes)
}

/// Creates a /dev and fills it before it is attached.
fn dev(
    options: &FsOptions,
    nodes: &[DeviceNode],
    links: &[(String, String)],
    attributes: u64,
) -> sys::Result<OwnedFd> {
    let tree = filesystem("tmpfs", "tmpfs", options, attributes & !mount::ATTR_RDONLY)?;
    let root = Root::new(mount::same_place(&tree)?);
    for node in nodes {
        devices::create(&root, &node.path, node)?;
    }
    for (name, to) in links {
        let (folder, name) = root.make_parent(name)?;
        rustix::fs::symlinkat(to.as_str(), &folder, name).on("symlink", name)?;
    }
    Ok(tree)
}

/// Mounts the container's cgroups. The mounts show the container's cgroup as their root, because the cgroup
/// namespace is new.
fn cgroup(root: &Root, op: &MountOp, hierarchies: &[CgroupHierarchy]) -> sys::Result<()> {
    let target = strict_folder(root, &op.target)?;
    if hierarchies.is_empty() {
        let tree = filesystem("cgroup2", "cgroup", &[], op.set)?;
        return mount::attach(tree.as_fd(), target.as_fd());
    }
    let folder_mode = [("mode".to_owned(), Some("755".to_owned()))];
    let tree = filesystem("tmpfs", "tmpfs", &folder_mode, op.set & !mount::ATTR_RDONLY)?;
    mount::attach(tree.as_fd(), target.as_fd())?;
    for hierarchy in hierarchies {
        let path = format!("{}/{}", op.target, hierarchy.folder);
        let place = root.make_folder(&path)?;
        let context = FsContext::open("cgroup")?;
        for option in &hierarchy.options {
            match option.split_once('=') {
                Some((key, value)) => context.set(key, Some(value))?,
                None => context.set(option, None)?,
            }
        }
        mount::attach(context.mount(op.set)?.as_fd(), place.as_fd())?;
        for link in &hierarchy.links {
            rustix::fs::symlinkat(hierarchy.folder.as_str(), &tree, link.as_str()).on("symlink", link)?;
        }
    }
    mount::set_attributes(tree.as_fd(), op.set, 0, 0, false)
}

/// Makes a path read-only, with everything below it. A path that does not exist is skipped.
pub(super) fn make_read_only(root: &Root, path: &str) -> sys::Result<()> {
    let Some(place) = present(root, path)? else { return Ok(()) };
    let clone = mount::clone_descriptor(place.as_fd(), true)?;
    mount::set_attributes(clone.as_fd(), mount::ATTR_RDONLY, 0, 0, true)?;
    mount::attach(clone.as_fd(), place.as_fd())
}

pub(super) fn present(root: &Root, path: &str) -> sys::Result<Option<OwnedFd>> {
    match root.resolve(path) {
        Ok(place) => Ok(Some(place)),
        Err(error) if matches!(error.errno, Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Mounts a terminal on /dev/console.
pub(super) fn attach_console(root: &Root, slave: &OwnedFd) -> sys::Result<()> {
    let clone = mount::clone_descriptor(slave.as_fd(), false)?;
    let place = root.make_file("/dev/console")?;
    mount::attach(clone.as_fd(), place.as_fd())
}

/// Opens the current mount namespace, so that the process can return to it.
pub(super) fn own_mount_namespace() -> sys::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/proc/self/ns/mnt", flags, Mode::empty()).on("open", "/proc/self/ns/mnt")
}
