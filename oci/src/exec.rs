//! `exec`: runs a command in a running container.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::compile::{FdList, compile_process, compile_users};
use berth_runtime::init::exec;
use berth_runtime::init::{Descriptors, Gate, Streams};
use berth_runtime::plan::ExecPlan;
use berth_runtime::procfs::Proc;
use berth_runtime::seccomp;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::{socket, spawn::spawn};
use oci_spec::runtime::{Capability, Process, Spec};
use rustix::stdio;

use crate::arguments::Exec;
use crate::cgroups;
use crate::child::{FirstProcess, Progress};
use crate::console;
use crate::create::write_pid;
use crate::error::{At, Error, Result};
use crate::foreground::{self, Signals};
use crate::namespaces::{self, Clocks};
use crate::store::{Container, Status, Store};

/// Runs the command. Returns the exit code of the process.
pub(crate) fn run(store: &Store, arguments: &Exec) -> Result<u8> {
    let container = store.find(&arguments.id)?;
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused if arguments.ignore_paused => {}
        Status::Stopped | Status::Creating => return Err(Error::NotRunning),
        other => return Err(Error::State { id: container.record.id, state: other.name() }),
    }
    let spec = container.spec()?;
    let process = process(&spec, arguments)?;
    let terminal = process.terminal().unwrap_or(false);
    console::check(terminal, arguments.detach, arguments.handover.console_socket.as_deref())?;
    let (mut child, plan) = clone_process(&container, &spec, &process, arguments)?;
    let master = match accompany(&mut child, arguments, &plan) {
        Ok(master) => master,
        Err(error) => {
            child.kill();
            return Err(error);
        }
    };
    if let Some(path) = &arguments.handover.pid_file {
        write_pid(path, child.pid)?;
    }
    match arguments.detach {
        true => Ok(0),
        false => foreground::wait(&child, master.as_ref(), &Signals::catch()?),
    }
}

/// Returns the process of a file, or that of the container with changes.
fn process(spec: &Spec, arguments: &Exec) -> Result<Process> {
    if let Some(path) = &arguments.process {
        let mut process: Process =
            serde_json::from_slice(&fs::read(path).at("read", path)?).at("read", path)?;
        if arguments.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let missing = || Error::Invalid { field: "process", why: "the container has none".to_owned() };
    let mut process = spec.process().clone().ok_or_else(missing)?;
    process.set_terminal(Some(arguments.tty)).set_args(Some(arguments.command.clone()));
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    process.set_env(Some(merge(process.env().iter().flatten().chain(&arguments.env))));
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    set_user(&mut process, arguments)?;
    add_capabilities(&mut process, &arguments.capabilities)?;
    Ok(process)
}

/// Returns the variables. The last value of a name is the one that counts.
fn merge<'a>(variables: impl Iterator<Item = &'a String>) -> Vec<String> {
    let name = |text: &str| text.split('=').next().map(str::to_owned);
    let mut all: Vec<String> = Vec::new();
    for variable in variables {
        match all.iter_mut().find(|known| name(known) == name(variable)) {
            Some(known) => known.clone_from(variable),
            None => all.push(variable.clone()),
        }
    }
    all
}

fn set_user(process: &mut Process, arguments: &Exec) -> Result<()> {
    let mut user = process.user().clone();
    if let Some(text) = &arguments.user {
        let (uid, gid) = text.split_once(':').map_or((text.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| {
            let invalid = |_| Error::Invalid { field: "--user", why: format!("{text:?} is not a number") };
            text.parse::<u32>().map_err(invalid)
        };
        user.set_uid(number(uid)?);
        user.set_gid(gid.map_or(Ok(0), number)?);
        user.set_additional_gids(None);
    }
    if !arguments.additional_gids.is_empty() {
        let groups = user.additional_gids().iter().flatten().chain(&arguments.additional_gids).copied();
        let groups = groups.collect();
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    Ok(())
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let text = name.to_uppercase();
        let text = format!("CAP_{}", text.strip_prefix("CAP_").unwrap_or(&text));
        let capability: Capability = serde_json::from_value(text.into())
            .map_err(|_| Error::Invalid { field: "--cap", why: format!("{name:?} is unknown") })?;
        let with = |set: &Option<oci_spec::runtime::Capabilities>| {
            Some(set.iter().flatten().copied().chain([capability]).collect())
        };
        sets.set_bounding(with(sets.bounding()));
        sets.set_effective(with(sets.effective()));
        sets.set_permitted(with(sets.permitted()));
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

fn clone_process(
    container: &Container,
    spec: &Spec,
    process: &Process,
    arguments: &Exec,
) -> Result<(FirstProcess, ExecPlan)> {
    let mut list = FdList::default();
    let mut compiled = compile_process(process)?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    if let Some(profile) = profile {
        compiled.seccomp = Some(list.push_filter(&seccomp::compile(profile)?)?);
    }
    let tty = process.terminal().unwrap_or(false);
    let cgroup = cgroups::of_exec(container.cgroup()?, &arguments.cgroup)?;
    let cgroup = list.push_cgroup(cgroup.join()?);
    let plan = ExecPlan {
        process: compiled,
        cgroup,
        userns: compile_users(spec).filter(|_| namespaces::has_users(spec)),
        stdin: None,
        stdout: None,
        stderr: None,
        tty,
        runtime: None,
    };
    let opened = list.into_owned();
    let descriptors = Descriptors(&opened);
    let init = container.process().ok_or(Error::NotRunning)?;
    let keyring = KeyringName::from_secret(&container.record.keyring);
    let proc = Proc::mount()?;
    let directory = plan.cgroup.directory.map(|slot| descriptors.get(slot)).transpose()?;
    let pair = socket::pair()?;
    // The process continues as another one in the container's PID namespace.
    socket::report_senders(pair.0.as_fd(), true)?;
    let clocks = Clocks::of_process(container.record.pid)?;
    let own_clocks = clocks.as_ref().map(Clocks::enter).transpose()?;
    let (child, gate) = spawn(Namespaces::NONE, directory, pair, |socket, single| {
        let streams = match tty {
            true => Streams { stdin: None, stdout: None, stderr: None },
            false => Streams {
                stdin: Some(stdio::stdin()),
                stdout: Some(stdio::stdout()),
                stderr: Some(stdio::stderr()),
            },
        };
        let gate = Gate::new(socket);
        let init = init.as_fd();
        exec::run(exec::ExecStart {
            plan: &plan,
            descriptors,
            init,
            keyring: &keyring,
            proc: &proc,
            streams,
            gate,
            preserved: arguments.handover.preserve_fds,
            single,
        })
    })?;
    drop(own_clocks);
    Ok((FirstProcess::new(child, gate), plan))
}

/// Waits until the command runs. Returns its terminal, unless a console socket has received it.
fn accompany(child: &mut FirstProcess, arguments: &Exec, plan: &ExecPlan) -> Result<Option<OwnedFd>> {
    let mut master = None;
    loop {
        let progress = child.next().map_err(|failure| Error::Container {
            action: "exec in",
            id: arguments.id.clone(),
            why: format!("{failure}: {:?}", plan.process.args.first().map_or("", String::as_str)),
        })?;
        match (progress, &arguments.handover.console_socket) {
            (Progress::Terminal(terminal), Some(path)) => console::send(path, &terminal)?,
            (Progress::Terminal(terminal), None) => master = Some(terminal),
            (Progress::Closed, _) => return Ok(master),
            (Progress::Hooks | Progress::Ready, _) => {}
        }
    }
}
