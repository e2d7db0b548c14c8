//! The steps that a container's first process and an exec have in common: standard streams, limits, labels and
//! credentials.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::masks::NULL;
use super::{At, StepResult};
use crate::path::Root;
use crate::plan::{CapabilityMasks, ProcessPlan, Rlimit, SchedulingPlan, UserNamespace};
use crate::procfs::Proc;
use crate::sys::{self, Context, pty, scheduling, security};
use crate::wire::Step;

/// `DEVPTS_SUPER_MAGIC` (statfs(2)).
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// The standard streams of a process that come from outside of its container. The others are the container's null
/// device.
#[derive(Debug)]
pub struct Streams<'a> {
    /// Standard input.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Standard output.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error.
    pub stderr: Option<BorrowedFd<'a>>,
}

impl<'a> Streams<'a> {
    /// Returns streams that are all the same terminal.
    pub(super) fn of_terminal(slave: &'a OwnedFd) -> Self {
        let slave = Some(slave.as_fd());
        Self { stdin: slave, stdout: slave, stderr: slave }
    }

    fn all(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten()
    }
}

/// Makes the streams the process's standard streams, and their owner the user. Call this when the container's root
/// is the root.
pub(super) fn set_streams(streams: &Streams<'_>, plan: &ProcessPlan) -> StepResult<()> {
    let null = match streams.all().count() {
        3 => None,
        _ => Some(open_null().at(Step::Stdio)?),
    };
    for stream in streams.all() {
        chown_to_user(stream, plan).at(Step::Stdio)?;
    }
    let or_null = |stream: Option<BorrowedFd<'_>>, put: fn(BorrowedFd<'_>) -> rustix::io::Result<()>| {
        let fd = stream.or(null.as_ref().map(AsFd::as_fd)).ok_or(Errno::BADF);
        fd.and_then(put).on("dup2", "a standard stream").at(Step::Stdio)
    };
    or_null(streams.stdin, |fd| rustix::stdio::dup2_stdin(fd))?;
    or_null(streams.stdout, |fd| rustix::stdio::dup2_stdout(fd))?;
    or_null(streams.stderr, |fd| rustix::stdio::dup2_stderr(fd))
}

/// Opens the container's own null device. The host's must not be used: the container could change its mode and
/// owner through the descriptor.
fn open_null() -> sys::Result<OwnedFd> {
    let path = "/dev/null";
    // Another file at this path must not block this process, nor become its terminal.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = Root::new(sys::mount::place("/")?).open(path, flags)?;
    let stat = rustix::fs::fstat(&null).on("fstat", path)?;
    let is_char = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    if !is_char || stat.st_rdev != rustix::fs::makedev(NULL.0, NULL.1) {
        return Err(Errno::NODEV).on("open", format_args!("{path}, which is not the null device"));
    }
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR).on("fcntl(F_SETFL)", path)?;
    Ok(null)
}

/// Makes the process's user the owner of its pipes and terminal. Programs that log to /dev/stdout open it again,
/// and need that.
fn chown_to_user(stream: BorrowedFd<'_>, plan: &ProcessPlan) -> sys::Result<()> {
    let stat = rustix::fs::fstat(stream).on("fstat", "a standard stream")?;
    let is_pipe = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo;
    if (!is_pipe && !rustix::termios::isatty(stream)) || stat.st_uid == plan.uid {
        return Ok(());
    }
    let owner = rustix::fs::Uid::from_raw(plan.uid);
    // The group remains: a terminal's group is tty, and only root and the group's members may write to it.
    rustix::fs::fchown(stream, Some(owner), None).on("fchown", "a standard stream")
}

/// Opens a pseudo terminal in the devpts of a root filesystem and sets its size if that is known. Returns master
/// and slave.
pub(super) fn open_terminal(root: &Root, plan: &ProcessPlan) -> StepResult<(OwnedFd, OwnedFd)> {
    let open = || {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let place = root.resolve_strictly("/dev/pts")?;
        let devpts = rustix::fs::openat(&place, ".", flags, Mode::empty()).on("open", "/dev/pts")?;
        let magic = rustix::fs::fstatfs(&devpts).on("fstatfs", "/dev/pts")?.f_type;
        if u64::try_from(magic).ok() != Some(DEVPTS_MAGIC) {
            return Err(Errno::XDEV).on("open", "/dev/pts, which is not a devpts");
        }
        let terminal = pty::open(devpts)?;
        if let Some((width, height)) = plan.terminal_size {
            pty::resize(terminal.0.as_fd(), width, height)?;
        }
        Ok(terminal)
    };
    open().at(Step::Terminal)
}

/// Becomes root of the pod's user namespace. Before that, it does what only the host's root may: it sets the
/// limits and the OOM score, and gives the pipes, whose owner is not mapped in the namespace, to the future user
/// of the process.
pub(super) fn enter_user_namespace(
    plan: &ProcessPlan,
    userns: &UserNamespace,
    streams: &Streams<'_>,
    proc: &Proc,
    join: impl FnOnce() -> sys::Result<()>,
) -> StepResult<()> {
    set_limits(plan, proc)?;
    let owner = userns.host_uid(plan.uid).ok_or(Errno::INVAL).on("user namespace, user", plan.uid);
    let owner = rustix::fs::Uid::from_raw(owner.at(Step::Credentials)?);
    for stream in streams.all() {
        let stat = rustix::fs::fstat(stream).on("fstat", "a standard stream").at(Step::Stdio)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo {
            let given = rustix::fs::fchown(stream, Some(owner), None);
            given.on("fchown", "a standard stream").at(Step::Stdio)?;
        }
    }
    join().at(Step::JoinNamespaces)?;
    security::set_ids(0, 0, &[]).at(Step::Credentials)
}

/// Sets limits and labels, which are set through procfs or require root.
pub(super) fn set_limits_and_labels(plan: &ProcessPlan, proc: &Proc) -> StepResult<()> {
    set_limits(plan, proc)?;
    set_labels(plan, proc)
}

fn set_limits(plan: &ProcessPlan, proc: &Proc) -> StepResult<()> {
    if let Some(score) = plan.oom_score_adj {
        proc.write("self/oom_score_adj", &score.to_string()).at(Step::OomScore)?;
    }
    set_scheduling(&plan.scheduling)?;
    for (index, limit) in plan.rlimits.iter().enumerate() {
        let set = match limit.resource {
            // The process that will be cloned counts as well. It sets the limit itself; lowering it needs no
            // privilege.
            security::RLIMIT_NPROC => security::raise_hard_rlimit(limit.resource, limit.hard),
            resource => security::set_rlimit(resource, limit.soft, limit.hard),
        };
        set.at_index(Step::Rlimit, index)?;
    }
    Ok(())
}

fn set_scheduling(plan: &SchedulingPlan) -> StepResult<()> {
    if let Some(scheduler) = &plan.scheduler {
        scheduling::set_scheduler(scheduler).at(Step::Scheduling)?;
    }
    if let Some(priority) = plan.io_priority {
        scheduling::set_io_priority(priority).at(Step::Scheduling)?;
    }
    match &plan.memory_policy {
        Some(policy) => scheduling::set_memory_policy(policy).at(Step::Scheduling),
        None => Ok(()),
    }
}

/// Returns the limit on the user's processes, which is set last.
pub(super) fn processes(plan: &ProcessPlan) -> Option<&Rlimit> {
    plan.rlimits.iter().rev().find(|limit| limit.resource == security::RLIMIT_NPROC)
}

pub(super) fn set_labels(plan: &ProcessPlan, proc: &Proc) -> StepResult<()> {
    if let Some(profile) = &plan.apparmor {
        proc.write("self/attr/apparmor/exec", &format!("exec {profile}")).at(Step::SecurityLabel)?;
    }
    if let Some(label) = &plan.selinux {
        proc.write("self/attr/exec", label).at(Step::SecurityLabel)?;
    }
    Ok(())
}

/// Becomes the user, with exactly the plan's capabilities.
fn set_credentials(plan: &ProcessPlan) -> StepResult<()> {
    rustix::process::umask(Mode::from_raw_mode(plan.umask.unwrap_or(0o022)));
    security::limit_bounding_set(plan.capabilities.bounding).at(Step::Capabilities)?;
    security::keep_capabilities(true).at(Step::Capabilities)?;
    security::set_ids(plan.uid, plan.gid, &plan.groups).at(Step::Credentials)?;
    security::set_capabilities(&capabilities_until_exec(plan)).at(Step::Capabilities)?;
    security::keep_capabilities(false).at(Step::Capabilities)?;
    if plan.no_new_privs {
        security::no_new_privs().at(Step::NoNewPrivs)?;
    }
    // The process must stay unreadable until the exec, also after a change of ids.
    security::set_dumpable(false).at(Step::Credentials)
}

/// Adds CAP_SYS_ADMIN if the filter needs it: a filter can be loaded only by a process that cannot gain
/// privileges, or that has this capability (seccomp(2)). The filter is loaded last, so that it need not allow the
/// steps before. The capability lasts until the exec, which computes the program's capabilities from the bounding
/// and the ambient set alone (capabilities(7), "Transformation of capabilities").
fn capabilities_until_exec(plan: &ProcessPlan) -> CapabilityMasks {
    const SYS_ADMIN: u64 = 1 << 21;
    let mut masks = plan.capabilities;
    if plan.seccomp.is_some() && !plan.no_new_privs {
        masks.effective |= SYS_ADMIN;
        masks.permitted |= SYS_ADMIN;
    }
    masks
}

/// Becomes the user, in the working folder. The folder is entered before, as root, because the user may not be
/// permitted to enter it (another user's home folder). If root is not permitted either, as on a network
/// filesystem, it is entered as the user. runc does the same.
pub(super) fn set_credentials_and_cwd(plan: &ProcessPlan) -> StepResult<()> {
    match change_to_cwd(plan) {
        Err(failure) if [Errno::ACCESS, Errno::PERM].map(Errno::raw_os_error).contains(&failure.errno) => {
            set_credentials(plan)?;
            change_to_cwd(plan)
        }
        entered => entered.and_then(|()| set_credentials(plan)),
    }
}

/// Changes to the working folder. Magic links are not followed, so that none of the descriptors that are still
/// open can be reached (CVE-2024-21626).
fn change_to_cwd(plan: &ProcessPlan) -> StepResult<()> {
    let change = || {
        let root = Root::new(sys::mount::place("/")?);
        let cwd = root.resolve(&plan.cwd)?;
        rustix::process::fchdir(cwd.as_fd()).on("fchdir", &plan.cwd)?;
        // A folder outside of the root has no path inside it (getcwd(3), "(unreachable)").
        let path = rustix::process::getcwd(Vec::new()).on("getcwd", &plan.cwd)?;
        if !path.as_bytes().starts_with(b"/") {
            return Err(Errno::XDEV).on("getcwd", &plan.cwd);
        }
        Ok(())
    };
    change().at(Step::WorkingDirectory)
}

/// Returns the possible paths of the program: its path, or its name in each folder of the plan's PATH.
pub(super) fn candidates(plan: &ProcessPlan) -> Vec<String> {
    let Some(program) = plan.args.first() else { return Vec::new() };
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.clone()];
    }
    let path = plan.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or("");
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| format!("{folder}/{program}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(program: &str, env: &[&str]) -> ProcessPlan {
        let env = env.iter().map(|&variable| variable.to_owned()).collect();
        ProcessPlan { args: vec![program.to_owned()], env, ..ProcessPlan::default() }
    }

    #[test]
    fn a_program_is_searched_in_the_plans_own_path() {
        assert_eq!(candidates(&plan("sh", &["PATH=/bin:/usr/bin"])), ["/bin/sh", "/usr/bin/sh"]);
        assert_eq!(candidates(&plan("./sh", &["PATH=/bin"])), ["./sh"]);
        assert_eq!(candidates(&plan("sh", &["PATH=.:bin:/bin"])), ["/bin/sh"], "only absolute folders");
        assert!(candidates(&plan("sh", &[])).is_empty());
        assert!(candidates(&plan("", &["PATH=/bin"])).is_empty());
    }
}
