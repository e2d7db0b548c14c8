//! Clones the first process of a container, and accompanies it until it waits for the start.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use berth_runtime::cgroup::Cgroup;
use berth_runtime::compile::{self, FdList, PlanInput, PodNamespaces, compile_container};
use berth_runtime::hooks;
use berth_runtime::init::container::{self, JoinTargets};
use berth_runtime::init::{Descriptors, Gate, HANDOVER, HOOKED, Streams};
use berth_runtime::path::Root;
use berth_runtime::plan::{ContainerPlan, HookKind, PidNamespace, StdioPlan};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::{mount, socket, spawn::spawn};
use berth_runtime::wire::InitFailure;
use berth_runtime::{cgroup::Hierarchies, seccomp};
use rustix::stdio;

use crate::bundle::Bundle;
use crate::child::{FirstProcess, Progress, vanished};
use crate::console;
use crate::error::{Error, Result};
use crate::mounts;
use crate::namespaces::{self, Clocks};
use crate::store::{Container, GATE};

/// The plan of a container and what belongs to it.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) plan: ContainerPlan,
    descriptors: Vec<OwnedFd>,
    /// A process whose PID namespace the container joins.
    pid_target: Option<OwnedFd>,
    /// The user namespace that the container joins.
    users: Option<OwnedFd>,
    /// The clocks of the container.
    clocks: Option<Clocks>,
    /// The number of the caller's descriptors that the container gets.
    preserved: u32,
}

impl Launch {
    /// Compiles the spec of a bundle. The cgroup exists.
    pub(crate) fn compile(
        bundle: &Bundle,
        container: &Container,
        hierarchies: &Hierarchies,
        cgroup: &Cgroup,
        preserved: u32,
    ) -> Result<Self> {
        let mut spec = bundle.spec.clone();
        let mut descriptors = FdList::default();
        let rootfs = mount::clone_path(bundle.rootfs.to_str().unwrap_or_default(), true)?;
        // The clone of a shared mount is its peer: mounts of the container would appear on the host, and pivot_root(2)
        // would fail.
        mount::set_attributes(rootfs.as_fd(), 0, 0, mount::PRIVATE, true)?;
        let cgroup_namespace = compile::has_cgroup_namespace(&spec);
        mounts::adapt(&mut spec, &Root::new(mount::same_place(rootfs.as_fd())?), cgroup, cgroup_namespace)?;
        let rootfs = descriptors.push(rootfs);
        let cgroup = descriptors.push_cgroup(cgroup.join()?);
        let pid_target = namespaces::take_pid_target(&mut spec)?;
        let ids = compile::compile_users(&spec).filter(|_| namespaces::has_users(&spec));
        let users = namespaces::take_users(&mut spec, ids.as_ref())?;
        let clocks = Clocks::of(&spec)?;
        let namespaces = namespaces::open(&spec)?
            .into_iter()
            .map(|(path, namespace)| (path, descriptors.push(namespace)))
            .collect();
        let profile = spec.linux_mut().as_mut().and_then(|linux| {
            let profile = linux.seccomp().clone();
            linux.set_seccomp(None);
            profile
        });
        let filter = profile.map(|profile| seccomp::compile(&profile)).transpose()?;
        if filter.as_ref().is_some_and(|filter| filter.listener.is_some()) {
            return Err(Error::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        let mount_label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
        let input = PlanInput {
            pid_target: pid_target.is_some().then(|| "of the spec".to_owned()),
            id: &container.record.id,
            bundle: &bundle.folder,
            pod: PodNamespaces { pause_pid: namespaces::NOBODY },
            hierarchies,
            stdio: StdioPlan { tty: terminal, ..StdioPlan::default() },
            rootfs,
            cgroup,
            directories: Vec::new(),
            users: ids,
            device_sources: Default::default(),
            mount_label: mount_label.filter(|label| !label.is_empty()),
            cgroup_namespace,
            trees: Default::default(),
            namespaces,
        };
        let mut plan = compile_container(&spec, &input)?;
        if let Some(filter) = filter {
            let mut filter = descriptors.push_filter(&filter)?;
            // The process waits for the start with system calls that the filter may reject.
            filter.early = false;
            plan.process.seccomp = Some(filter);
        }
        Ok(Self { plan, descriptors: descriptors.into_owned(), pid_target, users, clocks, preserved })
    }

    /// Clones the first process and runs the hooks of the host. When it returns, the process waits for the start.
    pub(crate) fn start(&self, container: &Container, console_socket: Option<&Path>) -> Result<Launched> {
        let failed = |failure: InitFailure| Error::Container {
            action: "create",
            id: container.record.id.clone(),
            why: compile::explain(&failure, &self.plan),
        };
        let mut process = self.clone_process(container)?;
        match self.accompany(&mut process, console_socket, &failed) {
            Ok(terminal) => Ok(Launched { process, terminal }),
            Err(error) => {
                process.kill();
                Err(error)
            }
        }
    }

    fn clone_process(&self, container: &Container) -> Result<FirstProcess> {
        let plan = &self.plan;
        let descriptors = Descriptors(&self.descriptors);
        let proc = Proc::mount()?;
        let keyring = KeyringName::from_secret(&container.record.keyring);
        // In a user namespace the process clones another one, so that the PID namespace belongs to it.
        let clones_directly = plan.pid == PidNamespace::New && self.users.is_none();
        let namespaces = if clones_directly { Namespaces::PID } else { Namespaces::NONE };
        let cgroup = plan.cgroup.directory.map(|slot| descriptors.get(slot)).transpose()?;
        let pair = socket::pair()?;
        if self.pid_target.is_some() || (plan.pid == PidNamespace::New && !clones_directly) {
            socket::report_senders(pair.0.as_fd(), true)?;
        }
        let joined = JoinTargets {
            pause: None,
            userns: self.users.as_ref().map(AsFd::as_fd),
            pid_target: self.pid_target.as_ref().map(AsFd::as_fd),
        };
        let own_clocks = self.clocks.as_ref().map(Clocks::enter).transpose()?;
        let (child, gate) = spawn(namespaces, cgroup, pair, |socket, single| {
            let own = (!plan.stdio.tty).then(|| [stdio::stdin(), stdio::stdout(), stdio::stderr()]);
            let streams = match own {
                Some([stdin, stdout, stderr]) => {
                    Streams { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) }
                }
                None => Streams { stdin: None, stdout: None, stderr: None },
            };
            let gate = Gate::new(socket);
            container::run(container::ContainerStart {
                plan,
                descriptors,
                joined,
                keyring: &keyring,
                proc: &proc,
                streams,
                gate,
                preserved: self.preserved,
                single,
            })
        })?;
        // Hooks have the clocks of the host.
        drop(own_clocks);
        Ok(FirstProcess::new(child, gate))
    }

    /// Waits until the process is ready. Returns its terminal, unless a console socket has received it.
    fn accompany(
        &self,
        process: &mut FirstProcess,
        console_socket: Option<&Path>,
        failed: &dyn Fn(InitFailure) -> Error,
    ) -> Result<Option<OwnedFd>> {
        let mut terminal = None;
        loop {
            match process.next().map_err(failed)? {
                Progress::Terminal(master) => match console_socket {
                    Some(path) => console::send(path, &master)?,
                    None => terminal = Some(master),
                },
                Progress::Hooks => {
                    if let Some(plan) = &self.plan.hooks {
                        for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
                            hooks::run(plan, kind, process.pid, None).map_err(failed)?;
                        }
                    }
                    rustix::io::write(&process.gate, &[HOOKED]).map_err(|errno| Error::Io {
                        action: "continue after the hooks",
                        source: errno.into(),
                    })?;
                }
                Progress::Ready => return Ok(terminal),
                Progress::Closed => return Err(failed(vanished())),
            }
        }
    }
}

/// A first process that waits for the start.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) process: FirstProcess,
    pub(crate) terminal: Option<OwnedFd>,
}

/// Passes the process the socket at which `start` will connect. From then on, this process may end.
pub(crate) fn hand_over(process: &FirstProcess, folder: &Path) -> Result<()> {
    let listener = socket::listen(folder, GATE)?;
    rustix::io::ioctl_fionbio(&listener, false)
        .map_err(|errno| Error::Io { action: "use the gate's socket", source: errno.into() })?;
    Ok(socket::send(process.gate.as_fd(), &[HANDOVER], &[listener.as_fd()])?)
}
