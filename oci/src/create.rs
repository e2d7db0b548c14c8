//! `create`: clones the first process of a container.

use std::path::Path;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::hooks;
use berth_runtime::plan::{HookKind, Hooks};
use berth_runtime::sys::keys::KeyringName;

use crate::arguments::{Create, Global};
use crate::bundle::Bundle;
use crate::cgroups;
use crate::console;
use crate::error::{At, Error, Result};
use crate::launch::{self, Launch, Launched};
use crate::log;
use crate::store::{Container, Record, Store, hierarchies, start_time};

/// Runs the command.
pub(crate) fn run(global: &Global, store: &Store, arguments: &Create) -> Result<()> {
    create(global, store, arguments, Start::ByCommand).map(drop)
}

/// The way in which a created container is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// By the command `start`, which connects to a socket.
    ByCommand,
    /// By this process, which then ends or waits for the container in the foreground.
    ByThis { detached: bool },
}

/// A container whose first process waits for the start.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) container: Container,
    pub(crate) launched: Launched,
    pub(crate) hooks: Option<Hooks>,
}

/// Creates a container. If it fails, nothing is left.
pub(crate) fn create(global: &Global, store: &Store, arguments: &Create, start: Start) -> Result<Created> {
    store.check_new(&arguments.id)?;
    check(arguments)?;
    let bundle = Bundle::read(&arguments.bundle)?;
    let process = bundle.spec.process().as_ref();
    let terminal = process.and_then(|process| process.terminal()).unwrap_or(false);
    let detached = start != Start::ByThis { detached: false };
    console::check(terminal, detached, arguments.handover.console_socket.as_deref())?;
    let linux = bundle.spec.linux().as_ref();
    let cgroup = cgroups::path(linux.and_then(|linux| linux.cgroups_path().as_deref()), &arguments.id)?;
    cgroups::check_unused(&cgroup)?;
    let record = Record {
        oci_version: bundle.spec.version().clone(),
        id: arguments.id.clone(),
        bundle: bundle.folder.clone(),
        rootfs: bundle.rootfs.clone(),
        created: jiff::Timestamp::now().to_string(),
        annotations: bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        cgroup: cgroup.to_string(),
        pid: 0,
        start_time: 0,
        keyring: KeyringName::new()?.secret(),
    };
    let mut container = store.create(record)?;
    let made = make(&mut container, &bundle, &cgroup, arguments, start);
    match made {
        Ok((launched, hooks)) => Ok(Created { container, launched, hooks }),
        Err(error) => {
            undo(global, &container);
            Err(error)
        }
    }
}

fn check(arguments: &Create) -> Result<()> {
    for (set, flag) in [(arguments.no_pivot, "--no-pivot"), (arguments.no_new_keyring, "--no-new-keyring")] {
        if set {
            return Err(Error::Unsupported(flag.to_owned()));
        }
    }
    Ok(())
}

fn make(
    container: &mut Container,
    bundle: &Bundle,
    path: &CgroupPath,
    arguments: &Create,
    start: Start,
) -> Result<(Launched, Option<Hooks>)> {
    container.keep_spec(&bundle.text)?;
    let hierarchies = hierarchies()?;
    let resources = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let cgroup = Cgroup::create(&hierarchies, path, &resources.unwrap_or_default())?;
    let launch = Launch::compile(bundle, container, &hierarchies, &cgroup, arguments.handover.preserve_fds)?;
    let launched = match launch.start(container, arguments.handover.console_socket.as_deref()) {
        Ok(launched) => launched,
        Err(error) => {
            // The hooks that undo also run after a failure (OCI runtime specification, "Lifecycle").
            if let Some(plan) = launch.plan.hooks.as_ref().filter(|plan| plan.has(HookKind::Poststop)) {
                drop(hooks::run(plan, HookKind::Poststop, 0, None));
            }
            return Err(error);
        }
    };
    let waits = match start {
        Start::ByCommand => launch::hand_over(&launched.process, &container.folder),
        Start::ByThis { .. } => Ok(()),
    };
    let pid_file = arguments.handover.pid_file.as_deref();
    if let Err(error) = waits.and_then(|()| record_process(container, &launched, pid_file)) {
        launched.process.kill();
        return Err(error);
    }
    Ok((launched, launch.plan.hooks))
}

fn record_process(container: &mut Container, launched: &Launched, pid_file: Option<&Path>) -> Result<()> {
    container.record.pid = launched.process.pid;
    container.record.start_time = start_time(launched.process.pid).unwrap_or(0);
    container.write()?;
    match pid_file {
        Some(path) => write_pid(path, launched.process.pid),
        None => Ok(()),
    }
}

/// Writes a pid. A reader never sees a part of it.
pub(crate) fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = path.with_file_name(name);
    std::fs::write(&new, pid.to_string()).at("write", &new)?;
    std::fs::rename(&new, path).at("write", path)
}

/// Removes what a failed creation has left.
fn undo(global: &Global, container: &Container) {
    let released = container.cgroup().and_then(|cgroup| Ok(cgroup.release()?));
    for error in [released.err(), container.remove_folder().err()].into_iter().flatten() {
        log::warning(global, &error.to_string());
    }
}
