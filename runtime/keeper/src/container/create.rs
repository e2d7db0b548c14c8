//! Clones the first process of a container, with its streams.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use berth_runtime::init::container::{self, JoinTargets};
use berth_runtime::init::{Descriptors, Streams, restore, runtime};
use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::plan::{CgroupJoin, ContainerPlan, FdSlot, PidNamespace};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::Failure;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::attachments::Attachments;
use crate::container::Container;
use crate::container::delegated::{Delegation, caller_options};
use crate::container::oom::OomKills;
use crate::container::restore::RestoreProgress;
use crate::container::state::State;
use crate::failure::{Origin, system};
use crate::hooks::ContainerHooks;
use crate::input::Input;
use crate::log::Log;
use crate::output::Outputs;
use crate::services::Services;
use crate::spawn::{SpawnOptions, kill_unwatched, spawn};
use crate::supervisor::Supervisor;

/// The request for a container.
#[derive(Debug)]
pub(crate) struct NewContainer<'a> {
    pub(crate) id: String,
    pub(crate) folder: String,
    pub(crate) plan: &'a ContainerPlan,
    pub(crate) descriptors: Descriptors<'a>,
    pub(crate) joined: JoinTargets<'a>,
    /// The number of its log, which is unique in the keeper.
    pub(crate) log: u32,
    pub(crate) origin: Origin,
}

/// The child's and the keeper's ends of a container's standard streams. Empty with a terminal, which arrives
/// later.
#[derive(Default)]
struct StdioEnds {
    child: [Option<OwnedFd>; 3],
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

impl Container {
    /// Starts to create a container. The call is answered when its first process has reached the gate, or has failed.
    pub(crate) fn create(new: NewContainer<'_>, services: &mut Services) -> Result<Self, Failure> {
        if new.plan.runtime.is_some() {
            services.orphans.enable();
        }
        let container = Self::spawn(new, &services.proc).map_err(|error| system(&error))?;
        let watched = services.watch.add(container.child.gate.as_fd(), container.gate_source());
        watched.map_err(|error| kill_unwatched(&container.child, &error))?;
        Ok(container)
    }

    fn spawn(new: NewContainer<'_>, proc: &Proc) -> sys::Result<Self> {
        let NewContainer { id, folder, plan, descriptors, joined, log, origin } = new;
        let id: Rc<str> = id.into();
        let opened = open_slot(descriptors, plan.stdio.log)?;
        let log = Log::open(log, plan.stdio.log_path.clone(), opened)?;
        let ends = StdioEnds::open(plan)?;
        let keyring = KeyringName::new()?;
        let counter = |slot| open_slot(descriptors, slot);
        let oom_kills = OomKills::new(counter(plan.cgroup.oom)?, counter(plan.cgroup.oom_above)?);
        let no_cgroup = CgroupJoin::default();
        let options = match plan.runtime {
            // The runtime moves the container to its cgroup, which must be empty until then.
            Some(_) => caller_options(&no_cgroup, descriptors),
            None => own_options(plan, joined, descriptors),
        };
        let [stdin, stdout, stderr] = ends.child.each_ref().map(|end| end.as_ref().map(AsFd::as_fd));
        let child = spawn(options, |gate, single| {
            let streams = Streams { stdin, stdout, stderr };
            let keyring = &keyring;
            let start = container::ContainerStart {
                plan,
                descriptors,
                joined,
                keyring,
                proc,
                streams,
                gate,
                preserved: 0,
                single,
            };
            match (&plan.runtime, &plan.restore) {
                (Some(other), _) => runtime::create(start, other),
                (None, Some(checkpoint)) => restore::run(start, checkpoint),
                (None, None) => container::run(start),
            }
        })?;
        KeeperStep::Cloned.reach();
        Ok(Self {
            child,
            state: State::Creating(origin),
            outputs: Outputs::new(id.clone(), ends.outputs, log),
            attachments: Attachments::new(id.clone(), Input::new(ends.stdin, plan.stdio.stdin_once)),
            has_stdin: plan.stdio.stdin,
            awaits_terminal: plan.stdio.tty,
            supervisor: Supervisor::of(&plan.process, &id, &folder),
            hooks: ContainerHooks::new(id.clone(), plan.hooks.as_ref()),
            ending: None,
            restore: plan.restore.as_ref().map(|_| RestoreProgress::Waits),
            delegation: plan.runtime.clone().map(Delegation::new),
            id,
            folder,
            oom_kills,
            keyring,
        })
    }
}

/// Returns how the first process is cloned if berth's own runtime runs the container.
fn own_options<'a>(
    plan: &'a ContainerPlan,
    joined: JoinTargets<'_>,
    descriptors: Descriptors<'a>,
) -> SpawnOptions<'a> {
    // In a user namespace the first process clones another one, so that the new process namespace belongs to
    // the user namespace.
    let clones_directly = plan.pid == PidNamespace::New && plan.userns.is_none() && plan.restore.is_none();
    SpawnOptions {
        namespaces: match clones_directly {
            true => Namespaces::PID,
            false => Namespaces::NONE,
        },
        // The processes of a checkpoint are restored in namespaces that CRIU creates.
        moves: plan.restore.is_none()
            && (joined.pid_target.is_some() || (plan.pid == PidNamespace::New && !clones_directly)),
        cgroup: &plan.cgroup,
        userns: None,
        oom_score_adj: None,
        descriptors,
    }
}

fn open_slot(descriptors: Descriptors<'_>, slot: Option<FdSlot>) -> sys::Result<Option<OwnedFd>> {
    let fd = slot.map(|slot| descriptors.get(slot)).transpose()?;
    fd.map(|fd| fd.try_clone_to_owned().on("dup", "a descriptor of the plan")).transpose()
}

impl StdioEnds {
    fn open(plan: &ContainerPlan) -> sys::Result<Self> {
        if plan.stdio.tty {
            return Ok(Self::default());
        }
        let (stdin, held) = if plan.stdio.stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).on("pipe2", "stdin")?;
            rustix::io::ioctl_fionbio(&write, true).on("ioctl(FIONBIO)", "")?;
            (Some(read), Some(write))
        } else {
            (None, None)
        };
        let (stdout, out) = output_pipe()?;
        let (stderr, err) = output_pipe()?;
        let child = [stdin, Some(stdout), Some(stderr)];
        Ok(Self { child, stdin: held, outputs: [Some(out), Some(err)] })
    }
}

/// The child's and the keeper's end.
fn output_pipe() -> sys::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).on("pipe2", "output")?;
    rustix::io::ioctl_fionbio(&read, true).on("ioctl(FIONBIO)", "")?;
    Ok((write, read))
}
