//! The way of a further process in a running container.

use std::os::fd::{AsFd, BorrowedFd};

use super::process::{self, Streams};
use super::seccomp::{self, Filter};
use super::{At, Descriptors, Done, Gate};
use crate::path::Root;
use crate::plan::ExecPlan;
use crate::procfs::Proc;
use crate::sys::mount;
use crate::sys::process::{exit_now, join_namespaces_of, namespace};
use crate::sys::security;
use crate::wire::Step;
use crate::wire::transport::Report;

/// What a further process starts with. Its parent has put it into the container's process namespace.
#[derive(Debug)]
pub struct Start<'a> {
    /// What to do.
    pub plan: &'a ExecPlan,
    /// What the plan's slots mean.
    pub descriptors: Descriptors<'a>,
    /// The container's first process, whose namespaces are joined.
    pub init: BorrowedFd<'a>,
    /// Standard streams; with a terminal these are replaced by it.
    pub streams: Streams<'a>,
    /// To the keeper.
    pub gate: Gate,
}

/// Walks the plan. Ends by exec, or by telling the failure.
pub fn run(start: Start<'_>) -> ! {
    drop(security::set_dumpable(false));
    start.gate.enter(&start.plan.cgroup, start.descriptors);
    let Start { plan, descriptors, init, streams, gate } = start;
    let filter = match prepare(plan, descriptors, init, &streams, &gate) {
        Ok(filter) => filter,
        Err(failure) => gate.fail(failure),
    };
    let gate = match gate.keep_alone() {
        Ok(gate) => gate,
        Err(_) => exit_now(1),
    };
    gate.fail(process::become_program(&plan.process, filter, &gate))
}

fn prepare(
    plan: &ExecPlan,
    descriptors: Descriptors<'_>,
    init: BorrowedFd<'_>,
    streams: &Streams<'_>,
    gate: &Gate,
) -> Done<Option<Filter>> {
    let filter = seccomp::read(plan.process.seccomp.as_ref(), descriptors)?;
    let proc = Proc::mount().at(Step::PrivateMounts)?;
    let all = namespace::MOUNT | namespace::NET | namespace::IPC | namespace::UTS | namespace::CGROUP;
    match &plan.userns {
        Some(userns) => process::enter_user_namespace(&plan.process, userns, streams, &proc, || {
            join_namespaces_of(init, all | namespace::USER)
        })?,
        None => join_namespaces_of(init, all).at(Step::JoinNamespaces)?,
    }
    if plan.tty {
        let root = Root::new(mount::place("/").at(Step::Terminal)?);
        let (master, slave) = process::open_terminal(&root, &plan.process)?;
        gate.report(&Report::Ready, Some(master.as_fd()));
        let slave = slave.as_fd();
        process::set_streams(&Streams { stdin: slave, stdout: slave, stderr: slave }, true, &plan.process)?;
    } else {
        process::set_streams(streams, false, &plan.process)?;
    }
    match &plan.userns {
        Some(_) => process::set_labels(&plan.process, &proc)?,
        None => process::set_limits_and_labels(&plan.process, &proc)?,
    }
    process::set_credentials(&plan.process)?;
    process::change_to_cwd(&plan.process)?;
    Ok(filter)
}
