//! Compiles an OCI runtime spec to a flat plan. The daemon reads, checks and translates the whole spec here, so
//! that the first process of a container parses nothing.
//!
//! * this file: the plan as a whole, and the namespaces
//! * [`process`]: the command and its credentials; [`scheduling`]: its scheduler, I/O priority and memory policy
//! * [`mounts`]: mounts, /dev, paths
//! * [`hooks`]: programs that run at points of a container's life
//! * [`mod@explain`]: describes a failure of the first process with the plan's object that it is about
//! * [`mod@explain`]: describes the failure of a first process

mod explain;
mod hooks;
mod mounts;
mod process;
mod scheduling;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};

pub use explain::explain;
pub use hooks::compile_hooks;
pub use process::compile_process;

use crate::cgroup::{Hierarchies, JoinFds};
use crate::plan::{
    CgroupJoin, ContainerPlan, FdSlot, IdRange, NamespaceSource, PidNamespace, Propagation, SeccompListener,
    SeccompPlan, StdioPlan, UserNamespace,
};
use crate::seccomp::Filter;
use crate::sys::{self, Context as _};

/// The source of a mount in the spec that refers to the pod's shared memory.
pub const POD_SHM: &str = "berth:pod-shm";

/// The prefix of the source of a mount that refers to a file of the pod. The file's name follows.
pub const POD_FILE: &str = "berth:pod-file:";

/// The prefix of the source of a mount that refers to an image. The image's mount is in [`PlanInput::trees`].
pub const IMAGE_VOLUME: &str = "berth:image:";

/// An error of compiling a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A required part is missing.
    #[error("invalid spec: {0} is missing")]
    Missing(&'static str),
    /// A field has an invalid value.
    #[error("invalid {field}: {value:?} {why}")]
    Invalid {
        /// The field of the OCI spec.
        field: String,
        /// The value that cannot be used.
        value: String,
        /// The rule that the value breaks.
        why: &'static str,
    },
    /// The runtime does not support the field.
    #[error("{field} is not supported")]
    Unsupported {
        /// The field of the OCI spec.
        field: String,
    },
}

pub(crate) type Result<T> = std::result::Result<T, CompileError>;

fn invalid(field: impl Into<String>, value: impl Into<String>, why: &'static str) -> CompileError {
    CompileError::Invalid { field: field.into(), value: value.into(), why }
}

/// Checks a text for the kernel, which must not contain a NUL byte.
fn text(field: &str, value: &str) -> Result<String> {
    if value.contains('\0') {
        return Err(invalid(field, value, "contains a NUL byte"));
    }
    Ok(value.to_owned())
}

fn path_text(field: &str, path: &Path) -> Result<String> {
    match path.to_str() {
        Some(path) => text(field, path),
        None => Err(invalid(field, path.to_string_lossy(), "is not UTF-8")),
    }
}

/// The descriptors that are sent with a plan.
#[derive(Debug, Default)]
pub struct FdList {
    descriptors: Vec<OwnedFd>,
}

impl FdList {
    /// Adds a descriptor. Returns its slot, which the plan contains.
    pub fn push(&mut self, descriptor: OwnedFd) -> FdSlot {
        let slot = FdSlot(u32::try_from(self.descriptors.len()).unwrap_or(u32::MAX));
        self.descriptors.push(descriptor);
        slot
    }

    /// Adds the descriptors to join a cgroup.
    pub fn push_cgroup(&mut self, join: JoinFds) -> CgroupJoin {
        CgroupJoin {
            directory: join.directory.map(|fd| self.push(fd)),
            tasks: join.tasks.into_iter().map(|fd| self.push(fd)).collect(),
            oom: join.oom.map(|fd| self.push(fd)),
            oom_above: join.oom_above.map(|fd| self.push(fd)),
        }
    }

    /// Adds the descriptor of a filter.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn push_filter(&mut self, filter: &Filter) -> sys::Result<SeccompPlan> {
        let listener = filter.listener.as_ref().map(|listener| SeccompListener {
            path: listener.path.display().to_string(),
            metadata: listener.metadata.clone(),
        });
        let program = filter.program.try_clone().on("dup", "a seccomp filter")?;
        Ok(SeccompPlan {
            filter: self.push(program),
            flags: filter.flags,
            mute: filter.mute,
            early: filter.early,
            listener,
        })
    }

    /// Returns the descriptors in the order of their slots.
    #[must_use]
    pub fn into_owned(self) -> Vec<OwnedFd> {
        self.descriptors
    }
}

/// The pod's namespaces. The spec refers to them by the paths of the pause in /proc.
#[derive(Clone, Copy, Debug)]
pub struct PodNamespaces {
    /// The pid of the pause.
    pub pause_pid: i32,
}

/// The input for a plan in addition to the spec.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// The container whose process namespace is joined, if any.
    pub pid_target: Option<String>,
    /// The container's id.
    pub id: &'a str,
    /// The folder of the spec.
    pub bundle: &'a Path,
    /// The pod's namespaces.
    pub pod: PodNamespaces,
    /// The cgroups of this host.
    pub hierarchies: &'a Hierarchies,
    /// The standard streams.
    pub stdio: StdioPlan,
    /// The root filesystem, which is already mounted.
    pub rootfs: FdSlot,
    /// The cgroup, which already exists.
    pub cgroup: CgroupJoin,
    /// Folders to create in the root filesystem.
    pub directories: Vec<String>,
    /// The ids of the user namespace, if there is one ([`compile_users`]).
    pub users: Option<UserNamespace>,
    /// The paths of the host's device nodes, by their paths in the container.
    pub device_sources: BTreeMap<String, String>,
    /// SELinux label of the container's files.
    pub mount_label: Option<String>,
    /// Whether the container has a new cgroup namespace.
    pub cgroup_namespace: bool,
    /// Detached mounts, by the destination of the mount in the spec.
    pub trees: BTreeMap<String, FdSlot>,
    /// Namespaces that are not the pod's, by their paths in the spec.
    pub namespaces: BTreeMap<PathBuf, FdSlot>,
}

/// Compiles the spec of a container.
///
/// # Errors
/// The spec lacks a part, or has one that is invalid or not supported. The error contains the field.
pub fn compile_container(spec: &Spec, context: &PlanInput<'_>) -> Result<ContainerPlan> {
    let process = spec.process().as_ref().ok_or(CompileError::Missing("process"))?;
    let linux = spec.linux().as_ref().ok_or(CompileError::Missing("linux section"))?;
    refuse_unsupported(linux)?;
    let (dev, mounts) = mounts::compile(spec, linux, context)?;
    let namespaces = SpecNamespaces { linux, pod: context.pod, opened: &context.namespaces };
    let directories = context.directories.iter().map(|path| text("volumes", path));
    let list = |field: &'static str, paths: &Option<Vec<String>>| -> Result<Vec<String>> {
        paths.iter().flatten().map(|path| text(field, path)).collect()
    };
    let memory_policy = linux.memory_policy().as_ref().map(scheduling::memory_policy).transpose()?;
    let mut process = process::compile_process(process)?;
    process.scheduling.memory_policy = memory_policy;
    Ok(ContainerPlan {
        pid: namespaces.pid(context)?,
        userns: namespaces.users()?,
        net: namespaces.source(LinuxNamespaceType::Network)?,
        ipc: namespaces.source(LinuxNamespaceType::Ipc)?,
        uts: namespaces.source(LinuxNamespaceType::Uts)?,
        cgroup_namespace: context.cgroup_namespace,
        cgroup: context.cgroup.clone(),
        rootfs: context.rootfs,
        rootfs_readonly: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        rootfs_propagation: match linux.rootfs_propagation() {
            Some(name) => {
                propagation(name).ok_or_else(|| invalid("rootfsPropagation", name, "is not a propagation"))?.0
            }
            None => Propagation::Unchanged,
        },
        hooks: compile_hooks(spec, context.id, context.bundle, context.users.is_some())?,
        mounts,
        directories: directories.collect::<Result<_>>()?,
        devices: dev,
        masked_paths: list("maskedPaths", linux.masked_paths())?,
        readonly_paths: list("readonlyPaths", linux.readonly_paths())?,
        sysctls: sysctls(linux)?,
        hostname: spec.hostname().as_deref().map(|name| text("hostname", name)).transpose()?,
        mount_label: context.mount_label.as_deref().map(|label| text("mountLabel", label)).transpose()?,
        process,
        stdio: context.stdio.clone(),
        restore: None,
        runtime: None,
    })
}

/// Returns whether a container of this spec has a new cgroup namespace.
#[must_use]
pub fn has_cgroup_namespace(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux.iter().flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup)
}

/// Returns the ids of the user namespace of a container of this spec, if it has one.
#[must_use]
pub fn compile_users(spec: &Spec) -> Option<UserNamespace> {
    let linux = spec.linux().as_ref()?;
    let uids = ranges(linux.uid_mappings());
    (!uids.is_empty()).then(|| UserNamespace { uids, gids: ranges(linux.gid_mappings()) })
}

/// Rejects fields that would have no effect.
fn refuse_unsupported(linux: &Linux) -> Result<()> {
    let unsupported = |field: &str| Err(CompileError::Unsupported { field: field.to_owned() });
    // The filter is compiled separately and sent beside the plan (`FdList::push_filter`).
    if linux.seccomp().is_some() {
        return unsupported("linux.seccomp within the spec");
    }
    if linux.intel_rdt().is_some() {
        return unsupported("linux.intelRdt");
    }
    Ok(())
}

fn sysctls(linux: &Linux) -> Result<Vec<(String, String)>> {
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(invalid(format!("sysctl {name}"), value, "contains control characters"));
        }
        sysctls.push((text("sysctl", name)?, value.clone()));
    }
    sysctls.sort();
    Ok(sysctls)
}

struct SpecNamespaces<'a> {
    linux: &'a Linux,
    pod: PodNamespaces,
    opened: &'a BTreeMap<PathBuf, FdSlot>,
}

impl SpecNamespaces<'_> {
    /// Returns the path of a namespace in the spec. `Some(None)` is a new namespace, `None` the host's.
    fn find(&self, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
        let namespaces = self.linux.namespaces().iter().flatten();
        namespaces.clone().find(|ns| ns.typ() == kind).map(|ns| ns.path().as_deref())
    }

    fn source(&self, kind: LinuxNamespaceType) -> Result<NamespaceSource> {
        match self.find(kind) {
            None => Ok(NamespaceSource::Host),
            Some(None) => Ok(NamespaceSource::New),
            Some(Some(path)) if self.is_pods(path) => Ok(NamespaceSource::Pod),
            Some(Some(path)) => match self.opened.get(path) {
                Some(slot) => Ok(NamespaceSource::Descriptor(*slot)),
                None => Err(invalid(format!("namespace {kind}"), path.to_string_lossy(), "is not the pod's")),
            },
        }
    }

    /// Returns the user namespace, which must be the pod's: it owns all namespaces that the pod's containers
    /// share.
    fn users(&self) -> Result<Option<UserNamespace>> {
        match self.source(LinuxNamespaceType::User)? {
            NamespaceSource::Host => Ok(None),
            NamespaceSource::New | NamespaceSource::Descriptor(_) => {
                Err(CompileError::Unsupported { field: "a user namespace that is not the pod's".to_owned() })
            }
            NamespaceSource::Pod => Ok(Some(UserNamespace {
                uids: ranges(self.linux.uid_mappings()),
                gids: ranges(self.linux.gid_mappings()),
            })),
        }
    }

    fn pid(&self, context: &PlanInput<'_>) -> Result<PidNamespace> {
        if let Some(target) = &context.pid_target {
            return Ok(PidNamespace::Container(target.clone()));
        }
        Ok(match self.source(LinuxNamespaceType::Pid)? {
            NamespaceSource::New => PidNamespace::New,
            NamespaceSource::Pod => PidNamespace::Pod,
            NamespaceSource::Host => PidNamespace::Host,
            NamespaceSource::Descriptor(_) => {
                return Err(CompileError::Unsupported { field: "a PID namespace by its path".to_owned() });
            }
        })
    }

    fn is_pods(&self, path: &Path) -> bool {
        path.starts_with(format!("/proc/{}/ns", self.pod.pause_pid))
    }
}

fn ranges(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |mapping: &LinuxIdMapping| IdRange {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        length: mapping.size(),
    };
    mappings.iter().flatten().map(range).collect()
}

/// Parses a propagation's name in mount options. Returns the propagation, and whether it is recursive.
fn propagation(name: &str) -> Option<(Propagation, bool)> {
    let (name, recursive) = match name.strip_prefix('r') {
        Some(rest) if !rest.is_empty() => (rest, true),
        _ => (name, false),
    };
    let propagation = match name {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some((propagation, recursive))
}
