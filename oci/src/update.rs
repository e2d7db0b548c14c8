//! `update`: changes the limits of a container.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use crate::arguments::Update;
use crate::error::{At, Error, Result};
use crate::store::{Status, Store};

/// Runs the command.
pub(crate) fn run(store: &Store, arguments: &Update) -> Result<()> {
    let container = store.find(&arguments.id)?;
    if container.status()? == Status::Stopped {
        return Err(Error::NotRunning);
    }
    let mut resources = match &arguments.resources {
        Some(path) => read(path)?,
        None => of_flags(arguments),
    };
    // The rules for devices stay.
    resources.set_devices(None);
    drop(container.cgroup()?.update(&resources)?);
    Ok(())
}

fn read(path: &Path) -> Result<LinuxResources> {
    let mut text = Vec::new();
    match path == Path::new("-") {
        true => drop(std::io::stdin().read_to_end(&mut text).at("read", path)?),
        false => text = std::fs::read(path).at("read", path)?,
    }
    serde_json::from_slice(&text).at("read", path)
}

fn of_flags(arguments: &Update) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(arguments.memory)
        .set_reservation(arguments.memory_reservation)
        .set_swap(arguments.memory_swap);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(arguments.cpu_shares)
        .set_quota(arguments.cpu_quota)
        .set_period(arguments.cpu_period)
        .set_cpus(arguments.cpuset_cpus.clone())
        .set_mems(arguments.cpuset_mems.clone());
    let pids = arguments.pids_limit.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    });
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory)).set_cpu(Some(cpu)).set_pids(pids);
    resources
}
